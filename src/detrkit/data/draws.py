"""Random draws, each from a generator on the CPU, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator


def chance(generator: Generator) -> float:
    """Draw a number from [0, 1)."""
    return float(torch.rand((), generator=generator, dtype=torch.float32, device="cpu"))


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number from `low` to `high`."""
    return low + (high - low) * chance(generator)


def integer(low: int, high: int, generator: Generator) -> int:
    """Draw a whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator, device="cpu"))


def choice(values: Sequence[int], generator: Generator) -> int:
    """Draw one of the values, with equal chances."""
    return values[integer(0, len(values) - 1, generator)]


def random_crop(height: int, width: int, sides: tuple[int, int], generator: Generator) -> tuple[int, int, int, int]:
    """Draw a random rectangle in an image: its width before its height, then top, then left.

    Args:
        height: of the image, pixels.
        width: of the image, pixels.
        sides: smallest and largest side in pixels, both included, capped at the image.
        generator: to draw from.

    Returns:
        (top, left, height, width) in pixels.
    """
    low, high = sides
    w = integer(min(low, width), min(high, width), generator)
    h = integer(min(low, height), min(high, height), generator)
    return integer(0, height - h, generator), integer(0, width - w, generator), h, w
