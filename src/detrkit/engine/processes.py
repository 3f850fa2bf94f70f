"""The processes of a run: joining and leaving, and what they agree on in a step: divisors, losses, whether to stop."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from detrkit.console import console
from detrkit.models.criterion import Normalizers, SetCriterion
from detrkit.models.outputs import Target


def join_processes() -> tuple[int, int]:
    """Rank and number of processes; joins the group that torchrun describes in the environment."""
    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def leave_processes() -> None:
    """Leaves the group of processes, if there is one; to be called by each of them when all have done their work.

    A process that ends inside its group now and then aborts ("terminate called without an active exception",
    pytorch/pytorch#190489). One that failed does not leave: with NCCL it would wait for those who still compute.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


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
    objects, weight = sum(n.objects for n in own), sum(n.class_weight for n in own)
    if world > 1:
        sums = torch.tensor([objects, weight], device=device)
        dist.all_reduce(sums)
        objects, weight = (sums / world).tolist()
    # published: at least 1 a process; here at least 1 in all, so that an empty share changes nothing
    return Normalizers(objects=max(objects, 1.0 / world), class_weight=weight)


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGUSR1 (Slurm's warning) into a wish to stop after the step under way.

    A context manager; a second Ctrl-C stops at once. With several processes a wish counts when `spread` has told all.
    """

    def __init__(self, world: int) -> None:
        self._world = world
        self._asked = 0
        self._agreed = 0
        self._previous: dict[int, Any] = {}

    @property
    def number(self) -> int:
        """The signal to stop for, 0 for none."""
        return self._agreed if self._world > 1 else self._asked

    def spread(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """Means of scalars over the processes, in one transfer that also spreads the wish to stop."""
        stack = torch.stack([t.float() for t in terms.values()])
        if self._world == 1:
            return dict(zip(terms, stack.tolist(), strict=True))
        stack = torch.cat([stack, stack.new_tensor([float(self._asked > 0)])])
        dist.all_reduce(stack)
        *values, wishes = (stack / self._world).tolist()
        if wishes > 0:
            self._agreed = self._asked or signal.SIGINT
        return dict(zip(terms, values, strict=True))

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", None)):
            if number is not None:
                try:
                    self._previous[number] = signal.signal(number, self._ask)
                except ValueError:
                    break  # not the main thread: whoever runs us there handles signals
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if self._asked and number == int(signal.SIGINT):
            raise KeyboardInterrupt
        self._asked = number
        console.print("stopping after this step (Ctrl-C again: at once, without saving)")
