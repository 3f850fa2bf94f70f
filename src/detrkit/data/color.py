"""Color changes: brightness, contrast, saturation and hue of a uint8 image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from detrkit.data.draws import uniform

# At a strength of 1 about the ranges of SSD (Liu et al. 2016): factors of 0.5 to 1.5, the hue by 18 degrees.
_FACTOR_RANGE = 0.5
_HUE_RANGE = 0.05  # of the full circle
_BAND_PIXELS = 32_768  # changed at once: in the cache, a third of the time of the whole image at once
_MEAN_STEP = 4  # rows and columns between two pixels of the mean gray
_LUMA = (0.299, 0.587, 0.114)
_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


@dataclass(frozen=True, kw_only=True)
class ColorChange:
    """Color change of one image, in the order of the fields.

    All four are linear in the pixel, and one matrix does them: 15 to 35 ms for 800 x 1066 pixels on one slow core,
    where torchvision's four functions take 200 to 280. These turn the hue in HSV; the matrix turns it in YIQ, which
    leaves the gray of each pixel as it is.

    Attributes:
        brightness: factor of the values.
        contrast: factor of the distance from the image's mean gray.
        saturation: factor of the distance of each pixel from its gray.
        hue: turn of the hue, as a part of the full circle.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float

    def __call__(self, image: Tensor) -> Tensor:
        """Return a changed copy of a (3, H, W) uint8 RGB image."""
        height, width = image.shape[-2:]
        band = max(1, _BAND_PIXELS // width)  # rows
        matrix = self._matrix()
        few = image[:, ::_MEAN_STEP, ::_MEAN_STEP].double()  # all pixels would double the time
        mean_gray = float(torch.tensor(_LUMA, dtype=torch.float64) @ few.mean((1, 2))) * self.brightness
        changed = torch.empty(image.shape, dtype=torch.uint8)
        for top in range(0, height, band):
            pixels = matrix @ image[:, top : top + band].float().flatten(1)  # (3, band * W)
            pixels.add_((1 - self.contrast) * mean_gray)  # gray, which saturation and hue leave as it is
            changed[:, top : top + band] = pixels.round_().clamp_(0, 255).view(3, -1, width)
        return changed

    def _matrix(self) -> Tensor:
        """Return the (3, 3) float32 factors of red, green and blue."""
        gray = torch.tensor([_LUMA] * 3, dtype=torch.float64)
        saturation = self.saturation * torch.eye(3, dtype=torch.float64) + (1 - self.saturation) * gray
        yiq = torch.tensor(_YIQ, dtype=torch.float64)
        yiq[1:] -= yiq[1:].mean(1, keepdim=True)  # to the last digit: gray has no hue
        cos, sin = math.cos(2 * math.pi * self.hue), math.sin(2 * math.pi * self.hue)
        turn = torch.tensor([[1, 0, 0], [0, cos, sin], [0, -sin, cos]], dtype=torch.float64)
        matrix = torch.linalg.inv(yiq) @ turn @ yiq @ saturation
        return (self.brightness * self.contrast * matrix).float()


def draw_color_change(strength: float, generator: Generator) -> ColorChange:
    """Draw a color change.

    Args:
        strength: from 0, which changes nothing, to 1: factors from 0.5 to 1.5, the hue by at most 18 degrees.
        generator: to draw from.
    """
    brightness, contrast, saturation = (
        uniform(1 - _FACTOR_RANGE * strength, 1 + _FACTOR_RANGE * strength, generator) for _ in range(3)
    )
    hue = uniform(-_HUE_RANGE * strength, _HUE_RANGE * strength, generator)
    return ColorChange(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
