"""`plan_sampling`: how often a training shows each image: by its dataset, rare classes, or for having no object.

One number for each image, its rate: how often it is expected per epoch. `TrainSampler` draws the images by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.data.samplers import turn_length
from detrkit.utils.errors import DetrkitError


class Presence(NamedTuple):
    """Which classes each image has, as pairs; crowd regions, which are not learned, do not count.

    Attributes:
        images: (K,) index of an image.
        labels: (K,) label of one of its classes; every pair comes once.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """How often the images of a training are seen.

    Attributes:
        dataset: the images.
        sources: the datasets that it was merged from, in this order; one of them where it was not.
        weights: of the sources, as given; empty if every image counts alike.
        repeat_rare: the threshold of `repeat_factors`, or None.
        empty_share: share of images without objects, as asked for, or None.
        rates: (N,) how often an image is expected per epoch; None: once each, and nothing was asked for.
        frequencies: (C,) share of the images that have each class, from which the repeat factors follow.
        factors: (C,) repeat factor of each class, 1 or more.
        presence: classes of the images.
    """

    dataset: Dataset
    sources: tuple[Dataset, ...]
    weights: tuple[float, ...]
    repeat_rare: float | None
    empty_share: float | None
    rates: np.ndarray | None
    frequencies: np.ndarray
    factors: np.ndarray
    presence: Presence

    @property
    def epoch_images(self) -> int:
        """Number of images of an epoch."""
        return len(self.dataset) if self.rates is None else turn_length(self.rates)

    @property
    def image_rates(self) -> np.ndarray:
        """(N,) how often an image is expected per epoch."""
        return np.ones(len(self.dataset)) if self.rates is None else self.rates

    @property
    def source_of(self) -> np.ndarray:
        """(N,) index of the source of each image."""
        return np.repeat(np.arange(len(self.sources)), [len(source) for source in self.sources])

    @property
    def without_objects(self) -> np.ndarray:
        """(N,) bool: which images have no object."""
        return without_objects(self.presence, len(self.dataset))


def classes_present(dataset: Dataset) -> Presence:
    """Return which classes each image of a dataset has."""
    each = [np.unique(record.labels[~record.crowd]) for record in dataset.records]
    none = np.zeros(0, np.int64)
    return Presence(np.repeat(np.arange(len(each)), [len(labels) for labels in each]), np.concatenate([none, *each]))


def without_objects(presence: Presence, images: int) -> np.ndarray:
    """Return (N,) bool: which of so many images have no object."""
    return np.bincount(presence.images, minlength=images) == 0


def class_frequencies(presence: Presence, classes: int, base: np.ndarray) -> np.ndarray:
    """Return (C,) share of the images that have each class.

    Args:
        presence: classes of the images.
        classes: number of classes.
        base: (N,) how much each image counts.
    """
    shares: np.ndarray = np.bincount(presence.labels, base[presence.images], minlength=classes) / base.sum()
    return shares


def repeat_factors(frequencies: np.ndarray, threshold: float) -> np.ndarray:
    """Return (C,) r(c) = max(1, sqrt(t / f(c))), the repeat factors of classes (Gupta et al. 2019, LVIS, section 4.2).

    Args:
        frequencies: (C,) f, share of the images that have each class.
        threshold: t, the share below which a class is rare.

    Returns:
        Factors; 1 for classes without images.
    """
    present = frequencies > 0
    factors: np.ndarray = np.ones(len(frequencies))
    factors[present] = np.maximum(1.0, np.sqrt(threshold / frequencies[present]))
    return factors


def plan_sampling(
    dataset: Dataset,
    *,
    sources: Sequence[Dataset] = (),
    weights: Sequence[float] = (),
    repeat_rare: float | None = None,
    empty_share: float | None = None,
) -> Sampling:
    """Compute how often a training shows each image of a dataset.

    1. Every image counts once, or by the weights of the datasets: these are the shares of an epoch's images that each
       dataset has, whatever comes below, and the images of one dataset count alike.
    2. An image is repeated as its rarest class: r(i) = max over its classes of `repeat_factors`.
    3. Images without objects get their share of the epoch: those with objects come as often as before, and the epoch
       becomes longer or shorter. With weights, the share is the same in all datasets that have both kinds of images.

    Args:
        dataset: the images, of all sources in their order.
        sources: the datasets that it was merged from; by default itself alone.
        weights: one for each source, from 0; none: every image counts alike.
        repeat_rare: threshold of `repeat_factors`; None: no image is repeated.
        empty_share: share of an epoch, from 0 to below 1, that images without objects have; None: as they are.

    Raises:
        DetrkitError: another number of weights than of sources; a share that cannot be reached; an
            epoch without objects.
    """
    sources = tuple(sources) or (dataset,)
    if weights and len(weights) != len(sources):
        raise DetrkitError(f"weights: {len(weights)} for {len(sources)} datasets: give one for each")
    if weights and not sum(weights) > 0:
        raise DetrkitError("weights: all are 0, so that no image is left")
    presence = classes_present(dataset)
    source_of = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
    rates = np.ones(len(dataset))
    if weights:
        _scale_to(rates, source_of, np.array(weights) / sum(weights), total=len(dataset))
    frequencies = class_frequencies(presence, len(dataset.classes), rates)
    factors = np.ones(len(dataset.classes))
    if repeat_rare is not None:
        factors = repeat_factors(frequencies, repeat_rare)
        repeats = np.ones(len(dataset))
        np.maximum.at(repeats, presence.images, factors[presence.labels])
        rates *= repeats
        if weights:
            _scale_to(rates, source_of, np.array(weights) / sum(weights), total=float(rates.sum()))
    if empty_share is not None:
        empty = without_objects(presence, len(dataset))
        if weights:
            _share_in_each(rates, empty, source_of, empty_share)
        else:
            _share_of_all(rates, empty, empty_share, str(dataset.path))
    asked = bool(weights) or repeat_rare is not None or empty_share is not None
    if asked and turn_length(rates[np.unique(presence.images)]) < 1:
        raise DetrkitError(f"{dataset.path}: no image with an object is left in an epoch: give other weights or data")
    return Sampling(
        dataset,
        sources,
        tuple(weights),
        repeat_rare,
        empty_share,
        rates if asked else None,
        frequencies,
        factors,
        presence,
    )


def _scale_to(rates: np.ndarray, source_of: np.ndarray, shares: np.ndarray, *, total: float) -> None:
    """Scale the rates of each source so that it has its share of so many images."""
    sums = np.bincount(source_of, rates, minlength=len(shares))
    rates *= (shares * total / np.where(sums > 0, sums, 1))[source_of]


def _share_of_all(rates: np.ndarray, empty: np.ndarray, share: float, name: str) -> None:
    """Scale the rates of images without objects to a share of all.

    Raises:
        DetrkitError: there are none.
    """
    if share > 0 and not empty.any():
        raise DetrkitError(f"{name}: empty_share is {share:g}, but every image has an object: leave it out")
    with_objects = rates[~empty].sum()
    rates[empty] *= share / (1 - share) * with_objects / max(rates[empty].sum(), 1e-12)


def _share_in_each(rates: np.ndarray, empty: np.ndarray, source_of: np.ndarray, share: float) -> None:
    """Scale the rates of images without objects to a share of all, and keep the shares of the sources.

    Sources of one kind of images have fixed parts; of the others the same share q has no objects.

    Raises:
        DetrkitError: the weights alone leave too many images without objects, or too few images that could be.
    """
    count = int(source_of.max()) + 1
    totals = np.bincount(source_of, rates, minlength=count)
    totals, whole = totals / totals.sum(), float(rates.sum())
    empty_part = np.bincount(source_of, rates * empty, minlength=count) / whole
    both = (empty_part > 0) & (empty_part < totals * (1 - 1e-12))
    only_empty = float(totals[(empty_part > 0) & ~both].sum())
    least, most = only_empty, only_empty + float(totals[both].sum())
    if not (least - 1e-9 <= share <= most + 1e-9) or share >= 1:
        raise DetrkitError(
            f"weights and empty_share {share:g}: with these weights {100 * least:.3g} to {100 * most:.3g} % of an "
            "epoch can be images without objects: give others, or no empty_share"
        )
    within = 0.0 if most == least else min(max((share - least) / (most - least), 0.0), 1.0)
    before = float(rates[~empty].sum())
    for source in np.flatnonzero(both):
        here = source_of == source
        total = rates[here].sum()
        rates[here & empty] *= within * total / rates[here & empty].sum()
        rates[here & ~empty] *= (1 - within) * total / rates[here & ~empty].sum()
    rates *= before / (1 - share) / rates.sum()
