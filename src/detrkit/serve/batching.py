"""Batches across requests: images wait in a bounded queue, and one thread, which owns the detector, works on them.

The padding is exact, so an image's results do not depend on the images beside it (docs/padding.md). Images of one batch
have the same threshold; jobs of another kind, such as explanations, run alone in the same thread.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from detrkit.serve.refusal import Refusal
from detrkit.structures.panoptic import Prediction

log = logging.getLogger("detrkit.serve")

Threshold = float | Literal["auto"]
Predict = Callable[[list[Image.Image], Threshold], Sequence[Prediction]]
_FIRST_GUESS = 0.2  # seconds for an image, until some are measured


@dataclass(eq=False)
class _Job:
    """An image to predict, or a call to make.

    Attributes:
        future: of the result.
        image: upright RGB; None for a call.
        threshold: of the image.
        call: of no arguments; None for an image.
        entered: time at which it came.
    """

    future: Future[Any]
    image: Image.Image | None = None
    threshold: Threshold = 0.0
    call: Callable[[], Any] | None = None
    entered: float = field(default_factory=time.monotonic)


class Batcher:
    """A bounded queue, and the thread that works on it.

    Places are reserved and given back on the thread of the event loop; jobs are added from any thread.

    Args:
        predict: runs a batch of upright RGB images with a threshold.
        max_batch: images of a batch.
        max_wait: seconds that an image waits for others.
        max_queue: places: images and calls that wait or are worked on.
        max_pixels: original pixels of a batch's images; a single image may have more.
        on_batch: called with the number of images and the seconds of every batch.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        max_pixels: float = math.inf,
        on_batch: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self._predict = predict
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

    def add(self, images: Sequence[Image.Image], threshold: Threshold) -> list[Future[Prediction]]:
        """Queue the images of a request; return the futures of their results."""
        return self._queue([_Job(Future(), image=image, threshold=threshold) for image in images])

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
            while not self._closing and len(jobs := self._batch()) < self._max_batch and jobs[0].call is None:
                left = ready - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            jobs = self._batch()
            for job in jobs:
                self._jobs.remove(job)
            return jobs

    def _batch(self) -> list[_Job]:
        """Choose the jobs that run with the first one: images of its threshold, in their order."""
        first = self._jobs[0]
        if first.call is not None:
            return [first]
        chosen: list[_Job] = []
        pixels = 0
        for job in self._jobs:
            if job.image is None or job.threshold != first.threshold:
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
            for job, result in zip(jobs, results, strict=True):
                job.future.set_result(result)
