"""Conversion of official weights into detrkit models, and back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from detrkit.models.official_names import HYBRID_QUERIES, blocks, depth
from detrkit.models.registry import architecture_of
from detrkit.models.rtdetr_names import RTDETR_HEAD
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import shortened
from detrkit.weights.keymap import official_names

COUNTER = "num_batches_tracked"  # of an ordinary batch norm; frozen norms have none, and no output depends on it
CLASS_HEADS = (
    *("class_embed.weight", "linear_class.weight", "detr.class_embed.weight", "class_embed.0.weight"),
    f"{RTDETR_HEAD}0.weight",
)
# parts of names that identify Deformable DETR's variants
TWO_STAGES = "transformer.enc_output."
VARIANTS = (("transformer.decoder.bbox_embed.", "with_box_refine"), (TWO_STAGES, "two_stage"))
DINO_TABLE = "transformer.tgt_embed.weight"  # of contents, which no other model has
# Keys under which programs save weights; of several the first is taken: the weights as trained, not averaged. Of
# RT-DETR the averaged ones are: its published figures are theirs.
WEIGHTS_KEYS = ("model", "state_dict", "net", "module", "params", "ema", "model_ema", "ema_model")
_KEYS_DEPTH = 3


class WeightsError(DetrkitError, RuntimeError):
    """Error for weights that do not fit the model; also a RuntimeError, as `Module.load_state_dict` raises."""


class Taken(NamedTuple):
    """Key of the weights taken from a file.

    Attributes:
        name: the key, such as "ema.module"; "" for a bare state dict.
        others: keys of the other weights that are in the file.
    """

    name: str
    others: list[str]


def named_weights(content: Any) -> tuple[Taken, Mapping[str, Tensor] | None]:
    """Find the weights in the content of a file: a state dict, or one under one of the usual keys.

    Returns:
        Their key, and the tensors; None where there are none.
    """
    states = dict(_state_dicts(content, "", depth=0))
    if not states:
        return Taken("", []), None
    name = next(iter(states))
    if any(key.removeprefix("module.").startswith(RTDETR_HEAD) for key in states[name]):
        name = next((other for other in states if other.startswith("ema")), name)
    return Taken(name, [other for other in states if other != name]), states[name]


def _state_dicts(content: Any, name: str, *, depth: int) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Yield the state dicts under the usual keys, in the order of the keys, also nested ({"ema": {"module": ...}})."""
    if not isinstance(content, Mapping) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield name, content
    elif depth < _KEYS_DEPTH:
        for key in WEIGHTS_KEYS:
            yield from _state_dicts(content.get(key), f"{name}.{key}".strip("."), depth=depth + 1)


def bare_state_dict(content: Any) -> dict[str, Tensor]:
    """Return the tensors by official name.

    They come from a file's whole content (weights under "model" or another usual key) or from a bare state dict.
    Prefixes that wrappers add to the names are removed (`plain_names`).

    Raises:
        WeightsError: something that is neither, or a name that is there wrapped and plain.
    """
    _, found = named_weights(content)
    if found is None:
        raise WeightsError(
            "no weights found: expected a state dict, or a file's content with one under "
            f"{', '.join(map(repr, WEIGHTS_KEYS[:-1]))} or {WEIGHTS_KEYS[-1]!r}"
        )
    return plain_names(found)


def plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove from the names of a state dict what wrappers add, in any order.

    That is "module." in front of all of them (DistributedDataParallel), and the part "_orig_mod." anywhere
    (torch.compile, also of a submodule).

    Raises:
        WeightsError: two entries have the same name then.
    """
    names = {name: name.replace("_orig_mod.", "") for name in state}
    while names and all(plain.startswith("module.") for plain in names.values()):
        names = {name: plain.removeprefix("module.") for name, plain in names.items()}
    if len(set(names.values())) < len(names):
        twice = next(plain for name, plain in names.items() if plain != name and plain in state)
        raise WeightsError(f"{twice} is there twice, wrapped by torch.compile and plain: keep one of the two")
    return {names[name]: tensor for name, tensor in state.items()}


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Load official weights, strictly: exactly the entries of the model, with their shapes.

    Values are converted to the model's dtype and device (the published demo is float16).

    Args:
        model: a detrkit model.
        state_dict: the content of an official file ({"model": ...}) or a bare state dict, in official names.

    Raises:
        WeightsError: the weights do not fit; the message lists what is missing, left over or of another shape.
        TypeError: a model without official names.
    """
    names = official_names(model)
    entries = official_entries(model, state_dict)
    state = model.state_dict()
    expected = {theirs: state[ours] for theirs, ours in names}
    for name in [n for n in entries if n.endswith(COUNTER) and n not in expected]:
        del entries[name]
    for name, tensor in expected.items():
        if name.endswith(COUNTER):
            entries.setdefault(name, tensor)
    check_fit(expected, entries, model)
    translated: dict[str, Tensor] = {}
    for theirs, ours in names:
        if ours in translated and not torch.equal(translated[ours], entries[theirs]):
            raise WeightsError(f"{theirs} differs from another entry that is the same parameter in this model: {ours}")
        translated[ours] = entries[theirs]
    model.load_state_dict(translated)


def official_entries(model: nn.Module, content: Any) -> dict[str, Tensor]:
    """Return the tensors of official weights by official name (`bare_state_dict`), in the shapes that the model has.

    Raises:
        WeightsError: as `bare_state_dict`.
    """
    entries = bare_state_dict(content)
    arch = architecture_of(model)
    return entries if arch is None or arch.official is None else arch.official.prepare(entries)


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict under official names, in official order: the inverse of `load_official`.

    Save it as `torch.save({"model": to_official(model)}, path)` and the official code loads it. The tensors are the
    model's own, as in `Module.state_dict`.

    Raises:
        TypeError: a model without official names.
    """
    state = model.state_dict()
    entries = {theirs: state[ours] for theirs, ours in official_names(model)}
    arch = architecture_of(model)
    return entries if arch is None or arch.official is None else entries | arch.official.constants(model)


def check_fit(expected: Mapping[str, Tensor], entries: Mapping[str, Tensor], model: nn.Module | str) -> None:
    """Compare names and shapes of entries.

    Args:
        expected: the model's entries.
        entries: the entries to load, named alike.
        model: the model or its name, for the message.

    Raises:
        WeightsError: with everything that does not fit, and what it probably means; or values that are not finite.
    """
    missing = [name for name in expected if name not in entries]
    left_over = [name for name in entries if name not in expected]
    shapes = [
        f"{shortened(name)} is {tuple(entries[name].shape)}, the model has {tuple(expected[name].shape)}"
        for name in expected
        if name in entries and entries[name].shape != expected[name].shape
    ]
    if not (missing or left_over or shapes):
        check_values(entries)
        return
    name = model if isinstance(model, str) else type(model).__name__
    lines = [f"these weights do not fit the model ({name}):"]
    for title, items in (("missing", missing), ("left over", left_over), ("wrong shape", shapes)):
        if items:
            lines.append(f"  {title} ({len(items)}): {_some(items)}")
    lines += [f"  hint: {hint}" for hint in _hints(expected, entries)]
    raise WeightsError("\n".join(lines))


def check_values(entries: Mapping[str, Tensor]) -> None:
    """Check the values of weights before they are loaded. It takes 10 ms for a R50 on one core.

    Raises:
        WeightsError: values that are no floating-point numbers, or not finite; names the tensors.
    """
    kinds, wrong = [], []
    for name, tensor in entries.items():
        if name.endswith(COUNTER) or not tensor.numel():
            continue
        if not tensor.is_floating_point():
            kinds.append(f"{name} ({str(tensor.dtype).removeprefix('torch.')})")
        # extremes, which are NaN if one value is, take a sixth of the time of isfinite, which makes a tensor
        elif not all(map(math.isfinite, _extremes(tensor))):
            wrong.append(name)
    if kinds:
        raise WeightsError(f"weights are floating-point numbers, which {_some(kinds)} are not")
    if wrong:
        count = f"{len(wrong)} tensors hold" if len(wrong) > 1 else "a tensor holds"
        raise WeightsError(
            f"{count} NaN or infinite values: {_some(wrong)}; the training that made them had failed: take an earlier "
            "checkpoint"
        )


def _extremes(tensor: Tensor) -> tuple[float, float]:
    if tensor.itemsize < 2:  # torch computes nothing in 8 bits
        tensor = tensor.float()
    lowest, highest = torch.aminmax(tensor.detach())
    return float(lowest), float(highest)


def _some(items: Sequence[str], most: int = 6) -> str:
    """Return the first few of a long list."""
    more = f", and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(shortened(item, 200) for item in items[:most]) + more


def _hints(expected: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> list[str]:
    """Explain a mismatch in terms of `build_model`'s arguments."""
    hints = []
    masks = [any(n.startswith("mask_head.") for n in names) for names in (entries, expected)]
    if masks[0] and not masks[1]:
        hints.append("the weights are of a panoptic (segmentation) model: build the model with masks=True")
    elif masks[1] and not masks[0]:
        hints.append("the weights have no masks: build the model with masks=False, or train masks on this detector")
    # a detector inside a panoptic model is compared by the names that it has outside of one
    entries, expected = (
        {n.removeprefix("detr."): t for n, t in names.items() if t.ndim} for names in (entries, expected)
    )
    theirs, ours = depth(entries), depth(expected)
    if theirs and ours and theirs != ours:
        hints.append(f"the weights are of a {theirs}, the model has a {ours}: build the model the file is for")
    dino = [DINO_TABLE in names for names in (entries, expected)]
    if dino[0] != dino[1]:
        hints.append(f"the weights are of {'a' if dino[0] else 'no'} DINO")
    elif ("class_embed.0.weight" in entries) != ("class_embed.0.weight" in expected):
        part = "a" if "class_embed.0.weight" in entries else "no"
        hints.append(f"the weights are of {part} Deformable DETR")
    elif ("linear_class.weight" in entries) != ("linear_class.weight" in expected):
        hints.append("one of the two is the notebook's demo model: its weights fit detr-demo only")
    for prefix, option in () if dino[0] or dino[1] else VARIANTS:
        has_part = [any(n.startswith(prefix) for n in names) for names in (entries, expected)]
        if has_part[0] != has_part[1] and "class_embed.0.weight" in entries and "class_embed.0.weight" in expected:
            hints.append(f"build the model with {option}={has_part[0]}")
    for head in CLASS_HEADS:
        if head in entries and head in expected and len(entries[head]) != len(expected[head]):
            rows = len(entries[head])
            classes = rows if head.endswith(".0.weight") else rows - 1  # softmax heads have "no object" too
            coco = {91: " (COCO)", 250: " (COCO panoptic)"}.get(classes, "")
            hints.append(f"the class head has {rows} rows{coco}: build the model with num_classes={classes}")
    hints += _query_hints(expected, entries)
    levels = [len(names.get("transformer.level_embed", ())) for names in (entries, expected)]
    if all(levels) and levels[0] != levels[1]:
        hint = (
            f"the weights are of {levels[0]} levels, the model has {levels[1]}: build the model with num_feature_levels"
        )
        hints.append(hint + ", or as dino-r50-4scale or dino-r50-5scale" * dino[0])
    for part, option in (("encoder", "enc_layers"), ("decoder", "dec_layers")):
        count = blocks(entries, rf"transformer\.{part}\.layers\.(\d+)\.")
        if count and count != blocks(expected, rf"transformer\.{part}\.layers\.(\d+)\."):
            hints.append(f"build the model with {option}={count}")
    return hints


def _query_hints(expected: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> list[str]:
    """Explain tables of queries, and of labels, that do not fit."""
    hints = []
    two_stages = [f"{TWO_STAGES}weight" in names for names in (entries, expected)]
    tables = ["query_embed.weight" in names for names in (entries, expected)]
    if all(two_stages) and tables[0] != tables[1] and not any(DINO_TABLE in n for n in (entries, expected)):
        hints.append(f"build the model with mixed_selection={tables[0]}")
    for name in ("query_embed.weight", "query_pos", DINO_TABLE):
        if name not in entries or name not in expected or len(entries[name]) == len(expected[name]):
            continue
        rows, both = len(entries[name]), name == "query_embed.weight" and all(two_stages)
        if both and rows == sum(HYBRID_QUERIES):
            hints.append(f"{rows} queries are h-deformable-detr-r50's {HYBRID_QUERIES[0]} and {HYBRID_QUERIES[1]}")
        elif both:
            hints.append(
                f"build the model with num_queries={rows}, or of an h-deformable-detr with num_queries_one2many of them"
            )
        else:
            hints.append(f"build the model with num_queries={rows}")
    return hints
