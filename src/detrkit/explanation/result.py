"""`Explanation`: what a model attended to when it found the objects of one image."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from detrkit.explanation.maps import AttentionMaps, DeformableMaps, Head, HybridMaps, Proposal, Size
from detrkit.explanation.page import MAX_MEGABYTES
from detrkit.explanation.page import save_page as write_page
from detrkit.explanation.points import SampledPoints, covered, density
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.detections import Detections
from detrkit.structures.outputs import Capture
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.errors import SettingError


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Attention and boxes of all layers for the detections of one image.

    Everything is computed when it is asked for, from what the layers kept: their queries and keys, or their sampled
    points. Layers count from 0; negative ones from the last. `head` is a number, or "mean" for the mean of all heads.
    Results are float32 tensors on the CPU, whatever the model's dtype and device.

    Attributes:
        image: upright RGB image.
        detections: the objects, in descending order of score; of a panoptic model its segments, with the boxes of their
            queries.
        panoptic: the segments of a panoptic model, in the same order, else None.
        maps: attention of the encoder and the decoder over the image.
        capture: what the forward pass kept.
        number: of the image in the batch of `capture`.
        activation: of the logits, "softmax" or "sigmoid".
        model_name: of the model's registration.
    """

    image: Image.Image
    detections: Detections
    panoptic: PanopticResult | None
    maps: AttentionMaps
    capture: Capture
    number: int
    activation: str
    model_name: str

    def __len__(self) -> int:
        return len(self.detections)

    def __repr__(self) -> str:
        size = f"{self.image.width} x {self.image.height} pixels"
        return f"<Explanation by {self.model_name}: {len(self)} detections, image of {size}>"

    @property
    def queries(self) -> Tensor:
        """(N,) int64 indices into the model's queries, of the detections."""
        assert self.detections.queries is not None
        return self.detections.queries

    @property
    def image_size(self) -> Size:
        """(h, w) of the image in pixels."""
        return self.image.height, self.image.width

    @property
    def deformable(self) -> bool:
        """True if the model samples points instead of attending to a whole map."""
        return isinstance(self.maps, DeformableMaps)

    @property
    def encoder_samples_points(self) -> bool:
        """True if the encoder does, too: RT-DETR's attends to a whole map, the coarsest."""
        return self.deformable and not isinstance(self.maps, HybridMaps)

    @property
    def grid(self) -> Size:
        """(h, w) in cells of the maps, spread over the image: of the one feature map, or of the finest level."""
        return self.maps.grid

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.maps.heads

    @property
    def encoder_layers(self) -> int:
        """Number of encoder layers."""
        return self.maps.encoder_layers

    @property
    def decoder_layers(self) -> int:
        """Number of decoder layers."""
        return self.maps.decoder_layers

    def cross_attention(self, i: int, layer: int = -1, head: Head = "mean") -> Tensor:
        """Return what a detection's query attends to in the image: (h, w) of `grid`, summing to 1.

        DETR: the attention weights (DETR Fig. 6). Deformable models: the weights of the sampled points, gathered on
        the finest level's grid (`density`) and scaled to sum to 1, since points outside the image read nothing
        (`outside` tells how much); all 0 if no point lies inside.

        Args:
            i: number of the detection.
            layer: decoder layer.
            head: a head, or "mean".

        Raises:
            IndexError: no such detection.
            SettingError: no such layer or head.
        """
        return self.maps.of_query(self._query(i), self._decoder_layer(layer), self._head(head))

    def self_attention(self, x: float, y: float, layer: int = -1, head: Head = "mean", *, level: int = 0) -> Tensor:
        """Return what the encoder's cell at a pixel attends to (DETR Fig. 3): (h, w) of `grid`, summing to 1.

        Args:
            x: of the pixel, from the left edge of the image.
            y: of the pixel, from the top.
            layer: encoder layer.
            head: a head, or "mean".
            level: of the cell, 0 is the finest; DETR has one.

        Raises:
            SettingError: a pixel outside the image; no such layer, head or level; a model without an encoder.
        """
        return self.maps.of_cell(x, y, self._encoder_layer(layer), self._head(head), self._level(level))

    def sampling_points(self, i: int, layer: int = -1) -> SampledPoints:
        """Return the points that a detection's query samples: xy in pixels of the image, and weights.

        Args:
            i: number of the detection.
            layer: decoder layer.

        Raises:
            IndexError: no such detection.
            SettingError: no such layer, or a model that attends to a whole map.
        """
        return self._deformable().points_of_query(self._query(i), self._decoder_layer(layer))

    def encoder_points(self, x: float, y: float, layer: int = -1, *, level: int = 0) -> SampledPoints:
        """Return the points that the encoder's cell at a pixel samples: xy in pixels of the image, and weights.

        Args:
            x: of the pixel, from the left edge of the image.
            y: of the pixel, from the top.
            layer: encoder layer.
            level: of the cell, 0 is the finest.

        Raises:
            SettingError: a pixel outside the image; no such layer or level; a model that attends to a whole map, or has
                no encoder.
        """
        return self._deformable().points_of_cell(x, y, self._encoder_layer(layer), self._level(level))

    def outside(self, i: int, layer: int = -1) -> float:
        """Return the share in [0, 1] of a detection's attention weight that reads nothing, outside the image.

        DETR's is 0. Args and errors: as of `cross_attention`.
        """
        if not self.deformable:
            self._query(i), self._decoder_layer(layer)  # check them
            return 0.0
        points, weights = self.sampling_points(i, layer)
        inside = density(points, weights, image_size=self.image_size, grid=self.grid).sum() / self.heads
        return max(0.0, 1.0 - float(inside))

    def reference_boxes(self, i: int) -> Tensor:
        """Return how a detection's reference moved through the decoder: (layers + 1, 4) xyxy pixels of the image.

        Deformable models: the reference before the first layer and after each; a reference point is a box without
        extent, and without refinement it stays where it is (`layer_boxes` are the boxes found there). Others have no
        reference: the first row is the box that the box head finds in the decoder's input, which for DETR is the same
        for all queries; then come `layer_boxes`.

        Raises:
            IndexError: no such detection.
        """
        references = self.capture.references
        assert references is not None  # `explanation_of` checks the capture
        values = references[:, self.number, self._query(i)].detach().float().cpu()  # (NL + 1, 2 or 4)
        if values.shape[-1] == 2:
            values = torch.cat([values, torch.zeros_like(values)], -1)
        return self._pixels(values)

    def layer_boxes(self, i: int) -> Tensor:
        """Return the box of a detection after each decoder layer: (layers, 4) xyxy pixels of the image.

        Raises:
            IndexError: no such detection.
        """
        assert self.capture.boxes is not None
        return self._pixels(self.capture.boxes[:, self.number, self._query(i)].detach().float().cpu())

    def layer_scores(self, i: int) -> Tensor:
        """Return the score of a detection's label after each decoder layer: (layers,) in [0, 1].

        Raises:
            IndexError: no such detection.
        """
        query, label = self._query(i), int(self.detections.labels[i])
        assert self.capture.logits is not None
        logits = self.capture.logits[:, self.number, query].detach().float().cpu()  # (NL, C)
        return (logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid())[:, label]

    def proposal(self, i: int) -> Proposal | None:
        """Return the encoder's cell that became a detection's query, or None for a model without two stages.

        Raises:
            IndexError: no such detection.
        """
        query = self._query(i)
        if self.capture.proposal_index is None:
            return None
        token = int(self.capture.proposal_index[self.number, query])
        for level, (h, w) in enumerate(self.capture.feature_shapes):
            if token < h * w:
                height, width = self.maps.levels[level]
                row, column = divmod(token, w)
                x, y = (column + 0.5) / width * self.image.width, (row + 0.5) / height * self.image.height
                return Proposal(level, x, y)
            token -= h * w
        raise AssertionError("a proposal is one of the tokens")

    def attention_inside(
        self, i: int, layer: int = -1, head: Head = "mean", *, box: Sequence[float] | None = None
    ) -> float:
        """Return the share in [0, 1] of a detection's cross-attention that falls into a box.

        A cell that the box's edge cuts counts with the part of its area inside.

        Args:
            i: number of the detection.
            layer: decoder layer.
            head: a head, or "mean".
            box: xyxy pixels of the image; by default the detection's own.

        Raises:
            IndexError: no such detection.
            SettingError: no such layer or head.
        """
        corners = self.detections.boxes[i].tolist() if box is None else list(box)
        height, width = self.grid
        columns = covered(corners[0] / self.image.width * width, corners[2] / self.image.width * width, width)
        rows = covered(corners[1] / self.image.height * height, corners[3] / self.image.height * height, height)
        return float((self.cross_attention(i, layer, head) * rows[:, None] * columns).sum())

    def draw(
        self,
        i: int | Sequence[int] | None = None,
        *,
        pixel: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
        layer: int | Literal["all"] = -1,
        head: Head | Literal["all"] = "mean",
        show: Literal["map", "points", "boxes"] | None = None,
        level: int = 0,
        legend: bool = True,
        scale: float | None = None,
    ) -> Image.Image:
        """Draw attention on the image; without arguments that of all objects, each in its color (DETR, Fig. 6).

        Args:
            i: number of a detection: what its query attends to, its box and its reference point; several numbers: these
                detections in one picture.
            pixel: (x, y), from the upper left corner: what the encoder's cell there attends to; several pixels: the
                image with all of them, and their attention around it (DETR, Fig. 3).
            layer: of the decoder, with `pixel` of the encoder; "all": side by side, in rows the best 20 detections.
            head: a head, "mean" or "all"; all layers and all heads at once are a picture of one detection or pixel.
            show: "map": a heat map; "points": the sampled points of deformable models, by default for one detection or
                pixel of theirs; "boxes": the box before the first decoder layer and after each.
            level: of the cells at `pixel`, 0 is the finest.
            legend: write a caption and what the marks mean below the image.
            scale: of the image's size; by default small images are enlarged and large ones reduced.

        Raises:
            IndexError: no such detection.
            ValueError: arguments that exclude each other; no such layer, head, level or pixel; nothing to draw.
        """
        from detrkit.explanation.pictures import draw_explanation

        chosen: dict[str, Any] = {"layer": layer, "head": head, "show": show, "level": level}
        return draw_explanation(self, i, pixel=pixel, legend=legend, scale=scale, **chosen)

    def save(
        self,
        folder: str | Path,
        *,
        pixels: Sequence[tuple[float, float]] | None = None,
        objects: int = 10,
        page: bool = False,
    ) -> list[Path]:
        """Write the pictures, and the numbers as explanation.json, into a folder (docs/explaining.md lists them).

        The folder appears when it is complete; one that was written so before is replaced, no other.

        Args:
            folder: to make.
            pixels: (x, y) of the encoder's pictures; by default the centers of the best four boxes.
            objects: number of detections that get pictures of their own, the best ones; the numbers are of all.
            page: also write page.html (`save_page`).

        Returns:
            The files.

        Raises:
            DetrkitError: the folder is a file, or holds what detrkit did not write; it cannot be written.
            ValueError: a pixel outside the image.
        """
        from detrkit.explanation.files import save_explanation

        return save_explanation(self, folder, pixels=pixels, objects=objects, page=page)

    def save_page(self, path: str | Path, *, title: str | None = None, max_megabytes: float = MAX_MEGABYTES) -> Path:
        """Write a page that shows all of this in a browser: one HTML file, without a server or network.

        It holds the image, the detections and their attention in 8 bits a weight. What does not fit into the size is
        left out, the least missed first, and the page says so.

        Args:
            path: of the file, such as "page.html"; one that is there is replaced.
            title: heading of the page; by default the model's name and the image's size.
            max_megabytes: largest size of the file (10^6 bytes).

        Returns:
            The path.

        Raises:
            WriteError: the file cannot be written; nothing has changed then.
            SettingError: the best detection alone takes more than `max_megabytes`, or it is not above 0.
        """
        return write_page(self, path, title=title, max_megabytes=max_megabytes)

    def detection_number(self, i: int) -> int:
        """Return the number of a detection counted from 0; a negative one counts from the last.

        Raises:
            IndexError: no such detection.
        """
        number = operator.index(i)
        if not -len(self) <= number < len(self):
            raise IndexError(f"detection {number}: there are {len(self) or 'no'} detections, counted from 0")
        return number % len(self)

    def _query(self, i: int) -> int:
        """Return the query of a detection."""
        return int(self.queries[self.detection_number(i)])

    def _decoder_layer(self, layer: int) -> int:
        return _number(layer, self.decoder_layers, "decoder layer")

    def _encoder_layer(self, layer: int) -> int:
        if not self.encoder_layers:
            raise SettingError(f"{self.model_name} has no attention in its encoder, or keeps none: see cross_attention")
        return _number(layer, self.encoder_layers, "encoder layer")

    def _head(self, head: Head) -> Head:
        if head == "mean":
            return head
        if isinstance(head, str):
            raise SettingError(f'head {head!r}: choose 0 to {self.heads - 1}, or "mean"')
        return _number(head, self.heads, "head", extra=', or "mean"', negative=False)

    def _level(self, level: int) -> int:
        return _number(level, len(self.maps.levels), "level", negative=False)

    def _deformable(self) -> DeformableMaps:
        if not isinstance(self.maps, DeformableMaps):
            raise SettingError(f"{self.model_name} attends to a whole map and samples no points: use cross_attention")
        return self.maps

    def _pixels(self, boxes: Tensor) -> Tensor:
        """Convert (..., 4) cxcywh in [0, 1] to xyxy pixels of the image."""
        return cxcywh_to_xyxy(boxes) * boxes.new_tensor([self.image.width, self.image.height] * 2)


def _number(value: int, count: int, what: str, *, extra: str = "", negative: bool = True) -> int:
    """Return a number of one of `count` things, counted from 0; `value` may be an integer of any kind, such as numpy's.

    Raises:
        SettingError: no such number.
        TypeError: not an integer.
    """
    number = operator.index(value)
    low = -count if negative else 0
    if not low <= number < count:
        raise SettingError(f"{what} {number}: choose {low} to {count - 1}{extra}")
    return number % count
