"""The published augmentation of DETR, exactly, milder and smaller variants of it, and large-scale jitter.

A transform is called as `transform(sample, generator)` and gives a new Sample; all its randomness comes from the
generator, so that an augmented image depends on nothing but the generator's seed. What it will do follows from the
generator and the size of the image (`Transform.make_params`), so the loader knows it before anything is decoded.
`Normalization` and `to_target` then turn pixels and objects into what a model takes.

The rules (DETR, appendix A.4, and the published code): a horizontal flip with probability 0.5; then, with equal
chances, A: the short side is resized to one of 480, 512, ..., 800 pixels with the long side at most 1333; or B: the
short side is resized to 400, 500 or 600, a rectangle with sides of 384 to 600 is cut out, and then A. Evaluation
resizes to 800, at most 1333.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detrkit.data.draws import chance, choice, integer, random_crop, uniform
from detrkit.data.geometry import Geometry, resized_size
from detrkit.data.sample import Sample
from detrkit.structures.outputs import Target
from detrkit.utils.augments import Augment
from detrkit.utils.errors import DetrkitError

PUBLISHED_SIZE = 800
PUBLISHED_MAX_SIZE = 1333
_PUBLISHED_SCALES = tuple(range(480, 801, 32))
_PUBLISHED_CROP_RESIZE = (400, 500, 600)
_PUBLISHED_CROP = (384, 600)
# Of an object that a scale or a cut made small: below either it is dropped. As published nothing is dropped for that.
MIN_VISIBLE = 0.1  # share of its area
MIN_SIDE = 2.0  # side of its box, pixels
MIN_WINDOW_SIDE = 1.0  # the same after a zoom-out or IoU crop, as published
_JITTER_SCALES = (0.1, 2.0)
_SHORTEST_JITTERED = 32  # short side in pixels: a cell of the coarsest map


class Transform(ABC):
    """Function from Sample to Sample; random ones draw from the generator alone, others need none."""

    @abstractmethod
    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw what is done to an image of that size in pixels."""

    def __call__(self, sample: Sample, generator: Generator | None = None) -> Sample:
        """Return a transformed copy; `sample` stays as it is."""
        height, width = sample.boxes.canvas_size
        return self.make_params(height, width, generator)(sample)


def _needs(generator: Generator | None) -> Generator:
    if generator is None:
        raise ValueError("a random transform needs the generator to draw from")
    return generator


@dataclass(frozen=True, kw_only=True)
class EvalTransform(Transform):
    """Resize of every image to one size.

    Attributes:
        size: short side, pixels.
        max_size: the long side at most, pixels; None for no limit.
        square: squash every image to `size` x `size` pixels instead.
    """

    size: int = PUBLISHED_SIZE
    max_size: int | None = PUBLISHED_MAX_SIZE
    square: bool = False

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Return the resize; nothing is drawn."""
        return Geometry(size=resized_size(height, width, self.size, self.max_size, square=self.square))


@dataclass(frozen=True, kw_only=True)
class FlipTransform(Transform):
    """Mirroring of half of the images, then a resize of all to one size.

    Attributes:
        resize: of all images, flipped or not.
    """

    resize: EvalTransform = EvalTransform()

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw whether to mirror, and add the resize."""
        return replace(self.resize.make_params(height, width), hflip=chance(_needs(generator)) < 0.5)


@dataclass(frozen=True, kw_only=True)
class ScaleJitter(Transform):
    """Large-scale jitter (Ghiasi et al. 2021, section 3): mirroring, a random scale, and a crop of what is larger.

    The scale is of the size that evaluation would have. A larger image is cropped to that size at a random place; a
    smaller one stays small, where the paper pads it: batches are exact whatever their padding.

    Attributes:
        resize: to the size that a scale of 1 means.
        scales: smallest and largest scale; drawn uniformly.
    """

    resize: EvalTransform = EvalTransform()
    scales: tuple[float, float] = _JITTER_SCALES

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw the mirroring, the scale and the place of the crop."""
        generator = _needs(generator)
        flipped = chance(generator) < 0.5
        h, w = self.resize.make_params(height, width).size
        scale = uniform(*self.scales, generator)
        scale = max(scale, min(1.0, _SHORTEST_JITTERED / min(h, w)))
        scaled = max(1, round(h * scale)), max(1, round(w * scale))
        if scale <= 1:
            return Geometry(hflip=flipped, size=scaled, min_side=MIN_SIDE)
        top, left = integer(0, scaled[0] - h, generator), integer(0, scaled[1] - w, generator)
        return Geometry(
            hflip=flipped,
            pre_crop_size=scaled,
            crop=(top, left, h, w),
            size=(h, w),
            min_visible=MIN_VISIBLE,
            min_side=MIN_SIDE,
        )


@dataclass(frozen=True, kw_only=True)
class DetrTransform(Transform):
    """The published augmentation; the defaults are the published numbers, in pixels.

    Attributes:
        scales: short sides to choose from at the end.
        max_size: the long side at most, at the end.
        square: squash the image to one of `scales` on both sides at the end.
        crop_resize: short sides to choose from before the crop (the long side has no limit there).
        crop_range: smallest and largest side of the crop, both included, capped at the image.
    """

    scales: tuple[int, ...] = _PUBLISHED_SCALES
    max_size: int | None = PUBLISHED_MAX_SIZE
    square: bool = False
    crop_resize: tuple[int, ...] = _PUBLISHED_CROP_RESIZE
    crop_range: tuple[int, int] = _PUBLISHED_CROP

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw the mirroring, then perhaps a first resize and a crop, then the scale."""
        generator = _needs(generator)
        flipped = chance(generator) < 0.5
        pre_crop_size = rectangle = None
        if chance(generator) >= 0.5:
            pre_crop_size = resized_size(height, width, choice(self.crop_resize, generator))
            rectangle = random_crop(*pre_crop_size, self.crop_range, generator)
            height, width = rectangle[2:]
        size = resized_size(height, width, choice(self.scales, generator), self.max_size, square=self.square)
        return Geometry(hflip=flipped, pre_crop_size=pre_crop_size, crop=rectangle, size=size)


def _scaled(pixels: int, size: int) -> int:
    """Scale a published number of pixels to another size: proportional, rounded to the nearest (Python's round)."""
    return max(1, round(pixels * size / PUBLISHED_SIZE))


def train_transform(
    size: int = PUBLISHED_SIZE,
    max_size: int | None = None,
    scales: Sequence[int] | None = None,
    *,
    square: bool = False,
    augment: Augment = "detr",
) -> Transform:
    """Make the transform for training.

    Args:
        size: largest short side, pixels. At 800 all numbers are the published ones; at another size each becomes
            round(number * size / 800), and scales that coincide are listed once.
        max_size: the long side at most, pixels; by default round(1333 * size / 800).
        scales: short sides to choose from, pixels; by default the published ones, scaled.
        square: squash every image to a square of one of these sides; `max_size` does not matter then.
        augment: "detr": the published one; "flip": mirror, then resize as in evaluation; "none": only that resize;
            "lsj": large-scale jitter (`ScaleJitter`).

    Raises:
        DetrkitError: a size that is not positive, or an unknown augment.
    """
    base = eval_transform(size, max_size, square=square)
    if augment == "none":
        return base
    if augment == "flip":
        return FlipTransform(resize=base)
    if augment == "lsj":
        return ScaleJitter(resize=base)
    if augment != "detr":
        raise DetrkitError(f'augment={augment!r}: choose "detr", "flip", "none" or "lsj"')
    if scales is not None and (not scales or min(scales) < 1):
        raise DetrkitError(f"scales={list(scales)}: needs sizes of at least 1 pixel")
    chosen = scales if scales is not None else dict.fromkeys(_scaled(s, size) for s in _PUBLISHED_SCALES)
    return DetrTransform(
        scales=tuple(chosen),
        max_size=base.max_size,
        square=square,
        crop_resize=tuple(_scaled(s, size) for s in _PUBLISHED_CROP_RESIZE),
        crop_range=(_scaled(_PUBLISHED_CROP[0], size), _scaled(_PUBLISHED_CROP[1], size)),
    )


def eval_transform(size: int = PUBLISHED_SIZE, max_size: int | None = None, *, square: bool = False) -> EvalTransform:
    """Make the transform for evaluation: short side `size`, long side at most `max_size`, pixels.

    By default `max_size` is round(1333 * size / 800). With `square` both sides are `size`.

    Raises:
        DetrkitError: a size that is not positive, or a maximum below it.
    """
    if size < 1 or (max_size is not None and max_size < size):
        raise DetrkitError(f"size={size}, max_size={max_size}: need 1 <= size <= max_size pixels")
    if square:
        return EvalTransform(size=size, max_size=None, square=True)
    return EvalTransform(size=size, max_size=max_size if max_size is not None else _scaled(PUBLISHED_MAX_SIZE, size))


class Normalization:
    """Normalization (uint8 / 255 - mean) / std per channel, to the same bits on every device.

    Args:
        mean: per channel of an image in [0, 1].
        std: likewise.
        device: where the pixels are.
    """

    def __init__(
        self,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        device: torch.device | str = "cpu",
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(3, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(3, 1, 1)
        # a tensor: to divide by a number, a GPU multiplies by its reciprocal, which rounds differently
        self.white = torch.full((3, 1, 1), 255.0, dtype=torch.float32, device=device)

    def write(self, pixels: Tensor, out: Tensor) -> None:
        """Fill `out` (3, H, W) float32 from (3, H, W) uint8 RGB.

        Args:
            pixels: in any order in memory.
            out: best planar: on interleaved memory the arithmetic takes four times as long. One multiplication and one
                addition would take 0.6 instead of 0.8 ms for 640 x 853 pixels, and change the last bit of some.
        """
        out.copy_(pixels).div_(self.white).sub_(self.mean).div_(self.std)


def to_target(sample: Sample) -> Target:
    """Return the objects of a transformed sample: boxes cxcywh in [0, 1], relative to the image without padding."""
    height, width = (int(s) for s in sample.image.shape[-2:])
    x0, y0, x1, y1 = sample.boxes.as_subclass(Tensor).unbind(1)
    boxes = torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], 1)
    return Target(
        labels=sample.labels,
        boxes=boxes / torch.tensor([width, height, width, height], dtype=torch.float32),
        masks=None if sample.masks is None else sample.masks.as_subclass(Tensor),
        image_id=sample.image_id,
        size=(height, width),
        orig_size=sample.orig_size,
    )
