"""The evaluation loop: a model runs over a dataset; predictions are accumulated in one or more processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from detrkit.engine.evaluation_targets import EvaluationTargets
from detrkit.engine.processes import StopSignals
from detrkit.evaluation import DetectionEvaluator, Metrics, PanopticEvaluator
from detrkit.models.postprocess import Duplicates, PostProcessor
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs, Target
from detrkit.weights.checkpoint import ModelSpec


class EvaluatedBatch(NamedTuple):
    """A batch of a loader and the outputs of a model; masks are computed on request."""

    outputs: Outputs
    batch: Batch
    targets: list[Target]


@torch.no_grad()
def iter_outputs(
    model: nn.Module,
    loader: Iterable[tuple[Batch, list[Target]]],
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Generator[EvaluatedBatch, None, None]:
    """Run a model over batches in eval mode, and restore its mode.

    Args:
        model: on the device of the batches.
        loader: batches with their targets.
        autocast: context of the forward pass.
    """
    training = model.training
    model.eval()
    try:
        for batch, targets in loader:
            batch = replace(batch, images=batch.images.to(_dtype(model, batch.images)))
            with autocast():
                outputs = model(batch, defer_masks=True)
            yield EvaluatedBatch(outputs, batch, targets)
    finally:
        model.train(training)


def _dtype(model: nn.Module, images: Tensor) -> torch.dtype:
    """Return the dtype of a model's weights; of one without weights that of the images."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), images.dtype)


class EvaluationAccumulator:
    """Accumulator of predictions, batch by batch, in one process or several: see `run_evaluation`.

    Args:
        ground_truth: to compare with.
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
        ground_truth: EvaluationTargets,
        spec: ModelSpec,
        *,
        max_dets: int = 100,
        threshold: float | None = None,
        panoptic_out: Path | None = None,
        duplicates: Duplicates = "merged",
    ) -> None:
        self.ground_truth = ground_truth
        postprocessor = PostProcessor.of(spec)
        self.threshold = postprocessor.segment_threshold if threshold is None else threshold
        self.postprocessor = replace(
            postprocessor,
            classes=ground_truth.labels,
            top_k=max(postprocessor.top_k or 0, max_dets),
            segment_threshold=self.threshold,
            duplicates=duplicates,
        )
        kind: Literal["bbox", "segm"] = "segm" if ground_truth.masks else "bbox"
        # unknown categories are stuff: all other labels are classes of the dataset, or unused
        self.objects = DetectionEvaluator(
            ground_truth.objects, max_dets=max_dets, iou_type=kind, unknown_categories="ignore"
        )
        self.segments = None
        if ground_truth.panoptic is not None:
            self.segments = PanopticEvaluator(ground_truth.panoptic, out=panoptic_out)

    def add(self, outputs: Outputs, batch: Batch, targets: Sequence[Target]) -> None:
        """Add the outputs of a batch.

        Args:
            outputs: of the model, whose masks may be deferred.
            batch: the images.
            targets: with image_id and orig_size.
        """
        target_sizes = [t.orig_size for t in targets if t.orig_size is not None]
        input_sizes = batch.sizes if self.ground_truth.masks else None
        predictions = self.postprocessor.iter_detections(outputs, target_sizes, input_sizes)
        # one image after the other: the evaluator stores masks as run lengths, which take little memory
        for detections, target in zip(predictions, targets, strict=True):
            self.objects.add(replace(detections.to("cpu"), image_id=target.image_id))
        if self.segments is not None:
            results = self.postprocessor.panoptic(outputs, target_sizes, batch.sizes)
            for result, target in zip(results, targets, strict=True):
                assert target.image_id is not None
                self.segments.add(target.image_id, result.to("cpu"))

    def all_gather(self) -> None:
        """Bring the predictions of all processes into every one."""
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
        masks = self.objects.compute() if self.ground_truth.masks else None
        segments = None if self.segments is None else self.segments.compute()
        return replace(self.objects.compute(iou_type="bbox", scores=True), masks=masks, panoptic=segments)


def run_evaluation(
    model: nn.Module,
    loader: Iterable[tuple[Batch, list[Target]]],
    evaluation: EvaluationAccumulator,
    *,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    stop: StopSignals | None = None,
) -> None:
    """Run the model over this process's images, then gather the predictions of all processes in every one.

    No process waits for another before the end, so they may have different numbers of images.

    Args:
        model: in any mode, on the device of the batches.
        loader: batches with targets that have image_id and orig_size.
        evaluation: takes the outputs.
        autocast: context of the forward pass.
        stop: stop signals, checked between batches.

    Raises:
        Stopped: a process was asked to stop; raised in all of them.
    """
    batches = loader if stop is None else stop.between(loader)
    with closing(iter_outputs(model, batches, autocast=autocast)) as evaluated:
        for one in evaluated:
            evaluation.add(*one)
    if stop is not None:
        stop.check()
    evaluation.all_gather()
