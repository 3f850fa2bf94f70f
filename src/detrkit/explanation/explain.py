"""`explain`: runs a detector on an image and keeps what it attended to."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from detrkit.data.images import ImageInput
from detrkit.detector import Detector, ImageOutputs, Threshold
from detrkit.explanation.maps import attention_maps
from detrkit.explanation.result import Explanation
from detrkit.ops.boxes import cxcywh_to_xyxy
from detrkit.structures.detections import Detections, as_tensor
from detrkit.structures.outputs import Capture
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.errors import SettingError
from detrkit.utils.ranges import ScoreThreshold


def explain(detector: Detector, image: ImageInput, *, threshold: ScoreThreshold | None = None) -> Explanation:
    """Detect the objects of one image, and keep what the model attended to.

    The detections are those of `detector.predict`. The weights of attention are computed when they are asked for, so
    that an explanation takes little more memory than a prediction (docs/explaining.md has the figures).

    Args:
        detector: with any model of the toolkit, or one of another package that keeps its attention
            (docs/extending.md).
        image: as `Detector.predict` takes it.
        threshold: as of `Detector.predict`.

    Raises:
        DetrkitError: a file is missing, not an image or damaged; "auto" for weights that suggest no threshold; a
            model that keeps no attention.
        ValueError: no image, or a threshold out of range.
    """
    limit = detector.resolve_threshold(threshold)
    return explanation_of(detector, detector.outputs([image], capture="attention"), 0, threshold=limit)


def explanation_of(detector: Detector, computed: ImageOutputs, number: int, *, threshold: Threshold) -> Explanation:
    """Explain one image of a batch that `detector.outputs(images, capture="attention")` computed.

    Args:
        detector: that computed them.
        computed: outputs, batch and images.
        number: of the image in the batch.
        threshold: only detections of a greater score, 0 to 1; one for all labels, or one for each.

    Raises:
        SettingError: outputs without a capture, or one without the attention.
    """
    outputs, image, name = computed.outputs, computed.images[number], detector.spec.name
    if outputs.capture is None:
        raise SettingError(
            f"these outputs of {name} hold no attention: call detector.outputs(images, capture=True); a model of your "
            "own has to keep it (docs/extending.md)"
        )
    _check(outputs.capture, name)
    capture = replace(outputs.capture, stages={})  # an explanation reads none, and they take much memory
    found = detector.results_of(computed, threshold=threshold)[number]
    panoptic, detections = None, found
    if isinstance(found, PanopticResult):
        panoptic = replace(found, segments=sorted(found.segments, key=lambda segment: -segment.score))
        detections = _of_segments(panoptic, outputs.boxes[number])
    assert isinstance(detections, Detections)
    return Explanation(
        image=image,
        detections=detections,
        panoptic=panoptic,
        maps=attention_maps(capture, number, (image.height, image.width)),
        capture=capture,
        number=number,
        activation=detector.postprocessor.activation,
        model_name=name,
    )


def _check(capture: Capture, name: str) -> None:
    """Check that a capture holds what an explanation reads.

    Args:
        capture: of the forward pass.
        name: of the model's registration.

    Raises:
        SettingError: something is missing, or of another size than the rest.
    """
    required = ("decoder_weights", "feature_shapes", "padding", "logits", "boxes", "references")
    missing = [field for field in required if getattr(capture, field) is None or not len(getattr(capture, field))]
    if missing:
        raise SettingError(
            f"the capture of {name} has no {', '.join(missing)}: its forward must keep them (docs/extending.md)"
        )
    assert capture.padding is not None and capture.logits is not None
    assert capture.boxes is not None and capture.references is not None
    layers, cells = len(capture.decoder_weights), sum(h * w for h, w in capture.feature_shapes)
    for field, got, want in (
        ("padding.shape[1]", capture.padding.shape[1], cells),
        ("len(logits)", len(capture.logits), layers),
        ("len(boxes)", len(capture.boxes), layers),
        ("len(references)", len(capture.references), layers + 1),
        ("len(decoder_locations)", len(capture.decoder_locations) or layers, layers),
    ):
        if got != want:
            raise SettingError(
                f"the capture of {name} has {field} {got}, not {want}: it has {layers} layers of decoder_weights and "
                f"{cells} cells in feature_shapes (docs/extending.md)"
            )


def _of_segments(panoptic: PanopticResult, boxes: Tensor) -> Detections:
    """Return the segments of an image as detections, with the boxes of their queries.

    Args:
        panoptic: of the image, which it holds.
        boxes: (Q, 4) cxcywh in [0, 1] of all queries.
    """
    segments, image = panoptic.segments, panoptic.image
    assert image is not None
    queries = as_tensor([segment.query for segment in segments]).to(torch.int64)
    pixels = cxcywh_to_xyxy(boxes.float().cpu()) * boxes.new_tensor(
        [image.width, image.height] * 2, dtype=torch.float32, device="cpu"
    )
    return Detections(
        pixels[queries],
        as_tensor([segment.score for segment in segments]).to(torch.float32),
        as_tensor([segment.label for segment in segments]).to(torch.int64),
        masks=panoptic.masks,
        classes=panoptic.classes,
        image=image,
        near_miss=panoptic.near_miss,
        queries=queries,
    )
