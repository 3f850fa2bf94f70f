"""Inference of the architecture from parameter names, shapes and arguments saved beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detrkit.models.base import DetectionModel
from detrkit.models.registry import ARCHITECTURES
from detrkit.models.rtdetr_names import RTDETR_HEAD
from detrkit.models.settings import constructor_defaults
from detrkit.weights.official import CLASS_HEADS, WeightsError

_OFFICIAL_NAMES = ("transformer.", "linear_class.", RTDETR_HEAD)  # in every official model, and in no other code's
# arguments of the official main.py that are the model's; its others are of training and data
OFFICIAL_ARGUMENTS = (
    *("backbone", "dilation", "masks", "pre_norm", "position_embedding", "num_queries", "hidden_dim", "nheads"),
    *("dim_feedforward", "enc_layers", "dec_layers", "dropout"),
    *("num_feature_levels", "with_box_refine", "two_stage", "enc_n_points", "dec_n_points"),
    *("mixed_selection", "look_forward_twice", "num_queries_one2many", "k_one2many", "lambda_one2many"),
    *("num_select", "dn_number", "dn_label_noise_ratio", "dn_box_noise_scale"),
)
_RENAMED = {"num_queries_one2one": "num_queries"}  # of the official code to ours


@dataclass(frozen=True)
class InferredModel:
    """Known properties of a model.

    Attributes:
        build: its class.
        options: the known arguments of the class.
    """

    build: type[DetectionModel]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Name of the architecture that has the most of the options; the others are overrides of it."""
        variants = [arch for arch in ARCHITECTURES.values() if arch.build is self.build]
        fitting = [arch for arch in variants if arch.options.items() <= self.options.items()]
        return max(fitting or variants[:1], key=lambda arch: len(arch.options)).name

    @property
    def overrides(self) -> dict[str, Any]:
        """Options in which the model differs from the architecture of its name."""
        defaults = {**constructor_defaults(self.build), **ARCHITECTURES[self.name].options}
        return {
            option: value
            for option, value in self.options.items()
            if option not in defaults or value != defaults[option]
        }

    @property
    def needs_dilation(self) -> bool:
        """True if dilation is unknown: a DC5 model and a plain one have the same tensors."""
        return "dilation" in constructor_defaults(self.build) and "dilation" not in self.options


def model_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of an official `main.py` that are of the model and plain values, by our names."""
    fixed = {name for arch in ARCHITECTURES.values() if arch.official is not None for name in arch.official.fixed}
    names = {**{name: name for name in (*OFFICIAL_ARGUMENTS, *sorted(fixed))}, **_RENAMED}
    plain = (bool, int, float, str)
    return {ours: arguments[theirs] for theirs, ours in names.items() if isinstance(arguments.get(theirs), plain)}


def infer_model(state: Mapping[str, Tensor], arguments: Mapping[str, Any] | None = None) -> InferredModel | None:
    """Infer a model from its official weights.

    Args:
        state: tensors by official name.
        arguments: of the official `main.py` (`model_arguments`), which take precedence over the tensors.

    Returns:
        The model; None for tensors of something else. Dilation cannot be inferred from tensors, and the number of
        heads only from those of models with masks.

    Raises:
        WeightsError: arguments of a model that computes what detrkit's does not.
    """
    state = {name: tensor for name, tensor in state.items() if tensor.ndim}  # counters have no size
    masks = any(name.startswith("detr.") for name in state)  # the official DETRsegm holds the detector as `detr`
    inner = {name.removeprefix("detr."): tensor for name, tensor in state.items()}
    if not any(name.startswith(_OFFICIAL_NAMES) for name in inner):
        return None  # Hugging Face's Deformable DETR has the same heads
    # the latest first: a model of another package may have all tensors of the one that it builds on
    official = {arch.build: arch.official for arch in ARCHITECTURES.values() if arch.official is not None}
    for build, names in reversed(official.items()):
        width = next((inner[n].shape[axis] for n, axis in names.signature if n in inner and inner[n].ndim > axis), None)
        if width is None or names.infer is None:
            continue
        stated = {} if arguments is None else arguments
        options = names.infer(inner, width, masks, stated)
        if options is None:
            continue
        other = next((name for name, value in names.fixed.items() if stated.get(name, value) != value), None)
        if other is not None:
            raise WeightsError(
                f"trained with {other}={stated[other]!r}: detrkit's {build.__name__} has {names.fixed[other]!r}"
            )
        options |= {option: stated[option] for option in OFFICIAL_ARGUMENTS if option in stated}
        # Deformable DETR's main.py also has arguments of DETR that its model does not take
        allowed = constructor_defaults(build)
        return InferredModel(build, {option: value for option, value in options.items() if option in allowed})
    return None


def infer_num_classes(state: Mapping[str, Tensor], *, softmax: bool) -> int | None:
    """Return the number of labels of the class head, without "no object"; None without a class head."""
    rows = next((len(state[head]) for head in CLASS_HEADS if head in state and state[head].ndim), None)
    return None if rows is None else rows - softmax
