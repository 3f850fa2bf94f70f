"""`build_model`: a model by name, with the requested weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from detrkit.backbones.base import Padding
from detrkit.models.base import DetectionModel
from detrkit.models.pretrained import PUBLISHED
from detrkit.models.registry import architecture, build_options
from detrkit.utils.download import download
from detrkit.utils.errors import DetrkitError
from detrkit.weights.describe import check
from detrkit.weights.files import WeightsFile, find_weights, read_tensors, read_weights
from detrkit.weights.huggingface import from_huggingface
from detrkit.weights.keymap import official_names
from detrkit.weights.official import (
    COUNTER,
    WeightsError,
    bare_state_dict,
    check_fit,
    check_values,
    load_official,
    official_entries,
    plain_names,
)
from detrkit.weights.pickles import load_pickle

log = logging.getLogger(__name__)

# names of modules with a row for each class: heads, and DINO's table of noised labels
CLASS_HEAD = ("class_head.", "class_heads.", "label_embed.")


def build_model(
    name: str,
    *,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    padding: Padding = "exact",
    backbone_weights: str | Path | None = None,
    **overrides: Any,
) -> DetectionModel:
    """Build a model by name.

    Args:
        name: one of `list_models()`.
        num_classes: labels, counted as the official code does; by default those of the published weights (91, panoptic
            250). When it is given and the weights have another number, the class head starts anew (fine-tuning).
        weights: None for random ones, "published" for the published file (downloaded once, verified), or a path:
            an official .pth file, a detrkit .safetensors file, a training state, a run directory, a Hugging Face
            directory, or a .pdparams file of PaddleDetection.
        padding: "exact": an image's outputs do not depend on its batch; "official": as published, they do.
        backbone_weights: "imagenet" (ImageNet V1, where the published training starts from), or a path to a torchvision
            state dict. Not together with `weights`.
        overrides: official argument names: backbone, dilation, masks, num_queries, enc_layers, dec_layers, hidden_dim,
            nheads, dim_feedforward, dropout, pre_norm, position_embedding; and those of the model's class.

    Raises:
        ValueError: an unknown model, a value out of range, values that do not go together, a model larger than this
            machine's memory, or both kinds of weights.
        TypeError: an override the model does not take.
        DetrkitError: weights that are missing, damaged, of another model or do not fit.
    """
    arch = architecture(name)
    options = build_options(arch, overrides)
    if weights is not None and backbone_weights is not None:
        raise ValueError("give weights or backbone_weights: the weights of a whole model hold a backbone's")
    classes = arch.num_classes if num_classes is None else num_classes
    model = arch.model(num_classes=classes, padding=padding, options=options)
    if backbone_weights is not None:
        load_backbone(model, backbone_weights)
    if weights is not None:
        file = read_weights(published_weights(name) if weights == "published" else weights)
        check(file, arch, options)
        load_weights(model, file, new_class_head=num_classes is not None)
    return model


def published_weights(name: str) -> Path:
    """Return the path of published weights, downloaded at the first use.

    Args:
        name: of a model, or of a further published file (the name of its row).

    Raises:
        DetrkitError: none were published, or they cannot be obtained.
    """
    row = PUBLISHED.get(name) or architecture(name).row
    if row is None:
        raise DetrkitError(f"{name}: no published weights: give the path of a file")
    if row.url is None or row.sha256 is None:
        missing = "a fixed address" if row.url is None else "a hash to verify them"
        raise DetrkitError(
            f"{name}: its published weights are not downloaded, for want of {missing}; get {row.file} from {row.where} "
            "and give its path"
        )
    return download(row.url, sha256_prefix=row.sha256)


def load_weights(model: nn.Module, file: WeightsFile, *, new_class_head: bool = False) -> None:
    """Load a file's weights, strictly.

    Args:
        model: a detrkit model.
        file: of the same architecture.
        new_class_head: leave the class head as it is when the file's has another number of classes.

    Raises:
        WeightsError: the weights do not fit; the message lists what is missing, left over or of another shape.
    """
    model_state = model.state_dict()
    names, file_state = _translated(model, file)
    if new_class_head:
        for theirs, ours in names:
            tensor = model_state[ours]
            if ours.startswith(CLASS_HEAD) and theirs in file_state and file_state[theirs].shape != tensor.shape:
                rows = next(iter(file_state[theirs].shape), 0), len(tensor)
                log.warning("%s: %s starts anew: %d rows in the file, %d here", file.path.name, theirs, *rows)
                file_state[theirs] = tensor
    if file.names == "detrkit":
        check_fit(model_state, file_state, model)
        model.load_state_dict(file_state)
    else:
        load_official(model, file_state)


def check_weights(model: nn.Module, file: WeightsFile) -> None:
    """Compare a file's weights with the model that the file describes; nothing is loaded.

    Args:
        model: of the file's own description, on the meta device.
        file: of the weights.

    Raises:
        WeightsError: as `load_weights`.
    """
    model_state = model.state_dict()
    names, file_state = _translated(model, file)
    if file.names != "detrkit":
        model_state = {theirs: model_state[ours] for theirs, ours in names}
        file_state = {
            name: tensor for name, tensor in file_state.items() if name in model_state or not name.endswith(COUNTER)
        }
        file_state |= {
            name: tensor for name, tensor in model_state.items() if name.endswith(COUNTER) and name not in file_state
        }
    check_fit(model_state, file_state, model)


class Fit(NamedTuple):
    """The weights of a file that fit a model.

    Attributes:
        state: the tensors that fit, by the model's names.
        left_over: names, as the file's format has them, of those that the model lacks or has in another shape.
    """

    state: dict[str, Tensor]
    left_over: list[str]


def fitting_weights(model: nn.Module, file: WeightsFile) -> Fit:
    """Return the weights of a file that fit, for fine-tuning; missing or additional entries are no error.

    Args:
        model: as inferred from the file.
        file: weights, some of which may be missing or additional.

    Raises:
        WeightsError: less than half of the model's tensors are there, so these are weights of something else (the
            message lists what does not fit); or values are not finite.
    """
    model_state = model.state_dict()
    names, file_state = _translated(model, file)
    state = {
        ours: file_state[theirs]
        for theirs, ours in names
        if theirs in file_state and file_state[theirs].shape == model_state[ours].shape
    }
    if 2 * len(state) < len(model_state):
        check_fit({theirs: model_state[ours] for theirs, ours in names}, file_state, model)
    check_values(state)
    taken = {theirs for theirs, ours in names if ours in state}
    return Fit(state, [name for name in file_state if name not in taken and not name.endswith(COUNTER)])


def _translated(model: nn.Module, file: WeightsFile) -> tuple[list[tuple[str, str]], dict[str, Tensor]]:
    """Return (name in the file's format, model's name) of every entry, and the file's tensors by those names."""
    if file.names == "detrkit":
        return [(name, name) for name in model.state_dict()], plain_names(file.state)
    file_state = (
        from_huggingface(model, file.state) if file.names == "huggingface" else official_entries(model, file.state)
    )
    return official_names(model), file_state


def load_backbone(model: DetectionModel, weights: str | Path) -> None:
    """Load pretrained weights into a model's backbone.

    Args:
        model: a detrkit model.
        weights: "imagenet" for those that the backbone's library has (downloaded once), or a path to a state dict with
            that library's names (.pth or .safetensors).

    Raises:
        ValueError: a backbone whose norm has no running statistics, or that has no such weights.
        DetrkitError: missing, damaged or other weights.
    """
    backbone = model.backbone
    path = None if weights == "imagenet" else find_weights(weights)
    source, tensors = backbone.pretrained_weights(path, _backbone_tensors)
    model_state: dict[str, Tensor] = backbone.body.state_dict()
    file_state = {name: t for name, t in tensors.items() if name in model_state or not name.endswith(COUNTER)}
    for name, tensor in model_state.items():
        if name.endswith(COUNTER):
            file_state.setdefault(name, tensor)
    try:
        check_fit(model_state, file_state, backbone.name)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error
    backbone.body.load_state_dict(file_state)


def _backbone_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a backbone's file by their names.

    Raises:
        DetrkitError: a damaged file, or one without weights.
    """
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        return bare_state_dict(load_pickle(path))
    except WeightsError as error:
        raise DetrkitError(f"{path}: {error}") from error
