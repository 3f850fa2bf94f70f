"""What the shards come to: one file with the rows of all images in their order, and a summary."""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict  # pydantic needs it below Python 3.12, and brings it

from detrkit.batch.plan import MERGED, REPORTS, SUMMARY, Plan, shard_name
from detrkit.batch.results import json_line, read_rows, row_writer
from detrkit.batch.shard import ShardReport, result_file
from detrkit.utils.atomic import atomic_file, locked_temporary, write_atomic, write_errors
from detrkit.utils.documents import parse_json, read_bytes
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.schema import validated_as

_AT_ONCE = 100  # files that are merged at once, each with two handles

Key = tuple[int, int, str]  # source, position, id: the order of a manifest


class Keyed(NamedTuple):
    """A row with its place among those of all shards."""

    key: Key
    row: dict[str, Any]


class _Report(TypedDict):
    """A report as it is read: a file may hold anything."""

    images: int
    objects: int
    errors: dict[str, int]
    seconds: float
    machine: str


def missing_shards(plan: Plan, out: Path) -> list[int]:
    """Return the shards whose results are not there."""
    return [shard for shard in range(plan.shards) if not result_file(plan, out, shard).exists()]


def merged_file(plan: Plan, out: Path) -> Path:
    """Return the file of all rows."""
    return out / f"{MERGED}.{plan.rows}"


def merge(plan: Plan, out: Path) -> Path:
    """Write one file with the rows of all shards: in the order of the lists, and where none is given, of the ids.

    The rows are compared with the manifest on the way: each image has its row, once. Memory holds a row of each of a
    hundred shards.

    Args:
        plan: of the prediction.
        out: the folder.

    Returns:
        The file, merged.jsonl or merged.parquet.

    Raises:
        DetrkitError: a shard is missing, or its file has other rows than the manifest says.
        WriteError: the file cannot be written.
    """
    left = missing_shards(plan, out)
    if left:
        raise DetrkitError(
            f"{out}: {len(left)} of {plan.shards} shards are not done, such as {left[0]}: nothing to merge"
        )
    target = merged_file(plan, out)
    with write_errors(target), locked_temporary(out / MERGED, folder=True) as place:
        streams = [shard_rows(plan, out, shard) for shard in range(plan.shards)]
        level = 0
        while len(streams) > _AT_ONCE:
            groups = [streams[first : first + _AT_ONCE] for first in range(0, len(streams), _AT_ONCE)]
            files = [_spill(group, place / f"{level}-{number}") for number, group in enumerate(groups)]
            streams = [_spilled(file) for file in files]
            level += 1
        with atomic_file(target) as part, row_writer(part, plan.rows, target) as writer:
            for keyed in heapq.merge(*streams):
                writer.add(keyed.row)
    return target


def shard_rows(plan: Plan, out: Path, shard: int) -> Iterator[Keyed]:
    """Yield the rows of a shard, each compared with the manifest.

    Raises:
        DetrkitError: the file cannot be read or has other rows than the manifest says.
    """
    file = result_file(plan, out, shard)
    advice = "it was changed: remove it, and run the same command again"
    rows = read_rows(file, plan.rows)
    for number, entry in enumerate(plan.entries(out, shard), 1):
        row = next(rows, None)
        if row is None or row.get("id") != entry.id:
            raise DetrkitError(f"{file}, row {number}: is not that of {entry.id[:80]!r}: {advice}")
        yield Keyed(entry[:3], row)
    if next(rows, None) is not None:
        raise DetrkitError(f"{file}: has more rows than its shard has images: {advice}")


def _spill(streams: Iterable[Iterator[Keyed]], file: Path) -> Path:
    """Write merged rows with their keys to a temporary file."""
    with file.open("wb") as lines:
        for keyed in heapq.merge(*streams):
            lines.write(json_line({"key": keyed.key, "row": keyed.row}))
    return file


def _spilled(file: Path) -> Iterator[Keyed]:
    with file.open("rb") as lines:
        for line in lines:
            content = json.loads(line)
            source, at, name = content["key"]
            yield Keyed((source, at, name), content["row"])


class FolderSummary(NamedTuple):
    """What a prediction in shards has come to.

    Attributes:
        images: number of them, with those that have an error.
        objects: detections or segments in all of them.
        errors: kind of error -> number of images with it.
        shards: number of shards.
        seconds: that the workers took for all shards together.
        model: name and first digits of the weights' digest, as in every row.
        out: the folder.
        merged: the file with all rows, if it was asked for.
    """

    images: int
    objects: int
    errors: dict[str, int]
    shards: int
    seconds: float
    model: str
    out: Path
    merged: Path | None = None

    @property
    def images_per_second(self) -> float:
        """Images per second of one worker; 0 where no time is known."""
        return self.images / self.seconds if self.seconds else 0.0


def summarize(plan: Plan, out: Path, merged: Path | None = None) -> FolderSummary:
    """Add up the reports of all shards and write summary.json.

    Args:
        plan: of the prediction.
        out: the folder.
        merged: the file of all rows.

    Raises:
        DetrkitError: a shard is missing or its file was changed.
        WriteError: the summary cannot be written.
    """
    total = ShardReport(errors=Counter())
    for shard in range(plan.shards):
        total.add(read_report(plan, out, shard))
    summary = FolderSummary(
        total.images,
        total.objects,
        dict(sorted(total.errors.items())),
        plan.shards,
        total.seconds,
        plan.model,
        out,
        merged,
    )
    content = {
        "model": summary.model,
        "settings": plan.settings,
        "sources": [source.name for source in plan.sources],
        "images": summary.images,
        "objects": summary.objects,
        "images with errors": sum(summary.errors.values()),
        "errors": summary.errors,
        "shards": summary.shards,
        "seconds of work": round(summary.seconds, 3),
        "images per second of a worker": round(summary.images_per_second, 3),
    }
    write_atomic(out / SUMMARY, json.dumps(content, indent=1) + "\n")
    return summary


def read_report(plan: Plan, out: Path, shard: int) -> ShardReport:
    """Read the report of a shard; where its worker ended before it was written, count its rows.

    Args:
        plan: of the prediction.
        out: the folder.
        shard: its number, from 0.

    Raises:
        DetrkitError: it has no report, and its file was changed.
    """
    file = out / REPORTS / f"{shard_name(shard)}.json"
    if file.is_file():
        try:
            report: _Report = validated_as(_Report, parse_json(read_bytes(file), str(file)))
        except (SettingError, DetrkitError):
            pass
        else:
            if report["images"] == plan.counts[shard]:
                errors = Counter(report["errors"])
                return ShardReport(report["images"], report["objects"], errors, report["seconds"])
    counted = ShardReport()
    with ExitStack() as stack:
        rows = shard_rows(plan, out, shard)
        stack.callback(rows.close)  # type: ignore[attr-defined]
        for keyed in rows:
            counted.add_row(keyed.row)
    return counted
