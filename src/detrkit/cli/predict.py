"""`detrkit predict`."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from detrkit.cli.predict_files import PREDICTIONS, Results, find_images
from detrkit.console import Terminal
from detrkit.errors import DetrkitError
from detrkit.utils.lock import FolderLock
from detrkit.utils.names import full_path
from detrkit.utils.ranges import BatchSize, InputSize, Share
from detrkit.utils.signals import SignalWatch, Stopped
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from detrkit.detector import Detector
    from detrkit.results import Detections, PanopticResult

_LEFT_OUT_NAMED = 3
# no picture can be written after these
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Predict:
    """Find the objects in pictures; write them drawn, and as JSON.

    Every picture is written under its own name into OUT, with boxes, names and scores; predictions.json lists for every
    file the label, name, score and box (x0, y0, x1, y1 in pixels of the picture as one sees it), of models with masks
    also the segmentation (COCO's RLE). A panoptic model gives every pixel to a segment: these are drawn,
    predictions.json lists the id, label, name, score, area in pixels and kind of each, and OUT/panoptic has the ids of
    the pixels as PNGs (id = R + 256 G + 65536 B, 0 is void). Pictures of the same name are numbered. Nothing is written
    over a picture that was given, or over a file that detrkit did not write. A picture that cannot be read or written
    is reported and left out; the exit status is then 1.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Weights: a run directory, a .safetensors or official .pth file, or a model name such as detr-r50 (published)."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|GLOB")]
    """Pictures: files, folders (searched one level deep) and quoted patterns such as 'photos/**/*.jpg'."""
    out: Path = Path("predictions")
    """Folder to write into; it is made."""
    threshold: Share | None = None
    """Keep what has a greater score, 0 to 1; by default 0.5, of panoptic models 0.85 as published (Deformable DETR,
    whose scores are lower: 0.4). The DETR notebooks use 0.7 for objects."""
    size: InputSize | None = None
    """Short side in pixels to resize pictures to; by default the checkpoint's (800 for published weights)."""
    batch_size: BatchSize = 4
    """Pictures in one forward pass. Results do not depend on it."""
    device: str | None = None
    """Such as cpu, cuda or cuda:1; by default an accelerator if there is one."""
    model: str | None = None
    """Model name, for official .pth files that do not say what they are of."""

    def run(self) -> int:
        """Predicts, draws, writes and prints; 1 if a picture could not be read or written."""
        console, errors = Terminal(), Terminal(stderr=True)
        files, left_out = find_images(self.inputs)
        results = Results(full_path(self.out), files)
        results.check()
        if left_out:
            names = ", ".join(file.name for file in left_out[:_LEFT_OUT_NAMED])
            more = ", ..." if len(left_out) > _LEFT_OUT_NAMED else ""
            are = "1 file is no picture" if len(left_out) == 1 else f"{len(left_out)} files are no pictures"
            _say(errors, f"{are}: {names}{more}")

        from detrkit.detector import load

        detector = load(self.checkpoint, name=self.model, device=self.device)
        if self.size is not None:
            detector = detector.resized(self.size)
        results.check(maps=detector.panoptic)
        with FolderLock(results.out):  # or two at once would each find the other's files in the way
            return self._write(detector, results, console, errors)

    def _write(self, detector: Detector, results: Results, console: Console, errors: Console) -> int:
        """Predicts, writes and prints; the command's status.

        Raises:
            DetrkitError: nothing could be read, or nothing more can be written; what is done is kept.
        """
        results.begin()
        files = results.files
        objects: dict[str, list[dict[str, Any]]] = {}
        try:
            self._predict(detector, results, objects, errors)
        except KeyboardInterrupt:  # also of SIGTERM
            if objects:
                results.save()
                _say(errors, f"{len(objects)} of {len(files)} pictures are done: {self.out / PREDICTIONS}")
            raise
        except DetrkitError as error:
            if not objects:
                raise
            done = f"{len(objects)} of {len(files)} pictures are done"
            try:
                results.save()
            except DetrkitError as second:
                raise DetrkitError(f"{error}; {done}, but {second}") from error
            raise DetrkitError(f"{error}; {done}: {self.out / PREDICTIONS}") from error
        except Exception:
            with suppress(DetrkitError):
                results.save()
            raise
        finally:
            if not objects:
                with suppress(DetrkitError):
                    results.forget()
        if not objects:
            raise DetrkitError("no picture could be read and written, see above")
        results.save()
        _print(objects, console, panoptic=detector.panoptic)
        _say(console, f"{len(objects)} picture{'s' * (len(objects) != 1)} in {self.out}")
        _say(console, str(self.out / PREDICTIONS))
        return 0 if len(objects) == len(files) else 1

    def _predict(
        self, detector: Detector, results: Results, objects: dict[str, list[dict[str, Any]]], errors: Console
    ) -> None:
        """Fills `results`, and `objects` with what was found in every picture that was written.

        Raises:
            DetrkitError: nothing can be written any more.
            KeyboardInterrupt: a signal asked to stop.
        """
        from PIL import Image

        from detrkit.results import PanopticResult

        terminal = errors.is_terminal
        with SignalWatch() as watch, Progress(console=errors, transient=True, disable=not terminal) as progress:
            bar = progress.add_task("predicting", total=len(results.files))
            for file, result in predictions(detector, results.files, self.threshold, self.batch_size):
                if watch.asked:  # what the signal raised was lost inside torch or Pillow
                    raise Stopped(watch.asked)
                try:
                    if isinstance(result, DetrkitError):
                        raise result
                    found: Any = entries(result)
                    entry = found
                    results.picture(file, result.draw())
                    if isinstance(result, PanopticResult):
                        ids = results.id_map(file, Image.fromarray(result.to_coco()[0]))
                        entry = {"ids": ids, "segments": found}
                    objects[str(file)], results.entries[str(file)] = found, entry
                except (DetrkitError, MemoryError) as error:
                    if getattr(error.__cause__, "errno", None) in _FULL and not isinstance(result, DetrkitError):
                        raise
                    said = str(error) or "there is not enough memory to draw it"
                    _say(errors, said if str(file) in said else f"{file}: {said}", error=True)
                results.save(now=False)
                progress.advance(bar)


def predictions(
    detector: Detector, files: Sequence[Path], threshold: float | None, batch_size: int
) -> Iterator[tuple[Path, Detections | PanopticResult | DetrkitError]]:
    """What is found in each file, in order, or why nothing could be: a bad picture does not cost the others."""
    for start in range(0, len(files), batch_size):
        batch = files[start : start + batch_size]
        yield from zip(batch, _found(detector, batch, threshold), strict=True)


def _found(
    detector: Detector, files: Sequence[Path], threshold: float | None
) -> list[Detections | PanopticResult | DetrkitError]:
    """What is found in a batch; if it cannot be done together, in each picture alone."""
    try:
        return list(detector.stream(files, threshold=threshold, batch_size=len(files)))
    except DetrkitError as error:  # cannot be read, or too large for the model
        if len(files) == 1:
            return [error]
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        if len(files) == 1:
            return [DetrkitError(f"{files[0]}: too large for the memory of this machine: try a smaller --size")]
    return [found for file in files for found in _found(detector, [file], threshold)]


def entries(found: Detections | PanopticResult) -> list[dict[str, Any]]:
    """The detections or segments of one picture as plain values."""
    from detrkit.results import PanopticResult, encode_masks

    if isinstance(found, PanopticResult):
        return [
            {
                "id": segment.id,
                "label": segment.label,
                "name": name,
                "score": round(segment.score, 4),
                "area": segment.area,
                "kind": "thing" if segment.thing else "stuff",
            }
            for segment, name in zip(found.segments, found.names, strict=True)
        ]
    rows: list[dict[str, Any]] = [
        {"label": label, "name": name, "score": round(score, 4), "box": [round(v, 2) for v in box]}
        for label, name, score, box in zip(
            found.labels.tolist(), found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for row, rle in zip(rows, encode_masks(found.masks), strict=True):
            row["segmentation"] = rle
    return rows


def _say(console: Console, text: str, *, error: bool = False) -> None:
    """A line in which nothing is markup or acts on a terminal."""
    text = one_line(text)
    console.print(Text.assemble(("error", "red"), " ", text) if error else text, soft_wrap=True)


def _print(found: dict[str, list[dict[str, Any]]], console: Console, most: int = 20, *, panoptic: bool = False) -> None:
    """A table of the pictures; on a pipe all of them, on a terminal the first."""
    table = Table(title="Segments" if panoptic else "Detections", title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("segments" if panoptic else "objects", justify="right")
    table.add_column("what", overflow="fold")
    shown = list(found.items())[: most if sys.stdout.isatty() else None]
    for file, objects in shown:
        counts = Counter(o["name"] for o in objects)
        what = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.most_common())
        table.add_row(one_line(file), str(len(objects)), one_line(what))
    console.print(table)
    if len(shown) < len(found):
        console.print(f"... and {len(found) - len(shown)} more", highlight=False)
