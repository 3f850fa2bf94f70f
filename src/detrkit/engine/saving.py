"""last.pt: what of a trainer is saved, and how another one goes on from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from detrkit.engine.state import rng_state, set_rng_state
from detrkit.errors import DetrkitError
from detrkit.utils.visible import first_line

if TYPE_CHECKING:
    from detrkit.engine.trainer import Trainer


@dataclass
class Progress:
    """Where a run is. An epoch whose steps are all done is yet to be evaluated and logged.

    Attributes:
        epoch: the epoch under way, from 0.
        batch: steps done in it.
        step: steps done in all.
        best: the deciding figure (PQ, the masks' AP or AP) of the best evaluation, -1 before the first.
        best_epoch: its epoch.
        figure: the deciding figure's name.
        stale: evaluations since then.
        sums: sums of the logged terms over the steps of this epoch.
        seconds: time spent on the steps of this epoch.
        memory: the most memory they took so far, MiB.
        learned: with overfit: AP50 or PQ of the last evaluation, -1 before the first.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = -1
    figure: str = "AP"
    stale: int = 0
    sums: dict[str, float] | None = None
    seconds: float = 0.0
    memory: float = 0.0
    learned: float = -1.0


def training_state(trainer: Trainer) -> dict[str, Any] | None:
    """What last.pt holds: every process's generators, and once what they share; None but in the first process."""
    generators: list[Any] = [rng_state()]
    if trainer.world > 1:
        generators = [None] * trainer.world
        dist.all_gather_object(generators, rng_state())
    if not trainer.main:
        return None
    average = trainer.average
    return {
        "spec": trainer.spec.to_json(),
        "config": trainer.config.to_yaml(),
        "data": trainer.data,
        "model": trainer.model.state_dict(),
        "ema": None if average is None else average.module.state_dict(),
        "ema_updates": 0 if average is None else int(average.n_averaged),
        "optimizer": trainer.optimizer.state_dict(),
        "generators": generators,
        "world_size": trainer.world,
        "progress": vars(trainer.progress).copy(),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Gives a trainer the weights, optimizer, average, generators and place in the data of a state.

    Raises:
        DetrkitError: a state of another number of processes or of other settings.
    """
    path = trainer.folder / "last.pt"
    if state["world_size"] != trainer.world:
        raise DetrkitError(
            f"{path}: the run had {state['world_size']} process(es), now there are {trainer.world}: "
            "to go on exactly, start as many"
        )
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.average is not None:
            trainer.average.module.load_state_dict(state["ema"])
            trainer.average.n_averaged.fill_(state["ema_updates"])
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise DetrkitError(
            f"{path}: the state does not fit the model or the optimiser of this config "
            f"({first_line(error)}): resume with the run's own settings, or start anew with --init-from"
        ) from error
    set_rng_state(state["generators"][trainer.rank])
    trainer.progress = Progress(**state["progress"])
