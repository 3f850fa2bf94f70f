"""The training state: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
import torch
from pydantic import ConfigDict, Field, with_config
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs it below Python 3.12, and brings it

from detrkit.models.spec import ModelSpec
from detrkit.utils.atomic import atomic_file, check_exists
from detrkit.utils.errors import DetrkitError
from detrkit.utils.meta import on_meta
from detrkit.utils.schema import validated_as
from detrkit.weights.files import STATE_FORMAT
from detrkit.weights.official import check_fit
from detrkit.weights.pickles import load_pickle

_TENSORS = ConfigDict(arbitrary_types_allowed=True, extra="allow")
_MT19937 = 624  # words of the state of Python's and NumPy's generators

Counted = Annotated[int, Field(strict=True, ge=0, le=10**12)]
Amount = Annotated[float, Field(strict=True, ge=0)]


@dataclass
class Progress:
    """Progress of a run. When all steps of an epoch are done, its evaluation and its log line are still to come.

    Attributes:
        epoch: the current epoch, from 0.
        batch: steps done in it.
        step: steps done in all.
        best: the selection metric (PQ, the masks' AP or AP) of the best evaluation, -1 before the first.
        best_epoch: its epoch.
        figure: name of the selection metric.
        stale: number of evaluations since the best one.
        sums: sums of the logged terms over the steps of this epoch.
        seconds: time spent on the steps of this epoch.
        memory: peak memory of these steps so far, MiB.
        learned: with overfit: AP50 or PQ of the last evaluation, -1 before the first.
        length: steps that the learning-rate schedule takes, where fewer fit into the time than all epochs have.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    epoch: Counted = 0
    batch: Counted = 0
    step: Counted = 0
    best: Annotated[float, Field(strict=True, ge=-1, le=1)] = -1.0
    best_epoch: Annotated[int, Field(strict=True, ge=-1, le=10**9)] = -1
    figure: Annotated[str, Field(max_length=20)] = "AP"
    stale: Counted = 0
    sums: dict[str, Annotated[float, Field(strict=True)]] | None = None
    seconds: Amount = 0.0
    memory: Amount = 0.0
    learned: Annotated[float, Field(strict=True, allow_inf_nan=True)] = -1.0
    length: Counted | None = None


class _Parts(TypedDict):
    """Fingerprint of a split, see `fingerprint`."""

    images: Counted
    files: str
    sizes: str
    boxes: str
    labels: str


class _Data(TypedDict):
    train: NotRequired[_Parts | None]
    val: NotRequired[_Parts | None]


@with_config(_TENSORS)
class _Group(TypedDict):
    params: list[Counted]
    base_lr: Amount


@with_config(_TENSORS)
class _Optimizer(TypedDict):
    state: dict[Counted, dict[str, Tensor]]
    param_groups: list[_Group]


@with_config(_TENSORS)
class _Generators(TypedDict):
    """States of the random generators of one process; the generators check their states themselves."""

    torch: Tensor
    python: tuple[int, tuple[Counted, ...], float | None]
    numpy: tuple[
        Literal["MT19937"], Tensor, Annotated[int, Field(strict=True, ge=0, le=_MT19937)], Literal[0, 1], float
    ]
    cuda: NotRequired[Tensor]
    mps: NotRequired[Tensor]


@with_config(_TENSORS)
class TrainingState(TypedDict):
    """Content of last.pt; that of earlier versions has no data, and no seconds since the run began (elapsed)."""

    format: Literal["detrkit-training-state"]
    spec: Any  # `ModelSpec` checks it
    config: NotRequired[str]
    data: NotRequired[_Data | None]
    model: dict[str, Tensor]
    ema: NotRequired[dict[str, Tensor] | None]
    ema_updates: NotRequired[Counted]
    optimizer: _Optimizer
    generators: list[_Generators]
    world_size: Annotated[int, Field(strict=True, ge=1, le=10**6)]
    progress: Progress
    elapsed: NotRequired[Amount]


def rng_state() -> dict[str, Any]:
    """Return the state of every global generator of this process that training uses (dropout), as plain values."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    kind, keys, *rest = np.random.get_state()
    state["numpy"] = [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Set the state of every generator that `rng_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"].cpu())


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state so that a crash at any moment leaves the old file or the new one.

    Raises:
        WriteError: it cannot be written; the old file is as it was.
    """
    check_exists(path.parent)
    with atomic_file(path) as part, part.open("wb") as file:
        torch.save({"format": STATE_FORMAT, **state}, file)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state without running code from the file.

    Raises:
        DetrkitError: no such file, or not a training state of detrkit.
    """
    if not path.is_file():
        raise DetrkitError(f"{path}: no training state to resume from (a run has it after its first epoch)")
    try:
        state = load_pickle(path)
    except DetrkitError as error:
        raise DetrkitError(f"{error}; start a new run, from the weights of this one with --init-from") from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise DetrkitError(f"{path}: not a training state of detrkit (fine-tune from it with --init-from)")
    try:
        validated_as(TrainingState, state)
        if len(state["generators"]) != state["world_size"]:
            raise ValueError(
                f"generators are of {len(state['generators'])} processes, world_size is {state['world_size']}"
            )
        with on_meta():  # sizes are compared with those of the tensors before anything is allocated
            model = ModelSpec.from_json(state["spec"]).build()
        for weights in (state["model"], state.get("ema")):
            if weights is not None:
                check_fit(model.state_dict(), weights, model)
    except (DetrkitError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise DetrkitError(
            f"{path}: damaged ({reason}); start a new run, from the weights of this one with --init-from"
        ) from error
    return state
