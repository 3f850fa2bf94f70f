"""A detector behind a queue: from the bytes of a request to predictions and explanations."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

from PIL import Image, ImageFile

from detrkit.detector import Detector, has_masks
from detrkit.explanation import explain
from detrkit.explanation.numbers import explanation_numbers
from detrkit.explanation.page import page_html
from detrkit.serve.answers import Encoded, answer, encoded
from detrkit.serve.batching import Batcher
from detrkit.serve.bodies import Options
from detrkit.serve.budget import Budget
from detrkit.serve.images import decoded, open_checked
from detrkit.serve.limits import Limits
from detrkit.serve.metrics import Metrics
from detrkit.serve.refusal import Refusal
from detrkit.serve.warming import warm_up
from detrkit.structures.panoptic import Prediction
from detrkit.tiling.predicting import MaskMemoryError
from detrkit.tiling.tiles import DEFAULT_OVERLAP, Tiling
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.memory import is_out_of_memory
from detrkit.weights.digest import weights_sha256

log = logging.getLogger("detrkit.serve")
T = TypeVar("T")

MASK_BYTES = 2**31  # of the masks of a batch, if every query of every image had one; and of an image in tiles
EXPLANATIONS = 2  # at the same time: each keeps the queries and keys of a forward pass
_THREADS = 4  # that decode images and write answers


class Predicted(NamedTuple):
    """Results of a request.

    Attributes:
        results: of its images.
        threshold: that they have.
    """

    results: list[Encoded]
    threshold: float | Literal["auto"]


class Service:
    """What the routes call. Its methods are called from the event loop's thread.

    Args:
        detector: that predicts; nothing else may use it meanwhile.
        limits: what is taken at most.
        metrics: to count in.

    Attributes:
        detector: that predicts.
        limits: what is taken at most.
        model: its name and the digest of its weights, as in every answer.
        bodies: bytes of the requests that are held.
        ready: whether the first prediction was made, after which the others take their usual time.
    """

    def __init__(self, detector: Detector, limits: Limits, metrics: Metrics) -> None:
        self.detector = detector
        self.limits = limits
        self.metrics = metrics
        self.model = {"name": detector.spec.name, "sha256": weights_sha256(detector.model)}
        self.bodies = Budget(limits.all_body_bytes)
        self.ready = False
        self._whole = detector if detector.tiling is None else detector.tiled(None)  # the batcher cuts
        self._pixels = Budget(limits.all_image_pixels)
        self._image_pixels, batch_pixels = limits.image_pixels, float("inf")
        if has_masks(detector.model):
            batch_pixels = MASK_BYTES // int(getattr(detector.model, "num_queries", 100))
            self._image_pixels = min(self._image_pixels, batch_pixels)
        self._explanations = Budget(EXPLANATIONS)
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="detrkit-images")
        self._batcher = Batcher(
            self._predict_batch,
            self._threads,
            max_batch=limits.max_batch if detector.spec.padding == "exact" else 1,
            max_wait=limits.max_wait_ms / 1000,
            max_queue=limits.max_queue,
            max_pixels=batch_pixels,
            on_batch=metrics.batch,
        )
        metrics.watch(lambda: self._batcher.taken)

    @property
    def stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._batcher.stopping

    @property
    def lowest(self) -> float | None:
        """Threshold that the page asks for, below which its slider cannot go; None: the detector's own.

        Segments of another threshold are other segments, and masks of poor detections would take long to send.
        """
        if self.detector.panoptic:
            return None
        return min(self.detector.threshold, 0.2 if has_masks(self.detector.model) else 0.05)

    async def start(self) -> None:
        """Make a first prediction, which takes longer than the others; then the service is ready."""
        call = self._batcher.call(partial(warm_up, self._whole, self.limits.max_batch))
        await asyncio.wrap_future(call)
        self.ready = True

    def stop(self) -> None:
        """Refuse new requests from now on; may be called in a handler of a signal."""
        self._batcher.stopping = True

    async def close(self) -> None:
        """Finish what was taken, and end the threads."""
        self.stop()
        await asyncio.to_thread(self._batcher.close)
        await asyncio.to_thread(self._threads.shutdown)

    def version(self) -> str:
        """Return the model's name with the first digits of its digest."""
        return f"{self.model['name']}-{self.model['sha256'][:12]}"

    async def predict(self, files: Sequence[bytes], options: Options) -> Predicted:
        """Predict the images of a request.

        Args:
            files: the images.
            options: of the request.

        Raises:
            Refusal: an image cannot be used, the queue is full, or it takes too long.
        """
        threshold = self._threshold(options.threshold)
        tiling = self._tiling(options)
        finish = partial(encoded, options=options)
        async with _in_time(self.limits.timeout):
            with self._places(len(files)), self._pixels.lease() as lease:
                opened = await self.in_thread(self._open_all, files)
                if tiling is not None:
                    self._check_tiles(opened, tiling)
                pixels = sum(image.width * image.height for image in opened)
                if pixels > self._pixels.total:
                    raise Refusal(413, "image_too_large", "the images of the request have too many pixels together")
                if not lease.take(pixels):
                    raise Refusal(429, "busy", "too many large images are waiting", retry_after=2)
                images = await self.in_thread(_decode_all, opened)
                futures = [
                    asyncio.wrap_future(future) for future in self._batcher.add(images, threshold, tiling, finish)
                ]
                results = await asyncio.gather(*futures, return_exceptions=True)
        for number, result in enumerate(results):
            if isinstance(result, BaseException):
                raise _of_model(result).of_image(number) from result
        self.metrics.images.inc(len(files))
        return Predicted([result for result in results if not isinstance(result, BaseException)], threshold)

    async def answer(self, files: Sequence[bytes], options: Options) -> bytes:
        """Return the predictions of a request's images as JSON; arguments and errors as of `predict`."""
        results, threshold = await self.predict(files, options)
        return await self.in_thread(answer, self.model, results, options, threshold)

    async def explanation(
        self, file: bytes, threshold: float | str | None, form: Literal["html", "json"], megabytes: float
    ) -> bytes:
        """Explain an image: the page of `Explanation.save_page`, or its numbers as JSON.

        Args:
            file: the image.
            threshold: as of `Options`.
            form: of the answer.
            megabytes: size of the page at most.

        Raises:
            Refusal: the image cannot be used or needs a larger page, too many wait, or it takes too long.
        """
        limit = self._threshold(threshold)
        async with _in_time(self.limits.timeout):
            with self._places(1), self._pixels.lease() as lease, self._explanations.lease() as place:
                if not place.take(1):
                    raise Refusal(429, "busy", "too many explanations are being made", retry_after=5)
                (opened,) = await self.in_thread(self._open_all, [file])
                if not lease.take(opened.width * opened.height):
                    raise Refusal(429, "busy", "too many large images are waiting", retry_after=2)
                (image,) = await self.in_thread(_decode_all, [opened])
                call = self._batcher.call(partial(explain, self.detector, image, threshold=limit))
                try:
                    explanation = await asyncio.wrap_future(call)
                except Exception as error:
                    raise _of_model(error) from error
                if form == "json":
                    return await self.in_thread(_numbers, explanation)
                try:
                    page = await self.in_thread(page_html, explanation, max_megabytes=megabytes)
                except SettingError as error:
                    message = "the page of this image takes more than max_megabytes: allow more"
                    raise Refusal(422, "page_too_large", message) from error
                return page.encode("utf-8", "replace")

    def _threshold(self, threshold: float | str | None) -> float | Literal["auto"]:
        """Return the threshold that is meant.

        Raises:
            Refusal: "auto", and the checkpoint suggests none.
        """
        try:
            limit = self.detector.resolve_threshold(threshold)
        except DetrkitError as error:
            message = "threshold auto: this model suggests no thresholds; give a number"
            raise Refusal(422, "invalid", message) from error
        return "auto" if isinstance(limit, tuple) else limit

    def _tiling(self, options: Options) -> Tiling | None:
        """Return how a request wants its images to be cut; None: not at all.

        Raises:
            Refusal: an overlap of no tiles, or tiles of a panoptic model (422).
        """
        own = self.detector.tiling
        tile = (own.tile if own else None) if options.tile is None else options.tile
        if tile is None or tile == "none":
            if options.overlap is not None:
                raise Refusal(422, "invalid", "overlap is that of tiles: give tile, too, such as tile=640")
            return None
        if self.detector.panoptic:
            raise Refusal(422, "panoptic", "a panoptic model predicts no tiles, but the whole image: leave tile out")
        overlap = (own.overlap if own else DEFAULT_OVERLAP) if options.overlap is None else options.overlap
        return Tiling(tile, overlap, max_mask_bytes=MASK_BYTES)

    def _check_tiles(self, opened: Sequence[ImageFile.ImageFile], tiling: Tiling) -> None:
        """Check the number of tiles by the headers of a request's images.

        Raises:
            Refusal: there are too many (422).
        """
        total = 0
        for number, image in enumerate(opened):
            total += tiling.count(image.height, image.width) if tiling.cuts(image.height, image.width) else 0
            if total > self.limits.max_tiles:
                message = (
                    f"{tiling}: {total:,} or more, and {self.limits.max_tiles:,} are taken; ask for larger tiles, "
                    "less overlap or fewer images"
                )
                raise Refusal(422, "too_many_tiles", message, image=number)

    def _predict_batch(self, images: list[Image.Image], threshold: Any) -> Sequence[Prediction]:
        return self._whole.predict(images, threshold=threshold, batch_size=len(images))

    def _open_all(self, files: Sequence[bytes]) -> list[ImageFile.ImageFile]:
        return [_numbered(open_checked, number, file, self._image_pixels) for number, file in enumerate(files)]

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        self._batcher.reserve(count)
        try:
            yield
        finally:
            self._batcher.release(count)

    async def in_thread(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call a function in one of the threads for images.

        There are few of them, because glibc has a heap for each thread, and each retains what it once needed.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, partial(function, *arguments, **named))


@asynccontextmanager
async def _in_time(seconds: float) -> AsyncIterator[None]:
    """Enter a context that ends with a refusal after some seconds."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise Refusal(504, "timeout", f"there was no answer within {seconds:g} seconds", retry_after=5) from error


def _decode_all(opened: Sequence[ImageFile.ImageFile]) -> list[Image.Image]:
    return [_numbered(decoded, number, image) for number, image in enumerate(opened)]


def _numbered(function: Callable[..., T], number: int, *arguments: Any) -> T:
    try:
        return function(*arguments)
    except Refusal as refusal:
        raise refusal.of_image(number) from refusal


def _numbers(explanation: Any) -> bytes:
    text = json.dumps(explanation_numbers(explanation), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "replace")


def _of_model(error: BaseException) -> Refusal:
    """Return the refusal for what the model raised; raise what is no fault of the image."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return Refusal(413, "image_memory", "the image takes more memory than this server has")
    if isinstance(error, MaskMemoryError):
        message = "the masks of this image in tiles take too much memory: ask for a greater threshold, or no tiles"
        return Refusal(413, "mask_memory", message)
    if isinstance(error, DetrkitError | ValueError):
        log.info("refused by the model: %s", error)
        return Refusal(422, "image_unfit", "the image does not fit the model: it is too large, or too long and narrow")
    raise error
