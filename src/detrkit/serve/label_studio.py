"""Label Studio's protocol of machine learning backends: boxes for its tasks.

Label Studio sends the addresses of images and not their bytes. No address is fetched here: an image must be in its task
as a data: URL, or be one of Label Studio's own files, below a folder that the operator names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from uuid import uuid4

from pydantic import BaseModel, Field, ValidationError

from detrkit.serve.bodies import invalid, of_base64
from detrkit.serve.limits import Limits
from detrkit.serve.refusal import Refusal
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import Prediction
from detrkit.utils.documents import parse_xml, require_regular
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import relative_path

LOCAL_FILES, UPLOADS = "/data/local-files/", "/data/upload/"


class Task(BaseModel):
    """One task: its data, by the names that the labeling configuration refers to."""

    data: dict[str, Any]


class TasksRequest(BaseModel):
    """Request for predictions; further fields are ignored."""

    tasks: list[Task]
    label_config: str = Field(description="XML of the labeling configuration.")


@dataclass(frozen=True)
class Control:
    """Where boxes go in a labeling configuration.

    Attributes:
        from_name: of the `RectangleLabels`.
        to_name: of the `Image`.
        key: in the data of a task, under which the image stands.
        labels: label of each class name, in lower case.
    """

    from_name: str
    to_name: str
    key: str
    labels: Mapping[str, str]


def parse_tasks(document: Mapping[str, Any], limits: Limits) -> tuple[TasksRequest, Control]:
    """Check a request for predictions, and find where boxes go.

    Raises:
        Refusal: it is not of the form, has too many tasks, or its configuration has no place for boxes (422).
    """
    try:
        request = TasksRequest.model_validate(document)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from error
    if len(request.tasks) > limits.max_images:
        raise Refusal(422, "too_many_images", f"the request has more than the {limits.max_images} tasks that are taken")
    return request, control_of(request.label_config)


def control_of(config: str) -> Control:
    """Find the first `RectangleLabels` of a labeling configuration and its `Image`.

    A class of the model goes to the label of its name, whatever the case, or to the one that lists it in
    `predicted_values`, separated by commas.

    Raises:
        Refusal: malformed, or without them (422).
    """
    try:
        root = parse_xml(config.encode("utf-8", "replace"), "label_config")
    except DetrkitError as error:
        raise Refusal(422, "label_config", "label_config is malformed XML") from error
    images = {e.get("name"): e.get("value", "") for e in root.iter("Image")}
    for element in root.iter("RectangleLabels"):
        to_name, from_name = element.get("toName"), element.get("name")
        if from_name and to_name and images.get(to_name, "").startswith("$"):
            labels: dict[str, str] = {}
            for label in element.iter("Label"):
                value = label.get("value", "")
                for name in (value, *label.get("predicted_values", "").split(",")):
                    labels.setdefault(name.strip().lower(), value)
            return Control(from_name, to_name, images[to_name][1:], labels)
    raise Refusal(422, "label_config", "label_config has no RectangleLabels for an Image with a value such as $image")


def task_images(request: TasksRequest, control: Control, root: Path | None, max_bytes: int) -> list[bytes]:
    """Return the images of tasks.

    Args:
        request: with the tasks.
        control: of its configuration.
        root: folder of Label Studio's files; None: none are read.
        max_bytes: of a file.

    Raises:
        Refusal: a task without an image, or with an address that is not read (422); names the task.
    """
    images = []
    for number, task in enumerate(request.tasks):
        try:
            images.append(_image(task.data.get(control.key), root, max_bytes))
        except Refusal as refusal:
            raise refusal.of_image(number) from refusal
    return images


def _image(text: Any, root: Path | None, max_bytes: int) -> bytes:
    if not isinstance(text, str):
        raise Refusal(422, "no_image", "the task has no image under the name that label_config states")
    if text.startswith("data:"):
        return of_base64(text)
    path = _local_path(text)
    if root is None or path is None:
        message = (
            "no address is fetched: send images as data: URLs, or start the server with --label-studio-files for "
            f"addresses that begin with {LOCAL_FILES} or {UPLOADS}"
        )
        raise Refusal(422, "address_refused", message)
    return _file(root, path, max_bytes)


def _local_path(text: str) -> str | None:
    """Return the path of a file of Label Studio's own, below its folder; None of any other address."""
    try:
        address = urlsplit(text)
    except ValueError:
        return None
    if address.scheme or address.netloc:
        return None
    if address.path == LOCAL_FILES:
        return next(iter(parse_qs(address.query).get("d", [])), None)
    if address.path.startswith(UPLOADS):
        return "upload/" + unquote(address.path.removeprefix(UPLOADS))
    return None


def _file(root: Path, path: str, max_bytes: int) -> bytes:
    """Read a file below a folder, also after links are followed."""
    missing = Refusal(422, "address_refused", "there is no such file in the folder of --label-studio-files")
    try:
        top = root.resolve()
        file = (top / relative_path(path, "the task")).resolve()
        if not file.is_relative_to(top):
            raise missing
        require_regular(file)
        with file.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (DetrkitError, OSError, ValueError, RuntimeError) as error:
        raise missing from error
    if len(data) > max_bytes:
        raise Refusal(413, "image_too_large", "the file is larger than a request may be")
    return data


def prediction(result: Prediction, control: Control, version: str) -> dict[str, Any]:
    """Return the boxes of one image in Label Studio's format: percent of the image, from its top left corner.

    Args:
        result: of the image.
        control: of the labeling configuration; classes without a label in it are left out.
        version: of the model.

    Raises:
        Refusal: a panoptic result, which has no boxes (422).
    """
    if not isinstance(result, Detections):
        raise Refusal(422, "panoptic", "a panoptic model has no boxes for Label Studio")
    assert result.image is not None
    width, height = result.image.size
    regions, scores = [], []
    for box, score, name in zip(result.boxes.tolist(), result.scores.tolist(), result.names, strict=True):
        label = control.labels.get(name.lower())
        if label is None:
            continue
        x0, y0, x1, y1 = (min(max(v, 0.0), side) for v, side in zip(box, (width, height) * 2, strict=True))
        value = {
            "x": 100 * x0 / width,
            "y": 100 * y0 / height,
            "width": 100 * (x1 - x0) / width,
            "height": 100 * (y1 - y0) / height,
            "rotation": 0,
            "rectanglelabels": [label],
        }
        regions.append(
            {
                "id": uuid4().hex[:10],
                "from_name": control.from_name,
                "to_name": control.to_name,
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": value,
                "score": score,
            }
        )
        scores.append(score)
    mean = sum(scores) / len(scores) if scores else 0.0
    return {"result": regions, "score": mean, "model_version": version}
