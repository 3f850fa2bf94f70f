"""A worker: takes one free shard after the other until all are done, by it or by others."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from detrkit.batch.leases import Leases
from detrkit.batch.plan import LEASES, WORK, shard_name
from detrkit.batch.shard import ShardReport, ShardWork
from detrkit.utils.errors import WriteError

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0  # seconds between two looks at the shards of others

OnShard = Callable[[int, ShardReport | None], None]


def work_through(
    work: ShardWork,
    shards: Sequence[int],
    *,
    lease_seconds: float = 60.0,
    machine: str | None = None,
    on_shard: OnShard | None = None,
    check: Callable[[], None] | None = None,
) -> ShardReport:
    """Predict shards that are not done, and wait for those that others have.

    Args:
        work: how a shard is predicted.
        shards: their numbers.
        lease_seconds: after which the shard of a worker that gives no sign of life is taken over.
        machine: name of this machine, by default its own.
        on_shard: is called with the number of each shard that is done, and its report if this worker did it.
        check: is called between batches and while this worker waits; what it raises ends the work.

    Returns:
        What this worker did.

    Raises:
        DetrkitError: as `ShardWork.predict`; what is done is kept, and the lease is released.
    """
    leases = Leases(work.out / LEASES, stale_seconds=lease_seconds, machine=machine)
    total, pause = ShardReport(), _SHORTEST_PAUSE
    # workers begin at different places, so that they seldom ask for the same lease
    start = random.SystemRandom().randrange(max(1, len(shards)))
    left = [*shards[start:], *shards[:start]]
    try:
        while left:
            waiting = []
            for shard in left:
                report = None
                if not work.is_done(shard):
                    report = _predict_leased(work, shard, leases, check)
                    if report is None and not work.is_done(shard):
                        waiting.append(shard)
                        continue
                if report is not None:
                    total.add(report)
                    pause = _SHORTEST_PAUSE
                if on_shard is not None:
                    on_shard(shard, report)
            left = waiting
            if left:
                if check is not None:
                    check()
                time.sleep(min(pause, lease_seconds / 2))
                pause = min(2 * pause, _LONGEST_PAUSE)
    finally:
        leases.close()
    return total


def tidy(work: ShardWork) -> None:
    """Remove leases and unfinished files once all shards are done; what a slower worker still writes is not needed."""
    for name in (LEASES, WORK):
        with suppress(OSError):
            shutil.rmtree(work.out / name)


def _predict_leased(
    work: ShardWork, shard: int, leases: Leases, check: Callable[[], None] | None
) -> ShardReport | None:
    """Predict a shard if its lease is free; return None if another worker has it, or has done it."""
    try:
        lease = leases.acquire(shard_name(shard))
        if lease is None:
            return None
        with lease:
            return None if work.is_done(shard) else work.predict(shard, check=check)
    except WriteError:
        if work.is_done(shard):  # by another worker, which has removed leases and unfinished files: `tidy`
            return None
        raise
