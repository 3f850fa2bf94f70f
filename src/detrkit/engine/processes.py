"""The processes of a run: joining, leaving, and agreement on the divisors and losses of a step and on stop signals."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from detrkit.engine.environment import check_gpus
from detrkit.engine.job import LAST_SECONDS, Job
from detrkit.engine.launching import join
from detrkit.models.criterion import Normalizers, SetCriterion
from detrkit.structures.outputs import Target
from detrkit.utils.launch import check_interface, check_port, launched
from detrkit.utils.signals import SignalWatch, Stopped

T = TypeVar("T")
BEFORE_FIRST_STEP = "before the first training step"
SECONDS_BETWEEN_LOOKS = 0.5  # at the store for signals of other processes: a look takes time in the first process


def join_processes(timeout: int | None = None) -> tuple[int, int]:
    """Join the processes that torchrun, srun or a user started, if any; return rank and number of processes.

    Args:
        timeout: seconds that a process waits for the others; None: 300 for them to join, 1800 later.

    Raises:
        SettingError: impossible environment variables.
        DetrkitError: a process did not join.
    """
    if not dist.is_available():
        return 0, 1
    launch = None if dist.is_initialized() else launched()
    if launch is not None and launch.world > 1:
        cuda = torch.cuda.is_available()
        if cuda:
            check_gpus(launch.local_world)
            torch.cuda.set_device(launch.local_rank)
        else:
            check_interface()
        if launch.by != "torchrun" and launch.rank == 0:  # torchrun listens itself
            check_port(launch.port)
        device = torch.device("cuda", launch.local_rank) if cuda else None
        join(launch.rank, launch.world, launch.address, launch.port, device=device, timeout=timeout)
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leave_processes() -> int:
    """Leave the process group, if there is one; each process must call it after its work.

    A process that ends inside its group now and then aborts ("terminate called without an active exception",
    pytorch/pytorch#190489). One that failed does not leave: with NCCL it would wait for those that still compute.

    Returns:
        The exit status of the processes that this one started.
    """
    job = Job.current
    if job is not None:
        job.close()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    return 0 if job is None else job.end_children(LAST_SECONDS)


def global_normalizers(
    criterion: SetCriterion, parts: Sequence[Sequence[Target]], queries: int, device: torch.device, world: int
) -> Normalizers:
    """Compute the divisors of a global batch as each process needs them when gradients are averaged over processes.

    Args:
        criterion: of the model.
        parts: targets of this process, one list per part of an accumulated batch.
        queries: of the model.
        device: of the tensors that the processes exchange.
        world: number of processes.
    """
    local = [criterion.normalizers(part, queries) for part in parts]
    objects, weight = sum(n.num_boxes for n in local), sum(n.class_weight for n in local)
    if world > 1:
        sums = torch.tensor([objects, weight], device=device)
        dist.all_reduce(sums)
        objects, weight = (sums / world).tolist()
    # published: at least 1 per process; here at least 1 in total, so that an empty share changes nothing
    return Normalizers(num_boxes=max(objects, 1.0 / world), class_weight=weight, empty=objects == 0)


class StopSignals(SignalWatch):
    """Graceful shutdown: the signals that stop a run, on which its processes agree.

    In training and evaluation a signal is only noted; a signal to one process takes effect when `all_reduce_mean`,
    `between` or `check` has passed it to all. At other times it ends the run at once, with `Stopped`.

    Args:
        world: number of processes.

    Attributes:
        during: what the run is doing, for the message; "" where that makes no difference.
        advice: function without arguments that returns what to do when another process has ended the run.
    """

    def __init__(self, world: int = 1) -> None:
        super().__init__()
        self.during = BEFORE_FIRST_STEP
        self.advice: Callable[[], str] = str
        self._world = world
        self._agreed = 0
        self._key = ""  # of the store, under which a process notes its signal
        self._told = 0
        self._looked = 0.0

    def join(self, world: int) -> None:
        """Set the number of processes; each process calls it once all have joined."""
        self._world = world
        if Job.current is not None:
            Job.current.advice = self.advice
        if world > 1:
            key: list[str] = [f"detrkit/stop/{secrets.token_hex(8)}"]
            dist.broadcast_object_list(key)
            self._key = key[0]

    @property
    def number(self) -> int:
        """Number of the signal to stop for, 0 for none."""
        return self._agreed if self._world > 1 else self.asked

    def all_reduce_mean(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Average scalars over the processes, in one all_reduce that also passes on a stop signal."""
        stack = torch.stack([t.float() for t in terms.values()])
        if self._world == 1:
            return dict(zip(terms, stack.tolist(), strict=True))
        stack = torch.cat([stack, stack.new_tensor([float(self.asked > 0)])])
        dist.all_reduce(stack)
        *values, wishes = (stack / self._world).tolist()
        if wishes > 0:
            self._agree()
        return dict(zip(terms, values, strict=True))

    def between(self, items: Iterable[T]) -> Iterator[T]:
        """Iterate until this process or, within a second or so, another one is asked to stop; then call `check`."""
        for item in items:
            if self._asked_anywhere():
                return
            yield item

    def check(self) -> None:
        """Stop all processes if one was asked to; each must call it at the same place.

        Raises:
            Stopped: one of them was asked to stop.
        """
        if self._world > 1:
            self._agree()
        if self.number:
            raise Stopped(self.number, agreed=True)

    def _agree(self) -> None:
        """Exchange the signals that came; all processes then act on the same one."""
        numbers: list[Any] = [0] * self._world
        dist.all_gather_object(numbers, self.asked or self._told)
        self._agreed = max(numbers)

    def _asked_anywhere(self) -> bool:
        """Return whether any process was asked to stop; no process waits for another.

        A process that is asked leaves a note in the rendezvous store.
        """
        if self._world == 1 or (self.asked and self._told):
            return bool(self.asked)
        store = dist.distributed_c10d._get_default_store()
        try:
            if self.asked:
                self._told = self.asked
                store.set(self._key, str(self.asked))
            elif not self._told and time.monotonic() - self._looked > SECONDS_BETWEEN_LOOKS:
                self._looked = time.monotonic()
                if store.check([self._key]):
                    self._told = int(store.get(self._key))
        except dist.DistError:  # torchrun, which hosts the store, is gone: it has asked every process
            if not self.asked:
                raise
        return bool(self._told)
