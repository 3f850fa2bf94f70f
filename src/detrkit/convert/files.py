"""Weights files of any known kind, recognised without running code from them."""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit.convert.official import WeightsError, bare_state_dict
from detrkit.download import sha256
from detrkit.errors import DetrkitError
from detrkit.registry import published_file

METADATA_KEY = "detrkit"  # of the spec, in a safetensors header and in an official file that detrkit wrote
STATE_FORMAT = "detrkit-training-state"
RUN_FILES = ("best.safetensors", "last.safetensors", "last.pt")


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        path: where it was found.
        names: whether `state` has detrkit's or official parameter names.
        state: the tensors, on the CPU.
        spec: the `ModelSpec` as plain values, where the file carries one.
        published: name of the published model this file is, recognised by its SHA-256.
        arguments: arguments of the official `main.py`, which its training checkpoints carry.
    """

    path: Path
    names: Literal["detrkit", "official"]
    state: Mapping[str, Any]
    spec: Mapping[str, Any] | None = None
    published: str | None = None
    arguments: Mapping[str, Any] | None = None


def find_weights(path: str | Path) -> Path:
    """The weights file at a path: the file itself, or in a run directory the best one, else the last.

    Raises:
        DetrkitError: nothing there, or a directory without weights.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        for folder in (path, path / "checkpoints"):
            for name in RUN_FILES:
                if (folder / name).is_file():
                    return folder / name
        raise DetrkitError(f"{path}: no weights in this directory, expected one of {', '.join(RUN_FILES)}")
    if not path.is_file():
        raise DetrkitError(f"{path}: no such weights file")
    return path


def read_weights(path: str | Path) -> WeightsFile:
    """Reads a detrkit .safetensors file or training state, an official .pth file, or a run directory.

    Raises:
        DetrkitError: missing, damaged or foreign file.
    """
    path = find_weights(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = load_pickle(path)
    if isinstance(content, Mapping) and content.get("format") == STATE_FORMAT:
        spec = content["spec"]
        return WeightsFile(
            path,
            "detrkit",
            content.get("ema") or content["model"],  # the averaged weights are what is evaluated
            spec=json.loads(spec) if isinstance(spec, str) else spec,
        )
    try:
        bare_state_dict(content)
    except WeightsError as error:
        raise DetrkitError(f"{path}: {error}") from error
    known = published_file(sha256(path))
    written = content.get(METADATA_KEY)
    arguments = content.get("args")
    return WeightsFile(
        path,
        "official",
        content,
        spec=json.loads(written) if isinstance(written, str) else None,
        published=None if known is None else known.name,
        arguments=vars(arguments) if isinstance(arguments, argparse.Namespace) else None,
    )


def load_pickle(path: Path) -> Any:
    """A file of `torch.save`, read without executing anything in it.

    Raises:
        DetrkitError: damaged, or with content other than tensors and plain values.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # official checkpoints hold their arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            raise DetrkitError(
                f"{path}: holds more than tensors and plain values, or is no PyTorch file; it was not loaded"
            ) from error
        raise DetrkitError(f"{path}: damaged, or not a PyTorch file") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DetrkitError(f"{path}: damaged, or not a PyTorch file") from error


def _read_safetensors(path: Path) -> WeightsFile:
    """Raises: DetrkitError: damaged, or not written by detrkit."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            state: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DetrkitError(f"{path}: damaged, or not a safetensors file") from error
    if METADATA_KEY not in metadata:
        raise DetrkitError(f"{path}: not written by detrkit: its header has no entry {METADATA_KEY!r}")
    return WeightsFile(path, "detrkit", state, spec=json.loads(metadata[METADATA_KEY]))
