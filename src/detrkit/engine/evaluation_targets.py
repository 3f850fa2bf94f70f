"""Ground truth of an evaluation: a dataset's annotations, matched with the classes of a model by name."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from detrkit.data import Dataset
from detrkit.detector import has_masks, is_panoptic
from detrkit.evaluation import DetectionGroundTruth, PanopticGroundTruth
from detrkit.evaluation.unknown_classes import UnknownClasses
from detrkit.structures.classes import UNUSED, ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names
from detrkit.utils.similar import nearest_names
from detrkit.weights.checkpoint import ModelSpec


def dataset_labels(spec: ModelSpec, dataset: Dataset) -> ClassList:
    """Return the model's labels with the dataset's category ids, matched by class name.

    Labels of classes that the dataset does not annotate are unused: the evaluation leaves them out, since
    there is no ground truth for them.

    Raises:
        DetrkitError: not one class in common, or no class list and another number of classes.
    """
    if spec.classes is None:
        if spec.num_classes != len(dataset.classes):
            raise DetrkitError(
                f"the checkpoint has no class list and {spec.num_classes} classes, {dataset.path} has "
                f"{len(dataset.classes)}: they cannot be matched"
            )
        return dataset.classes
    ids = {name: dataset.classes.ids[label] for name, label in dataset.classes.used.items()}
    common = {label for name, label in spec.classes.used.items() if name in ids}
    if not common:
        raise DetrkitError(
            f"the model knows none of the classes of {dataset.path} ({first_names(ids)}): it knows "
            f"{first_names(spec.classes.used)}{_perhaps(nearest_names(ids, list(spec.classes.used)))}"
        )
    free = iter(range(max(ids.values()) + 1, max(ids.values()) + 1 + len(spec.classes)))
    labels = list(enumerate(spec.classes.names))
    return ClassList(
        tuple(name if label in common else UNUSED for label, name in labels),
        tuple(ids[name] if label in common else next(free) for label, name in labels),
        spec.classes.things,
        frozenset(range(len(spec.classes))) - common,
    )


def _perhaps(nearest: dict[str, str]) -> str:
    """Suggest a new name for the first class with a similar name in the model, as the end of a message."""
    return next((f"; rename {name!r} to {near!r} in the dataset" for name, near in nearest.items()), "")


@dataclass(frozen=True)
class EvaluationTargets:
    """Ground truth of a dataset, restricted to the classes that a model predicts.

    Attributes:
        labels: the model's labels as the dataset's categories.
        objects: boxes, and masks if they are evaluated; on panoptic data only of things.
        panoptic: segments, if model and dataset are panoptic.
        masks: whether masks of objects are evaluated. For a panoptic model on panoptic data they are not: the masks of
            a hundred queries take several times the work of the few that become segments.
        unknown: annotated classes that the model cannot predict; None if this was not checked.
    """

    labels: ClassList
    objects: DetectionGroundTruth
    panoptic: PanopticGroundTruth | None = None
    masks: bool = False
    unknown: UnknownClasses | None = None

    @classmethod
    def of(cls, dataset: Dataset, spec: ModelSpec, model: nn.Module) -> EvaluationTargets:
        """Load the ground truth of a dataset, which must be open with masks if masks are to be evaluated.

        Raises:
            DetrkitError: not one class in common with the model, or annotations that cannot be read.
        """
        labels = dataset_labels(spec, dataset)
        masks = dataset.with_masks and has_masks(model)
        segments = None
        if masks and dataset.panoptic and is_panoptic(model, labels):
            segments, masks = PanopticGroundTruth.load(*dataset.panoptic_ground_truth()), False
        source = dataset.things() if dataset.panoptic else dataset  # AP is not defined for stuff
        if not masks:
            source = without_masks(source)
        objects = DetectionGroundTruth.load(source.ground_truth())
        others = [] if spec.classes is None else [n for n in spec.classes.used if n not in dataset.classes.used]
        unknown = UnknownClasses.of(objects, [labels.ids[label] for label in labels.used.values()], others)
        return cls(labels, objects, segments, masks, unknown)


def without_masks(dataset: Dataset) -> Dataset:
    """Return a copy of the dataset that loads no masks, which take time to decode."""
    return dataset.without_masks()
