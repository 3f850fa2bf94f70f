"""A worker: takes one free shard after the other until all are done, by it or by others."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from detrkit.batch.leases import Leases
from detrkit.batch.plan import LEASES, WORK, shard_name
from detrkit.batch.retrying import retry_errors, shard_errors
from detrkit.batch.shard import ShardReport, ShardWork, Stamp
from detrkit.utils.errors import WriteError

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.2, 2.0  # seconds between two looks at the shards of others

OnShard = Callable[[int, ShardReport | None], None]


@dataclass(frozen=True)
class _Tasks:
    """What a worker does with each shard.

    Attributes:
        work: how a shard is predicted.
        stamps: of the files whose images with errors are predicted anew; a file that has another stamp was written by
            another worker since this one began, which has tried them again.
    """

    work: ShardWork
    stamps: dict[int, Stamp] = field(default_factory=dict)

    @classmethod
    def of(cls, work: ShardWork, shards: Sequence[int], *, retry: bool) -> _Tasks:
        """Return the tasks; with `retry`, shards that are done and have errors are among them."""
        stamps = {}
        for shard in shard_errors(work.plan, work.out, shards) if retry else ():
            stamp = work.stamp(shard)
            if stamp is not None:
                stamps[shard] = stamp
        return cls(work, stamps)

    def is_done(self, shard: int) -> bool:
        """Return whether nothing is left to do for a shard."""
        if shard not in self.stamps:
            return self.work.is_done(shard)
        stamp = self.work.stamp(shard)
        return stamp is not None and stamp != self.stamps[shard]

    def do(self, shard: int, check: Callable[[], None] | None) -> ShardReport | None:
        """Predict a shard, or its images with errors; None if another worker has."""
        if self.is_done(shard):
            return None
        if self.work.is_done(shard):
            return retry_errors(self.work, shard, self.stamps[shard], check=check)
        return self.work.predict(shard, check=check)


def work_through(
    work: ShardWork,
    shards: Sequence[int],
    *,
    lease_seconds: float = 60.0,
    machine: str | None = None,
    on_shard: OnShard | None = None,
    check: Callable[[], None] | None = None,
    retry_errors: bool = False,
) -> ShardReport:
    """Predict shards that are not done, and wait for those that others have.

    Args:
        work: how a shard is predicted.
        shards: their numbers.
        lease_seconds: after which the shard of a worker that gives no sign of life is taken over.
        machine: name of this machine, by default its own.
        on_shard: is called with the number of each shard that is done, and its report if this worker did it.
        check: is called between batches and while this worker waits; what it raises ends the work.
        retry_errors: of shards that are done at the start, predict the images with errors anew, once.

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
    tasks = _Tasks.of(work, shards, retry=retry_errors)
    try:
        while left:
            waiting = []
            for shard in left:
                report = None
                if not tasks.is_done(shard):
                    report = _do_leased(tasks, shard, leases, check)
                    if report is None and not tasks.is_done(shard):
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


def tidy(work: ShardWork, *, lease_seconds: float = 60.0) -> None:
    """Remove leases and unfinished files once all shards are done, unless a worker tries images again.

    What a slower worker still writes is not needed otherwise; its lease is stale or will be released by itself.
    """
    leases = Leases(work.out / LEASES, stale_seconds=lease_seconds)
    with suppress(OSError):
        if leases.in_use():
            return
    for name in (LEASES, WORK):
        with suppress(OSError):
            shutil.rmtree(work.out / name)


def _do_leased(tasks: _Tasks, shard: int, leases: Leases, check: Callable[[], None] | None) -> ShardReport | None:
    """Do what is left of a shard if its lease is free; return None if another worker has it, or has done it."""
    try:
        lease = leases.acquire(shard_name(shard))
        if lease is None:
            return None
        with lease:
            return tasks.do(shard, check)
    except WriteError as error:
        # another worker that found all done has removed leases and unfinished files: `tidy`
        removed = shard in tasks.stamps and isinstance(error.__cause__, FileNotFoundError)
        if tasks.is_done(shard) or removed:
            return None
        raise
