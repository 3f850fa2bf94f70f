"""`explain`: runs a detector on an image and keeps what it attended to."""

from __future__ import annotations

from dataclasses import replace

import torch

from detrkit.data.images import ImageInput
from detrkit.detector import Detector, ImageOutputs, Threshold
from detrkit.explanation.maps import attention_maps
from detrkit.explanation.result import Explanation
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.ranges import ScoreThreshold

# what an explanation reads of the intermediate tensors; the others, such as the maps of the backbone, are let go
_STAGES = ("proposal_index",)


def explain(detector: Detector, image: ImageInput, *, threshold: ScoreThreshold | None = None) -> Explanation:
    """Detect the objects of one image, and keep what the model attended to.

    The detections are those of `detector.predict`. The weights of attention are computed when they are asked for, so
    that an explanation takes little more memory than a prediction (docs/explaining.md has the figures).

    Args:
        detector: with any model of the toolkit.
        image: as `Detector.predict` takes it.
        threshold: as of `Detector.predict`.

    Raises:
        DetrkitError: a file is missing, not an image or damaged; "auto" for weights that suggest no threshold.
        ValueError: no image, a threshold out of range, or a model that keeps no attention.
    """
    limit = detector.resolve_threshold(threshold)
    return explanation_of(detector, detector.outputs([image], capture=True), 0, threshold=limit)


def explanation_of(detector: Detector, computed: ImageOutputs, number: int, *, threshold: Threshold) -> Explanation:
    """Explain one image of a batch that `detector.outputs(images, capture=True)` computed.

    Args:
        detector: that computed them.
        computed: outputs, batch and images.
        number: of the image in the batch.
        threshold: only detections of a greater score, 0 to 1; one for all labels, or one for each.

    Raises:
        ValueError: outputs without a capture.
    """
    outputs, image = computed.outputs, computed.images[number]
    if outputs.capture is None:
        raise ValueError("the outputs hold no attention: call detector.outputs(images, capture=True)")
    capture = outputs.capture
    capture = replace(capture, stages={name: capture.stages[name] for name in _STAGES if name in capture.stages})
    size = image.height, image.width
    postprocessor = replace(detector.postprocessor, threshold=threshold)
    if isinstance(threshold, float):
        postprocessor = replace(postprocessor, segment_threshold=threshold)
    with torch.no_grad():
        panoptic = None
        if detector.panoptic:
            panoptic = postprocessor.panoptic(outputs, computed.target_sizes, computed.batch.sizes)[number]
            boxes = cxcywh_to_xyxy(outputs.boxes[number].float()).cpu() * torch.tensor([size[1], size[0]] * 2)
            panoptic = replace(panoptic.to("cpu"), image=image)
            detections = _of_segments(panoptic, boxes)
        else:
            found = postprocessor.detections(outputs, computed.target_sizes, computed.batch.sizes)[number]
            detections = found.select(found.scores.argsort(descending=True, stable=True)).to("cpu")
    return Explanation(
        image=image,
        detections=replace(detections, image=image),
        panoptic=panoptic,
        maps=attention_maps(capture, number, size),
        capture=capture,
        number=number,
        activation=postprocessor.activation,
        model_name=detector.spec.name,
    )


def _of_segments(panoptic: PanopticResult, boxes: torch.Tensor) -> Detections:
    """Return the segments as detections, with the (Q, 4) boxes of their queries."""
    segments = panoptic.segments
    queries = torch.tensor([segment.query for segment in segments], dtype=torch.int64)
    return Detections(
        boxes[queries],
        torch.tensor([segment.score for segment in segments]),
        torch.tensor([segment.label for segment in segments], dtype=torch.int64),
        masks=panoptic.masks,
        classes=panoptic.classes,
        near_miss=panoptic.near_miss,
        queries=queries,
    )
