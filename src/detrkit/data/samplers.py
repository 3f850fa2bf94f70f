"""Samplers: the images of every batch, the same for any number of processes.

An item of the samplers holds all that an augmented image depends on besides the seed: epoch, image and, where a small
dataset fills a batch several times over, the number of the copy. So nothing depends on worker processes, and
persistent workers need no message about a new epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from detrkit.data.dataset import Dataset
from detrkit.data.draws import choice
from detrkit.data.grouping import order_by_size

# Images of similar size are grouped within this many steps. At the published augmentation of COCO-like sizes and batch
# 4, 33 % of a batch is padding without grouping, 11 % with 16 steps, 5 % with 64, 2 % with 256.
GROUPED_STEPS = 64
# Published for RT-DETR at 640 pixels, which comes three times; at another size all are in proportion.
STEP_SIZES = (480, 512, 544, 576, 608, 640, 640, 640, 672, 704, 736, 768, 800)
_PUBLISHED_STEP_SIZE = 640
LARGEST_SCALE = max(STEP_SIZES) / _PUBLISHED_STEP_SIZE
_GROUP, _SCALE = 1, 3  # set the seeds of groups and of scales apart from those of the images


class SampleKey(NamedTuple):
    """Key of one sample, as a sampler requests it.

    Attributes:
        epoch: of the training or, with `epoch_images`, turn through the dataset.
        image: index in the dataset.
        copy: of the image in the epoch, from 0.
        mixed: whether the image may be mixed with others or changed as strongly; it is no part of the seed.
        scale: of the size that the image has at the end; no part of the seed either.
    """

    epoch: int
    image: int
    copy: int = 0
    mixed: bool = False
    scale: float = 1.0


def step_scale(seed: int, epoch: int, step: int) -> float:
    """Draw the scale of the images of one optimizer step, 0.75 to 1.25 (`STEP_SIZES`)."""
    generator = torch.Generator().manual_seed(derived_seed(seed, epoch, step, 0, _SCALE))
    return choice(STEP_SIZES, generator) / _PUBLISHED_STEP_SIZE


def derived_seed(*parts: int) -> int:
    """Derive a 64-bit seed from non-negative whole numbers, such as (seed, epoch, index); it differs by tuple."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class TrainSampler:
    """Batches of one process in an epoch of training.

    The permutation of an epoch follows from (seed, epoch). Global batch k is permutation[k * G : (k + 1) * G] with
    G = batch_size * world_size; process `rank` takes its slice [rank * batch_size : (rank + 1) * batch_size]. The last
    incomplete global batch is dropped, as published; a dataset smaller than the images of one step (G * accumulate) is
    repeated to fill exactly one.

    With `size_of`, the keys of every `GROUPED_STEPS` optimizer steps are put in another order before they are cut
    into batches: images of similar size come into one step, and the steps are shuffled. This also follows from the seed
    and the epoch, and does not depend on how a step's images are divided among processes and accumulated batches.

    With `epoch_images`, epochs are consecutive parts of an endless sequence of permutations of the dataset, in which
    nothing is dropped: part e starts where part e - 1 ended, and every image comes once before one comes again.

    With `multi_scale`, the images of each optimizer step have a size of their own in the epochs that mix, drawn from
    `STEP_SIZES`. It follows from (seed, epoch, step) and is the same for all processes.

    With `rates`, a turn has round(sum of the rates) images: an image comes its rate, rounded down or up, and which are
    rounded up is drawn anew each turn (`draw_counts`). Every time it has a `copy` of its own, so its own augmentation.

    Args:
        length: images in the dataset.
        batch_size: images per process and batch.
        seed: of the training.
        rank: number of this process, from 0.
        world_size: number of processes.
        accumulate: batches per optimizer step. An epoch has one step or more: where there are too few images for one,
            they are repeated.
        size_of: the (height, width) in pixels of an item after augmentation; None to leave the order as drawn.
        epoch_images: images per epoch, rounded down to whole batches of all processes; fewer than the dataset has, or
            more. None: the whole dataset.
        rates: (length,) how often an image is expected per turn through the dataset; None: once each.
        mixed_epochs: number of first epochs whose samples may be mixed with other images or changed as strongly.
        multi_scale: whether each step of these epochs has a scale of its own.

    Raises:
        ValueError: numbers that are impossible.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        accumulate: int = 1,
        size_of: Callable[[SampleKey], tuple[int, int]] | None = None,
        epoch_images: int | None = None,
        rates: np.ndarray | None = None,
        mixed_epochs: int = 0,
        multi_scale: bool = False,
    ) -> None:
        _check_process(length, batch_size, rank, world_size)
        if rates is not None:
            rates = checked_rates(rates, length)
        if epoch_images is not None and epoch_images < 1:
            raise ValueError(f"epoch_images {epoch_images}: an epoch has at least one image")
        if accumulate < 1:
            raise ValueError(f"accumulate {accumulate}: a step has at least one batch")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.accumulate = accumulate
        self.size_of = size_of
        self.epoch_images = epoch_images
        self.rates = rates
        self.turn_images = length if rates is None else turn_length(rates)
        self.mixed_epochs = mixed_epochs
        self.multi_scale = multi_scale
        self.epoch = 0
        self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Start the next iteration at batch `start_batch` of `epoch` (to resume within an epoch).

        Raises:
            ValueError: a negative epoch, or a start outside [0, number of batches].
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(f"epoch {epoch}, start_batch {start_batch}: an epoch has batches 0 to {len(self)}")
        self.epoch = epoch
        self.start_batch = start_batch

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, wherever it starts: at least those of one step."""
        images = self.turn_images if self.epoch_images is None else self.epoch_images
        return max(self.accumulate, images // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield the batches of this process, each a list of `batch_size` keys."""
        whole = self.batch_size * self.world_size
        keys = self._keys(len(self) * whole)
        if self.epoch < self.mixed_epochs:
            keys = [key._replace(mixed=True) for key in keys]
        window = GROUPED_STEPS * self.accumulate  # batches
        grouped = -1
        for batch in range(self.start_batch, len(self)):
            if self.size_of is not None and batch // window > grouped:
                grouped = batch // window
                span = slice(grouped * window * whole, (grouped + 1) * window * whole)
                keys[span] = self._grouped(keys[span], grouped, self.size_of)
            first = batch * whole + self.rank * self.batch_size
            own = keys[first : first + self.batch_size]
            if self.multi_scale and self.epoch < self.mixed_epochs:
                scale = step_scale(self.seed, self.epoch, batch // self.accumulate)
                own = [key._replace(scale=scale) for key in own]
            yield own

    def _keys(self, count: int) -> list[SampleKey]:
        """Return the keys of an epoch for all processes, before any grouping."""
        if self.epoch_images is None:
            images = self._turn(self.epoch)
            return _numbered(self.epoch, [images[k % len(images)] for k in range(count)])
        keys: list[SampleKey] = []
        place = self.epoch * count  # in the endless sequence
        while len(keys) < count:
            turn, first = divmod(place + len(keys), self.turn_images)
            keys += _numbered(turn, self._turn(turn))[first : first + count - len(keys)]
        return keys

    def _turn(self, turn: int) -> list[int]:
        """Return the images of an epoch or, with `epoch_images`, of a turn through the dataset, in their order."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, turn))
        order = torch.randperm(self.turn_images, generator=generator)
        if self.rates is None:
            return order.tolist()
        images = np.repeat(np.arange(self.length), draw_counts(self.rates, generator))
        chosen: list[int] = images[order.numpy()].tolist()
        return chosen

    def _grouped(
        self, keys: list[SampleKey], window: int, size_of: Callable[[SampleKey], tuple[int, int]]
    ) -> list[SampleKey]:
        """Group the keys of a window: those of similar size in one step, steps shuffled, an incomplete step last."""
        unit = self.batch_size * self.world_size * self.accumulate
        order = order_by_size([size_of(key) for key in keys], unit)
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch, window, 0, _GROUP))
        steps = [*torch.randperm(len(keys) // unit, generator=generator).tolist(), len(keys) // unit]
        return [keys[k] for step in steps for k in order[step * unit : (step + 1) * unit]]


class EvalSampler:
    """Batches of one process in an evaluation: over all processes, every image exactly once.

    Args:
        length: images in the dataset.
        batch_size: images per step; the last batch may be smaller.
        rank: number of this process, from 0.
        world_size: number of processes; `rank` takes order[rank::world_size].
        order: a permutation of the indices; by default ascending.
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        order: Sequence[int] | None = None,
    ) -> None:
        _check_process(length, batch_size, rank, world_size)
        self.batch_size = batch_size
        self.indices = list(order if order is not None else range(length))[rank::world_size]

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Do nothing: an evaluation is the same in every epoch."""

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield the batches of this process."""
        for first in range(0, len(self.indices), self.batch_size):
            yield [SampleKey(0, index) for index in self.indices[first : first + self.batch_size]]


def _numbered(turn: int, images: Sequence[int]) -> list[SampleKey]:
    """Return the keys of a turn; an image that comes again has the next number of a copy."""
    seen: Counter[int] = Counter()
    keys = []
    for image in images:
        keys.append(SampleKey(turn, image, seen[image]))
        seen[image] += 1
    return keys


def checked_rates(rates: np.ndarray, length: int) -> np.ndarray:
    """Return the rates, rounded to 1e-9: a share of a sum that should be 1 is rarely exactly 1.

    Args:
        rates: of the images.
        length: number of images.

    Raises:
        ValueError: not one for each image, negative or not finite, or none that is drawn.
    """
    rounded: np.ndarray = np.round(np.asarray(rates, np.float64), 9)
    if rounded.shape != (length,):
        raise ValueError(f"rates of shape {rounded.shape}: one for each of the {length} images")
    if not (np.isfinite(rounded) & (rounded >= 0)).all() or turn_length(rounded) < 1:
        raise ValueError("rates: finite numbers from 0, of at least one image in all")
    return rounded


def turn_length(rates: np.ndarray) -> int:
    """Return the number of images of a turn through a dataset with these rates."""
    return round(float(rates.sum()))


def draw_counts(rates: np.ndarray, generator: torch.Generator) -> np.ndarray:
    """Draw how often each image comes in a turn: its rate, rounded down or up; in all, `turn_length(rates)`.

    Systematic sampling of the fractions (Madow 1949) in a random order: they lie side by side on a line, and the images
    on which the points start, start + 1, ... fall are rounded up, so each with the chance of its fraction. Where the
    sum of the rates is no whole number, the chances are those of the fractions in proportion.

    Args:
        rates: (N,) from `checked_rates`.
        generator: of the turn.

    Returns:
        (N,) int64.
    """
    counts: np.ndarray = np.floor(rates).astype(np.int64)
    fractions = rates - counts
    more = turn_length(rates) - int(counts.sum())
    certain = np.zeros(len(rates), bool)
    while (left := more - int(certain.sum())) > 0:
        chances = np.where(certain, 0.0, fractions)
        chances *= left / chances.sum()
        if not (chances >= 1).any():
            break
        certain |= chances >= 1
    counts[certain] += 1
    if left <= 0:
        return counts
    order = np.flatnonzero(chances)
    order = order[torch.randperm(len(order), generator=generator).numpy()]
    start = float(torch.rand((), generator=generator, dtype=torch.float64))
    ends = np.cumsum(chances[order])
    ends[-1] = left
    points = np.ceil(ends - start).astype(np.int64)  # that lie before the end of each
    counts[order] += np.diff(points, prepend=0)
    return counts


def _check_process(length: int, batch_size: int, rank: int, world_size: int) -> None:
    if length < 1 or batch_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"length {length}, batch_size {batch_size}, rank {rank} of {world_size}: impossible")


def order_by_aspect(dataset: Dataset) -> list[int]:
    """Sort the indices by height / width, so that the images of a batch have about one shape and little padding."""
    return sorted(range(len(dataset)), key=lambda i: (dataset.records[i].height / dataset.records[i].width, i))
