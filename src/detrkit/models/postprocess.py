"""Conversion of outputs into detections and segments in pixels, as the published models are evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from detrkit.models.instance_masks import Size, instance_masks, largest, without_padding
from detrkit.models.registry import Activation, architecture
from detrkit.models.segments import assign_pixels, segment_owners
from detrkit.models.settings import full_options
from detrkit.models.spec import ModelSpec
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections, NearMiss, as_tensor
from detrkit.structures.outputs import Outputs
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.utils.renamed import renamed_keywords

Duplicates = Literal["merged", "published"]


@dataclass(frozen=True, kw_only=True)
class PostProcessor:
    """Conversion of a batch's outputs into results in pixels of the original images.

    Attributes:
        activation: of the logits. "softmax" (DETR): one detection per query, in the order of the queries, with the best
            class but "no object"; "sigmoid" (Deformable DETR): the best of all queries x classes, in descending order.
        classes: names and ids to attach.
        top_k: number of detections, sigmoid only (fewer where there are fewer); published: 100, DINO 300. None: 100,
            or the number of queries if that is larger.
        threshold: only detections of a greater score are returned, and no mask is computed for the others; one number,
            or one for each label; None: all.
        segment_threshold: only queries of a greater score become segments (published: 0.85; sigmoid scores are lower).
        things: per label whether it is a thing; None: as `classes` says, and without them all are.
        duplicates: of stuff that is predicted more than once, "merged": all pixels belong to the one segment;
            "published": the pixels of all but the first mask, once merged, go to the next best mask there. Published
            metrics were measured so.
        official: as published, mistakes included. Masks are resized together with the padding of their batch, so that
            segments fit the image only in a batch of one; duplicates as published; ids of segments start at 0, so a map
            without segments looks like one of a single segment.

    Raises:
        ValueError: an unknown value of `activation` or `duplicates`.
    """

    activation: Activation = "softmax"
    classes: ClassList | None = None
    top_k: int | None = 100
    threshold: float | Sequence[float] | None = None
    segment_threshold: float = 0.85
    things: Sequence[bool] | None = None
    duplicates: Duplicates = "merged"
    official: bool = False

    def __post_init__(self) -> None:
        if self.activation not in ("softmax", "sigmoid"):
            raise ValueError(f"activation is {self.activation!r}: choose softmax or sigmoid")
        if self.duplicates not in ("merged", "published"):
            raise ValueError(f"duplicates is {self.duplicates!r}: choose merged or published")

    @classmethod
    def of(cls, spec: ModelSpec) -> PostProcessor:
        """Make the post-processing of a checkpoint's model, with its classes."""
        arch = architecture(spec.name)
        options = full_options(arch.build, {**arch.options, **spec.options})
        return cls(
            activation=arch.activation,
            classes=spec.classes,
            top_k=options.get("num_select", 100),
            segment_threshold=arch.thresholds.segment,
        )

    def detections(
        self, outputs: Outputs, target_sizes: Sequence[Size], input_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        """Compute one Detections per image; boxes are not clipped and nothing is suppressed.

        Args:
            outputs: of a batch of B images.
            target_sizes: (height, width) in pixels of the B original images, to which boxes and masks are scaled.
            input_sizes: (height, width) in pixels of the B network inputs without padding (`Batch.sizes`); with them
                the detections of a model with masks have masks.

        Returns:
            B Detections, on the device of the outputs.

        Raises:
            ValueError: the number of sizes is not the batch size.
        """
        return list(self.iter_detections(outputs, target_sizes, input_sizes))

    @torch.no_grad()
    def iter_detections(
        self, outputs: Outputs, target_sizes: Sequence[Size], input_sizes: Sequence[Size] | None = None
    ) -> Iterator[Detections]:
        """Yield the results of `detections` one by one: the masks of a hundred queries on a photo take a gigabyte."""
        _check_sizes(outputs, target_sizes, input_sizes)
        scores, labels, queries, boxes = self.best_detections(outputs)
        pixels = cxcywh_to_xyxy(boxes) * _scales(target_sizes, boxes)[:, None]
        rows = zip(pixels, scores, labels, queries, strict=True)
        detections = [Detections(*row[:3], classes=self.classes, queries=row[3]) for row in rows]
        if self.threshold is not None:
            detections = [one.above(self.threshold) for one in detections]
        if not outputs.has_masks or input_sizes is None:
            yield from detections
            return
        # a query can be detected as several classes: its mask is computed once
        chosen = [as_tensor(one.queries) for one in detections]
        unique = [q.unique(return_inverse=True) for q in chosen]
        padded = self.official and outputs.mask_sizes is None
        logits = outputs.masks_of([q for q, _ in unique])  # per image (N, h, w)
        for i, one in enumerate(detections):
            cells = logits[i] if padded else without_padding(logits[i], input_sizes[i])
            covered = largest(input_sizes) if padded else input_sizes[i]
            masks = instance_masks(cells, covered=covered, input_size=input_sizes[i], target_size=target_sizes[i])
            yield replace(one, masks=masks[unique[i][1]])

    @torch.no_grad()
    def panoptic(
        self, outputs: Outputs, target_sizes: Sequence[Size], input_sizes: Sequence[Size]
    ) -> list[PanopticResult]:
        """Assign every pixel of every image to a segment, or to none (DETR Sec. 4.4).

        Every pixel goes to the query with the largest mask logit there, among queries with a score above the threshold.
        The masks of one class of stuff are one segment. Segments of at most 4 pixels are dropped and their pixels
        reassigned, until there is none.

        Args:
            outputs: of a batch of B images, with masks; deferred ones are made for the confident queries alone.
            target_sizes: (height, width) in pixels of the B original images.
            input_sizes: (height, width) in pixels of the B network inputs without padding (`Batch.sizes`).

        Returns:
            B results, on the device of the outputs; ids from 1 in the order of the queries, 0 is void.

        Raises:
            ValueError: not one size for every image, fewer marks of things than labels, or outputs without masks.
        """
        _check_sizes(outputs, input_sizes, target_sizes)
        scores, labels, objects = _best_classes(outputs.logits.float(), self.activation)  # (B, Q) each
        things = self.classes.things if self.things is None and self.classes is not None else self.things
        num_labels = outputs.logits.shape[-1] - (self.activation == "softmax")
        if things is not None and len(things) < num_labels:
            raise ValueError(f"{len(things)} labels are marked as things or stuff, the model has {num_labels}")
        chosen = [keep.nonzero()[:, 0] for keep in objects & (scores > self.segment_threshold)]  # per image (K,)
        results = []
        for i, masks in enumerate(outputs.masks_of(chosen)):  # (K, h, w)
            if not self.official:
                masks = without_padding(masks, input_sizes[i])
            masks = F.interpolate(masks[:, None].float(), size=input_sizes[i], mode="bilinear")[:, 0]  # (K, h, w)
            columns = (labels[i, chosen[i]].tolist(), scores[i, chosen[i]].tolist(), chosen[i].tolist())
            segments = [
                Segment(0, label, score, 0, thing=things is None or bool(things[label]), query=query)
                for label, score, query in zip(*columns, strict=True)
            ]
            result = self._assigned(masks, segments, target_sizes[i])
            if not len(chosen[i]):
                result = replace(result, near_miss=self._near_miss(scores[i], labels[i], objects[i]))
            results.append(result)
        return results

    def _near_miss(self, scores: Tensor, labels: Tensor, objects: Tensor) -> NearMiss | None:
        """Return the query of an image, of those (Q,) that predict an object, with the best score."""
        if not objects.any():
            return None
        best = int(scores.where(objects, -1.0).argmax())
        label = int(labels[best])
        name = f"class {label}" if self.classes is None else self.classes.names[label]
        return NearMiss(name, float(scores[best]), self.segment_threshold, label)

    def best_detections(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return (B, K) scores, labels and queries, and (B, K, 4) boxes cxcywh, of the detections of every image."""
        logits, boxes = outputs.logits.float(), outputs.boxes.float()
        if self.activation == "softmax":
            scores, labels = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
            query = torch.arange(logits.shape[1], device=logits.device).repeat(labels.shape[0], 1)  # (B, Q)
            return scores, labels, query, boxes
        top_k = max(100, logits.shape[1]) if self.top_k is None else self.top_k
        scores, index = logits.sigmoid().flatten(1).topk(min(top_k, logits[0].numel()), dim=1)  # (B, K)
        labels = index % logits.shape[-1]
        query = index // logits.shape[-1]  # (B, K)
        return scores, labels, query, boxes.gather(1, query[..., None].expand(-1, -1, 4))

    def _assigned(self, masks: Tensor, queries: Sequence[Segment], target_size: Size) -> PanopticResult:
        """Make the result of one image.

        Args:
            masks: (K, h, w) logits of the confident queries, at the size of the network input.
            queries: K segments, of which label, score and thing are set.
            target_size: (height, width) in pixels of the original image.
        """
        merged = self.duplicates == "merged" and not self.official
        owners = segment_owners([one.label for one in queries], [one.thing for one in queries])
        pixels, areas = assign_pixels(masks, owners, target_size, merged=merged)
        numbers = [0] * len(queries)
        segments: list[Segment] = []
        for k in (k for k, area in enumerate(areas) if area):
            numbers[k] = len(segments) + (not self.official)
            best = queries[k]
            if merged:
                best = max((q for q, owner in zip(queries, owners, strict=True) if owner == k), key=lambda q: q.score)
            segments.append(replace(best, id=numbers[k], area=areas[k]))
        number = torch.tensor([*numbers, 0], dtype=torch.int32, device=pixels.device)  # -1, no mask, is the last
        return PanopticResult(number[pixels], segments, classes=self.classes)


@renamed_keywords(sizes="target_sizes", image_sizes="input_sizes", scores="activation")
def postprocess(
    outputs: Outputs,
    target_sizes: Sequence[Size],
    *,
    activation: Activation = "softmax",
    top_k: int = 100,
    classes: ClassList | None = None,
    input_sizes: Sequence[Size] | None = None,
    threshold: float | None = None,
    official: bool = False,
) -> list[Detections]:
    """Compute one Detections per image; arguments, results and errors as of `PostProcessor.detections`."""
    postprocessor = PostProcessor(
        activation=activation, top_k=top_k, classes=classes, threshold=threshold, official=official
    )
    return postprocessor.detections(outputs, target_sizes, input_sizes)


@renamed_keywords(sizes="target_sizes", image_sizes="input_sizes", scores="activation")
def panoptic(
    outputs: Outputs,
    *,
    target_sizes: Sequence[Size],
    input_sizes: Sequence[Size],
    things: Sequence[bool] | None = None,
    threshold: float = 0.85,
    activation: Activation = "softmax",
    classes: ClassList | None = None,
    duplicates: Duplicates = "merged",
    official: bool = False,
) -> list[PanopticResult]:
    """Compute one PanopticResult per image; arguments, results and errors as of `PostProcessor.panoptic`."""
    postprocessor = PostProcessor(
        activation=activation,
        segment_threshold=threshold,
        things=things,
        classes=classes,
        duplicates=duplicates,
        official=official,
    )
    return postprocessor.panoptic(outputs, target_sizes, input_sizes)


def _best_classes(logits: Tensor, activation: Activation) -> tuple[Tensor, Tensor, Tensor]:
    """Return score and label of the best class of every query, and whether it is an object at all, (B, Q) each."""
    if activation == "softmax":
        scores, labels = logits.softmax(-1).max(-1)
        return scores, labels, labels != logits.shape[-1] - 1
    scores, labels = logits.sigmoid().max(-1)
    return scores, labels, torch.ones_like(labels, dtype=torch.bool)


def _check_sizes(outputs: Outputs, *sizes: Sequence[Size] | None) -> None:
    """Check that there is one size for every image of the batch.

    Raises:
        ValueError: another number of sizes.
    """
    for image_sizes in sizes:
        if image_sizes is not None and len(image_sizes) != len(outputs.logits):
            raise ValueError(f"{len(image_sizes)} image sizes for a batch of {len(outputs.logits)}")


def _scales(sizes: Sequence[Size], like: Tensor) -> Tensor:
    """Return (B, 4) width, height, width, height of every image."""
    return torch.tensor([(w, h, w, h) for h, w in sizes], dtype=like.dtype, device=like.device)
