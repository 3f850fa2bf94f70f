"""Self-describing checkpoints: weights together with the model, its classes and its input preparation."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from detrkit.models.base import DetectionModel
from detrkit.models.pretrained import PUBLISHED
from detrkit.models.registry import ARCHITECTURES, architecture, build_options
from detrkit.models.settings import full_options
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.model import load_exported
from detrkit.runtimes.sessions import exported_format
from detrkit.utils.atomic import atomic_file, new_file_mode
from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import new_directory
from detrkit.utils.meta import on_meta
from detrkit.utils.names import expanded_path
from detrkit.utils.visible import first_line
from detrkit.weights.build import check_weights, load_weights, published_weights
from detrkit.weights.describe import describe, published_spec
from detrkit.weights.files import METADATA_KEY, WeightsFile, read_weights
from detrkit.weights.huggingface import BackboneNames, to_huggingface
from detrkit.weights.huggingface_config import CONFIG, WEIGHTS, config_of
from detrkit.weights.huggingface_input import PREPROCESSOR, preprocessor_of
from detrkit.weights.official import plain_names, to_official

log = logging.getLogger(__name__)


def save_model(path: str | Path, model: nn.Module | Mapping[str, Tensor], spec: ModelSpec) -> Path:
    """Write weights and spec as .safetensors, atomically: a reader sees the old file or the new one.

    Args:
        path: the file; its folder is made.
        model: a detrkit model, or its state dict.
        spec: description of the model.

    Returns:
        The path.

    Raises:
        DetrkitError: the file cannot be written.
    """
    path = Path(path)
    state = plain_names(model.state_dict() if isinstance(model, nn.Module) else model)  # from a compiled model
    with atomic_file(path, in_folder=True) as part:  # safetensors makes its own temporary file beside the target
        save_file(_separate(state), part, metadata={"format": "pt", METADATA_KEY: spec.to_json()})
    return path


def save_official(path: str | Path, model: nn.Module, spec: ModelSpec) -> Path:
    """Write an official .pth file ({"model": ...} in official names) that also holds detrkit's spec.

    Args and errors: as `save_model`; and

    Raises:
        DetrkitError: a model without official names.
    """
    path = Path(path)
    try:
        state = to_official(model)
    except TypeError as error:
        raise DetrkitError(str(error)) from error
    with atomic_file(path) as part, part.open("wb") as file:
        torch.save({"model": state, METADATA_KEY: spec.to_json()}, file)
    return path


def save_huggingface(
    path: str | Path, model: nn.Module, spec: ModelSpec, *, backbone: BackboneNames | None = None
) -> Path:
    """Write a directory for transformers' `from_pretrained`: weights, config.json, preprocessor_config.json.

    Args:
        path: the directory, new or empty; it appears when it is complete.
        model: a DETR, with or without masks, or a Deformable DETR.
        spec: what the weights are of; class names become `id2label`.
        backbone: names of the ResNet's weights: "timm" as the published ones (loading them needs timm), or "resnet",
            transformers' own; by default "resnet", for DC5 "timm": transformers' ResNet has no DC5.

    Returns:
        The path.

    Raises:
        DetrkitError: a model that transformers does not have, or a directory that cannot be written.
    """
    path = Path(path)
    arch = architecture(spec.name)
    options = full_options(arch.build, build_options(arch, spec.build_options))
    names: BackboneNames = backbone or ("timm" if options.get("dilation") else "resnet")
    try:
        state = to_huggingface(model, backbone=names)
    except TypeError as error:
        raise DetrkitError(str(error)) from error
    config = config_of(spec, options, model, names)
    preprocessor = preprocessor_of(spec, kind=config["model_type"])
    if path.is_dir() and any(path.iterdir()):
        raise DetrkitError(f"{path}: there is something in this directory: name a new one")
    with new_directory(path, manifest=False) as part:
        save_file(state, part / WEIGHTS[0], metadata={"format": "pt"})
        (part / WEIGHTS[0]).chmod(new_file_mode())  # safetensors makes files that only their owner can read
        for file, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
            (part / file).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_model(
    path: str | Path, *, name: str | None = None, options: Mapping[str, Any] | None = None
) -> tuple[DetectionModel, ModelSpec]:
    """Read any weights file and build its model, on the CPU and in eval mode.

    Args:
        path: a detrkit .safetensors file, training state (averaged weights if it has them) or run directory; a
            Hugging Face directory; a .pdparams file of PaddleDetection; or an official .pth file. Of those the
            published are recognized by their hash, others by their tensors and arguments.
        name: the architecture, for files that do not state it; checked against those that do.
        options: what a file does not state, as `build_model` takes it: dilation (or give a `name`), nheads. Checked
            against files that do.

    Returns:
        The model and its spec.

    Raises:
        DetrkitError: missing, damaged or foreign file, an unknown architecture, or weights that do not fit.
    """
    if name is not None:
        architecture(name)
    file, empty, spec = read_model(path, name=name, options=options)
    try:
        check_weights(empty, file)
        model = spec.build()
        load_weights(model, file)
    except (DetrkitError, MemoryError) as error:
        raise DetrkitError(f"{file.path}: {error}") from error
    return model.eval(), spec


class ModelFile(NamedTuple):
    """A weights file with its model.

    Attributes:
        file: the weights.
        model: on the meta device, without values: sizes that the file states are compared with its tensors before
            anything of that size is allocated. It takes 0.03 s for a R50.
        spec: of the model.
    """

    file: WeightsFile
    model: DetectionModel
    spec: ModelSpec


def read_model(
    path: str | Path,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    dilation: bool | None = None,
) -> ModelFile:
    """Read a weights file and describe its model.

    Args: as `load_model`; and

        dilation: whether the model is a DC5 one, where neither the file nor `name` and `options` say it.

    Raises:
        DetrkitError: missing, damaged or foreign file, or one whose model cannot be inferred.
    """
    file = read_weights(path)
    try:
        spec = describe(file, name=name, options=options, dilation=dilation)
        with on_meta():
            return ModelFile(file, spec.build(), spec)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:  # sizes that no tensor can have
        raise DetrkitError(f"{file.path}: {first_line(error)}") from error


def load_any(name_or_path: str | Path, *, name: str | None = None) -> tuple[DetectionModel, ModelSpec]:
    """Load as `load_model`; a model name means its published weights, downloaded at the first use.

    A .onnx, .xml (OpenVINO) or .pt2 file of `detrkit export` is run by its runtime.

    Args and errors: as `load_model`; and

    Raises:
        DetrkitError: the runtime of an exported file is not installed, or a name is given that it does not have.
    """
    path, published_name = located(name_or_path)
    if exported_format(path) is not None:
        model, spec = load_exported(expanded_path(path))
        if name not in (None, spec.name):
            raise DetrkitError(f"{path}: an export of {spec.name}, not of {name}")
        return model, spec
    return load_model(path, name=published_name or name)


def located(name_or_path: str | Path) -> tuple[Path, str | None]:
    """Return the weights file, and the model's name if `name_or_path` is one (its published weights), else None.

    Raises:
        DetrkitError: no file, and no model of that name.
    """
    path = Path(name_or_path)
    name = str(name_or_path)
    if name in ARCHITECTURES or name in PUBLISHED:
        return published_weights(name), PUBLISHED[name].model if name in PUBLISHED else name
    if not path.exists() and path.suffix == "" and path.name == str(name_or_path):
        raise DetrkitError(f"{name_or_path}: neither a file nor a model; models are {', '.join(ARCHITECTURES)}")
    return path, None


def _separate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous CPU tensors that share no memory: safetensors refuses shared ones."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if storage in seen or tensor.untyped_storage().nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(storage)
        separate[name] = tensor
    return separate


__all__: Sequence[str] = (
    "ModelSpec",
    "load_any",
    "load_model",
    "published_spec",
    "save_huggingface",
    "save_model",
    "save_official",
)
