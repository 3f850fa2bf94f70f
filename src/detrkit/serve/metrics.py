"""Counts and times of a service, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counts and times of one service, in a registry of its own.

    Attributes:
        images: predicted ones.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._requests = Counter("detrkit_requests", "Answered requests.", ["route", "status"], registry=registry)
        self._seconds = Histogram(
            "detrkit_request_seconds", "Time to an answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.images = Counter("detrkit_images", "Images predicted.", registry=registry)
        self._batches = Histogram("detrkit_batch_images", "Images of a batch.", buckets=_IMAGES, registry=registry)
        self._model = Counter("detrkit_model_seconds", "Time in which the model worked on batches.", registry=registry)
        self._places = Gauge("detrkit_waiting_images", "Images that wait or are worked on.", registry=registry)

    def watch(self, places: Callable[[], float]) -> None:
        """Show a number of waiting images whenever the metrics are read."""
        self._places.set_function(places)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch; called from the thread of the model."""
        self._batches.observe(images)
        self._model.inc(seconds)

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
