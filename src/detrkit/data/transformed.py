"""A dataset with its augmentation: from a key of the sampler to what a model takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from detrkit.data.dataset import Dataset
from detrkit.data.geometry import Geometry
from detrkit.data.image_mix import NO_MIX, ImageMix, ImagePart, SamplePlan, plan_sample
from detrkit.data.sample import Sample
from detrkit.data.samplers import SampleKey, derived_seed
from detrkit.data.transforms import MIN_WINDOW_SIDE, Transform, to_target
from detrkit.data.window import draw_window
from detrkit.structures.outputs import Target
from detrkit.utils.errors import DetrkitError

# set the seeds of color and mixing, and of zoom-out and IoU crop, apart from those of the transform and of the sampler
_MIX, _WINDOW = 2, 4


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: the operations on one image are too small to share.

    On a machine of two CPU cores with other work, two threads wait for each other so much that 18 instead of 150
    COCO images per second are augmented. Switching takes 0.1 microseconds.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class TransformedDataset:
    """The dataset as the DataLoader's workers see it: key -> uint8 image and target.

    Attributes:
        dataset: the images.
        transform: what is done to each.
        seed: of the training.
        draft: whether JPEGs may be decoded at a part of their size.
        color: strength of color changes, 0 to 1.
        mix: how often images are mixed with others and changed strongly, where a key says that its epoch does it.
        seen: (N,) cumulated rates at which the images are seen, and chosen to be mixed in; None: all alike.
    """

    dataset: Dataset
    transform: Transform
    seed: int
    draft: bool = False
    color: float = 0.0
    mix: ImageMix = NO_MIX
    seen: np.ndarray | None = None

    def __getitem__(self, key: SampleKey) -> tuple[torch.Tensor, Target] | DetrkitError:
        # an error is returned, not raised: a worker process would bury its one line in a traceback
        try:
            sample = self.sample(key)
        except DetrkitError as error:
            return error
        return sample.image.as_subclass(torch.Tensor), to_target(sample)

    def sample(self, key: SampleKey) -> Sample:
        """Make the augmented sample of a key.

        Raises:
            DetrkitError: an image that cannot be read.
        """
        with one_thread():
            return self.plan(key).make(self._load)

    def _load(self, index: int, geometry: Geometry) -> Sample:
        whole = not self.draft or geometry.window is not None  # a window is in pixels of the whole image
        return self.dataset.load(index, at_least=None if whole else geometry.decoded_size)

    def plan(self, key: SampleKey) -> SamplePlan:
        """Return what the sample of a key is made of."""
        geometry = self.geometry(key)
        if not (self.color or key.mixed):
            return SamplePlan(tiles=(ImagePart(index=key.image, geometry=geometry),))
        return plan_sample(
            self.dataset,
            key.image,
            geometry,
            transform=self.transform,
            mix=self.mix if key.mixed else NO_MIX,
            color=self.color,
            seen=self.seen,
            scale=key.scale,
            generator=self._generator(key, _MIX),
        )

    def most_objects(self, samples: int) -> int:
        """Return the number of objects of the fullest of so many mixed samples of the first epochs.

        Nothing is decoded; a mosaic takes half a millisecond.
        """
        count, step = len(self), max(1, len(self) // samples)
        keys = (SampleKey(k // count, k * step % count, mixed=True) for k in range(samples))
        return max(self.plan(key).objects(self.dataset) for key in keys)

    def _generator(self, key: SampleKey, *purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(derived_seed(self.seed, key.epoch, key.image, key.copy, *purpose))

    def geometry(self, key: SampleKey) -> Geometry:
        """Return what the transform will do to the image of a key; takes 0.02 ms.

        Its size is that of the sample, also where the image is mixed with others.
        """
        record = self.dataset.records[key.image]
        window = None
        if key.mixed and self.mix.windows:
            window = draw_window(
                record.height,
                record.width,
                record.boxes[~record.crowd],
                zoom_out=self.mix.zoom_out,
                iou_crop=self.mix.iou_crop,
                generator=self._generator(key, _WINDOW),
            )
        height, width = (record.height, record.width) if window is None else (window.height, window.width)
        geometry = self.transform.make_params(height, width, self._generator(key))
        if window is not None:
            geometry = replace(geometry, window=window, min_side=max(geometry.min_side, MIN_WINDOW_SIDE))
        return geometry if key.scale == 1 else geometry.scaled(key.scale)

    def __len__(self) -> int:
        return len(self.dataset)
