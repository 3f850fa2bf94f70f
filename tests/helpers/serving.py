"""A service in the process of the test, and images for it."""

from __future__ import annotations

import asyncio
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
