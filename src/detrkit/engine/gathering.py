"""The evaluation loop: a model runs over a dataset; predictions are accumulated in one or more processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn

from detrkit.data import Dataset
from detrkit.detector import has_masks, is_panoptic
from detrkit.engine.processes import StopSignals
from detrkit.evaluation import DetectionEvaluator, GroundTruth, Metrics, PanopticEvaluator, PanopticTruth
from detrkit.evaluation.unknown_classes import UnknownClasses
from detrkit.models.postprocess import Duplicates, PostProcessor
from detrkit.structures.batch import Batch
from detrkit.structures.classes import UNUSED, ClassList
from detrkit.structures.outputs import Outputs, Target
from detrkit.utils.errors import DetrkitError
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
            f"the model knows none of the classes of {dataset.path} ({_first(ids)}): it knows "
            f"{_first(spec.classes.used)}{_perhaps(nearest_names(ids, list(spec.classes.used)))}"
        )
    free = iter(range(max(ids.values()) + 1, max(ids.values()) + 1 + len(spec.classes)))
    labels = list(enumerate(spec.classes.names))
    return ClassList(
        tuple(name if label in common else UNUSED for label, name in labels),
        tuple(ids[name] if label in common else next(free) for label, name in labels),
        spec.classes.things,
        frozenset(range(len(spec.classes))) - common,
    )


def _first(names: Iterable[str]) -> str:
    """Join the first five names; "..." stands for more."""
    listed = list(names)
    return ", ".join([*listed[:5], *(["..."] if len(listed) > 5 else [])])


def _perhaps(nearest: dict[str, str]) -> str:
    """Suggest a new name for the first class with a similar name in the model, as the end of a message."""
    return next((f"; rename {name!r} to {near!r} in the dataset" for name, near in nearest.items()), "")


@dataclass(frozen=True)
class Truth:
    """Ground truth of a dataset, restricted to the classes that a model predicts.

    Attributes:
        labels: the model's labels as the dataset's categories.
        objects: boxes, and masks if they are evaluated; on panoptic data only of things.
        panoptic: segments, if model and dataset are panoptic.
        masks: whether masks of objects are evaluated. For a panoptic model on panoptic data they are not: a mask for
            each of a hundred queries takes several times the work of those few that become segments.
        unknown: annotated classes that the model cannot predict; None if this was not checked.
    """

    labels: ClassList
    objects: GroundTruth
    panoptic: PanopticTruth | None = None
    masks: bool = False
    unknown: UnknownClasses | None = None

    @classmethod
    def of(cls, dataset: Dataset, spec: ModelSpec, model: nn.Module) -> Truth:
        """Load the ground truth of a dataset, which must be open with masks if masks are to be evaluated.

        Raises:
            DetrkitError: not one class in common with the model, or annotations that cannot be read.
        """
        labels = dataset_labels(spec, dataset)
        masks = dataset.with_masks and has_masks(model)
        segments = None
        if masks and dataset.panoptic and is_panoptic(model, labels):
            segments, masks = PanopticTruth.load(*dataset.panoptic_ground_truth()), False
        source = dataset.things() if dataset.panoptic else dataset  # AP is not defined for stuff
        if not masks:
            source = without_masks(source)
        objects = GroundTruth.load(source.ground_truth())
        others = [] if spec.classes is None else [n for n in spec.classes.used if n not in dataset.classes.used]
        unknown = UnknownClasses.of(objects, [labels.ids[label] for label in labels.used.values()], others)
        return cls(labels, objects, segments, masks, unknown)


class Evaluation:
    """Accumulator of predictions, batch by batch, in one process or several: see `collect`.

    Args:
        truth: ground truth to compare with.
        spec: of the model.
        max_dets: detections counted per image.
        threshold: score above which a query becomes a segment; by default as `PostProcessor.of(spec)`.
        panoptic_out: a json for the panoptic results; their PNGs are written as they come.
        duplicates: treatment of stuff that is predicted more than once, see `PostProcessor`.

    Attributes:
        objects: the boxes, with masks if they are evaluated.
        segments: the panoptic results, or None.
    """

    def __init__(
        self,
        truth: Truth,
        spec: ModelSpec,
        *,
        max_dets: int = 100,
        threshold: float | None = None,
        panoptic_out: Path | None = None,
        duplicates: Duplicates = "merged",
    ) -> None:
        self.truth = truth
        postprocessor = PostProcessor.of(spec)
        self.threshold = postprocessor.segment_threshold if threshold is None else threshold
        self.postprocessor = replace(
            postprocessor,
            classes=truth.labels,
            top_k=max(100, max_dets),
            segment_threshold=self.threshold,
            duplicates=duplicates,
        )
        kind: Literal["bbox", "segm"] = "segm" if truth.masks else "bbox"
        # unknown categories are stuff: all other labels are classes of the dataset, or unused
        self.objects = DetectionEvaluator(truth.objects, max_dets=max_dets, iou_type=kind, unknown_categories="ignore")
        self.segments = None
        if truth.panoptic is not None:
            self.segments = PanopticEvaluator(truth.panoptic, out=panoptic_out)

    def add(self, outputs: Outputs, batch: Batch, targets: Sequence[Target]) -> None:
        """Add the outputs of a batch.

        Args:
            outputs: of the model, whose masks may be deferred.
            batch: the images.
            targets: with image_id and orig_size.
        """
        target_sizes = [t.orig_size for t in targets if t.orig_size is not None]
        input_sizes = batch.sizes if self.truth.masks else None
        predictions = self.postprocessor.iter_detections(outputs, target_sizes, input_sizes)
        # one image after the other: the evaluator stores masks as run lengths, which take little memory
        for detections, target in zip(predictions, targets, strict=True):
            self.objects.add(replace(detections.to("cpu"), image_id=target.image_id))
        if self.segments is not None:
            results = self.postprocessor.panoptic(outputs, target_sizes, batch.sizes)
            for result, target in zip(results, targets, strict=True):
                assert target.image_id is not None
                self.segments.add(target.image_id, result.to("cpu"))

    def gather(self) -> None:
        """Bring the predictions of all processes into every one (all_gather)."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, (self.objects.state(), self.segments and self.segments.state()))
        for objects, segments in states:
            self.objects.merge(objects)
            if self.segments is not None:
                self.segments.merge(segments)

    def compute(self) -> Metrics:
        """Compute the metrics of the boxes, with those of the masks and segments that were evaluated."""
        masks = self.objects.compute() if self.truth.masks else None
        segments = None if self.segments is None else self.segments.compute()
        return replace(self.objects.compute(iou_type="bbox"), masks=masks, panoptic=segments)


@torch.no_grad()
def collect(
    model: nn.Module,
    loader: Iterable[tuple[Batch, list[Target]]],
    evaluation: Evaluation,
    *,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    stop: StopSignals | None = None,
) -> None:
    """Run the model over this process's images, then gather the predictions of all processes in every one.

    No process waits for another before the end, so they may have different numbers of images.

    Args:
        model: in any mode; it is evaluated in eval mode and left as it was.
        loader: batches with targets that have image_id and orig_size.
        evaluation: takes the outputs.
        device: where the model is.
        autocast: context of the forward pass.
        stop: stop signals, checked between batches.

    Raises:
        Stopped: a process was asked to stop; raised in all of them.
    """
    training = model.training
    model.eval()
    try:
        for batch, targets in loader if stop is None else stop.between(loader):
            batch = batch.to(device)
            with autocast():
                outputs = model(batch, defer_masks=True)
            evaluation.add(outputs, batch, targets)
    finally:
        model.train(training)
    if stop is not None:
        stop.check()
    evaluation.gather()


def without_masks(dataset: Dataset) -> Dataset:
    """Return a copy of the dataset that loads no masks, which take time to decode."""
    other = copy(dataset)
    other.with_masks = False
    return other
