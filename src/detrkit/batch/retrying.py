"""Rows with errors predicted anew: those images alone, in a file that takes the place of the shard's in one step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from detrkit.batch.merging import read_report, shard_rows
from detrkit.batch.plan import Plan
from detrkit.batch.shard import ShardReport, ShardWork, Stamp, result_file
from detrkit.utils.errors import DetrkitError


def shard_errors(plan: Plan, out: Path, shards: Iterable[int]) -> dict[int, int]:
    """Return shard -> number of its images that have an error, for the shards that are done and have any.

    Args:
        plan: of the prediction.
        out: the folder.
        shards: their numbers.

    Raises:
        DetrkitError: a shard has no report, and its file was changed.
    """
    errors = {}
    for shard in shards:
        if result_file(plan, out, shard).exists() and (count := read_report(plan, out, shard).errors.total()):
            errors[shard] = count
    return errors


def retry_errors(work: ShardWork, shard: int, stamp: Stamp, *, check: Callable[[], None] | None = None) -> ShardReport:
    """Predict the images of a shard that have errors anew; all other rows stay as they are.

    Args:
        work: how a shard is predicted.
        shard: its number, from 0.
        stamp: of its file. A file that another worker has written since is kept.
        check: as of `ShardWork.predict`.

    Returns:
        What came of the images that were tried again; not of the whole shard.

    Raises:
        DetrkitError: as of `ShardWork.predict`, or the shard's file was changed.
    """
    tried = ShardReport()
    again = [
        entry
        for entry, keyed in zip(work.plan.entries(work.out, shard), shard_rows(work.plan, work.out, shard), strict=True)
        if keyed.row.get("error")
    ]

    def rows() -> Generator[dict[str, Any], None, None]:
        with closing(work.rows(again, check)) as predicted:
            for keyed in shard_rows(work.plan, work.out, shard):
                row = keyed.row
                if row.get("error"):
                    row = next(predicted, row)
                    if row["id"] != keyed.row["id"]:
                        raise DetrkitError(f"{work.file(shard)}: was changed while images were tried again")
                    tried.add_row(row)
                yield row

    before = read_report(work.plan, work.out, shard).seconds
    tried.seconds = work.write(shard, rows(), replaces=stamp, seconds=before).seconds - before
    return tried
