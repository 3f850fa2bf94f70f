"""A service in the process of the test, and images for it."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from typing import Any, TypeVar

import httpx
import numpy as np
from PIL import Image

from detrkit.detector import Detector
from detrkit.serve import Limits, create_app

T = TypeVar("T")


def painted(width: int, height: int, seed: int = 0) -> Image.Image:
    """An RGB image of blurred noise, which differs for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    file = BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header states a size, with few bytes of pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def assert_equal(answer, result, *, exact=True):
    """The answer of one image is the result: to the bit, or as exactly as another batch's rounding lets it."""
    assert (answer["width"], answer["height"]) == result.image.size
    found = answer["detections"]
    assert len(found) == len(result) > 0
    assert [entry["label"] for entry in found] == result.labels.tolist()
    assert [entry["query"] for entry in found] == result.queries.tolist()
    assert [entry["name"] for entry in found] == result.names
    assert [entry["category_id"] for entry in found] == [result.classes.ids[label] for label in result.labels]
    boxes = np.array([entry["box"] for entry in found], np.float32)
    scores = np.array([entry["score"] for entry in found], np.float32)
    if exact:
        assert np.array_equal(boxes, result.boxes.numpy()) and np.array_equal(scores, result.scores.numpy())
    else:
        np.testing.assert_allclose(boxes, result.boxes.numpy(), atol=1e-3)
        np.testing.assert_allclose(scores, result.scores.numpy(), atol=1e-5)


@asynccontextmanager
async def started(detector: Detector, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that is started, and that is closed at the end."""
    limits = options.pop("limits", {})
    app = create_app(detector, limits=limits if isinstance(limits, Limits) else Limits(**limits), **options)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service", timeout=60) as client:
            client.application, client.service = app, app.state.service  # type: ignore[attr-defined]
            yield client


def served(detector: Detector, ask: Callable[[httpx.AsyncClient], Awaitable[T]], **options: Any) -> T:
    """What `ask` returns when it is called with a client of a service of the detector."""

    async def run() -> T:
        async with started(detector, **options) as client:
            return await ask(client)

    return asyncio.run(run())
