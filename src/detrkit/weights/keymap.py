"""Names of parameters in the official repositories, by the rules of each model (`detrkit.models.official_names`)."""

from __future__ import annotations

from torch import nn

from detrkit.models.base import DetectionModel
from detrkit.models.official_names import Rule, segmentation_rules
from detrkit.models.registry import ARCHITECTURES, architecture_of

# dotted parts of a name after its prefix
PARTS: tuple[Rule, ...] = (
    ("self_attention", "self_attn"),
    ("cross_attention", "multihead_attn"),
    ("feed_forward.linear1", "linear1"),
    ("feed_forward.linear2", "linear2"),
)


def official_names(model: nn.Module) -> list[Rule]:
    """Return (official name, detrkit name) of every entry of the official state dict, in its order.

    Raises:
        TypeError: a module that has no official counterpart.
        DetrkitError: options that have none.
        KeyError: an entry of the model that no rule covers (the table is incomplete).
    """
    arch = architecture_of(model)
    if arch is None or arch.official is None:
        supported = ", ".join(dict.fromkeys(a.build.__name__ for a in ARCHITECTURES.values() if a.official is not None))
        raise TypeError(f"{type(model).__name__} has no official names: expected one of {supported}")
    state_names = list(model.state_dict())
    table = list(arch.official.rules(model))
    assert isinstance(model, DetectionModel)
    if (predictor := model.segmentation) is not None:
        table = [(ours, f"detr.{theirs}") for ours, theirs in table] + list(segmentation_rules(predictor))
    names = [
        (theirs + _renamed(name[len(ours) :]), name)
        for ours, theirs in table
        for name in state_names
        if name.startswith(ours)
    ]
    uncovered = sorted(set(state_names) - {ours for _, ours in names})
    if uncovered:
        raise KeyError(f"no rule gives the official name of {', '.join(uncovered)}")
    return names


def _renamed(rest: str) -> str:
    """Rename the parts of `PARTS` in a name after its prefix."""
    dotted = f".{rest}"
    for ours, theirs in PARTS:
        dotted = dotted.replace(f".{ours}.", f".{theirs}.")
    return dotted[1:]
