"""The training state: all that a run needs to go on as if it had never stopped."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detrkit.convert.files import STATE_FORMAT
from detrkit.errors import DetrkitError
from detrkit.utils.atomic import atomic_file, check_there
from detrkit.utils.visible import first_line


def rng_state() -> dict[str, Any]:
    """State of every global generator of this process that training draws from (dropout), as plain values."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    kind, keys, *rest = np.random.get_state()
    state["numpy"] = [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`."""
    torch.set_rng_state(state["torch"].cpu())
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a state so that a crash at any moment leaves the old file or the new one.

    Raises:
        WriteError: it cannot be written; the old file is as it was.
    """
    check_there(path.parent)
    with atomic_file(path) as part, part.open("wb") as file:
        torch.save({"format": STATE_FORMAT, **state}, file)


def load_state(path: Path) -> dict[str, Any]:
    """Reads a state without running code from the file.

    Raises:
        DetrkitError: no such file, or not a training state of detrkit.
    """
    if not path.is_file():
        raise DetrkitError(f"{path}: no training state to resume from (a run has it after its first epoch)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise DetrkitError(
            f"{path}: damaged or not a training state ({first_line(error)}); start a new run, from "
            "the weights of this one with --init-from"
        ) from error
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise DetrkitError(f"{path}: not a training state of detrkit (fine-tune from it with --init-from)")
    return state
