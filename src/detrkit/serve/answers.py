"""Answers: predictions as JSON, equal to the bit to what `Detector.predict` returns."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from io import BytesIO
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from pydantic import BaseModel, Field

from detrkit.serve.bodies import Options
from detrkit.structures.panoptic import PanopticResult, Prediction
from detrkit.structures.rle import encode_masks
from detrkit.structures.rows import detection_rows, segment_rows
from detrkit.weights.digest import weights_sha256 as weights_sha256


class Rle(BaseModel):
    """A mask as run lengths in COCO's format."""

    size: tuple[int, int] = Field(description="Height and width of the image in pixels.")
    counts: str = Field(description="COCO's compressed run lengths.")


class Found(BaseModel):
    """One detected object."""

    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels of the upright image.")
    score: float = Field(ge=0, le=1)
    label: int = Field(description="The model's own number of the class, from 0.")
    category_id: int = Field(description="The dataset's id of the class; the label where the checkpoint has none.")
    name: str = Field(description="Name of the class.")
    query: int | None = Field(description="The object query of the model that found it.")
    segmentation: Rle | None = None


class FoundSegment(BaseModel):
    """One segment of a panoptic answer."""

    id: int = Field(description="Its value in the PNG: R + 256 G + 65536 B.")
    score: float = Field(ge=0, le=1)
    label: int
    category_id: int
    name: str
    query: int | None
    kind: Literal["thing", "stuff"]
    area: int = Field(description="In pixels.")


class Panoptic(BaseModel):
    """Every pixel of an image, assigned to one segment or to none."""

    png: str = Field(description="The ids of the pixels as a PNG in base64; 0 is none.")
    segments: list[FoundSegment]


class ImageAnswer(BaseModel):
    """What was found in one image."""

    width: int = Field(description="Of the upright image, in pixels.")
    height: int = Field(description="Of the upright image, in pixels.")
    threshold: float | Literal["auto"] = Field(description="Only what has a greater score was kept.")
    detections: list[Found] | None = Field(description="In descending order of score; null of a panoptic model.")
    left_out: int = Field(description="Detections above the threshold that the limit left out.")
    panoptic: Panoptic | None = None


class ModelAnswer(BaseModel):
    """The model that answered."""

    name: str
    sha256: str = Field(description="Digest of its weights; see docs/serving.md.")


class Answer(BaseModel):
    """Answer to a prediction."""

    model: ModelAnswer
    images: list[ImageAnswer] = Field(description="In the order in which they were sent.")


class Problem(BaseModel):
    """Why there is no answer."""

    code: str
    message: str
    image: int | None = Field(description="Number of the image in the request, from 0.")


class ErrorAnswer(BaseModel):
    """Answer to a request that is refused."""

    error: Problem


class Encoded(NamedTuple):
    """The result of an image as it waits for the others of its request, with run lengths in the place of masks.

    Attributes:
        result: without masks.
        masks: of the detections that are sent, as `encode_masks` makes them; None: no masks are sent.
    """

    result: Prediction
    masks: list[dict[str, Any]] | None = None


def encoded(result: Prediction, options: Options) -> Encoded:
    """Encode the masks of a result, and let go of them: each takes a byte for every pixel of the image.

    Args:
        result: of an image.
        options: of the request.
    """
    if isinstance(result, PanopticResult) or result.masks is None:
        return Encoded(result)
    masks = encode_masks(result.masks[: options.limit]) if options.masks else None
    return Encoded(replace(result, masks=None), masks)


def answer(model: dict[str, str], results: list[Encoded], options: Options, shown: float | str) -> bytes:
    """Return the predictions of a request's images as JSON.

    Args:
        model: name and digest.
        results: of the images.
        options: of the request.
        shown: threshold of the answer.
    """
    images = [image_answer(result, options, shown) for result in results]
    return json.dumps({"model": model, "images": images}, ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "replace"
    )


def image_answer(image: Encoded, options: Options, shown: float | str) -> dict[str, Any]:
    """Return the predictions of one image as plain values, with the fields of `ImageAnswer`."""
    result, masks = image
    assert result.image is not None
    head = {"width": result.image.width, "height": result.image.height, "threshold": shown}
    if isinstance(result, PanopticResult):
        panoptic = {"png": _png(result), "segments": segment_rows(result)}
        return {**head, "detections": None, "left_out": 0, "panoptic": panoptic}
    total = len(result)
    if options.limit is not None and total > options.limit:
        result = result.select(torch.arange(options.limit))
    found = detection_rows(result, masks=False)
    for row, rle in zip(found, masks or [], strict=masks is not None):
        row["segmentation"] = rle
    return {**head, "detections": found, "left_out": total - len(found), "panoptic": None}


def _png(result: PanopticResult) -> str:
    """Return the id map of a result as a PNG in base64."""
    file = BytesIO()
    Image.fromarray(result.to_coco()[0]).save(file, "PNG", compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
