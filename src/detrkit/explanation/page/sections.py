"""Arrays of numbers inside a page: quantized, deflated, in base64.

assets/decode.js reads them. Weights are kept as roots: a map whose largest weight holds half of the attention would
lose all of its small ones in 255 equal steps, and together they hold the other half.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# Zero of the coordinates of points: these are 16-bit numbers, and points may lie outside of the image.
ORIGIN = 32768
# Steps of a coordinate over the width or the height of the image. Of a query's points: 0.07 pixels of 1199; within two
# sizes of the image around it. Of an encoder's points, which are as many as the page has room for: 0.3 pixels of 1199.
QUERY_STEPS, CELL_STEPS = 16384, 4096


class Section(NamedTuple):
    """An array in a page.

    Attributes:
        name: by which the page's script finds it.
        dtype: "uint8", "uint16" or "float32", little-endian.
        shape: of the array.
        payload: base64 of its deflated bytes (zlib's format).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    payload: str

    @property
    def size(self) -> int:
        """Bytes that the section takes in the file."""
        return len(self.payload)

    def describe(self) -> dict[str, Any]:
        """Return name, type and shape as plain JSON values."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}


def section(name: str, values: np.ndarray) -> Section:
    """Pack an array.

    Args:
        name: by which the page's script finds it.
        values: uint8, uint16 or float32.
    """
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    payload = base64.b64encode(zlib.compress(little.tobytes(), 6)).decode("ascii")
    return Section(name, values.dtype.name, values.shape, payload)


def quantized_maps(maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Quantize maps of attention: weight = scale * (value / 255)^2.

    Args:
        maps: (..., h, w), not negative.

    Returns:
        (..., h, w) uint8 and the largest weight of each map, (...) float32.
    """
    maps = torch.nan_to_num(maps)
    scale = maps.amax((-2, -1))
    relative = maps / scale[..., None, None].clamp(min=1e-30)
    return _roots(relative), scale.numpy().astype(np.float32)


def quantized_weights(weights: Tensor) -> np.ndarray:
    """Quantize the weights of points: of a head they are proportional to value^2, and sum to 1.

    Args:
        weights: (..., H, L, P), not negative.

    Returns:
        (..., H, L, P) uint8.
    """
    weights = torch.nan_to_num(weights)
    return _roots(weights / weights.amax((-2, -1), keepdim=True).clamp(min=1e-30))


def quantized_points(points: Tensor, image_size: Sequence[int], *, around: Tensor | None, steps: int) -> np.ndarray:
    """Quantize points: pixel = origin of the point + (value - ORIGIN) / steps * size of the image.

    A point farther away than the numbers reach is moved to where they end, outside of the image.

    Args:
        points: (N, H, L, P, 2) xy in pixels of the image.
        image_size: (h, w) in pixels.
        around: (N, 2) origins in pixels; None: the corner of the image.
        steps: over the width or the height of the image.

    Returns:
        (N, H, L, P, 2) uint16.
    """
    relative = points if around is None else points - around[:, None, None, None]
    relative = relative / relative.new_tensor([image_size[1], image_size[0]])
    return torch.nan_to_num(relative * steps + ORIGIN).round().clamp(0, 65535).numpy().astype(np.uint16)


def packed_masks(masks: Tensor) -> np.ndarray:
    """Pack (N, h, w) bool masks: (N, h, ceil(w / 8)) uint8, the first pixel in the highest bit."""
    return np.packbits(masks.numpy(), axis=-1)


def _roots(relative: Tensor) -> np.ndarray:
    return torch.sqrt(relative).mul(255).round().numpy().astype(np.uint8)
