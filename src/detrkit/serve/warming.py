"""First predictions of a service, which take longer than the others: made before requests are taken."""

from __future__ import annotations

from PIL import Image

from detrkit.detector import Detector
from detrkit.models.compiled import PASSES, compiled_forward
from detrkit.utils.errors import DetrkitError

_SIDE = 64  # pixels


def warm_up(detector: Detector, max_batch: int) -> None:
    """Make a first prediction; of a compiled detector compile for batches of one image and of the most.

    Further sizes are not compiled then: a request would wait for minutes. What was chosen goes to the log
    "detrkit.compile".

    Args:
        detector: of the service.
        max_batch: images of a batch at most.
    """
    detector.predict(Image.new("RGB", (_SIDE, _SIDE)), threshold=1.0)
    forward = compiled_forward(detector.model)
    if forward is None:
        return
    for count in sorted({1, max_batch}):
        images = [Image.new("RGB", (_SIDE, _SIDE))] * count
        for _ in range(PASSES):
            detector.predict(images, threshold=1.0, batch_size=count)
    forward.settle()


def check_compiled(detector: Detector) -> None:
    """Check that a service can use a compiled detector.

    Raises:
        DetrkitError: its input has many sizes, and a graph is of one.
    """
    if not detector.spec.square:
        raise DetrkitError(
            f"--compile: a graph is of one size of input, and {detector.spec.name} resizes images to many sizes: leave "
            "it out (models of square input, such as RT-DETR, have one)"
        )
