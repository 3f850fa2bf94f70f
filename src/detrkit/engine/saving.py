"""last.pt: the state of a trainer, saved and restored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from detrkit.engine.state import Progress, rng_state, set_rng_state
from detrkit.models.matcher import NonFiniteError
from detrkit.utils.documents import shown
from detrkit.utils.errors import DetrkitError
from detrkit.utils.visible import first_line
from detrkit.weights.official import WeightsError, check_fit, check_values

if TYPE_CHECKING:
    from detrkit.engine.trainer import Trainer


def training_state(trainer: Trainer) -> dict[str, Any] | None:
    """Return the content of last.pt: every process's generators, and the shared state; None except in rank 0."""
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
        "elapsed": trainer.pace.gone,
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Restore weights, optimizer, average, generators and position in the data of a trainer from a state.

    Raises:
        DetrkitError: a state of another number of processes or of other settings.
    """
    path = trainer.folder / "last.pt"
    if state["world_size"] != trainer.world:
        raise DetrkitError(
            f"{path}: the run had {state['world_size']} process(es), now there are {trainer.world}: "
            "to go on exactly, start as many"
        )
    progress = Progress(**state["progress"])
    if progress.batch > trainer.steps_per_epoch:
        raise DetrkitError(
            f"{path}: progress.batch is {progress.batch}, an epoch of this run has {trainer.steps_per_epoch} steps: "
            "damaged; start anew with --init-from"
        )
    try:
        check_fit(trainer.model.state_dict(), state["model"], trainer.model)
        trainer.model.load_state_dict(state["model"])
        _check_moments(state["optimizer"], trainer.optimizer)
        trainer.optimizer.load_state_dict(state["optimizer"])
        if trainer.average is not None:
            if state.get("ema") is None:
                raise WeightsError("it has no moving average of the weights (ema)")
            check_fit(trainer.average.module.state_dict(), state["ema"], trainer.model)
            trainer.average.module.load_state_dict(state["ema"])
            trainer.average.n_averaged.fill_(state["ema_updates"])
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError) as error:
        raise DetrkitError(
            f"{path}: the state does not fit the model or the optimizer of this config "
            f"({_reason(error)}): resume with the run's own settings, or start anew with --init-from"
        ) from error
    try:
        set_rng_state(state["generators"][trainer.rank])
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise DetrkitError(
            f"{path}: the state of a random generator is damaged ({first_line(error)}); start anew with --init-from"
        ) from error
    trainer.progress = progress


def _check_moments(saved: dict[str, Any], optimizer: Optimizer) -> None:
    """Check the saved state of an optimizer, which torch does not check before the next step.

    Raises:
        WeightsError: a moment of another shape than its parameter, values that are not finite, or a setting of another
            type than that of this optimizer.
    """
    names: dict[int, Tensor] = {}
    moments = {}
    for group, current in zip(saved["param_groups"], optimizer.param_groups, strict=False):
        names |= dict(zip(group["params"], current["params"], strict=False))
        for key, value in group.items():
            if key in current and key != "params" and value != current[key] and key != "lr":
                raise WeightsError(f"its optimizer has {key}={shown(value)}, this one {key}={current[key]}")
    for index, values in saved["state"].items():
        if index not in names:
            raise WeightsError(f"its optimizer has a parameter {index} more than this one")
        for key, tensor in values.items():
            if not isinstance(tensor, Tensor) or (tensor.ndim and tensor.shape != names[index].shape):
                raise WeightsError(f"{shown(key)} of parameter {index} is not of the parameter's shape")
            moments[f"{key} of parameter {index}"] = tensor
    check_values(moments)


def _reason(error: Exception) -> str:
    """Shorten an error to its first line; a `WeightsError` to its first two."""
    lines = str(error).strip().splitlines()
    return " ".join(line.strip() for line in lines[:2]) if isinstance(error, WeightsError) else first_line(error)


def divergence(error: NonFiniteError, progress: Progress, folder: Path) -> DetrkitError:
    """Return the error for a loss that is not finite: where it happened, and what is still good.

    Args:
        error: of the step.
        progress: before the step.
        folder: of the run.
    """
    last = folder / "last.pt"
    state = f"the last good state is {last}" if last.exists() else "no state had been saved yet"
    return DetrkitError(
        f"{error.what} is not finite at step {progress.step + 1} (epoch {progress.epoch + 1}), "
        f"images {', '.join(map(str, error.images))}: {state}; lower the learning rate, or look at these images with "
        "`detrkit data check`"
    )
