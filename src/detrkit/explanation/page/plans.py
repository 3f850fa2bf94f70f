"""How much attention a page keeps: the richest plan that fits into the bytes that are left.

Plans stand in the order of what a reader would miss least: first the encoder's other layers' heads go, then the cells
it can be asked for become fewer, and last its other layers. Attention of the detections goes before anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor

from detrkit.explanation.maps import AttentionMaps, DeformableMaps, DenseMaps, HybridMaps, Size
from detrkit.explanation.page.attention import (
    Cells,
    StoredHeads,
    cells_of_level,
    cross_maps,
    cross_points,
    encoder_map,
    encoder_maps,
    encoder_points,
)
from detrkit.explanation.page.sections import CELL_STEPS, ORIGIN, QUERY_STEPS, Section

# Cells of a map of the encoder that a page shows; of finer maps, as those of DC5, blocks of cells are added up.
MAX_MAP_CELLS = 1600
# Bytes in the file for one number, at best: what maps of trained models take, measured (deflate, then base64).
BEST_RATIO = 0.25

CROSS_SHARE = 0.6  # of the bytes for attention; the rest is the encoder's


class Packed(NamedTuple):
    """Attention of one kind in a page.

    Attributes:
        sections: the arrays.
        describe: plain JSON values for the page's script.
        left_out: a sentence for each thing that was left out.
    """

    sections: list[Section]
    describe: dict[str, Any]
    left_out: list[str]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return sum(section.size for section in self.sections)


def pack_cross(maps: AttentionMaps, queries: Tensor, limit: int) -> Packed:
    """Pack the cross-attention of detections with as many layers and heads as fit.

    Args:
        maps: of the explanation.
        queries: (N,) of the detections.
        limit: bytes in the file.

    Returns:
        The richest that fits, or the poorest if none does.
    """
    last = maps.decoder_layers - 1
    packed = Packed([], {}, [])
    for layers, sentences in _cross_plans(maps):
        numbers = len(queries) * sum(_numbers(maps, kept) for kept in layers if kept)
        if numbers * BEST_RATIO > limit and layers is not None and any(layers[:last]):
            continue
        sections: list[Section] = []
        for layer, kept in enumerate(layers):
            if kept and isinstance(maps, DenseMaps):
                sections += cross_maps(maps, queries, layer, kept)
            elif kept and isinstance(maps, DeformableMaps):
                sections += cross_points(maps, queries, layer)
        describe = {"layers": layers, "steps": QUERY_STEPS, "origin": ORIGIN, "points": _points_by_level(maps)}
        packed = Packed(sections, describe, sentences)
        if packed.size <= limit:
            return packed
    return packed


def _cross_plans(maps: AttentionMaps) -> Iterator[tuple[list[StoredHeads | None], list[str]]]:
    others = maps.decoder_layers - 1
    heads: list[StoredHeads | None] = ["heads"]
    means: list[StoredHeads | None] = ["mean"]
    none: list[StoredHeads | None] = [None]
    yield heads * others + heads, []
    if isinstance(maps, DenseMaps):
        if others:
            yield means * others + heads, ["single heads of the decoder's layers before the last"]
        yield means * others + means, ["single heads of the decoder"]
        if others:
            yield none * others + means, ["the decoder's layers before the last, and single heads"]
    elif others:
        yield none * others + heads, ["the decoder's layers before the last"]


def _numbers(maps: AttentionMaps, kept: StoredHeads) -> int:
    """Return how many numbers a query takes in one layer."""
    if isinstance(maps, DeformableMaps):
        return 5 * maps.capture.decoder_locations[0][0, 0, ..., 0].numel()  # bytes: x, y and weight
    return maps.grid[0] * maps.grid[1] * (maps.heads if kept == "heads" else 1)


def _points_by_level(maps: AttentionMaps) -> list[int] | None:
    """Return how many points a head samples on each level; None for maps."""
    return maps.points_by_level(maps.decoder_layers - 1) if isinstance(maps, DeformableMaps) else None


class EncoderPlan(NamedTuple):
    """What a page keeps of the encoder.

    Attributes:
        layers: what it keeps of each layer.
        step: one cell of every `step` rows and columns of the finest level that attends can be asked for.
    """

    layers: list[StoredHeads | None]
    step: int


def pack_encoder(maps: AttentionMaps, limit: int) -> Packed:
    """Pack the self-attention of the encoder's cells with as many cells, layers and heads as fit.

    Args:
        maps: of the explanation.
        limit: bytes in the file.

    Returns:
        The richest that fits, or nothing.
    """
    if not maps.encoder_layers:
        return Packed([], {"layers": [], "cells": []}, [])
    for plan in _encoder_plans(maps):
        packed = _packed_encoder(maps, plan, limit)
        if packed is not None:
            return packed
    none: list[None] = [None] * maps.encoder_layers
    return Packed([], {"layers": none, "cells": []}, ["self-attention of the encoder"])


def _encoder_plans(maps: AttentionMaps) -> Iterator[EncoderPlan]:
    others = maps.encoder_layers - 1
    every: list[StoredHeads | None] = ["heads"] * (others + 1)
    none: list[StoredHeads | None] = [None] * others
    if encoder_map(maps) is None:
        yield from (EncoderPlan(every, step) for step in (1, 2, 3, 4, 6, 8, 10))
        yield from (EncoderPlan([*none, "heads"], step) for step in (6, 8, 12, 16, 24, 32))
        yield EncoderPlan(every, 16)
        return
    means: list[StoredHeads | None] = ["mean"] * others
    for step in (1, 2, 3, 4):
        yield from (EncoderPlan(layers, step) for layers in (every, [*means, "heads"]))
    yield from (EncoderPlan([*means, "mean"], step) for step in (2, 3, 4))
    yield from (EncoderPlan([*none, "mean"], step) for step in (2, 3, 4, 6, 8, 12))


def _packed_encoder(maps: AttentionMaps, plan: EncoderPlan, limit: int) -> Packed | None:
    """Pack the encoder's attention by a plan, or return None once it takes more than `limit` bytes."""
    # the coarser levels have fewer cells: their steps are smaller in the same proportion
    sizes = _encoder_levels(maps)
    cells = [cells_of_level(size, max(1, round(plan.step * size[0] / sizes[0][0]))) for size in sizes]
    pool = _pool(maps)
    numbers = sum(_encoder_numbers(maps, kept, pool) for kept in plan.layers if kept) * sum(map(len, cells))
    if numbers * BEST_RATIO > limit:
        return None
    sections: list[Section] = []
    for layer, kept in reversed(list(enumerate(plan.layers))):
        if kept and isinstance(maps, DenseMaps | HybridMaps):
            sections += encoder_maps(maps, cells[0], layer, kept, pool)
        elif kept and isinstance(maps, DeformableMaps):
            for level, chosen in enumerate(cells):
                sections += encoder_points(maps, chosen, layer, level)
        if sum(section.size for section in sections) > limit:
            return None
    height, width = sizes[0]
    none: list[None] = [None] * (len(maps.levels) - len(sizes))  # of levels whose cells do not attend
    describe = {
        "layers": plan.layers,
        "cells": [*none, *({"rows": chosen.rows, "columns": chosen.columns} for chosen in cells)],
        "steps": CELL_STEPS,
        "origin": ORIGIN,
        # a map's blocks may reach beyond the image: (h, w) of all of them, as a share of the image's
        "reach": [-(-height // pool) * pool / height, -(-width // pool) * pool / width],
    }
    return Packed(sections, describe, _encoder_sentences(maps, plan, cells, pool))


def _encoder_levels(maps: AttentionMaps) -> list[Size]:
    """Return (h, w) in cells of the levels whose cells attend: of RT-DETR the coarsest alone."""
    attended = encoder_map(maps)
    return list(maps.levels) if attended is None else [attended.valid]


def _pool(maps: AttentionMaps) -> int:
    """Return the side of the blocks of cells whose weights are added up in a map of the encoder."""
    attended = encoder_map(maps)
    if attended is None:
        return 1
    height, width = attended.valid
    pool = 1
    while -(-height // pool) * -(-width // pool) > MAX_MAP_CELLS:
        pool += 1
    return pool


def _encoder_numbers(maps: AttentionMaps, kept: StoredHeads, pool: int) -> int:
    """Return how many numbers a cell takes in one layer."""
    attended = encoder_map(maps)
    if attended is None:
        assert isinstance(maps, DeformableMaps)
        return 5 * maps.capture.encoder_locations[0][0, 0, ..., 0].numel()  # bytes: x, y and weight
    height, width = attended.valid
    cells = -(-height // pool) * -(-width // pool)
    return cells * (maps.heads if kept == "heads" else 1)


def _encoder_sentences(maps: AttentionMaps, plan: EncoderPlan, cells: list[Cells], pool: int) -> list[str]:
    sentences = []
    others, last = plan.layers[:-1], plan.layers[-1]
    if others and others[0] is None:
        sentences.append("the encoder's layers before the last")
    if last == "mean":
        sentences.append("single heads of the encoder")
    elif others and others[0] == "mean":
        sentences.append("single heads of the encoder's layers before the last")
    kept, total = sum(map(len, cells)), sum(h * w for h, w in _encoder_levels(maps))
    if kept < total:
        sentences.append(f"self-attention of {total - kept:,} of the encoder's {total:,} cells: {kept:,} can be chosen")
    if pool > 1:
        sentences.append(f"the encoder's single weights: those of {pool} x {pool} cells are added up")
    return sentences
