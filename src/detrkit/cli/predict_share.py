"""Processes that predict side by side: under torchrun or Slurm each takes its share of the images.

The first process checks the output folder, decides which images are left, and writes predictions.json when all are
done. The others wait for its plan; then no process waits for another until the end.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from detrkit.utils.errors import DetrkitError
from detrkit.utils.launch import several

_PLAN, _DONE = "detrkit/predict/plan", "detrkit/predict/done"  # keys of the store
_TICK_SECONDS = 0.2
LOST_SECONDS = 60.0  # without a sign of life, after which the first process waits for another one no longer


class Plan(NamedTuple):
    """Work of all processes.

    Attributes:
        start: which start of the prediction this is.
        todo: positions of the images that are left.
    """

    start: int
    todo: list[int]


class Share(NamedTuple):
    """Position of this process among those that predict.

    Attributes:
        rank: of the process.
        world: number of processes.
    """

    rank: int
    world: int

    @property
    def first(self) -> bool:
        """Whether this process writes predictions.json."""
        return self.rank == 0

    def of(self, files: Sequence[Path]) -> list[Path]:
        """Return this process's share; the images of a folder often grow, so that neighbors go to different ones."""
        return list(files[self.rank :: self.world])

    def send(self, plan: Plan, files: Sequence[Path]) -> None:
        """Send the plan to the other processes."""
        if self.world > 1:
            _store().set(_PLAN, json.dumps({"files": _digest(files), "start": plan.start, "todo": plan.todo}))

    def receive(self, files: Sequence[Path]) -> Plan:
        """Wait for the plan of the first process.

        Raises:
            DetrkitError: that process sees other images.
        """
        self._await([_PLAN])
        plan = json.loads(_store().get(_PLAN))
        if plan["files"] != _digest(files):
            raise DetrkitError(
                f"process {self.rank} of {self.world} finds other images than the first one: the folders must be the "
                "same on all machines"
            )
        return Plan(plan["start"], plan["todo"])

    def finish(self) -> None:
        """Tell the first process that this share is done."""
        _store().set(f"{_DONE}/{self.rank}", "1")

    def wait(self) -> None:
        """Wait until the other processes have done their shares, or one of them is lost."""
        if self.world > 1:
            from detrkit.engine.job import Job

            if Job.current is not None:
                Job.current.timeout = min(LOST_SECONDS, Job.current.timeout)
            self._await([f"{_DONE}/{rank}" for rank in range(1, self.world)])

    @staticmethod
    def _await(keys: list[str]) -> None:
        """Wait for keys of the store; a process that ends meanwhile ends this one, too (`Job`)."""
        store = _store()
        while not store.check(keys):
            time.sleep(_TICK_SECONDS)


def join_share() -> Share:
    """Join the processes that torchrun, srun or a user started, if any.

    Raises:
        DetrkitError: a process did not join, or impossible variables of the environment.
    """
    if not several():
        return Share(0, 1)
    from detrkit.engine.processes import join_processes

    return Share(*join_processes())


def _store() -> Any:
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_store()


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256("\0".join(map(str, files)).encode("utf-8", "surrogateescape")).hexdigest()
