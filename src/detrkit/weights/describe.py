"""The model of a weights file: what the file states of it, checked against the requested options."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from detrkit.models.base import DetectionModel
from detrkit.models.pretrained import PUBLISHED
from detrkit.models.registry import ARCHITECTURES, Architecture, architecture, build_options
from detrkit.models.settings import constructor_defaults, full_options
from detrkit.models.spec import ModelSpec
from detrkit.structures.coco_classes import coco_classes
from detrkit.utils.errors import DetrkitError
from detrkit.weights.files import WeightsFile
from detrkit.weights.infer import InferredModel, infer_num_classes

log = logging.getLogger(__name__)

# options that may differ from the file's: they change neither names nor the meaning of the weights
_FREE = {
    *("num_classes", "padding", "dropout", "aux_loss", "train_backbone", "backbone_weights"),
    *("look_forward_twice", "k_one2many", "lambda_one2many", "num_select"),
    *("dn_number", "dn_label_noise_ratio", "dn_box_noise_scale"),
}


class Declaration(NamedTuple):
    """What a weights file states of its model: by its spec, its hash or the official code's arguments.

    Attributes:
        name: of the architecture.
        build: the model's class.
        options: arguments of the class that the file states: all of them, except in official files.
    """

    name: str
    build: type[DetectionModel]
    options: Mapping[str, Any]


def declaration(file: WeightsFile) -> Declaration | None:
    """Return what a weights file says of its model; None for official weights without arguments."""
    spec = _complete_spec(file)
    if spec is not None:
        arch = architecture(spec.name)
        return Declaration(arch.name, arch.build, full_options(arch.build, build_options(arch, spec.build_options)))
    if file.arguments is None or file.inferred is None:
        return None
    stated = {option: value for option, value in file.inferred.options.items() if option in file.arguments}
    return Declaration(file.inferred.name, file.inferred.build, stated)


def check(file: WeightsFile, arch: Architecture, options: Mapping[str, Any]) -> None:
    """Compare what a file says of its model with the model to be built.

    A DC5 model has the same parameters as a plain one, so that loading one as the other is silent and costs about
    20 AP; so are heads, norm order and the like.

    Args:
        file: of the weights.
        arch: the model to be built.
        options: all that differ from the defaults of its class.

    Raises:
        DetrkitError: they differ.
    """
    declared = declaration(file)
    if declared is None:
        return
    if declared.build is not arch.build:
        raise DetrkitError(f"{file.path}: weights of {declared.name}, not of {arch.name}")
    asked = full_options(arch.build, options)
    for option in sorted(set(declared.options) - _FREE - arch.build.free_options):
        # JSON has lists alone
        theirs, ours = (tuple(v) if isinstance(v, list) else v for v in (declared.options[option], asked[option]))
        if theirs != ours:
            raise DetrkitError(
                f"{file.path}: weights of {declared.name} with {option}={theirs!r}, but the model is {arch.name} with "
                f"{option}={ours!r}"
            )


def describe(
    file: WeightsFile,
    *,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
    dilation: bool | None = None,
) -> ModelSpec:
    """Return the description of a file's model: its own, or for official weights one that is inferred.

    Args:
        file: of the weights.
        name: of the architecture, for files that do not say it.
        options: what a file does not say, as `build_model` takes it.
        dilation: whether the model is a DC5 one, where neither the file nor `name` and `options` say it.

    Raises:
        DetrkitError: the file does not identify its model, or contradicts `name` or `options`.
    """
    asked = {} if options is None else options
    spec = _complete_spec(file)
    if spec is None:
        return _inferred_spec(file, name, asked, dilation)
    if name not in (None, spec.name):
        of = "weights of" if file.spec is not None else "these are the published weights of"
        raise DetrkitError(f"{file.path}: {of} {spec.name}, not of {name}")
    arch = architecture(spec.name)
    _check_asked(file, full_options(arch.build, build_options(arch, spec.build_options)), asked)
    return spec


def published_spec(name: str) -> ModelSpec:
    """Return the spec of published weights: of a model, or of a further file by the name of its row."""
    row = PUBLISHED.get(name)
    arch = architecture(name if row is None else row.model)
    return ModelSpec(
        arch.name,
        num_classes=arch.num_classes,
        classes=coco_classes(arch.num_classes),
        **input_rule(arch),
        training={} if row is None else {"published": row.file, "metrics": dict(row.published)},
    )


def input_rule(arch: Architecture) -> dict[str, Any]:
    """Return the fields of a `ModelSpec` that say how the input of an architecture is prepared."""
    rule: dict[str, Any] = {"size": arch.size, "max_size": arch.max_size, "square": arch.square}
    if arch.mean is not None and arch.std is not None:
        rule |= {"mean": arch.mean, "std": arch.std}
    return rule


def _complete_spec(file: WeightsFile) -> ModelSpec | None:
    """Return the spec that a file carries, or that its hash stands for; None for other official weights."""
    if file.spec is not None:
        return file.spec
    return None if file.published is None else published_spec(file.published)


def _inferred_spec(file: WeightsFile, name: str | None, asked: Mapping[str, Any], dilation: bool | None) -> ModelSpec:
    """Infer a spec from the tensors of a file, its arguments and the requested options.

    Raises:
        DetrkitError: they are not enough, or contradict each other.
    """
    if file.inferred is None:
        raise DetrkitError(f"{file.path}: the tensors are of none of the models {', '.join(ARCHITECTURES)}")
    _check_asked(file, file.inferred.options, asked)
    inferred = _with_dilation(file, replace(file.inferred, options={**file.inferred.options, **asked}), name, dilation)
    if name not in (None, inferred.name):
        raise DetrkitError(f"{file.path}: weights of {inferred.name}, not of {name} (dilation and backbone say so)")
    arch = architecture(inferred.name)
    defaults = constructor_defaults(inferred.build)
    if "nheads" in defaults and "nheads" not in inferred.options:
        log.warning("%s does not say nheads: taken as %d, as published", file.path, defaults["nheads"])
    classes = infer_num_classes(file.state, softmax=arch.activation == "softmax")
    return ModelSpec(
        arch.name,
        inferred.overrides,
        num_classes=arch.num_classes if classes is None else classes,
        classes=file.classes if file.classes is not None and len(file.classes) == classes else None,
        **input_rule(arch),
    )


def _with_dilation(
    file: WeightsFile, inferred: InferredModel, name: str | None, dilation: bool | None
) -> InferredModel:
    """Return the model with its dilation, which tensors do not show.

    Raises:
        DetrkitError: nothing says it.
    """
    if not inferred.needs_dilation:
        return inferred
    if name is None and dilation is None:
        raise DetrkitError(
            f"{file.path}: whether this is a DC5 model (dilation) does not show in its weights; say it once: "
            f"detrkit convert {file.path} {file.path.with_suffix('.safetensors').name} --dilation True or False"
        )
    dilated = dilation if name is None else architecture(name).options.get("dilation", False)
    return replace(inferred, options={**inferred.options, "dilation": dilated})


def _check_asked(file: WeightsFile, stated: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Check that the file does not contradict a requested option.

    Raises:
        DetrkitError: it does.
    """
    for option, value in asked.items():
        if option in stated and stated[option] != value:
            raise DetrkitError(
                f"{file.path}: the file says {option}={stated[option]!r}, not {option}={value!r}: leave it out"
            )
