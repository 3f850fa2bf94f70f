"""Weights files of any known kind, recognised without running code from them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit.classes import ClassList
from detrkit.coco_classes import COCO_NAMES
from detrkit.convert.huggingface_folder import WEIGHTS as HUGGINGFACE_FILES
from detrkit.convert.huggingface_folder import spec_of_folder
from detrkit.convert.official import WeightsError, bare_state_dict, plain_names
from detrkit.convert.paddle import PUBLISHED, SETTINGS, load_paddle
from detrkit.download import sha256
from detrkit.errors import DetrkitError
from detrkit.registry import published_file
from detrkit.utils.documents import parse_json, read_bytes
from detrkit.utils.names import expanded_path, relative_path

METADATA_KEY = "detrkit"  # of the spec, in a safetensors header and in an official file that detrkit wrote
STATE_FORMAT = "detrkit-training-state"
RUN_FILES = ("best.safetensors", "last.safetensors", "last.pt")


@dataclass(frozen=True)
class WeightsFile:
    """What a weights file holds.

    Attributes:
        path: where it was found.
        names: whose parameter names `state` has. (Those of PaddleDetection are official ones by then.)
        state: the tensors, on the CPU.
        spec: the `ModelSpec` as plain values, where the file carries one.
        published: name of the published model this file is, recognised by its SHA-256.
        arguments: arguments of the official `main.py`, which its training checkpoints carry.
        classes: of the labels, where they are known without a spec.
    """

    path: Path
    names: Literal["detrkit", "official", "huggingface"]
    state: Mapping[str, Any]
    spec: Mapping[str, Any] | None = None
    published: str | None = None
    arguments: Mapping[str, Any] | None = None
    classes: ClassList | None = None


def find_weights(path: str | Path) -> Path:
    """The weights file at a path: the file itself, that of a Hugging Face directory, or in a run directory the best
    one, else the last.

    Raises:
        DetrkitError: nothing there, a directory without weights, an empty file, or a web page.
    """
    path = expanded_path(path)
    if path.is_dir():
        for folder in (path, path / "checkpoints"):
            for name in RUN_FILES:
                if (folder / name).is_file():
                    return folder / name
        if (path / "config.json").is_file():
            for name in HUGGINGFACE_FILES:
                if (path / name).is_file():
                    return path / name
        raise DetrkitError(
            f"{path}: no weights in this directory, expected one of {', '.join(RUN_FILES)} (a run) or config.json with "
            f"{' or '.join(HUGGINGFACE_FILES[:2])} (Hugging Face)"
        )
    if not path.is_file():
        raise DetrkitError(f"{path}: no such weights file")
    with path.open("rb") as file:
        start = file.read(100)
    if not start.strip():
        raise DetrkitError(f"{path}: empty; get the file once more")
    # of a login, a licence or a file that was not found; "<" alone also begins safetensors files of some header sizes
    if re.match(rb"\s*<(!doctype|html|head|\?xml)", start, re.IGNORECASE):
        raise DetrkitError(f"{path}: a web page, not weights; get the file itself, by the address behind that page")
    return path


def read_weights(path: str | Path) -> WeightsFile:
    """Reads weights of any kind: a detrkit .safetensors file, training state or run directory, an official .pth file,
    a Hugging Face directory, or a .pdparams file of PaddleDetection.

    Raises:
        DetrkitError: missing, damaged or foreign file.
    """
    path = find_weights(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".pdparams":
        classes = ClassList.contiguous(COCO_NAMES) if path.name in PUBLISHED else None
        return WeightsFile(path, "official", load_paddle(path), arguments=SETTINGS, classes=classes)
    if path.name.endswith(".index.json"):
        return _read_huggingface(path, _read_shards(path))
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
        state = bare_state_dict(content)
    except WeightsError as error:
        raise DetrkitError(f"{path}: {error}") from error
    if path.name in HUGGINGFACE_FILES and path.with_name("config.json").is_file():
        return _read_huggingface(path, state)
    known = published_file(sha256(path))
    written = content.get(METADATA_KEY)
    arguments = content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    return WeightsFile(
        path,
        "official",
        content,
        spec=json.loads(written) if isinstance(written, str) else None,
        published=None if known is None else known.name,
        arguments=arguments if isinstance(arguments, Mapping) else None,
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
            found = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({found[1]})" if found else ""
            raise DetrkitError(
                f"{path}: holds more than tensors and plain values{what}, or is no PyTorch file; it was not loaded"
            ) from error
        raise DetrkitError(f"{path}: damaged, or not a PyTorch file") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DetrkitError(f"{path}: damaged, or not a PyTorch file") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header of a .safetensors file; for .bin files the header is empty.

    Raises:
        DetrkitError: missing, damaged, or another kind of file.
    """
    if path.suffix == ".bin":
        return bare_state_dict(load_pickle(find_weights(path))), {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return plain_names(tensors), file.metadata() or {}
    except WeightsError as error:
        raise DetrkitError(f"{path}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise DetrkitError(f"{path}: damaged, or not a safetensors file") from error


def _read_shards(path: Path) -> dict[str, Tensor]:
    """The tensors of a Hugging Face directory that are in several files, which an index lists.

    Raises:
        DetrkitError: no index; one that names something else than regular files in its folder; a file that is damaged.
    """
    content = parse_json(read_bytes(path), str(path))
    table = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(table, dict) or not table:
        raise DetrkitError(f"{path}: damaged, or not an index of weights: it has no weight_map")
    files: dict[str, Path] = {}
    for name, file in table.items():
        where = f"{path}: weight_map: {name[:80]}"
        if not isinstance(file, str):
            raise DetrkitError(f"{where}: the name of a file in this folder expected, not {json.dumps(file)[:80]}")
        if file not in files:
            files[file] = path.parent / relative_path(file, where, inside="the folder of the index", what="file")
            if not files[file].is_file():
                raise DetrkitError(f"{where}: {files[file]} is not there (or no regular file): get all of the weights")
    return {name: tensor for file in sorted(files) for name, tensor in read_tensors(files[file])[0].items()}


def _read_safetensors(path: Path) -> WeightsFile:
    """Raises: DetrkitError: damaged, or neither written by detrkit nor in a Hugging Face directory."""
    state, metadata = read_tensors(path)
    if METADATA_KEY in metadata:
        return WeightsFile(path, "detrkit", state, spec=json.loads(metadata[METADATA_KEY]))
    if path.with_name("config.json").is_file():
        return _read_huggingface(path, state)
    raise DetrkitError(
        f"{path}: not written by detrkit: its header has no entry {METADATA_KEY!r}; weights of Hugging Face need their "
        "config.json beside them"
    )


def _read_huggingface(path: Path, state: Mapping[str, Tensor]) -> WeightsFile:
    """Raises: DetrkitError: a configuration that detrkit does not have."""
    try:
        spec = spec_of_folder(path.parent, state)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise DetrkitError(f"{path.parent}: its configuration has a field of another type ({error})") from error
    return WeightsFile(path, "huggingface", state, spec=spec)
