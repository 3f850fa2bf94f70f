"""Batches across requests: images wait in a bounded queue, and one thread, which owns the detector, works on them.

The padding is exact, so an image's results do not depend on the images beside it (docs/padding.md). Images of one batch
have the same threshold; jobs of another kind, such as explanations, run alone in the same thread.

An image that is cut into tiles shares no batch: its tiles make batches of their own, so that its results are those of
`Detector.predict` to the bit. Between two of them one batch of the others that wait is computed, so that these wait for
one batch of tiles and not for all. Images in tiles are worked on one after the other, in their order: two at once would
each take twice as long, and hold twice the memory.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar

from PIL import Image

from detrkit.serve.refusal import Refusal
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import Prediction
from detrkit.tiling.predicting import predict_tiles
from detrkit.tiling.tiles import Tiling

log = logging.getLogger("detrkit.serve")

T = TypeVar("T")
Threshold = float | Literal["auto"]
Predict = Callable[[list[Image.Image], Threshold], Sequence[Prediction]]
_FIRST_GUESS = 0.2  # seconds for an image, until some are measured
MAX_MERGED = 10_000  # detections of the tiles of an image: the time to merge them grows with the square of their number


class _Abandoned(Exception):
    """Nobody waits for the result any more."""


@dataclass(eq=False)
class _Job:
    """An image to predict, or a call to make.

    Attributes:
        future: of the result.
        image: upright RGB; None for a call.
        threshold: of the image.
        finish: makes of the image's result what is waited for.
        tiling: how the image is cut; None: it is not.
        call: of no arguments; None for an image.
        entered: time at which it came.
    """

    future: Future[Any]
    image: Image.Image | None = None
    threshold: Threshold = 0.0
    finish: Callable[[Prediction], Any] = lambda result: result
    tiling: Tiling | None = None
    call: Callable[[], Any] | None = None
    entered: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Tiles:
    """An image in tiles that is worked on.

    Attributes:
        job: that it is.
        batches: that were computed.
        seconds: that they took.
        detections: in the pieces.
    """

    job: _Job
    batches: int = 0
    seconds: float = 0.0
    detections: int = 0


class Batcher:
    """A bounded queue, and the thread that works on it.

    Places are reserved and given back on the thread of the event loop; jobs are added from any thread.

    Args:
        predict: runs a batch of upright RGB images with a threshold, each as a whole.
        threads: that encode masks.
        max_batch: images, or tiles, of a batch.
        max_wait: seconds that an image waits for others.
        max_queue: places: images and calls that wait or are worked on.
        max_pixels: original pixels of a batch's images; a single image may have more.
        on_batch: called with the number of images and the seconds of every batch.
    """

    def __init__(
        self,
        predict: Predict,
        threads: Executor,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        max_pixels: float = math.inf,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._predict = predict
        self._threads = threads
        self._finishing: list[Future[None]] = []  # results of the last batch that have masks
        self._max_batch = max_batch
        self._max_wait = max_wait
        self._max_queue = max_queue
        self._max_pixels = max_pixels
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._seconds = _FIRST_GUESS  # an image takes, on average
        self.stopping = False  # no place is given any more
        self.taken = 0  # places

    def reserve(self, count: int) -> None:
        """Take places for images of a request, to be given back by `release`.

        Raises:
            Refusal: the service stops (503), there are fewer places at all (422), or now (429).
        """
        if self.stopping:
            raise Refusal(503, "stopping", "the server is stopping", retry_after=5, close=True)
        if count > self._max_queue:
            message = f"the request has more than the {self._max_queue} images that can wait"
            raise Refusal(422, "too_many_images", message)
        if self.taken + count > self._max_queue:
            seconds = min(60, max(1, math.ceil(self.taken * self._seconds)))
            raise Refusal(429, "busy", "too many images are waiting", retry_after=seconds)
        self.taken += count

    def release(self, count: int) -> None:
        """Give places back."""
        self.taken -= count

    def add(
        self,
        images: Sequence[Image.Image],
        threshold: Threshold,
        tiling: Tiling | None,
        finish: Callable[[Prediction], T],
    ) -> list[Future[T]]:
        """Queue the images of a request.

        Args:
            images: upright RGB images.
            threshold: of them.
            tiling: how those that are larger than a tile are cut; None: not at all.
            finish: makes of a result what is waited for.

        Returns:
            Futures of the finished results.
        """
        jobs = []
        for image in images:
            cut = tiling is not None and tiling.cuts(image.height, image.width)
            jobs.append(_Job(Future(), image, threshold, finish, tiling if cut else None))
        return self._queue(jobs)

    def call(self, function: Callable[[], Any]) -> Future[Any]:
        """Queue a call, which runs alone; return the future of its result."""
        return self._queue([_Job(Future(), call=function)])[0]

    def close(self) -> None:
        """Finish what is queued, and end the thread."""
        self.stopping = True
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _queue(self, jobs: list[_Job]) -> list[Future[Any]]:
        with self._changed:
            if self._closing:
                raise Refusal(503, "stopping", "the server is stopping", retry_after=5)
            self._jobs.extend(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="detrkit-model", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return [job.future for job in jobs]

    def _work(self) -> None:
        while jobs := self._next():
            self._start(jobs)

    def _start(self, jobs: list[_Job]) -> None:
        """Run the jobs of a batch that somebody still waits for."""
        if jobs[0].tiling is not None:
            self._run_tiles(jobs[0])
            return
        running = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        if running:
            self._run(running)

    def _next(self) -> list[_Job]:
        """Wait for the jobs of a batch; none are left when the thread shall end."""
        with self._changed:
            while not self._jobs:
                if self._closing:
                    return []
                self._changed.wait()
            ready = self._jobs[0].entered + self._max_wait
            while not self._closing and len(jobs := self._batch(self._jobs[0])) < self._max_batch:
                if jobs[0].call is not None or jobs[0].tiling is not None:  # which run alone
                    break
                left = ready - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            return self._taken(self._jobs[0])

    def _taken(self, first: _Job) -> list[_Job]:
        """Take the jobs that run with a first one out of the queue."""
        jobs = self._batch(first)
        for job in jobs:
            self._jobs.remove(job)
        return jobs

    def _batch(self, first: _Job) -> list[_Job]:
        """Choose the jobs that run with a first one: images of its threshold, in their order, none of them cut."""
        if first.call is not None or first.tiling is not None:
            return [first]
        chosen: list[_Job] = []
        pixels = 0
        for job in self._jobs:
            if job.image is None or job.tiling is not None or job.threshold != first.threshold:
                continue
            pixels += job.image.width * job.image.height
            if len(chosen) == self._max_batch or (chosen and pixels > self._max_pixels):
                break
            chosen.append(job)
        return chosen

    def _run(self, jobs: list[_Job]) -> None:
        """Run a batch; where it fails, each of its images alone, so that no request suffers from another one."""
        started = time.monotonic()
        try:
            if jobs[0].call is not None:
                jobs[0].future.set_result(jobs[0].call())
                return
            images = [job.image for job in jobs if job.image is not None]
            results = list(self._predict(images, jobs[0].threshold))
            assert len(results) == len(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            log.warning("a batch of %d images failed; each runs alone", len(jobs), exc_info=error)
            for job in jobs:
                self._run([job])
        else:
            seconds = time.monotonic() - started
            self._seconds += 0.1 * (seconds / len(jobs) - self._seconds)
            self._on_batch(len(jobs), seconds)
            self._finish(jobs, results)

    def _finish(self, jobs: Sequence[_Job], results: Sequence[Prediction]) -> None:
        """Hand over results, those with masks to other threads, which encode them while the next batch is computed.

        The masks of two batches are held at most: these wait until those of the former batch are encoded.
        """
        wait(self._finishing)
        self._finishing = []
        for job, result in zip(jobs, results, strict=True):
            if isinstance(result, Detections) and result.masks is not None:
                self._finishing.append(self._threads.submit(_finished, job, result))
            else:
                _finished(job, result)

    def _run_tiles(self, job: _Job) -> None:
        """Run an image in tiles. Its future stays pending meanwhile: one that is cancelled ends the work."""
        assert job.image is not None and job.tiling is not None
        tiles = _Tiles(job)
        size = self._tiles_at_once(job.image, job.tiling)
        try:
            detect = partial(self._detect_tiles, tiles)
            result: Any = replace(predict_tiles(job.image, job.tiling, detect, batch_size=size), image=job.image)
        except _Abandoned:
            return
        except Exception as error:
            result = error
        else:
            self._seconds += 0.1 * (tiles.seconds - self._seconds)
        if job.future.set_running_or_notify_cancel():
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                self._finish([job], [result])

    def _detect_tiles(self, tiles: _Tiles, pieces: Sequence[Image.Image]) -> Sequence[Prediction]:
        """Predict a batch of an image's pieces; before it, if others wait, one batch of theirs.

        Raises:
            _Abandoned: nobody waits for the result any more.
            Refusal: the pieces have too many detections to be merged (422).
        """
        if tiles.batches:
            with self._changed:
                other = next((job for job in self._jobs if job.tiling is None), None)
                jobs = [] if other is None else self._taken(other)
            if jobs:
                self._start(jobs)
        if tiles.job.future.cancelled():
            raise _Abandoned
        started = time.monotonic()
        results = self._predict(list(pieces), tiles.job.threshold)
        seconds = time.monotonic() - started
        tiles.seconds += seconds
        tiles.batches += 1
        self._on_batch(len(pieces), seconds)
        tiles.detections += sum(len(one) for one in results if isinstance(one, Detections))
        if tiles.detections > MAX_MERGED:
            message = (
                f"the tiles have more than the {MAX_MERGED:,} detections that are merged: ask for a greater threshold"
            )
            raise Refusal(422, "too_many_detections", message)
        return results

    def _tiles_at_once(self, image: Image.Image, tiling: Tiling) -> int:
        """Return the pieces of a batch: `max_batch`, or as many as have `max_pixels` where one is the whole image."""
        area = min(tiling.tile, image.width) * min(tiling.tile, image.height)
        further = max(0.0, self._max_pixels - image.width * image.height) / area
        return int(min(self._max_batch, 1 + further))


def _finished(job: _Job, result: Prediction) -> None:
    """Set the result of an image's future."""
    try:
        job.future.set_result(job.finish(result))
    except Exception as error:
        job.future.set_exception(error)
