"""Checks of model options that must go together, before anything is built."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from torch import nn

from detrkit.backbones import check_backbone
from detrkit.backbones.base import WIDTH
from detrkit.config import ModelConfig
from detrkit.layers.norms import GROUPS, groups_divide
from detrkit.utils.errors import SettingError
from detrkit.utils.memory import check_memory
from detrkit.utils.ranges import as_field, check_arguments, multiples_near

_TYPES: tuple[tuple[Any, str], ...] = (
    (bool, "true or false"),
    (str, "text"),
    (Real, "a number"),
    ((tuple, list), "a list of numbers"),
)


def constructor_defaults(build: type[nn.Module]) -> Mapping[str, Any]:
    """Return the keyword arguments of a model's class and their defaults (`inspect.Parameter.empty` for none).

    `**options` in a constructor stands for the arguments of the base class.
    """
    defaults: dict[str, Any] = {}
    for kind in build.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = list(inspect.signature(vars(kind)["__init__"]).parameters.values())[1:]
        by_keyword = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        defaults = {p.name: p.default for p in by_keyword} | defaults
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return defaults


def full_options(build: type[nn.Module], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return all arguments of a model's class: the options, and the defaults of the others."""
    empty = inspect.Parameter.empty
    return {n: default for n, default in constructor_defaults(build).items() if default is not empty} | dict(options)


def check_options(build: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Check that a model can be built with these options; arguments that its class does not take are not looked at.

    Args:
        build: the model's class.
        options: its arguments; others have their defaults.

    Raises:
        SettingError: a number out of range, or two options that do not go together; names them.
    """
    _check_types(build, options)
    check_arguments(ModelConfig, options)
    full = full_options(build, options)

    def refuse(*names: str, reason: str) -> None:
        values = " and ".join(f"{name}={full[name]!r}" for name in names)
        raise SettingError(f"{values}: {reason}")

    width, heads = full.get("hidden_dim"), full.get("nheads")
    deformable = "num_feature_levels" in full
    if width is not None:
        if heads is not None and width % heads:
            refuse("hidden_dim", "nheads", reason=f"the heads share the width evenly: {multiples_near(width, heads)}")
        # the demo's is always learned
        encoding = full.get("position_embedding") or ("learned" if "position_entries" in full else None)
        divisor = {"learned": 2, "sine": 4}.get(encoding or "", 1)
        if width % divisor:
            reason = (
                f"a {encoding} position encoding needs a width that {divisor} divides: {multiples_near(width, divisor)}"
            )
            refuse("hidden_dim", reason=reason)
        if deformable and not groups_divide(width):
            refuse(
                "hidden_dim", reason=f"its group norm needs a width that 32 divides: {multiples_near(width, GROUPS)}"
            )
    _check_real_time(full, refuse)
    if full.get("mixed_selection") and not full.get("two_stage", True):
        reason = "the positions of the queries are those of proposals, so set both"
        refuse("mixed_selection", "two_stage", reason=reason)
    if full.get("look_forward_twice") and not full.get("with_box_refine", True):
        reason = "only layers that refine boxes hand them on, so set both"
        refuse("look_forward_twice", "with_box_refine", reason=reason)
    if "backbone" in full:
        check_backbone(
            full["backbone"],
            dilation=bool(full.get("dilation")),
            norm=full.get("backbone_norm", "frozen"),
            width=full.get("backbone_width", WIDTH),
        )
    if deformable and "backbone_stages" in full:
        stages = full["backbone_stages"]
        if not stages or list(stages) != sorted(set(stages)):
            refuse("backbone_stages", reason="give each stage once, in ascending order, such as 3 4 5")
        if options.get("backbone_stages") is not None and len(stages) > full["num_feature_levels"] > 1:
            reason = f"{len(stages)} stages are {len(stages)} levels: raise num_feature_levels or read fewer stages"
            refuse("backbone_stages", "num_feature_levels", reason=reason)


def _check_real_time(full: Mapping[str, Any], refuse: Callable[..., None]) -> None:
    """Check the options that RT-DETR alone has.

    Args:
        full: all options.
        refuse: raises the error; takes the names of options and the reason.
    """
    encoder_width = full.get("enc_hidden_dim")
    if encoder_width is not None:
        for divisor, reason in (
            (4, "its position encoding"),
            (full.get("nheads") or 1, "its attention, whose heads share the width,"),
        ):
            if encoder_width % divisor:
                refuse(
                    "enc_hidden_dim",
                    reason=f"{reason} needs a width that {divisor} divides: {multiples_near(encoder_width, divisor)}",
                )
        if int(encoder_width * full.get("enc_expansion", 1.0)) < 1:
            refuse("enc_hidden_dim", "enc_expansion", reason="the encoder's blocks need at least one channel")
    points = full.get("level_points")
    if points and len(points) != 3:
        refuse("level_points", reason="give a number for each of the 3 levels, the finest first")
    if full.get("eval_layers") is not None and full["eval_layers"] > full["dec_layers"]:
        refuse("eval_layers", "dec_layers", reason="the layers that predict are the first of these")


def _check_types(build: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Check that every option has the type of its default.

    Raises:
        SettingError: names the option; `check_arguments` checks the ranges of numbers.
    """
    defaults = constructor_defaults(build)
    for name, value in options.items():
        default = defaults.get(name)
        kinds, words = next(((kinds, words) for kinds, words in _TYPES if isinstance(default, kinds)), (object, ""))
        if words and not isinstance(value, kinds):
            raise SettingError(f"{as_field((name,), value)}: must be {words}")


def check_parameters(build: type[nn.Module], options: Mapping[str, Any], *, training: bool = False) -> None:
    """Check that the weights of a model fit into this machine's memory.

    Args:
        build: the model's class.
        options: its arguments, checked; others have their defaults.
        training: count gradients and AdamW's two moments too.

    Raises:
        SettingError: states how much they would take.
    """
    full = full_options(build, options)
    count = least_parameters(full)
    names = ("hidden_dim", "dim_feedforward", "enc_layers", "dec_layers", "num_queries", "backbone_width")
    chosen = ", ".join(f"{name}={full[name]}" for name in names if name in options)
    what = f"a model with {chosen or 'these options'} {'in training' if training else ''}".strip()
    check_memory(count * (16 if training else 4), what, fix="make the model smaller")


def least_parameters(options: Mapping[str, Any]) -> int:
    """Return a lower bound on a model's number of parameters: of the matrices whose sizes its options are."""
    width, hidden = options.get("hidden_dim", 0), options.get("dim_feedforward", 0)
    layer = 2 * width * width + 2 * width * hidden  # two of an attention's four matrices, and the feed-forward network
    encoder, decoder = options.get("enc_layers", 0), options.get("dec_layers", 0)
    layers = encoder * layer + decoder * (layer + 4 * width * width)
    stem = options.get("backbone_width", WIDTH if "backbone" in options else 0)
    rows = sum(options.get(name, 0) for name in ("num_queries", "num_queries_one2many", "num_classes"))
    return layers + rows * width + 200 * stem * stem  # stage 4 of resnet10: 216
