"""The processes of a run: joining and leaving, and what they agree on in a step: divisors, losses, whether to stop."""

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
SECONDS_BETWEEN_LOOKS = 0.5  # at what another process was asked: a look takes the first one's time


def join_processes(timeout: int | None = None) -> tuple[int, int]:
    """Rank and number of processes; joins those that torchrun, srun or a hand started, as the environment has it.

    Args:
        timeout: seconds that a process waits for the others; None: 300 for them to come, 1800 later.

    Raises:
        SettingError: an environment that cannot be.
        DetrkitError: a process did not come.
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
    """Leaves the group of processes, if there is one; to be called by each of them when all have done their work.

    A process that ends inside its group now and then aborts ("terminate called without an active exception",
    pytorch/pytorch#190489). One that failed does not leave: with NCCL it would wait for those who still compute.

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
    """Divisors of a whole global batch, as each process needs them when gradients are averaged over processes.

    Args:
        criterion: of the model.
        parts: targets of this process, one list per part of an accumulated batch.
        queries: of the model.
        device: where processes talk.
        world: number of processes.
    """
    own = [criterion.normalizers(part, queries) for part in parts]
    objects, weight = sum(n.num_boxes for n in own), sum(n.class_weight for n in own)
    if world > 1:
        sums = torch.tensor([objects, weight], device=device)
        dist.all_reduce(sums)
        objects, weight = (sums / world).tolist()
    # published: at least 1 a process; here at least 1 in all, so that an empty share changes nothing
    return Normalizers(num_boxes=max(objects, 1.0 / world), class_weight=weight)


class StopSignals(SignalWatch):
    """The signals that stop a run, and what its processes agree on about them.

    Between training steps and between the batches of an evaluation a signal is only noted, and a wish of one process
    counts when `spread`, `between` and `check` have told all. At other times it ends the run at once, with `Stopped`.

    Args:
        world: number of processes.

    Attributes:
        during: what the run is doing, for the message; "" where that makes no difference.
        advice: what to do when another process has ended the run; a function of no arguments.
    """

    def __init__(self, world: int = 1) -> None:
        super().__init__()
        self.during = BEFORE_FIRST_STEP
        self.advice: Callable[[], str] = str
        self._world = world
        self._agreed = 0
        self._key = ""  # under which processes tell each other
        self._told = 0
        self._looked = 0.0

    def join(self, world: int) -> None:
        """Says how many processes there are, in each of them when they have found each other."""
        self._world = world
        if Job.current is not None:
            Job.current.advice = self.advice
        if world > 1:
            key: list[str] = [f"detrkit/stop/{secrets.token_hex(8)}"]
            dist.broadcast_object_list(key)
            self._key = key[0]

    @property
    def number(self) -> int:
        """The signal to stop for, 0 for none."""
        return self._agreed if self._world > 1 else self.asked

    def spread(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Means of scalars over the processes, in one transfer that also spreads the wish to stop."""
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
        """Iterates until this process or, within a second or so, another one is asked to stop; then `check`."""
        for item in items:
            if self._asked_anywhere():
                return
            yield item

    def check(self) -> None:
        """To be called by all processes at the same place.

        Raises:
            Stopped: one of them was asked to stop.
        """
        if self._world > 1:
            self._agree()
        if self.number:
            raise Stopped(self.number, agreed=True)

    def _agree(self) -> None:
        """Exchanges the signals that came; the same one counts for all."""
        numbers: list[Any] = [0] * self._world
        dist.all_gather_object(numbers, self.asked or self._told)
        self._agreed = max(numbers)

    def _asked_anywhere(self) -> bool:
        """Whether any process was asked to stop; no process waits for another.

        A process that is asked leaves a note in the store through which they found each other.
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
        except dist.DistError:  # torchrun, which has the store, is gone: every process is asked by that
            if not self.asked:
                raise
        return bool(self._told)
