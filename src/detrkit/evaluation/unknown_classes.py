"""Classes of a dataset that a model cannot predict: their names, their share of the objects, similar names."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from detrkit.evaluation.ground_truth import DetectionGroundTruth
from detrkit.utils.messages import names_and_more
from detrkit.utils.similar import nearest_names
from detrkit.utils.visible import one_line

_MAX_NAMES = 5  # in a message


@dataclass(frozen=True)
class UnknownClasses:
    """Annotated classes that a model cannot predict; each counts with AP 0 in the mean.

    Attributes:
        names: of these classes, if they have objects; classes without objects do not count.
        nearest: name in the dataset -> similar name of a class that only the model has.
        objects: number of objects of these classes, crowd left out.
        all_objects: number of objects of all classes, crowd left out.
        classes: number of classes that have objects.
    """

    names: tuple[str, ...]
    nearest: dict[str, str]
    objects: int
    all_objects: int
    classes: int

    @classmethod
    def of(
        cls, ground_truth: DetectionGroundTruth, predicted: Collection[int], candidates: Collection[str]
    ) -> UnknownClasses:
        """Find the classes of a ground truth that a model cannot predict.

        Args:
            ground_truth: the ground truth.
            predicted: ids of the categories that the model predicts.
            candidates: names of the model's other classes.
        """
        counts = np.bincount(ground_truth.category[~ground_truth.crowd], minlength=len(ground_truth.names))
        rows = list(zip(ground_truth.category_ids, ground_truth.names, counts.tolist(), strict=True))
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
        """Describe the problem, its cost and the remedy in one line.

        Args:
            dataset: its name.
            number: name of the metric.
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
        """Describe the problem in one line for results of another program, which may not have had these classes."""
        return (
            f"the results have no detection of {len(self.names)} of the {self.classes} classes, which have "
            f"{self.objects} of {self.all_objects} objects and count with AP 0: {some(self.names)}"
        )


def some(names: Sequence[str]) -> str:
    """List the first five names and the number of the others in one line."""
    return one_line(names_and_more(names, _MAX_NAMES))
