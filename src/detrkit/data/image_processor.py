"""`ImageProcessor`: from an image of any kind to a `Batch`, as a checkpoint's model takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detrkit.data.collate import PixelBatch
from detrkit.data.geometry import resize_pixels, resized_size
from detrkit.data.images import ImageInput, as_rgb
from detrkit.data.transforms import PUBLISHED_MAX_SIZE, PUBLISHED_SIZE, Normalization
from detrkit.models.spec import ModelSpec
from detrkit.structures.batch import Batch
from detrkit.utils.memory import CHANNELS, check_memory


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """Reading, resizing, padding and normalization of images, without objects.

    Evaluation by a `Loader` gives the same bits: both send bytes to the device and normalize them there.

    Attributes:
        size: short side of the network input in pixels.
        max_size: longest side of the network input in pixels; None for no limit.
        square: squash every image to `size` x `size` pixels instead.
        mean, std: of the normalization, per RGB channel, for pixels in [0, 1].
    """

    size: int = PUBLISHED_SIZE
    max_size: int | None = PUBLISHED_MAX_SIZE
    square: bool = False
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    @classmethod
    def of(cls, spec: ModelSpec) -> ImageProcessor:
        """Make the processor of a checkpoint's model."""
        return cls(size=spec.size, max_size=spec.max_size, square=spec.square, mean=spec.mean, std=spec.std)

    def __call__(self, images: Sequence[ImageInput], *, device: torch.device | str = "cpu") -> Batch:
        """Read and prepare images of any kind as one batch.

        Args:
            images: each as `detrkit.data.images.as_rgb` takes it.
            device: where the batch shall be.

        Raises:
            DetrkitError: a file is missing, not an image or damaged.
            ValueError: no images, or an array or tensor that is no image.
        """
        return self.batch([self.prepare(self.read(image)) for image in images], device=device)

    def read(self, image: ImageInput | Any, name: object = None) -> Image.Image:
        """Convert an image of any kind to upright 8-bit RGB; arguments and errors as of `as_rgb`."""
        return as_rgb(image, name)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) in pixels of the network input for an image of that size."""
        return resized_size(height, width, self.size, self.max_size, square=self.square)

    def check_memory(self, images: Sequence[Image.Image]) -> list[tuple[int, int]]:
        """Return the (height, width) in pixels of the network inputs for upright images.

        Raises:
            SettingError: an input does not fit into memory.
        """
        sizes = [self.input_size(image.height, image.width) for image in images]
        for image, (height, width) in zip(images, sizes, strict=True):
            resized = f"{image.width} x {image.height} pixels, resized to {width} x {height} (width x height)"
            check_memory(
                height * width * (4 * 3 + CHANNELS),
                f"an image of {resized},",
                fix="it is too long and narrow for a model without max_size",
            )
        return sizes

    def prepare(self, image: Image.Image) -> Tensor:
        """Resize an upright RGB image by the model's rule: (3, h, w) uint8 with `(h, w)` as of `input_size`."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # (3, H, W), interleaved in memory
        return resize_pixels(pixels, self.input_size(image.height, image.width))

    def batch(self, images: Sequence[Tensor], *, device: torch.device | str = "cpu") -> Batch:
        """Pad (3, h, w) uint8 images to their largest height and width, and normalize them on the device.

        Raises:
            ValueError: no images, or one that is not a (3, h, w) uint8 tensor.
        """
        if not images:
            raise ValueError("a batch needs at least one image")
        for index, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
                raise ValueError(
                    f"image {index} of the batch is {tuple(image.shape)} {image.dtype}: "
                    "a (3, h, w) uint8 tensor is expected, as `prepare` returns it"
                )
        return PixelBatch.from_images(images).normalized(Normalization(self.mean, self.std, device))
