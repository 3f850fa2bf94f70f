"""The published augmentation of DETR, exactly, and milder and smaller variants of it.

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
from typing import Literal

import torch
from torch import Generator, Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detrkit.data.sample import Sample
from detrkit.structures.outputs import Target
from detrkit.utils.errors import DetrkitError

PUBLISHED_SIZE = 800
PUBLISHED_MAX_SIZE = 1333
_PUBLISHED_SCALES = tuple(range(480, 801, 32))
_PUBLISHED_CROP_RESIZE = (400, 500, 600)
_PUBLISHED_CROP = (384, 600)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Geometric operations on one image, in the order of the fields.

    Attributes:
        hflip: whether the image is flipped left to right.
        pre_crop_size: (height, width) in pixels of the resize before the crop, None without a crop.
        crop: (top, left, height, width) of the crop in pixels, None without one.
        size: (height, width) in pixels at the end.
    """

    hflip: bool = False
    pre_crop_size: tuple[int, int] | None = None
    crop: tuple[int, int, int, int] | None = None
    size: tuple[int, int]

    @property
    def decoded_size(self) -> tuple[int, int]:
        """Smallest (height, width) in pixels that the image may be decoded at: that of its first resize."""
        return self.pre_crop_size if self.pre_crop_size is not None else self.size

    def __call__(self, sample: Sample) -> Sample:
        """Apply the operations to a sample."""
        if self.hflip:
            sample = hflip(sample)
        if self.pre_crop_size is not None:
            sample = resize(sample, self.pre_crop_size)
        if self.crop is not None:
            sample = crop(sample, *self.crop)
        return resize(sample, self.size)


class Transform(ABC):
    """Function from Sample to Sample; random ones draw from the generator alone, others need none."""

    @abstractmethod
    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw what is done to an image of that size in pixels."""

    def __call__(self, sample: Sample, generator: Generator | None = None) -> Sample:
        """Return a transformed copy; `sample` stays as it is."""
        height, width = sample.boxes.canvas_size
        return self.make_params(height, width, generator)(sample)


def resized_size(height: int, width: int, size: int, max_size: int | None = None) -> tuple[int, int]:
    """Return (height, width) after resizing the short side to `size` pixels, with the published rounding.

    If the long side would exceed `max_size`, the short side becomes round(max_size * short / long) instead (Python's
    round); the other side is truncated to a whole pixel. Where that would be 0 pixels (published: an error), the short
    side is one pixel and the long side `max_size`, so that a scanner's strip does not become a long line.
    """
    short, long = float(min(height, width)), float(max(height, width))
    if max_size is not None and long / short * size > max_size:
        size = round(max_size * short / long)
        if size == 0:
            return (1, max_size) if height < width else (max_size, 1)
    if min(height, width) == size:
        return height, width
    if width < height:
        return int(size * height / width), size
    return size, int(size * width / height)


def resize(sample: Sample, size: tuple[int, int]) -> Sample:
    """Resize the sample to `size` (height, width): bilinear with antialiasing, masks by nearest neighbor, both as PIL.

    An image that was decoded smaller than the canvas of its boxes and masks fits them afterwards.
    """
    height, width = sample.boxes.canvas_size
    image = sample.image.as_subclass(Tensor)
    if size == (height, width) == image.shape[-2:]:
        return sample
    # one resize for crop and scale would make pixels sharper than published
    image = resize_pixels(image, size)
    boxes = sample.boxes.as_subclass(Tensor)
    ratios = boxes.new_tensor([size[1] / width, size[0] / height] * 2)
    masks = sample.masks
    if masks is not None:
        if len(masks):
            # The pixel nearest to the middle of each new one. The published code takes the one at its corner: on shapes
            # of 128 pixels its masks end up 0.7 pixels to the right of their objects and as much below them (IoU 0.82
            # with the image of the mask put through the same augmentation). This one has 0.95, and nothing is shifted.
            numbers = masks.as_subclass(Tensor).view(torch.uint8)[None]
            resized = torch.nn.functional.interpolate(numbers, size, mode="nearest-exact")[0].bool()
        else:
            resized = masks.as_subclass(Tensor).new_zeros(0, *size)
        masks = resized.as_subclass(tv_tensors.Mask)
    return _rebuilt(sample, image, boxes * ratios, sample.labels, masks)


def resize_pixels(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a (3, H, W) uint8 image to `size` (height, width): bilinear with antialiasing, as PIL."""
    if size == image.shape[-2:]:
        return image
    # 0.6 ms for a COCO image, 3.3 ms in Pillow
    mode = functional.InterpolationMode.BILINEAR
    resized: Tensor = functional.resize_image(image, list(size), mode, antialias=True)
    return resized


def hflip(sample: Sample) -> Sample:
    """Mirror the sample left to right."""
    canvas = sample.boxes.canvas_size
    width = canvas[1]
    x0, y0, x1, y1 = sample.boxes.as_subclass(Tensor).unbind(1)
    masks = None if sample.masks is None else sample.masks.as_subclass(Tensor).flip(-1).as_subclass(tv_tensors.Mask)
    boxes = torch.stack([width - x1, y0, width - x0, y1], 1)
    return _rebuilt(sample, sample.image.as_subclass(Tensor).flip(-1), boxes, sample.labels, masks, canvas)


def crop(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """Crop the sample to a rectangle; shift and clamp its boxes, and drop objects of which nothing is left.

    A box without area counts as nothing, as does, where there are masks, a mask without a pixel. (The published code
    looks at the boxes alone: where the crop shows only a house, it keeps an empty mask of the sky around it.)
    """
    image = sample.image.as_subclass(Tensor)[:, top : top + height, left : left + width]
    boxes = sample.boxes.as_subclass(Tensor)
    boxes = boxes - boxes.new_tensor([left, top, left, top])
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    masks = None
    if sample.masks is not None:
        cut = sample.masks.as_subclass(Tensor)[:, top : top + height, left : left + width]
        keep &= cut.flatten(1).any(1)
        masks = cut[keep].as_subclass(tv_tensors.Mask)
    return _rebuilt(sample, image, boxes[keep], sample.labels[keep], masks)


def _rebuilt(
    sample: Sample,
    image: Tensor,
    boxes: Tensor,
    labels: Tensor,
    masks: tv_tensors.Mask | None,
    canvas: tuple[int, int] | None = None,
) -> Sample:
    """Return the sample with new contents, wrapped in their types; the canvas of its boxes is by default the image."""
    canvas = canvas or (int(image.shape[-2]), int(image.shape[-1]))
    wrapped = tv_tensors.BoundingBoxes(boxes, device=boxes.device, format="XYXY", canvas_size=canvas)
    return replace(sample, image=image.as_subclass(tv_tensors.Image), boxes=wrapped, labels=labels, masks=masks)


def _chance(generator: Generator) -> float:
    return float(torch.rand((), generator=generator, dtype=torch.float32, device="cpu"))


def _integer(low: int, high: int, generator: Generator) -> int:
    """Draw a whole number from `low` to `high`, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator, device="cpu"))


def _choice(values: Sequence[int], generator: Generator) -> int:
    return values[_integer(0, len(values) - 1, generator)]


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
    """

    size: int = PUBLISHED_SIZE
    max_size: int | None = PUBLISHED_MAX_SIZE

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Return the resize; nothing is drawn."""
        return Geometry(size=resized_size(height, width, self.size, self.max_size))


@dataclass(frozen=True, kw_only=True)
class FlipTransform(Transform):
    """Mirroring of half of the images, then a resize of all to one size.

    Attributes:
        resize: of all images, flipped or not.
    """

    resize: EvalTransform = EvalTransform()

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw whether to mirror, and add the resize."""
        return replace(self.resize.make_params(height, width), hflip=_chance(_needs(generator)) < 0.5)


@dataclass(frozen=True, kw_only=True)
class DetrTransform(Transform):
    """The published augmentation; the defaults are the published numbers, in pixels.

    Attributes:
        scales: short sides to choose from at the end.
        max_size: the long side at most, at the end.
        crop_resize: short sides to choose from before the crop (the long side has no limit there).
        crop_range: smallest and largest side of the crop, both included, capped at the image.
    """

    scales: tuple[int, ...] = _PUBLISHED_SCALES
    max_size: int | None = PUBLISHED_MAX_SIZE
    crop_resize: tuple[int, ...] = _PUBLISHED_CROP_RESIZE
    crop_range: tuple[int, int] = _PUBLISHED_CROP

    def make_params(self, height: int, width: int, generator: Generator | None = None) -> Geometry:
        """Draw the mirroring, then perhaps a first resize and a crop, then the scale."""
        generator = _needs(generator)
        flipped = _chance(generator) < 0.5
        pre_crop_size = rectangle = None
        if _chance(generator) >= 0.5:
            pre_crop_size = resized_size(height, width, _choice(self.crop_resize, generator))
            rectangle = random_crop(*pre_crop_size, self.crop_range, generator)
            height, width = rectangle[2:]
        size = resized_size(height, width, _choice(self.scales, generator), self.max_size)
        return Geometry(hflip=flipped, pre_crop_size=pre_crop_size, crop=rectangle, size=size)


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
    w = _integer(min(low, width), min(high, width), generator)
    h = _integer(min(low, height), min(high, height), generator)
    return _integer(0, height - h, generator), _integer(0, width - w, generator), h, w


def _scaled(pixels: int, size: int) -> int:
    """Scale a published number of pixels to another size: proportional, rounded to the nearest (Python's round)."""
    return max(1, round(pixels * size / PUBLISHED_SIZE))


def train_transform(
    size: int = PUBLISHED_SIZE,
    max_size: int | None = None,
    scales: Sequence[int] | None = None,
    *,
    augment: Literal["detr", "flip", "none"] = "detr",
) -> Transform:
    """Make the transform for training.

    Args:
        size: largest short side, pixels. At 800 all numbers are the published ones; at another size each becomes
            round(number * size / 800), and scales that coincide are listed once.
        max_size: the long side at most, pixels; by default round(1333 * size / 800).
        scales: short sides to choose from, pixels; by default the published ones, scaled.
        augment: "detr": the published one; "flip": mirror, then resize as in evaluation; "none": only that resize.

    Raises:
        DetrkitError: a size that is not positive, or an unknown augment.
    """
    base = eval_transform(size, max_size)
    if augment == "none":
        return base
    if augment == "flip":
        return FlipTransform(resize=base)
    if augment != "detr":
        raise DetrkitError(f'augment={augment!r}: choose "detr", "flip" or "none"')
    if scales is not None and (not scales or min(scales) < 1):
        raise DetrkitError(f"scales={list(scales)}: needs sizes of at least 1 pixel")
    chosen = scales if scales is not None else dict.fromkeys(_scaled(s, size) for s in _PUBLISHED_SCALES)
    return DetrTransform(
        scales=tuple(chosen),
        max_size=base.max_size,
        crop_resize=tuple(_scaled(s, size) for s in _PUBLISHED_CROP_RESIZE),
        crop_range=(_scaled(_PUBLISHED_CROP[0], size), _scaled(_PUBLISHED_CROP[1], size)),
    )


def eval_transform(size: int = PUBLISHED_SIZE, max_size: int | None = None) -> EvalTransform:
    """Make the transform for evaluation: short side `size`, long side at most `max_size`, pixels.

    By default `max_size` is round(1333 * size / 800).

    Raises:
        DetrkitError: a size that is not positive, or a maximum below it.
    """
    if size < 1 or (max_size is not None and max_size < size):
        raise DetrkitError(f"size={size}, max_size={max_size}: need 1 <= size <= max_size pixels")
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
