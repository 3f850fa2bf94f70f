"""Weights files of any known kind, recognized without running code from them."""

from __future__ import annotations

import argparse
import json
import logging
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from detrkit.models.registry import published_file
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.sessions import exported_format
from detrkit.structures.classes import ClassList
from detrkit.structures.coco_classes import COCO_NAMES
from detrkit.utils.documents import parse_json, read_bytes, require_regular
from detrkit.utils.download import sha256
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import expanded_path, relative_path
from detrkit.weights.hub import download_checkpoint, hub_name
from detrkit.weights.huggingface_config import WEIGHTS as HUGGINGFACE_FILES
from detrkit.weights.huggingface_config import spec_of_folder
from detrkit.weights.infer import InferredModel, infer_model, model_arguments
from detrkit.weights.official import WeightsError, bare_state_dict, named_weights, plain_names
from detrkit.weights.paddle import PUBLISHED, SETTINGS, load_paddle
from detrkit.weights.pickles import load_pickle

log = logging.getLogger(__name__)

METADATA_KEY = "detrkit"  # key of the spec, in a safetensors header and in an official file that detrkit wrote
STATE_FORMAT = "detrkit-training-state"
RUN_FILES = ("best.safetensors", "last.safetensors", "last.pt")
OFFICIAL_FILE = "checkpoint.pth"  # the last checkpoint of the official main.py in its --output_dir
_HEAD_BYTES = 200


@dataclass(frozen=True)
class WeightsFile:
    """Contents of a weights file.

    Attributes:
        path: of the file.
        names: the code base whose parameter names `state` has. (PaddleDetection's are converted to official ones.)
        state: the tensors, on the CPU.
        spec: of the model, where the file carries it.
        published: name of the published model this file is, recognized by its SHA-256.
        arguments: arguments of the official `main.py`, which its training checkpoints carry.
        classes: of the labels, where they are known without a spec.
    """

    path: Path
    names: Literal["detrkit", "official", "huggingface"]
    state: Mapping[str, Any]
    spec: ModelSpec | None = None
    published: str | None = None
    arguments: Mapping[str, Any] | None = None
    classes: ClassList | None = None

    @cached_property
    def inferred(self) -> InferredModel | None:
        """The model as official tensors and arguments show it; None for tensors of something else.

        Raises:
            DetrkitError: arguments of a model that computes what detrkit's does not.
        """
        try:
            return infer_model(self.state, self.arguments)
        except WeightsError as error:
            raise DetrkitError(f"{self.path}: {error}") from error


def find_weights(path: str | Path) -> Path:
    """Return the weights file at a path, or of a repository on the Hugging Face Hub ("owner/name").

    That is the file itself, or of a directory that of a run (the best one, else the last), of Hugging Face or of the
    official code. What is not there as a path may be a name on the Hub (`hub_name`): it is downloaded once.

    Raises:
        DetrkitError: nothing there, a directory without weights, no regular file, or one that is empty, a web page or
            something else that was saved in the place of weights; or the Hub does not give it.
    """
    path = expanded_path(path)
    name = hub_name(path)
    path = _chosen(path if name is None else download_checkpoint(name))
    if exported_format(path) is not None:
        raise DetrkitError(
            f"{path}: an exported model, which is run but holds no weights for this: give the checkpoint that it was "
            "made of"
        )
    check_beginning(path)
    return path


def _chosen(path: Path) -> Path:
    """Choose the weights file of a directory.

    Raises:
        DetrkitError: a directory without weights.
    """
    if not path.is_dir():
        return path
    for folder in (path, path / "checkpoints"):
        for name in RUN_FILES:
            if (folder / name).is_file():
                return folder / name
    if (path / "config.json").is_file():
        for name in HUGGINGFACE_FILES:
            if (path / name).is_file():
                return path / name
    if (path / OFFICIAL_FILE).is_file():
        log.warning("%s: taken is %s, the official code's last checkpoint", path, OFFICIAL_FILE)
        return path / OFFICIAL_FILE
    raise DetrkitError(
        f"{path}: no weights in this directory, expected one of {', '.join(RUN_FILES)} (a run), config.json with "
        f"{' or '.join(HUGGINGFACE_FILES[:2])} (Hugging Face), or {OFFICIAL_FILE} (the official code)"
    )


def check_beginning(path: Path) -> None:
    """Check the first bytes of a weights file for what is often saved in its place.

    Raises:
        DetrkitError: missing, no regular file, empty, a pointer of Git LFS, a web page, JSON, or another suffix than
            the content has.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(_HEAD_BYTES)
            size = file.seek(0, 2)
    except FileNotFoundError as error:
        raise DetrkitError(f"{path}: no such weights file") from error
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be read ({error.strerror or error})") from error
    reason = None
    text = start.lstrip()
    if not text:
        reason = "empty; get the file once more"
    elif text.startswith(b"version https://git-lfs.github.com/"):
        reason = "is a Git LFS pointer, not the weights: run git lfs pull"
    # of a login, a license or a file that was not found; "<" alone also begins safetensors files of some header sizes
    elif re.match(rb"<(!doctype|html|head|\?xml)", text, re.IGNORECASE):
        reason = "a web page, not weights; get the file itself, by the address behind that page"
    elif text[:1] in b"{[" and b"\0" not in start[:8] and path.suffix != ".json":
        first = start.decode("utf-8", "replace").split("\n")[0]
        reason = f"JSON, not weights ({first[:80]!r}); get the file itself"
    elif path.suffix == ".safetensors" and start.startswith(b"PK\x03\x04"):
        reason = "a file of torch.save: call it .pth"
    elif path.suffix not in (".safetensors", ".json") and _begins_as_safetensors(start, size):
        reason = "a safetensors file: call it .safetensors"
    if reason is not None:
        raise DetrkitError(f"{path}: {reason}")


def _begins_as_safetensors(start: bytes, size: int) -> bool:
    """Return whether a file begins with the length of a JSON header and the header."""
    return len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= size - 8


def read_weights(path: str | Path) -> WeightsFile:
    """Read weights of any kind.

    That is a detrkit .safetensors file, training state or run directory, an official .pth file, a Hugging Face
    directory, or a .pdparams file of PaddleDetection.

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
        # averaged weights are the ones evaluated
        weights = content.get("ema") or content.get("model")
        return WeightsFile(path, "detrkit", _tensors(path, weights), spec=_own_spec(path, content.get("spec")))
    taken, _ = named_weights(content)
    state = _tensors(path, content)
    if taken.others:
        log.warning("%s: taken are the weights under %s, not those under %s", path, taken.name, ", ".join(taken.others))
    if path.name in HUGGINGFACE_FILES and path.with_name("config.json").is_file():
        return _read_huggingface(path, state)
    row = published_file(sha256(path))
    written = content.get(METADATA_KEY)
    return WeightsFile(
        path,
        "official",
        state,
        spec=None if written is None else _own_spec(path, written),
        published=None if row is None else row.name,
        arguments=_arguments(content.get("args")),
    )


def _tensors(path: Path, content: Any) -> dict[str, Tensor]:
    try:
        return bare_state_dict(content)
    except WeightsError as error:
        raise DetrkitError(f"{path}: {error}") from error


def _own_spec(path: Path, written: Any) -> ModelSpec:
    try:
        return ModelSpec.from_json(written)
    except DetrkitError as error:
        raise DetrkitError(f"{path}: {error}") from error


def _arguments(arguments: Any) -> dict[str, Any] | None:
    """Return the arguments of the official `main.py` that belong to the model and are plain values."""
    arguments = vars(arguments) if isinstance(arguments, argparse.Namespace) else arguments
    if not isinstance(arguments, Mapping):
        return None
    return model_arguments(arguments)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a .safetensors file; for .bin files the header is empty.

    Raises:
        DetrkitError: missing, damaged, or another kind of file.
    """
    check_beginning(path)
    if path.suffix == ".bin":
        return _tensors(path, load_pickle(path)), {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return plain_names(tensors), file.metadata() or {}
    except WeightsError as error:
        raise DetrkitError(f"{path}: {error}") from error
    except (SafetensorError, OSError) as error:
        raise DetrkitError(f"{path}: damaged, or not a safetensors file") from error


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a Hugging Face directory that are in several files, which an index lists.

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
    """Read a .safetensors file of detrkit, Hugging Face or official names.

    Raises:
        DetrkitError: damaged, or of none of the models that detrkit has.
    """
    state, metadata = read_tensors(path)
    if METADATA_KEY in metadata:
        return WeightsFile(path, "detrkit", state, spec=_own_spec(path, metadata[METADATA_KEY]))
    if path.with_name("config.json").is_file():
        return _read_huggingface(path, state)
    file = WeightsFile(path, "official", state)
    if file.inferred is not None:
        return file
    raise DetrkitError(
        f"{path}: not written by detrkit: its header has no entry {METADATA_KEY!r}, and its tensors have no official "
        "names; weights of Hugging Face need their config.json beside them"
    )


def _read_huggingface(path: Path, state: Mapping[str, Tensor]) -> WeightsFile:
    """Describe Hugging Face weights by the configuration beside them.

    Raises:
        DetrkitError: a configuration that detrkit does not have.
    """
    return WeightsFile(path, "huggingface", state, spec=spec_of_folder(path.parent, state))
