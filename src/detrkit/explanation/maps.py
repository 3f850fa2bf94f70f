"""Where attention goes, read from a `Capture` for one image of its batch: of one map, or of points on several maps.

Both kinds answer the same questions. The valid part of a map, without the padding of the batch, is spread over the
whole image, as the models themselves relate boxes and cells: pixel x of an image of width W lies in column
floor(x / W * w) of the w valid ones, and the center of column c is at pixel (c + 0.5) / w * W.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from detrkit.explanation.points import SampledPoints, density, normalized
from detrkit.structures.attention import AttentionWeights
from detrkit.structures.outputs import Capture
from detrkit.utils.errors import SettingError

Head = int | Literal["mean"]
Size = tuple[int, int]


class Proposal(NamedTuple):
    """The cell of the encoder that became a query of a two-stage model (Deformable DETR, Sec. 4.2).

    Attributes:
        level: of its map, 0 is the finest.
        x, y: center of the cell, pixels of the image.
    """

    level: int
    x: float
    y: float


class AttentionMaps(Protocol):
    """Attention of the encoder's cells and of the decoder's queries, over one image.

    Attributes:
        grid: (h, w) in cells of the maps that are returned.
        levels: (h, w) in cells of the valid part of every level, the finest first.
        heads: number of heads.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
    """

    grid: Size
    levels: list[Size]
    heads: int
    encoder_layers: int
    decoder_layers: int

    def of_query(self, query: int, layer: int, head: Head) -> Tensor:
        """Return (h, w) of the grid, summing to 1: what a query attends to."""

    def of_cell(self, x: float, y: float, layer: int, head: Head, level: int) -> Tensor:
        """Return (h, w) of the grid, summing to 1: what the cell at pixel (x, y) attends to."""


class DenseMaps:
    """Softmax attention to all cells of one map (DETR). Attributes and methods: see `AttentionMaps`.

    Args:
        capture: of the forward pass.
        number: of the image in its batch.
        image_size: (h, w) in pixels.

    Raises:
        SettingError: several maps; only deformable attention can be shown on these.
    """

    def __init__(self, capture: Capture, number: int, image_size: Size) -> None:
        self.capture, self.number, self.image_size = capture, number, image_size
        self.levels = valid_sizes(capture, number)
        if len(self.levels) > 1:
            raise SettingError(
                f"the model attends to {len(self.levels)} whole maps at once: detrkit explains attention to one map, "
                "or to points on several (decoder_locations)"
            )
        (self.grid,) = self.levels
        first = capture.decoder_weights[0]
        self.heads = first.heads if isinstance(first, AttentionWeights) else first.shape[1]
        self.encoder_layers, self.decoder_layers = len(capture.encoder_weights), len(capture.decoder_weights)

    def of_query(self, query: int, layer: int, head: Head) -> Tensor:
        """See `AttentionMaps`."""
        return self._map(self.capture.decoder_weights[layer], query, head)

    def of_cell(self, x: float, y: float, layer: int, head: Head, level: int) -> Tensor:
        """See `AttentionMaps`."""
        column, row = cell_at(x, y, self.image_size, self.grid)
        return self._map(self.capture.encoder_weights[layer], row * self.capture.feature_shapes[0][1] + column, head)

    def _map(self, weights: AttentionWeights | Tensor, row: int, head: Head) -> Tensor:
        by_head = rows_of(weights, self.number, torch.tensor([row], device="cpu"))[:, 0]  # (H, S)
        chosen = by_head.float().mean(0) if head == "mean" else by_head[head].float()
        height, width = self.grid
        return chosen.detach().unflatten(0, self.capture.feature_shapes[0])[:height, :width].cpu()


class DeformableMaps:
    """Weights of sampled points on several levels (Deformable DETR), gathered on the grid of the finest.

    Attributes and methods: see `AttentionMaps`. Args: as of `DenseMaps`.
    """

    def __init__(self, capture: Capture, number: int, image_size: Size) -> None:
        self.capture, self.number, self.image_size = capture, number, image_size
        self.levels = valid_sizes(capture, number)
        self.grid = self.levels[0]
        pairs = zip(self.levels, capture.feature_shapes, strict=True)
        ratios = [(width / w, height / h) for (height, width), (h, w) in pairs]
        self.ratios = torch.tensor(
            ratios, dtype=torch.float32, device="cpu"
        )  # (L, 2) xy, valid part of each padded map
        self.heads = capture.decoder_locations[0].shape[2]
        self.encoder_layers, self.decoder_layers = len(capture.encoder_locations), len(capture.decoder_locations)

    def points_by_level(self, layer: int) -> list[int]:
        """Return how many points a head of a decoder layer samples on each level; the others that are kept weigh 0."""
        weights = self.capture.decoder_weights[layer]
        assert isinstance(weights, Tensor)
        sampled = (weights[self.number] > 0).flatten(0, 1).any(0)  # (L, P)
        return [int(count) for count in sampled.sum(1)]

    def of_query(self, query: int, layer: int, head: Head) -> Tensor:
        """See `AttentionMaps`."""
        return self._gathered(self.points_of_query(query, layer), head)

    def of_cell(self, x: float, y: float, layer: int, head: Head, level: int) -> Tensor:
        """See `AttentionMaps`."""
        return self._gathered(self.points_of_cell(x, y, layer, level), head)

    def points_of_query(self, query: int, layer: int) -> SampledPoints:
        """Return the points that a query samples."""
        capture = self.capture
        return self._points(capture.decoder_locations[layer], capture.decoder_weights[layer], query)

    def points_of_cell(self, x: float, y: float, layer: int, level: int) -> SampledPoints:
        """Return the points that the cell of a level at pixel (x, y) samples."""
        capture = self.capture
        column, row = cell_at(x, y, self.image_size, self.levels[level])
        start = sum(h * w for h, w in capture.feature_shapes[:level])
        token = start + row * capture.feature_shapes[level][1] + column
        return self._points(capture.encoder_locations[layer], capture.encoder_weights[layer], token)

    def _points(self, locations: Tensor, weights: AttentionWeights | Tensor, query: int) -> SampledPoints:
        """Return the points of one query or token: of the padded maps in [0, 1], then of the image in pixels."""
        assert isinstance(weights, Tensor)
        relative = locations[self.number, query].detach().float().cpu() / self.ratios[:, None]  # (H, L, P, 2)
        pixels = relative * relative.new_tensor([self.image_size[1], self.image_size[0]])
        return SampledPoints(pixels, weights[self.number, query].detach().float().cpu())

    def _gathered(self, sampled: SampledPoints, head: Head) -> Tensor:
        points, weights = sampled
        if head != "mean":
            points, weights = points[head], weights[head]
        return normalized(density(points, weights, image_size=self.image_size, grid=self.grid))


class HybridMaps(DeformableMaps):
    """Sampled points of the decoder, and an encoder that attends within the coarsest map alone (RT-DETR).

    Attributes and methods: see `AttentionMaps`. Args: as of `DenseMaps`.
    """

    def __init__(self, capture: Capture, number: int, image_size: Size) -> None:
        super().__init__(capture, number, image_size)
        self.encoder_layers = len(capture.encoder_weights)

    def of_cell(self, x: float, y: float, layer: int, head: Head, level: int) -> Tensor:
        """See `AttentionMaps`; of the coarsest map's cell at the pixel, spread over the finest cells, any `level`."""
        coarsest = self.levels[-1]
        column, row = cell_at(x, y, self.image_size, coarsest)
        token = torch.tensor([row * self.capture.feature_shapes[-1][1] + column], device="cpu")
        weights = rows_of(self.capture.encoder_weights[layer], self.number, token)[:, 0].float()
        chosen = weights.mean(0) if head == "mean" else weights[head]  # (h * w,)
        map_ = chosen.detach().unflatten(0, self.capture.feature_shapes[-1])[: coarsest[0], : coarsest[1]].cpu()
        rows, columns = (torch.arange(n) * m // n for n, m in zip(self.grid, coarsest, strict=True))
        return normalized(map_[rows][:, columns])

    def points_of_cell(self, x: float, y: float, layer: int, level: int) -> SampledPoints:
        """See `DeformableMaps`.

        Raises:
            SettingError: always: the encoder samples none.
        """
        raise SettingError("the encoder attends to a whole map and samples no points: use self_attention")


def rows_of(weights: AttentionWeights | Tensor, image: int, chosen: Tensor) -> Tensor:
    """Return the softmax attention of n queries or cells of one image of the batch: (H, n, S).

    Args:
        weights: of one layer.
        image: its number in the batch.
        chosen: (n,) indices of the queries or cells.
    """
    if isinstance(weights, AttentionWeights):
        return weights.rows(image, chosen)
    return weights[image][:, chosen.to(weights.device)]


def attention_maps(capture: Capture, number: int, image_size: Size) -> DenseMaps | DeformableMaps:
    """Return the maps of one image of the batch, of the kind that the model has.

    Args: as of `DenseMaps`.

    Raises:
        SettingError: as `DenseMaps`.
    """
    if not capture.decoder_locations:
        return DenseMaps(capture, number, image_size)
    hybrid = bool(capture.encoder_weights) and not capture.encoder_locations
    return (HybridMaps if hybrid else DeformableMaps)(capture, number, image_size)


def valid_sizes(capture: Capture, number: int) -> list[Size]:
    """Return (h, w) in cells of the part of every level's map that is the image's own, without padding."""
    sizes, start = [], 0
    assert capture.padding is not None
    for h, w in capture.feature_shapes:
        inside = ~capture.padding[number, start : start + h * w].view(h, w)
        sizes.append((int(inside[:, 0].sum()), int(inside[0].sum())))
        start += h * w
    return sizes


def cell_at(x: float, y: float, image_size: Size, grid: Size) -> tuple[int, int]:
    """Return column and row of the cell at a pixel, the grid being spread over the image.

    Raises:
        SettingError: the pixel lies outside the image.
    """
    height, width = image_size
    if not (0 <= x < width and 0 <= y < height):
        raise SettingError(f"pixel ({x:g}, {y:g}) is outside the image of {width} x {height} pixels (width x height)")
    # float rounding takes a pixel just before the edge into the cell after the last
    return min(int(x / width * grid[1]), grid[1] - 1), min(int(y / height * grid[0]), grid[0] - 1)
