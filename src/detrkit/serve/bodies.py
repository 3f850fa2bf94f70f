"""Bodies of requests: read within bounds, then taken apart into images and options."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header
from starlette.requests import ClientDisconnect

from detrkit.serve.budget import Lease
from detrkit.serve.images import MEDIA_TYPES
from detrkit.serve.limits import Limits
from detrkit.serve.refusal import Refusal
from detrkit.tiling.tiles import DEFAULT_OVERLAP
from detrkit.utils.documents import parse_json
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import shortened
from detrkit.utils.ranges import Overlap, TileSide
from detrkit.utils.visible import one_line

RAW_TYPES = (*MEDIA_TYPES, "image/*", "application/octet-stream")
TAKEN = "multipart/form-data, application/json, or the image itself as image/jpeg or the like"
_FIELDS = 8  # of a form, beside its files
_STRUCTURE = (
    20_000  # commas, colons and brackets of a JSON document: base64 has none, and parsing takes memory for each
)
_DRAIN_SECONDS = 2.0

Threshold = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | Literal["auto"]


class Options(BaseModel):
    """Options of a prediction, in the address, in a form or in JSON."""

    model_config = ConfigDict(extra="forbid")

    threshold: Threshold | None = Field(
        None, description="Only what has a greater score; auto: the checkpoint's own of each class."
    )
    limit: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        None, description="Detections of an image at most, the best ones. A panoptic answer is always whole."
    )
    masks: bool = Field(True, description="Whether to send masks, where the model has them.")
    tile: TileSide | Literal["none"] | None = Field(
        None,
        description="Side in pixels of the tiles that a larger image is cut into; none: the whole image alone. By "
        "default as the server was started.",
    )
    overlap: Overlap | None = Field(
        None,
        description="Share of its side that a tile has in common with its neighbor. By default as the server was "
        f"started, else {DEFAULT_OVERLAP:g}.",
    )


class Document(Options):
    """Request in JSON: one image or several, each as base64 or as a data: URL; no address is fetched."""

    image: str | None = None
    images: list[str] | None = None


@dataclass(frozen=True)
class Body:
    """Contents of a request.

    Attributes:
        images: files, as they were sent.
        options: of the form or the document, not yet checked.
        document: JSON of Label Studio, which has tasks in the place of images.
    """

    images: list[bytes] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] | None = None


async def read_body(request: Request, limits: Limits, lease: Lease) -> bytes:
    """Read the body of a request, whether or not it states its length.

    Raises:
        Refusal: too large (413), too slow (408), compressed (415), broken off (400), or too many at once (429).
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(415, "body_encoding", "compressed bodies are not taken", close=True)
    too_large = Refusal(
        413, "body_too_large", f"the request has more than the {limits.max_megabytes:g} MB that are taken", close=True
    )
    stated = request.headers.get("content-length", "0")
    if len(stated) > 15 or (stated.isdigit() and int(stated) > limits.body_bytes):
        await _drain(request, limits.body_bytes)
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_timeout):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limits.body_bytes:
                    raise too_large
                if not lease.take(len(chunk)):
                    raise Refusal(429, "busy", "too many requests are being sent", retry_after=1, close=True)
                body += chunk
    except TimeoutError as error:
        message = f"the request was not complete after {limits.body_timeout:g} seconds"
        raise Refusal(408, "body_timeout", message, close=True) from error
    except ClientDisconnect as error:
        raise Refusal(400, "body_broken", "the request broke off", close=True) from error
    return bytes(body)


async def _drain(request: Request, most: int) -> None:
    """Read on for a moment, so that a client that sends before it listens gets the answer and no broken pipe."""
    total = 0
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in request.stream():
                total += len(chunk)
                if total > most:
                    return
    except (TimeoutError, ClientDisconnect):
        return


def parse_body(content_type: str | None, body: bytes, limits: Limits) -> Body:
    """Take a body apart.

    Args:
        content_type: the header; without one the body is the image.
        body: of the request.
        limits: of the service.

    Raises:
        Refusal: of another type (415), malformed (400), of unknown fields (422) or without an image (422).
    """
    raw_kind, parameters = parse_options_header(content_type)
    kind = raw_kind.decode("latin-1").lower()
    if kind == "multipart/form-data":
        parsed = _of_form(body, parameters.get(b"boundary"), limits)
    elif kind == "application/json":
        parsed = _of_json(body)
    elif kind in ("", *RAW_TYPES):
        parsed = Body([body] if body else [])
    else:
        raise Refusal(415, "body_type", f"the Content-Type is none of those that are taken: {TAKEN}")
    if parsed.document is None:
        if not parsed.images:
            raise Refusal(422, "no_image", f"the request has no image; send {TAKEN}")
        if len(parsed.images) > limits.max_images:
            message = f"the request has more than the {limits.max_images} images that are taken"
            raise Refusal(422, "too_many_images", message)
    return parsed


def check_options(values: Mapping[str, Any]) -> Options:
    """Check the options of a request.

    Raises:
        Refusal: one is unknown or out of range (422).
    """
    try:
        return Options.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from error


def invalid(errors: Any) -> Refusal:
    """Return the refusal for what pydantic found in a request, in one line."""
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))
    return Refusal(422, "invalid", one_line(f"{shortened(place)}: {shortened(str(first['msg']))}"))


def _of_form(body: bytes, boundary: bytes | None, limits: Limits) -> Body:
    images: list[bytes] = []
    options: dict[str, Any] = {}

    def on_file(file: Any) -> None:
        if len(images) > limits.max_images:  # one more than are taken, which the caller refuses
            return
        file.file_object.seek(0)
        images.append(file.file_object.read())

    def on_field(part: Any) -> None:
        name = (part.field_name or b"").decode("utf-8", "replace")
        if len(options) >= _FIELDS or len(part.value or b"") > 1000:
            raise FormParserError("too many or too large fields")
        options[name] = (part.value or b"").decode("utf-8", "replace")

    # files stay in memory: the whole body is there already
    config = {"MAX_MEMORY_FILE_SIZE": len(body) + 1}
    try:
        parser = FormParser("multipart/form-data", on_field, on_file, boundary=boundary, config=config)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError, TypeError, AttributeError) as error:
        raise Refusal(400, "body_malformed", "the form cannot be read") from error
    return Body(images, options)


def _of_json(body: bytes) -> Body:
    document = parse_document(body)
    if "tasks" in document:
        return Body(document=document)
    try:
        parsed = Document.model_validate(document)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False, include_input=False, include_context=False)) from error
    texts = [*([] if parsed.image is None else [parsed.image]), *(parsed.images or [])]
    images = []
    for number, text in enumerate(texts):
        try:
            images.append(of_base64(text))
        except Refusal as refusal:
            raise refusal.of_image(number) from refusal
    return Body(images, parsed.model_dump(include=set(Options.model_fields), exclude_unset=True))


def parse_document(body: bytes) -> dict[str, Any]:
    """Parse a JSON object of bounded structure.

    Raises:
        Refusal: malformed, too deep, of too many parts (400), or no object (422).
    """
    if sum(map(body.count, (b",", b":", b"[", b"{"))) > _STRUCTURE:
        raise Refusal(400, "body_malformed", f"the JSON has more than {_STRUCTURE} parts")
    try:
        document = parse_json(body, "the request")
    except DetrkitError as error:
        raise Refusal(400, "body_malformed", "the JSON is malformed, or nested too deep") from error
    if not isinstance(document, dict):
        raise Refusal(422, "invalid", 'the JSON must be an object, such as {"image": "<base64>"}')
    return document


def of_base64(text: str) -> bytes:
    """Decode an image in base64, with or without `data:...;base64,` before it; line breaks are left out.

    Raises:
        Refusal: an address, or no base64 (422).
    """
    if text.startswith("data:"):
        head, _, text = text.partition(",")
        if not head.endswith(";base64"):
            raise Refusal(422, "image_text", "a data: URL must be in base64")
    elif ":" in text[:100]:  # which base64 never has
        raise Refusal(422, "address_refused", "images are sent, as base64: no address is fetched and no file is read")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(422, "image_text", "the image is no base64") from error
