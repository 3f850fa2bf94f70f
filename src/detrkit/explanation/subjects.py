"""What a picture of attention is of: a detection's query, or the encoder's cell at a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from detrkit.explanation.maps import Head
from detrkit.explanation.points import SampledPoints
from detrkit.utils.visible import one_line
from detrkit.visualize.attention import draw_cross, object_color
from detrkit.visualize.colors import Color
from detrkit.visualize.draw import draw_boxes

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

Show = Literal["map", "points", "boxes"]


def share_words(share: float) -> str:
    """Format a share in [0, 1] in percent, a small one with its first digit: "93%", "0.3%", "0%"."""
    return f"{share:.0%}" if share >= 0.0095 or share < 1e-6 else f"{share * 100:.1g}%"


@dataclass(frozen=True)
class DetectionSubject:
    """A detection: what its query attends to.

    Attributes:
        explanation: of the image.
        i: number of the detection.
    """

    explanation: Explanation
    i: int

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return self.explanation.decoder_layers

    @property
    def samples_points(self) -> bool:
        """Whether the decoder samples points."""
        return self.explanation.deformable

    @property
    def part(self) -> str:
        """Part of the model that attends."""
        return "decoder"

    @property
    def cross(self) -> str:
        """What the cross marks."""
        return "reference point"

    @property
    def color(self) -> Color:
        """Color of the detection in all pictures of its explanation."""
        return object_color(self.i)

    @property
    def name(self) -> str:
        """Class and score: "elephant 0.99"."""
        detections = self.explanation.detections
        return f"{one_line(detections.names[self.i])} {float(detections.scores[self.i]):.2f}"

    @property
    def title(self) -> str:
        """Class, score and query, for captions."""
        return f"{self.name}, query {int(self.explanation.queries[self.i])}"

    def heat(self, layer: int, head: Head) -> np.ndarray:
        """Return (h, w) attention over the grid, summing to 1; errors as of `Explanation.cross_attention`."""
        return self.explanation.cross_attention(self.i, layer, head).numpy()

    def points(self, layer: int) -> SampledPoints:
        """Return the sampled points; errors as of `Explanation.sampling_points`."""
        return self.explanation.sampling_points(self.i, layer)

    def center(self, layer: int) -> tuple[float, float]:
        """Return xy in pixels of the image: the reference point that a layer (from 0) starts from."""
        x0, y0, x1, y1 = self.explanation.reference_boxes(self.i)[layer].tolist()
        return (x0 + x1) / 2, (y0 + y1) / 2

    def mark(self, canvas: Image.Image, factor: float, *, label: bool) -> Image.Image:
        """Draw the box on a canvas that is `factor` times as large as the image, with its name as `label`."""
        boxes = self.explanation.detections.boxes[self.i : self.i + 1] * factor
        return draw_boxes(canvas, boxes, [self.name] if label else None, [self.color])

    def note(self, layer: int, head: Head) -> str:
        """Return how much of the attention falls into the box, for a small title."""
        return f"{share_words(self.explanation.attention_inside(self.i, layer, head))} in the box"


@dataclass(frozen=True)
class PixelSubject:
    """A pixel: what the encoder's cell there attends to.

    Attributes:
        explanation: of the image.
        x: of the pixel, from the left edge of the image.
        y: of the pixel, from the top.
        level: of the cell, 0 is the finest.
    """

    explanation: Explanation
    x: float
    y: float
    level: int = 0
    color: Color = (255, 255, 255)

    @property
    def layers(self) -> int:
        """Number of encoder layers."""
        return self.explanation.encoder_layers

    @property
    def samples_points(self) -> bool:
        """Whether the encoder samples points."""
        return self.explanation.encoder_samples_points

    @property
    def part(self) -> str:
        """Part of the model that attends."""
        return "encoder"

    @property
    def cross(self) -> str:
        """What the cross marks."""
        return "the pixel"

    @property
    def title(self) -> str:
        """Pixel, and level where there are several."""
        levels = len(self.explanation.maps.levels)
        return f"pixel ({self.x:g}, {self.y:g})" + (f", cell of level {self.level}" if levels > 1 else "")

    def heat(self, layer: int, head: Head) -> np.ndarray:
        """Return (h, w) attention over the grid, summing to 1; errors as of `Explanation.self_attention`."""
        return self.explanation.self_attention(self.x, self.y, layer, head, level=self.level).numpy()

    def points(self, layer: int) -> SampledPoints:
        """Return the sampled points; errors as of `Explanation.encoder_points`."""
        return self.explanation.encoder_points(self.x, self.y, layer, level=self.level)

    def center(self, layer: int) -> tuple[float, float]:
        """Return xy of the pixel, in pixels of the image, whatever the layer."""
        return self.x, self.y

    def mark(self, canvas: Image.Image, factor: float, *, label: bool) -> Image.Image:
        """Draw a cross at the pixel on a canvas that is `factor` times as large as the image."""
        canvas = canvas.copy()
        draw_cross(canvas, (self.x * factor, self.y * factor), color=self.color)
        return canvas

    def note(self, layer: int, head: Head) -> str:
        """Return nothing: a pixel has no box."""
        return ""


Subject = DetectionSubject | PixelSubject
