"""Training images made of several: mosaic, copy-paste and mixup; what is drawn, before anything is decoded.

A sample is planned first (`plan_sample`), from the sizes in the records and generators of its key alone, and then made
(`SamplePlan.make`). So its size is known before anything is decoded, and it does not depend on processes or workers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Generator, Tensor

from detrkit.data.color import ColorChange, draw_color_change
from detrkit.data.copy_paste import paste_objects
from detrkit.data.dataset import Dataset
from detrkit.data.draws import chance, integer, uniform
from detrkit.data.geometry import Geometry, select_objects
from detrkit.data.mosaic import blend, join, mosaic_tiles, tile_geometry
from detrkit.data.sample import Sample
from detrkit.data.transforms import Transform
from detrkit.utils.errors import DetrkitError
from detrkit.utils.vision import tv_tensors

_MIXUP_RATIOS = 0.4, 0.6  # share of the first image: objects of both stay visible
_PASTED_SHARE = 0.5  # of the objects of the other image

Load = Callable[[int, Geometry], Sample]  # index of an image and what will be done to it -> the decoded sample


@dataclass(frozen=True, kw_only=True)
class ImageMix:
    """How often a training image is mixed with others of the dataset, or changed as strongly.

    Attributes:
        mosaic: probability that four images share the canvas.
        mixup: probability that another image is blended over it.
        copy_paste: probability that objects of another image are pasted onto it, along their masks.
        zoom_out: probability that it is shown small on a black canvas (`draw_window`).
        iou_crop: probability that a crop of it is shown, around an object (`draw_window`).
        multi_scale: whether each step has a size of its own (`TrainSampler`).
        epochs: number of first epochs in which all this is done; None: all.
    """

    mosaic: float = 0.0
    mixup: float = 0.0
    copy_paste: float = 0.0
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    multi_scale: bool = False
    epochs: int | None = None

    def __bool__(self) -> bool:
        return bool(self.mosaic or self.mixup or self.copy_paste or self.windows or self.multi_scale)

    @property
    def windows(self) -> bool:
        """Whether images may be zoomed out of or cropped."""
        return bool(self.zoom_out or self.iou_crop)

    @property
    def first_epochs(self) -> int:
        """Number of first epochs in which something of this is done."""
        return 0 if not self else sys.maxsize if self.epochs is None else self.epochs

    @property
    def mean_objects(self) -> float:
        """Objects of a mixed image on average, as a multiple of those of a plain one; an estimate from above."""
        return (1 + 3 * self.mosaic + _PASTED_SHARE * self.copy_paste) * (1 + self.mixup)

    def check(self, dataset: Dataset) -> None:
        """Check that the images of a dataset can be mixed.

        Raises:
            DetrkitError: panoptic data, which has no whole objects then, or objects to be pasted without masks; names
                the setting and what to do.
        """
        chosen = [name for name in ("mosaic", "mixup", "copy_paste") if getattr(self, name)]
        if chosen and dataset.panoptic:
            raise DetrkitError(
                f"data.{chosen[0]}: {dataset.path} is panoptic: in a mixed image a kind of stuff would have several "
                "segments, and a pixel two; leave it out, or train on instances (data.layout coco)"
            )
        shown = [name for name in ("zoom_out", "iou_crop") if getattr(self, name)]
        if shown and dataset.panoptic:
            raise DetrkitError(
                f"data.{shown[0]}: {dataset.path} is panoptic: stuff whose center is not shown would be lost; leave it "
                "out, or train on instances (data.layout coco)"
            )
        if self.copy_paste and not dataset.with_masks:
            raise DetrkitError(
                f"data.copy_paste: {dataset.path} is opened without masks, along which objects are cut out: choose "
                "masks (--masks), or leave it out"
            )


NO_MIX = ImageMix()


@dataclass(frozen=True, kw_only=True)
class ImagePart:
    """One image of a sample.

    Attributes:
        index: of the image in the dataset.
        geometry: what is done to it.
        color: how its colors change; None to leave them.
        corner: (top, left) in pixels of the sample where it is put; negative where it juts out.
        objects: those of its objects that are used; None for all.
    """

    index: int
    geometry: Geometry
    color: ColorChange | None = None
    corner: tuple[int, int] = (0, 0)
    objects: tuple[int, ...] | None = None

    def make(self, load: Load) -> Sample:
        """Load the image and change it."""
        sample = load(self.index, self.geometry)
        if self.objects is not None:
            sample = select_objects(sample, torch.tensor(self.objects, dtype=torch.int64))
        sample = self.geometry(sample)
        if self.color is None:
            return sample
        return replace(sample, image=self.color(sample.image.as_subclass(Tensor)).as_subclass(tv_tensors.Image))

    def objects_left(self, dataset: Dataset) -> int:
        """Count the objects that the image brings, from the boxes of its record."""
        record = dataset.records[self.index]
        boxes = record.boxes[~record.crowd]
        if self.objects is not None:
            boxes = boxes[list(self.objects)]
        return self.geometry.objects_left(boxes, (record.height, record.width))


@dataclass(frozen=True, kw_only=True)
class SamplePlan:
    """What an augmented sample is made of, in the order of the fields.

    Attributes:
        tiles: one image, or the four of a mosaic.
        pasted: the image whose objects are pasted, or None.
        blended: the image that is blended over it, or None.
        ratio: share of the first image in a blend.
    """

    tiles: tuple[ImagePart, ...]
    pasted: ImagePart | None = None
    blended: ImagePart | None = None
    ratio: float = 1.0

    def make(self, load: Load) -> Sample:
        """Make the sample; its id, file and original size are those of its first image."""
        samples = [part.make(load) for part in self.tiles]
        sample = samples[0] if len(samples) == 1 else join(samples, [part.corner for part in self.tiles])
        if self.pasted is not None:
            sample = paste_objects(sample, self.pasted.make(load), self.pasted.corner)
        if self.blended is not None:
            sample = blend(sample, self.blended.make(load), self.ratio)
        return sample

    def objects(self, dataset: Dataset) -> int:
        """Count the objects of the sample from the boxes alone; with masks, or objects that cover others, about."""
        parts = [*self.tiles, *(part for part in (self.pasted, self.blended) if part is not None)]
        return sum(part.objects_left(dataset) for part in parts)

    @property
    def words(self) -> str:
        """What was done beyond flips, resizes and crops, such as "mosaic, mixup"; empty for a plain image."""
        parts = ["mosaic"] if len(self.tiles) > 1 else []
        parts += ["copy-paste"] if self.pasted is not None else []
        parts += ["mixup"] if self.blended is not None else []
        if (window := self.tiles[0].geometry.window) is not None:
            parts += ["zoom-out"] if window.zoomed else []
            parts += ["IoU crop"] if window.cropped else []
        parts += ["color"] if self.tiles[0].color is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class _Drawing:
    """The draws of one sample, after those of its transform."""

    dataset: Dataset
    transform: Transform
    color: float
    seen: np.ndarray | None
    scale: float
    generator: Generator

    def part(self, index: int, geometry: Geometry) -> ImagePart:
        """Return an image with what is done to it; draw its color change."""
        change = draw_color_change(self.color, self.generator) if self.color else None
        return ImagePart(index=index, geometry=geometry, color=change)

    def other(self) -> tuple[int, int, int]:
        """Draw another image, as often as a training sees it: its index, height and width in pixels."""
        if self.seen is None:
            index = integer(0, len(self.dataset) - 1, self.generator)
        else:
            # float32 draws may round up to the sum
            place = min(chance(self.generator) * self.seen[-1], np.nextafter(self.seen[-1], 0))
            index = int(np.searchsorted(self.seen, place, side="right"))
        record = self.dataset.records[index]
        return index, record.height, record.width

    def tile(self, index: int, height: int, width: int, size: tuple[int, int]) -> ImagePart:
        """Return an image that fills `size` (height, width) in pixels."""
        return self.part(index, tile_geometry(height, width, size, self.generator))

    def mosaic(self, index: int, size: tuple[int, int]) -> tuple[ImagePart, ...]:
        """Draw the images of a mosaic of `size` (height, width) in pixels; the first may be in any quadrant."""
        tiles = mosaic_tiles(size, self.generator)
        quadrant = integer(0, 3, self.generator)
        order = [quadrant, *(k for k in range(4) if k != quadrant)]
        record = self.dataset.records[index]
        images = [(index, record.height, record.width), *(self.other() for _ in range(3))]
        return tuple(
            replace(self.tile(*image, tiles[k].size), corner=tiles[k].corner)
            for image, k in zip(images, order, strict=True)
        )

    def pasted(self, size: tuple[int, int]) -> ImagePart | None:
        """Draw an image, about half of its objects, and where they are pasted; None if it has no objects."""
        index, height, width = self.other()
        geometry = self.transform.make_params(height, width, self.generator).scaled(self.scale)
        top, left = (
            integer(min(0, canvas - side), max(0, canvas - side), self.generator)
            for canvas, side in zip(size, geometry.size, strict=True)
        )
        draws = torch.rand(int((~self.dataset.records[index].crowd).sum()), generator=self.generator)
        if not len(draws):
            return None
        chosen = torch.nonzero(draws <= max(_PASTED_SHARE, float(draws.min()))).flatten().tolist()
        return replace(self.part(index, geometry), corner=(top, left), objects=tuple(chosen))


def plan_sample(
    dataset: Dataset,
    index: int,
    geometry: Geometry,
    *,
    transform: Transform,
    mix: ImageMix,
    color: float,
    seen: np.ndarray | None,
    scale: float,
    generator: Generator,
) -> SamplePlan:
    """Draw what a sample is made of.

    Args:
        dataset: the images.
        index: of the sample's own image.
        geometry: what is done to that image where it is not part of a mosaic; its size is that of the sample.
        transform: for the images that objects are taken from.
        mix: how often images are mixed; all zero for a sample of a plain epoch.
        color: strength of color changes, 0 to 1.
        seen: (N,) cumulated rates at which the images are seen, and chosen to be mixed in; None: all alike.
        scale: of the sample's size, for the images that objects are taken from.
        generator: to draw from; not that of `geometry`, so that other settings leave the geometry as it is.
    """
    drawing = _Drawing(dataset, transform, color, seen, scale, generator)
    draws = [chance(generator) for _ in range(3)]  # always three: one setting does not change what another draws
    size = geometry.size
    if draws[0] < mix.mosaic and min(size) > 1:
        tiles = drawing.mosaic(index, size)
    else:
        tiles = (drawing.part(index, geometry),)
    pasted = drawing.pasted(size) if draws[1] < mix.copy_paste else None
    if draws[2] >= mix.mixup:
        return SamplePlan(tiles=tiles, pasted=pasted)
    blended = drawing.tile(*drawing.other(), size)
    return SamplePlan(tiles=tiles, pasted=pasted, blended=blended, ratio=uniform(*_MIXUP_RATIOS, generator))
