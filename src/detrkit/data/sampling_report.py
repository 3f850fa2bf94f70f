"""What a mix of images comes to: rows for tables, lines for the terminal and the report of a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from detrkit.data.dataset import Dataset
from detrkit.data.merging import near_names
from detrkit.data.sampling import Sampling
from detrkit.utils.messages import counted, names_and_more

_MOST = 8  # names in a line


class SourceRow(NamedTuple):
    """One of the datasets of a mix.

    Attributes:
        name: of the dataset; its path where two have one name.
        split, layout: of the dataset.
        images, empty, objects: numbers of images, of those without objects, and of objects.
        weight: as given, or None.
        per_epoch: images of an epoch.
        share: of an epoch's images.
        missing: classes of the mix that the dataset does not have.
    """

    name: str
    split: str
    layout: str
    images: int
    empty: int
    objects: int
    weight: float | None
    per_epoch: float
    share: float
    missing: tuple[str, ...]

    @property
    def times(self) -> float:
        """How often an image of the dataset is seen per epoch, on average."""
        return self.per_epoch / max(self.images, 1)


class ClassRow(NamedTuple):
    """One of the classes of a mix.

    Attributes:
        name: of the class.
        images, objects: numbers of images with the class, and of its objects.
        share: of the images, by which the class is rare or not (with weights, of an epoch without repeats).
        factor: its repeat factor, 1 or more.
        images_per_epoch, objects_per_epoch: how many of each an epoch has.
        objects_by_source: number of objects in each dataset; None where a dataset does not have the class.
    """

    name: str
    images: int
    objects: int
    share: float
    factor: float
    images_per_epoch: float
    objects_per_epoch: float
    objects_by_source: tuple[int | None, ...]


def source_names(sources: Sequence[Dataset]) -> list[str]:
    """Return the names of datasets; their paths if two have one name."""
    names = [dataset.name for dataset in sources]
    return names if len(set(names)) == len(names) else [str(dataset.path) for dataset in sources]


def source_rows(sampling: Sampling) -> list[SourceRow]:
    """Return a row for each dataset of a mix."""
    source_of, rates, empty = sampling.source_of, sampling.image_rates, sampling.without_objects
    per_epoch = np.bincount(source_of, rates, minlength=len(sampling.sources))
    classes = sampling.dataset.classes.used
    return [
        SourceRow(
            name,
            source.split,
            source.layout,
            len(source),
            int(empty[source_of == k].sum()),
            sum(int((~record.crowd).sum()) for record in source.records),
            sampling.weights[k] if sampling.weights else None,
            float(per_epoch[k]),
            float(per_epoch[k] / per_epoch.sum()),
            tuple(c for c in classes if c not in source.classes.used),
        )
        for k, (name, source) in enumerate(zip(source_names(sampling.sources), sampling.sources, strict=True))
    ]


def class_rows(sampling: Sampling) -> list[ClassRow]:
    """Return a row for each class of a mix that is used, in label order."""
    count, dataset = len(sampling.dataset.classes), sampling.dataset
    images = np.bincount(sampling.presence.labels, minlength=count)
    images_per_epoch = np.bincount(
        sampling.presence.labels, sampling.image_rates[sampling.presence.images], minlength=count
    )
    objects = np.zeros((len(sampling.sources), count))
    per_epoch = np.zeros(count)
    for record, source, rate in zip(dataset.records, sampling.source_of, sampling.image_rates, strict=True):
        here = np.bincount(record.labels[~record.crowd], minlength=count)
        objects[source] += here
        per_epoch += rate * here
    return [
        ClassRow(
            name,
            int(images[label]),
            int(objects[:, label].sum()),
            float(sampling.frequencies[label]),
            float(sampling.factors[label]),
            float(images_per_epoch[label]),
            float(per_epoch[label]),
            tuple(
                int(objects[k, label]) if name in source.classes.used else None
                for k, source in enumerate(sampling.sources)
            ),
        )
        for name, label in dataset.classes.used.items()
    ]


def sampling_lines(sampling: Sampling) -> list[str]:
    """Return the lines that say what a mix comes to; none where every image of one dataset comes once."""
    lines: list[str] = []
    if len(sampling.sources) > 1:
        lines += [*_source_lines(sampling), *trap_lines(sampling)]
    if sampling.repeat_rare is not None:
        lines.append(_repeat_line(sampling))
    if sampling.empty_share is not None:
        lines.append(_empty_line(sampling))
    if len(sampling.sources) == 1 and sampling.epoch_images != len(sampling.dataset):
        lines.append(f"an epoch has {counted(sampling.epoch_images, 'image')} instead of {len(sampling.dataset)}")
    return lines


def sampling_cells(sampling: Sampling) -> dict[str, str]:
    """Return the rows about a mix for the table of settings in a run's report."""
    cells: dict[str, str] = {}
    if len(sampling.sources) > 1:
        cells["datasets"] = "; ".join(line.strip() for line in _source_lines(sampling))
        if traps := trap_lines(sampling):
            cells["classes of the datasets"] = "; ".join(line.removeprefix("warning: ") for line in traps)
    if sampling.repeat_rare is not None:
        cells["rare classes"] = _repeat_line(sampling)
    if sampling.empty_share is not None:
        cells["images without objects"] = _empty_line(sampling)
    return cells


def trap_lines(sampling: Sampling) -> list[str]:
    """Return warnings about what several datasets can spoil in each other; none for one dataset."""
    rows, lines = source_rows(sampling), list[str]()
    for row in rows:
        if row.missing and row.per_epoch > 0:
            lines.append(
                f"warning: {row.name} does not have {names_and_more(row.missing, _MOST)} ({len(row.missing)} of "
                f"{counted(len(sampling.dataset.classes.used), 'class')}): such objects in its "
                f"{counted(row.images, 'image')} count as background ({100 * row.share:.3g} % of an epoch)"
            )
        if not row.objects and row.per_epoch > 0:
            lines.append(
                f"warning: {row.name} has no object: its {counted(row.images, 'image')} count as background "
                f"({100 * row.share:.3g} % of an epoch)"
            )
    for near in near_names([source.classes for source in sampling.sources]):
        lines.append(
            f"warning: {near.name!r} of {rows[near.source].name} and {near.other!r} of {rows[near.other_source].name} "
            "are two classes: give them one name in the files if they are one"
        )
    seen: dict[object, int] = {}
    both = 0
    for record, source in zip(sampling.dataset.records, sampling.source_of.tolist(), strict=True):
        both += seen.setdefault(record.file, source) != source
    if both:
        lines.append(
            f"warning: {counted(both, 'image file')} are in two of the datasets: what one of them annotates and the "
            "other does not is an object in one copy and background in the other"
        )
    return lines


def _source_lines(sampling: Sampling) -> list[str]:
    """Return the lines about the datasets, and the objects of each class in each."""
    lines = [
        f"{counted(len(sampling.sources), 'dataset')}, {counted(len(sampling.dataset), 'image')}: an epoch has "
        f"{counted(sampling.epoch_images, 'image')}"
    ]
    for row in source_rows(sampling):
        weight = "" if row.weight is None else f", weight {row.weight:g}"
        lines.append(
            f"  {row.name} ({row.layout}, {row.split}): {counted(row.images, 'image')}, "
            f"{counted(row.objects, 'object')}{weight}: {row.per_epoch:.0f} of an epoch's images "
            f"({100 * row.share:.3g} %), each {row.times:.3g} times"
        )
    ranked = sorted(class_rows(sampling), key=lambda row: -row.objects)
    words = [
        f"{row.name} " + " + ".join("-" if n is None else str(n) for n in row.objects_by_source)
        for row in (ranked if len(ranked) <= _MOST else [*ranked[: _MOST // 2], *ranked[-_MOST // 2 :]])
    ]
    left = f" ({len(ranked) - _MOST} classes between are left out)" if len(ranked) > _MOST else ""
    lines.append(f"  objects by class, one number for each dataset: {', '.join(words)}{left}")
    return lines


def _repeat_line(sampling: Sampling) -> str:
    """Say which classes are repeated."""
    rows = sorted((row for row in class_rows(sampling) if row.factor > 1), key=lambda row: -row.factor)
    if not rows:
        return (
            f"repeat_rare {sampling.repeat_rare:g}: no class is in so small a share of the images: nothing is repeated"
        )
    words = [f"{row.name} x{row.factor:.3g} (in {100 * row.share:.2g} % of the images)" for row in rows]
    return f"repeat_rare {sampling.repeat_rare:g}: {names_and_more(words, _MOST)}"


def _empty_line(sampling: Sampling) -> str:
    """Say how many images without objects an epoch has."""
    empty = sampling.without_objects
    per_epoch = float(sampling.image_rates[empty].sum())
    return (
        f"empty_share {sampling.empty_share:g}: {per_epoch:.0f} of an epoch's {sampling.epoch_images} images are "
        f"without objects (of the files {int(empty.sum())} of {len(sampling.dataset)})"
    )
