"""Attention of an explanation as sections of a page, computed in chunks.

Names of sections: `cross.LAYER` and `encoder.LAYER` hold maps, with `.scale`; of deformable models `cross.LAYER` and
`encoder.LAYER.LEVEL` hold points, as `.xy` and `.weight`. RT-DETR has points of the first kind and maps of the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detrkit.explanation.maps import AttentionMaps, DeformableMaps, DenseMaps, HybridMaps, Size, rows_of
from detrkit.explanation.page.sections import (
    CELL_STEPS,
    QUERY_STEPS,
    Section,
    quantized_maps,
    quantized_points,
    quantized_weights,
    section,
)
from detrkit.structures.attention import AttentionWeights

StoredHeads = Literal["heads", "mean"]  # of one layer: maps of all heads, or only their mean
SOURCE_CHUNK = 64  # cells whose attention is computed at once: 8 MB a head for the 3,750 cells of DC5


class Cells(NamedTuple):
    """Cells of a level whose attention is kept: those at the crossings of rows and columns.

    Attributes:
        rows: ascending.
        columns: ascending.
    """

    rows: list[int]
    columns: list[int]

    def __len__(self) -> int:
        return len(self.rows) * len(self.columns)


def cells_of_level(size: tuple[int, int], step: int) -> Cells:
    """Choose one cell of every `step` rows and columns of a level of (h, w) cells: the middle one."""
    return Cells(*([min(i + step // 2, n - 1) for i in range(0, n, step)] for n in size))


def tokens(cells: Cells, shapes: Sequence[tuple[int, int]], level: int) -> Tensor:
    """Return (n,) indices of cells among the encoder's tokens, row by row.

    Args:
        cells: of a level.
        shapes: (h, w) of every level, with padding.
        level: of the cells.
    """
    start = sum(h * w for h, w in shapes[:level])
    rows, columns = torch.tensor(cells.rows), torch.tensor(cells.columns)
    return (start + rows[:, None] * shapes[level][1] + columns).flatten()


def cross_maps(maps: DenseMaps, queries: Tensor, layer: int, kept: StoredHeads) -> list[Section]:
    """Pack what queries attend to: (N, heads or 1, h, w).

    Args:
        maps: of the explanation.
        queries: (N,) of the detections.
        layer: decoder layer.
        kept: all heads, or their mean.
    """
    attended = AttendedMap(maps.capture.feature_shapes[0], maps.grid)
    return _packed_maps(f"cross.{layer}", maps, attended, maps.capture.decoder_weights[layer], queries, kept, 1)


class AttendedMap(NamedTuple):
    """The one map that softmax attention reads.

    Attributes:
        padded: (h, w) in cells, with the padding of the batch.
        valid: (h, w) of the image's own part.
    """

    padded: Size
    valid: Size


def encoder_map(maps: AttentionMaps) -> AttendedMap | None:
    """Return the map within which the encoder attends: DETR's, RT-DETR's coarsest; None where it samples points."""
    if isinstance(maps, DenseMaps | HybridMaps):
        return AttendedMap(maps.capture.feature_shapes[-1], maps.levels[-1])
    return None


def encoder_maps(maps: DenseMaps | HybridMaps, cells: Cells, layer: int, kept: StoredHeads, pool: int) -> list[Section]:
    """Pack what cells attend to: (n, heads or 1, h / pool, w / pool), the weights of pool x pool cells added up.

    Args:
        maps: of the explanation.
        cells: n of them.
        layer: encoder layer.
        kept: all heads, or their mean.
        pool: side of a block in cells; blocks at the right and the lower edge may be smaller.
    """
    attended = encoder_map(maps)
    assert attended is not None
    chosen = tokens(cells, [attended.padded], 0)
    return _packed_maps(f"encoder.{layer}", maps, attended, maps.capture.encoder_weights[layer], chosen, kept, pool)


def _packed_maps(
    name: str,
    maps: DenseMaps | HybridMaps,
    attended: AttendedMap,
    weights: AttentionWeights | Tensor,
    rows: Tensor,
    kept: StoredHeads,
    pool: int,
) -> list[Section]:
    height, width = attended.valid
    values, scales = [], []
    for chosen in rows.split(SOURCE_CHUNK):
        chunk = rows_of(weights, maps.number, chosen).detach().float().transpose(0, 1)  # (n, H, S)
        chunk = chunk if kept == "heads" else chunk.mean(1, keepdim=True)
        chunk = chunk.unflatten(2, attended.padded)[..., :height, :width].cpu()
        if pool > 1:
            # pads with 0 up to whole blocks; the mean times the block's area is the sum
            chunk = functional.pad(chunk, (0, -width % pool, 0, -height % pool))
            chunk = functional.avg_pool2d(chunk, pool) * pool**2
        value, scale = quantized_maps(chunk)
        values.append(value)
        scales.append(scale)
    return [section(name, _joined(values)), section(f"{name}.scale", _joined(scales))]


def cross_points(maps: DeformableMaps, queries: Tensor, layer: int) -> list[Section]:
    """Pack the points that queries sample.

    Args:
        maps: of the explanation.
        queries: (N,) of the detections.
        layer: decoder layer.
    """
    capture = maps.capture
    locations, weights = capture.decoder_locations[layer], capture.decoder_weights[layer]
    assert isinstance(weights, Tensor)
    return _packed_points(f"cross.{layer}", maps, locations, weights, queries, None, QUERY_STEPS)


def encoder_points(maps: DeformableMaps, cells: Cells, layer: int, level: int) -> list[Section]:
    """Pack the points that cells of a level sample, relative to the center of each cell.

    Args:
        maps: of the explanation.
        cells: of the level.
        layer: encoder layer.
        level: of the cells.
    """
    capture, (height, width) = maps.capture, maps.levels[level]
    rows, columns = torch.tensor(cells.rows), torch.tensor(cells.columns)
    y = (rows + 0.5) / height * maps.image_size[0]
    x = (columns + 0.5) / width * maps.image_size[1]
    centers = torch.stack([x.repeat(len(rows)), y.repeat_interleave(len(columns))], 1)  # (n, 2)
    chosen = tokens(cells, capture.feature_shapes, level)
    locations, weights = capture.encoder_locations[layer], capture.encoder_weights[layer]
    assert isinstance(weights, Tensor)
    return _packed_points(f"encoder.{layer}.{level}", maps, locations, weights, chosen, centers, CELL_STEPS)


def _packed_points(
    name: str,
    maps: DeformableMaps,
    locations: Tensor,
    weights: Tensor,
    chosen: Tensor,
    around: Tensor | None,
    steps: int,
) -> list[Section]:
    rows = chosen.to(locations.device)
    relative = locations[maps.number, rows].detach().float().cpu() / maps.ratios[:, None]  # (n, H, L, P, 2)
    pixels = relative * relative.new_tensor([maps.image_size[1], maps.image_size[0]])
    return [
        section(f"{name}.xy", quantized_points(pixels, maps.image_size, around=around, steps=steps)),
        section(f"{name}.weight", quantized_weights(weights[maps.number, rows].detach().float().cpu())),
    ]


def _joined(chunks: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(chunks) if chunks else np.zeros((0,), np.uint8)
