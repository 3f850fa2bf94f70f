"""What a service takes at most; also the options of `detrkit serve`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from detrkit.utils.ranges import BatchSize, Range

# bodies and images of all requests together, as multiples of the largest single one
_BODIES = 8
_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a service takes at most.

    Every attribute is a number with a range, which `detrkit.utils.ranges.check_values` checks.
    """

    max_batch: BatchSize = 8
    """Images of waiting requests in one forward pass. Models with padding="official", whose results depend on the
    batch, always run each image alone."""
    max_wait_ms: Annotated[float, Range(ge=0, le=10_000)] = 5.0
    """Milliseconds that an image waits for others to form a batch."""
    max_queue: Annotated[int, Range(ge=1, le=100_000)] = 64
    """Images that wait or are worked on; requests beyond get status 429."""
    max_images: Annotated[int, Range(ge=1, le=1_000)] = 16
    """Images of one request."""
    max_tiles: Annotated[int, Range(ge=1, le=100_000)] = 256
    """Tiles of one request, whose images are cut if it asks for it or with --tile; counted from their headers before
    anything is decoded. An image of 4,000 x 4,000 pixels has 64 of 640, with an overlap of 0.2."""
    max_megabytes: Annotated[float, Range(gt=0, le=4_096)] = 32.0
    """Size of a request in MB (10^6 bytes)."""
    max_megapixels: Annotated[float, Range(gt=0, le=4_096)] = 64.0
    """Size of an image in millions of pixels, read from its header before it is decoded."""
    max_connections: Annotated[int, Range(ge=1, le=65_536)] = 256
    """Open connections; further ones get status 503."""
    timeout: Annotated[float, Range(gt=0, le=86_400)] = 60.0
    """Seconds from a complete request to its answer; then status 504."""
    body_timeout: Annotated[float, Range(gt=0, le=86_400)] = 30.0
    """Seconds in which a client has to send its request; then status 408."""

    @property
    def body_bytes(self) -> int:
        """Bytes of one request at most."""
        return int(self.max_megabytes * 1_000_000)

    @property
    def all_body_bytes(self) -> int:
        """Bytes of all requests that are held at the same time, at most."""
        return _BODIES * self.body_bytes

    @property
    def image_pixels(self) -> int:
        """Pixels of one image at most."""
        return int(self.max_megapixels * 1_000_000)

    @property
    def all_image_pixels(self) -> int:
        """Pixels of all decoded images that are held at the same time, at most; each takes 3 bytes."""
        return _IMAGES * self.image_pixels
