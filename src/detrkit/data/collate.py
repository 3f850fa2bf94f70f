"""Batches of single samples: bytes on the way to the device, normalized there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detrkit.data.transforms import Normalization
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.devices import copies_overlap
from detrkit.utils.errors import DetrkitError


@dataclass
class PixelBatch:
    """Images padded at the right and the bottom, not normalized yet.

    It takes a quarter of the memory of the Batch made from it: that much less to write, to pass between processes and
    to copy to a GPU.

    Attributes:
        pixels: (B, 3, H, W) uint8 RGB; undefined where padded.
        sizes: (height, width) in pixels of every image without padding, B of them.
    """

    pixels: Tensor
    sizes: list[tuple[int, int]]

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> PixelBatch:
        """Pad (3, H, W) uint8 images to their largest height and width."""
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        pixels = torch.empty(len(images), 3, height, width, dtype=torch.uint8, device=images[0].device)  # (B, 3, H, W)
        for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
            row[:, :h, :w] = image
        return cls(pixels, sizes)

    def pin_memory(self) -> PixelBatch:
        """Return the batch in page-locked memory; DataLoader calls this."""
        return PixelBatch(self.pixels.pin_memory(), self.sizes)

    def normalized(self, normalization: Normalization) -> Batch:
        """Return the Batch on the device of `normalization`, copied without blocking when the pixels are pinned."""
        device = normalization.mean.device
        pixels = self.pixels.to(device, non_blocking=copies_overlap(device))
        images = torch.empty(pixels.shape, dtype=torch.float32, device=device)  # (B, 3, H, W)
        for row, image, (h, w) in zip(pixels, images, self.sizes, strict=True):
            normalization.write(row[:, :h, :w], image[:, :h, :w])
            image[:, h:] = 0
            image[:, :h, w:] = 0
        return Batch(images, self.sizes)


def collate(
    pairs: Sequence[tuple[Tensor, Target] | DetrkitError],
) -> tuple[PixelBatch, list[Target]] | DetrkitError:
    """Pad (3, H, W) uint8 images and list their targets, or return the first error among the samples."""
    good = []
    for pair in pairs:
        if isinstance(pair, DetrkitError):
            return pair
        good.append(pair)
    return PixelBatch.from_images([image for image, _ in good]), [target for _, target in good]
