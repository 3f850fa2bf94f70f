"""Classes of a dataset that a model does not know: what they are, what they cost, and how they may have been meant."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.ground_truth import GroundTruth
from detrkit.utils.similar import nearest_names
from detrkit.utils.visible import one_line

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class UnknownClasses:
    """Annotated classes of which nothing can be found, each of which counts with AP 0 in the mean.

    Attributes:
        names: of those that have objects; the others count nowhere.
        nearest: of those that are nearly called like a class that only the model has, what it is called there.
        objects: how many objects of these classes there are, crowd left out.
        all_objects: and of all classes.
        classes: how many classes have objects.
    """

    names: tuple[str, ...]
    nearest: dict[str, str]
    objects: int
    all_objects: int
    classes: int

    @classmethod
    def of(cls, truth: GroundTruth, predicted: Collection[int], candidates: Collection[str]) -> UnknownClasses:
        """The classes of a ground truth that a model cannot predict.

        Args:
            truth: what there is to be found.
            predicted: ids of the categories that the model knows.
            candidates: names of the model's other classes.
        """
        counts = np.bincount(truth.category[~truth.crowd], minlength=len(truth.names))
        rows = list(zip(truth.category_ids, truth.names, counts.tolist(), strict=True))
        unknown = {name: count for key, name, count in rows if count and key not in predicted}
        return cls(
            names=tuple(unknown),
            nearest=nearest_names(unknown, candidates),
            objects=sum(unknown.values()),
            all_objects=int(counts.sum()),
            classes=int((counts > 0).sum()),
        )

    def __bool__(self) -> bool:
        return bool(self.names)

    def sentence(self, dataset: str, number: str = "AP") -> str:
        """What is wrong, what it costs and what to do, in one line.

        Args:
            dataset: its name.
            number: what is evaluated.
        """
        text = (
            f"{len(self.names)} of the {self.classes} classes of {dataset}, with {self.objects} of {self.all_objects} "
            f"objects, are unknown to the model and count with {number} 0: {some(self.names)}"
        )
        if self.nearest:
            pairs = [f"{name!r} is {near!r} in the model" for name, near in self.nearest.items()]
            return f"{text}; perhaps {some(pairs)}: then rename it in the dataset"
        return f"{text}; leave them out of the dataset, or train the model on them (train --init-from)"

    def without_results(self) -> str:
        """The same of results from elsewhere, whose program may not have known these classes, in one line."""
        return (
            f"the results have no detection of {len(self.names)} of the {self.classes} classes, which have "
            f"{self.objects} of {self.all_objects} objects and count with AP 0: {some(self.names)}"
        )


def some(names: Sequence[str]) -> str:
    """The first five, and how many more there are, in one line."""
    rest = len(names) - _SHOWN
    return one_line(", ".join(names[:_SHOWN])) + (f" and {rest} more" if rest > 0 else "")
