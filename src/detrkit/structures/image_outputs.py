"""`ImageOutputs`: the outputs of a model for images of any size, with what results are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs

if TYPE_CHECKING:
    from PIL import Image


class ImageOutputs(NamedTuple):
    """What a model computes for a batch of images, before any post-processing.

    Attributes:
        outputs: of the model, on its device.
        batch: the images as the model got them: resized, normalized, padded.
        images: B upright RGB images of the original size.
    """

    outputs: Outputs
    batch: Batch
    images: list[Image.Image]

    @property
    def target_sizes(self) -> list[tuple[int, int]]:
        """(height, width) in pixels of every original image."""
        return [(image.height, image.width) for image in self.images]
