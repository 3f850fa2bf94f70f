"""One shard: its images are predicted in their order, and its file of results appears when it has all of them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from detrkit.batch.leases import this_machine
from detrkit.batch.plan import REPORTS, RESULTS, SUMMARY, WORK, Entry, Plan, shard_name
from detrkit.batch.reading import Problem, problem_of, read_entries
from detrkit.batch.results import row_writer
from detrkit.batch.sources import Source
from detrkit.detector import Detector
from detrkit.structures.panoptic import PanopticResult, Prediction
from detrkit.structures.rle import encode_masks
from detrkit.structures.rows import detection_rows, segment_rows
from detrkit.utils.atomic import atomic_file, make_folder, write_atomic, write_errors
from detrkit.utils.errors import DetrkitError
from detrkit.utils.memory import is_out_of_memory
from detrkit.utils.prefetch import Prefetcher

_WAITING_BYTES = 2**27  # of decoded images that wait for the model


class Stamp(NamedTuple):
    """What changes when a file is replaced.

    Attributes:
        size: in bytes.
        changed: time of change in ns, by the clock of the file's folder.
    """

    size: int
    changed: int


@dataclass
class ShardReport:
    """What came of a shard, or of several.

    Attributes:
        images: number of them, with those that have a problem.
        objects: detections or segments.
        errors: kind of problem -> number of images with it.
        seconds: that workers took for them; 0 where it is not known.
    """

    images: int = 0
    objects: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add_row(self, row: dict[str, Any]) -> None:
        """Count a row."""
        self.images += 1
        self.objects += len(row.get("detections") or ()) + len(row.get("segments") or ())
        if row.get("error"):
            self.errors[str(row["error"].get("kind"))] += 1

    def add(self, other: ShardReport) -> None:
        """Add what came of another shard."""
        self.images += other.images
        self.objects += other.objects
        self.errors += other.errors
        self.seconds += other.seconds


@dataclass(frozen=True)
class ShardWork:
    """All that is needed to predict any shard of a plan.

    Attributes:
        detector: that predicts.
        plan: of the prediction.
        sources: of the plan's images.
        out: the output folder.
        threshold: as of `Detector.predict`.
        batch_size: images in one forward pass.
        masks: write the masks of models that have them.
    """

    detector: Detector
    plan: Plan
    sources: Sequence[Source]
    out: Path
    threshold: float | str | None = None
    batch_size: int = 8
    masks: bool = True

    def file(self, shard: int) -> Path:
        """Return the file of a shard's results."""
        return result_file(self.plan, self.out, shard)

    def is_done(self, shard: int) -> bool:
        """Return whether a shard's results are there."""
        return self.file(shard).exists()

    def stamp(self, shard: int) -> Stamp | None:
        """Return what changes when the file of a shard is replaced; None if it is not there.

        Raises:
            DetrkitError: the file cannot be opened.
        """
        return stamp_of(self.file(shard))

    def predict(self, shard: int, *, check: Callable[[], None] | None = None) -> ShardReport:
        """Predict a shard and write its file, whole or not at all.

        The file is written in a folder of this machine first: on a file system whose locks other machines do not see,
        they could not tell an unfinished file from one that was left behind.

        Args:
            shard: its number, from 0.
            check: is called between batches; what it raises ends the work.

        Raises:
            DetrkitError: a source is gone, or the manifest was changed.
            WriteError: the results cannot be written.
        """
        rows = self.rows(self.plan.entries(self.out, shard), check)
        return self.write(shard, rows, replaces=None)

    def write(
        self, shard: int, rows: Generator[dict[str, Any]], *, replaces: Stamp | None, seconds: float = 0.0
    ) -> ShardReport:
        """Write the file of a shard and then its report; keep what another worker has written meanwhile.

        Args:
            shard: its number, from 0.
            rows: of all its images, in their order.
            replaces: stamp of the file whose place it takes; None if there was no file.
            seconds: that workers have taken for the shard before.

        Returns:
            What came of it, also where another worker's file was kept.

        Raises:
            DetrkitError: as `predict`.
        """
        began, report, target = time.perf_counter(), ShardReport(), self.file(shard)
        report_file = self.out / REPORTS / f"{shard_name(shard)}.json"
        place = make_folder(self.out / WORK / _machine_folder())
        part_of = place / target.name
        with closing(rows), atomic_file(part_of) as part, row_writer(part, self.plan.rows, target) as writer:
            for row in rows:
                writer.add(row)
                report.add_row(row)
        make_folder(target.parent)
        report.seconds = seconds + time.perf_counter() - began
        with write_errors(target):
            if self.stamp(shard) != replaces:  # a worker that was suspended must not undo what others did meanwhile
                part_of.unlink(missing_ok=True)
                return report
            if replaces is not None:  # a kill must leave neither counts nor a summary of the rows before
                report_file.unlink(missing_ok=True)
                (self.out / SUMMARY).unlink(missing_ok=True)
            os.replace(part_of, target)
            if replaces is not None:  # which another worker may have written since
                (self.out / SUMMARY).unlink(missing_ok=True)
        content = {**vars(report), "machine": this_machine().partition("/")[0]}
        write_atomic(report_file, json.dumps(content) + "\n", durable=False)
        return report

    def rows(
        self, entries: Iterable[Entry], check: Callable[[], None] | None = None
    ) -> Generator[dict[str, Any], None, None]:
        """Yield the row of each image; the next images are decoded while the model works.

        Args:
            entries: the images.
            check: as of `predict`.

        Raises:
            DetrkitError: as `predict`.
        """
        with Prefetcher() as prefetcher:
            images = prefetcher.prefetch(
                read_entries(entries, self.sources),
                max_items=2 * self.batch_size,
                weight=lambda pair: 0 if isinstance(pair[1], Problem) else 4 * pair[1].width * pair[1].height,
                max_weight=_WAITING_BYTES,
                abandoned=True,
            )
            while batch := list(islice(images, self.batch_size)):
                if check is not None:
                    check()
                yield from self._batch_rows(batch)

    def _batch_rows(self, batch: Sequence[tuple[Entry, Image.Image | Problem]]) -> Iterator[dict[str, Any]]:
        good = [image for _, image in batch if not isinstance(image, Problem)]
        results = iter(self._predict(good))
        for entry, image in batch:
            result = image if isinstance(image, Problem) else next(results)
            size = (None, None) if isinstance(image, Problem) else image.size
            row: dict[str, Any] = {"id": entry.id, "width": size[0], "height": size[1]}
            yield {**row, **self._found(result), "model": self.plan.model}

    def _predict(self, images: Sequence[Image.Image]) -> list[Prediction | Problem]:
        """Predict a batch, or each image alone where the batch does not fit."""
        if not images:
            return []
        try:
            return list(self.detector.stream(images, threshold=self.threshold, batch_size=len(images)))
        except (DetrkitError, MemoryError, RuntimeError) as error:
            if not isinstance(error, DetrkitError) and not is_out_of_memory(error):
                raise
            if len(images) == 1:
                return [problem_of(error)]
        return [result for image in images for result in self._predict([image])]

    def _found(self, result: Prediction | Problem) -> dict[str, Any]:
        """Return what was found in an image, and the error."""
        name = "segments" if self.detector.panoptic else "detections"
        if isinstance(result, Problem):
            return {name: [], "error": {"kind": result.kind, "message": result.message}}
        if isinstance(result, PanopticResult):
            rows = segment_rows(result)
            if self.masks:
                for row, segment in zip(rows, result.segments, strict=True):
                    (row["segmentation"],) = encode_masks(result.id_map[None] == segment.id)
            return {name: rows, "error": None}
        return {name: detection_rows(result, masks=self.masks), "error": None}


def result_file(plan: Plan, out: Path, shard: int) -> Path:
    """Return the file of a shard's results."""
    return out / RESULTS / f"{shard_name(shard)}.{plan.rows}"


def stamp_of(file: Path) -> Stamp | None:
    """Return what changes when a file is replaced; None if it is not there.

    Raises:
        DetrkitError: the file cannot be opened.
    """
    try:
        handle = os.open(file, os.O_RDONLY)  # NFS asks the server for the attributes of a file that is opened
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DetrkitError(f"{file}: cannot be read ({error.strerror or error})") from error
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    return Stamp(status.st_size, status.st_mtime_ns)


def _machine_folder() -> str:
    """Return a name for this machine's folder of unfinished files."""
    return hashlib.sha256(this_machine().encode("utf-8", "surrogateescape")).hexdigest()[:16]
