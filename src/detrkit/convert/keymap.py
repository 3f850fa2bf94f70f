"""Rule tables between detrkit's parameter names and those of the official repositories."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from detrkit.models.demo import DETRdemo
from detrkit.models.detr import DETR


@dataclass(frozen=True)
class KeyMap:
    """How the names of one model family translate, both ways.

    A name is a prefix and a rest. The prefix is looked up in `prefixes`; in the rest, whole dotted parts are replaced
    as `parts` says. Both tables hold (detrkit, official) pairs.

    Attributes:
        prefixes: one pair per module, in the order in which the official state dict lists them.
        parts: pairs of dotted names inside a module.
    """

    prefixes: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...] = ()

    def to_official(self, name: str) -> str | None:
        """The official name of a detrkit parameter, or None where no rule covers it."""
        for ours, theirs in self.prefixes:
            if name.startswith(ours):
                rest = name[len(ours) :]
                for a, b in self.parts:
                    rest = f".{rest}".replace(f".{a}.", f".{b}.")[1:]
                return theirs + rest
        return None

    def to_detrkit(self, name: str) -> str | None:
        """The detrkit name of an official parameter, or None where no rule covers it."""
        for ours, theirs in self.prefixes:
            if name.startswith(theirs):
                rest = name[len(theirs) :]
                for a, b in self.parts:
                    rest = f".{rest}".replace(f".{b}.", f".{a}.")[1:]
                return ours + rest
        return None

    def ordered(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A detrkit state dict under official names, in official order.

        Raises:
            KeyError: an entry that no rule covers (the table is incomplete).
        """
        rows: list[tuple[int, str, Tensor]] = []
        for name, tensor in state.items():
            rank = next((i for i, (ours, _) in enumerate(self.prefixes) if name.startswith(ours)), None)
            official = self.to_official(name)
            if rank is None or official is None:
                raise KeyError(f"no rule gives the official name of {name}")
            rows.append((rank, official, tensor))
        rows.sort(key=lambda row: row[0])  # stable: inside a module both code bases have the same order
        return {name: tensor for _, name, tensor in rows}


TRANSFORMER_PARTS = (
    ("self_attention", "self_attn"),
    ("cross_attention", "multihead_attn"),
    ("feed_forward.linear1", "linear1"),
    ("feed_forward.linear2", "linear2"),
)

DETR_KEYS = KeyMap(
    prefixes=(
        ("encoder.", "transformer.encoder."),
        ("decoder.", "transformer.decoder."),
        ("class_head.", "class_embed."),
        ("box_head.", "bbox_embed."),
        ("queries.", "query_embed."),
        ("input_projection.", "input_proj."),
        ("backbone.body.", "backbone.0.body."),
        ("position_encoding.", "backbone.1."),
    ),
    parts=TRANSFORMER_PARTS,
)

# the notebook's `DETRdemo`
DEMO_KEYS = KeyMap(
    prefixes=(
        ("queries", "query_pos"),
        ("row_embed", "row_embed"),
        ("col_embed", "col_embed"),
        ("backbone.body.", "backbone."),
        ("input_projection.", "conv."),
        ("encoder.", "transformer.encoder."),
        ("decoder.", "transformer.decoder."),
        ("class_head.", "linear_class."),
        ("box_head.", "linear_bbox."),
    ),
    parts=TRANSFORMER_PARTS,
)

KEY_MAPS: dict[type[nn.Module], KeyMap] = {DETR: DETR_KEYS, DETRdemo: DEMO_KEYS}


def key_map(model: nn.Module) -> KeyMap:
    """The rules for a model's class.

    Raises:
        TypeError: a module that has no official counterpart.
    """
    for kind, keys in KEY_MAPS.items():
        if isinstance(model, kind):
            return keys
    known = ", ".join(kind.__name__ for kind in KEY_MAPS)
    raise TypeError(f"{type(model).__name__} has no official names: expected one of {known}")
