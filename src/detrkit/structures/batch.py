"""`Batch`: images of different sizes in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detrkit.utils.devices import copies_overlap


@dataclass
class Batch:
    """Normalized images padded with zeros at the right and the bottom.

    The true sizes (Python ints) describe the padding. The mask is computed on the device of the images, so that nothing
    but the images is copied there.

    Attributes:
        images: (B, 3, H, W) float, zero where padded.
        sizes: (height, width) in pixels of every image without padding, B of them.
    """

    images: Tensor
    sizes: list[tuple[int, int]]

    @classmethod
    def from_images(cls, images: Sequence[Tensor], *, multiple: int = 1) -> Batch:
        """Pad (3, H, W) float images to their largest height and width, rounded up to `multiple` pixels.

        Raises:
            ValueError: no image, or one that is not a (3, H, W) float tensor.
        """
        if len(images) == 0:
            raise ValueError("a batch needs at least one image")
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
                raise ValueError(
                    f"image {i} of the batch is {tuple(image.shape)} {image.dtype}; "
                    "expected a normalized (3, H, W) float tensor"
                )
        sizes = [(int(im.shape[-2]), int(im.shape[-1])) for im in images]
        height = -(-max(h for h, _ in sizes) // multiple) * multiple
        width = -(-max(w for _, w in sizes) // multiple) * multiple
        padded = images[0].new_zeros(len(images), 3, height, width)  # (B, 3, H, W)
        for row, image, (h, w) in zip(padded, images, sizes, strict=True):
            row[:, :h, :w] = image
        return cls(padded, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def padded(self) -> bool:
        """True if any image is smaller than the tensor."""
        full = tuple(self.images.shape[-2:])
        return any(size != full for size in self.sizes)

    def mask(self) -> Tensor:
        """Return the (B, h, w) bool padding mask at full resolution, True where padded."""
        return padding_mask(self.sizes, tuple(self.images.shape[-2:]), self.images.device)

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to `device`, without blocking if the images are pinned."""
        return Batch(self.images.to(device, non_blocking=copies_overlap(device)), self.sizes)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; DataLoader calls this."""
        return Batch(self.images.pin_memory(), self.sizes)


def padding_mask(sizes: Sequence[tuple[int, int]], shape: tuple[int, ...], device: torch.device | str) -> Tensor:
    """Compute the (B, h, w) bool mask that is True outside each (height, width) of `sizes` in a map of `shape`."""
    h, w = shape
    limits = torch.tensor(list(sizes), device=device)  # (B, 2)
    rows = torch.arange(h, device=device) >= limits[:, :1]  # (B, h)
    columns = torch.arange(w, device=device) >= limits[:, 1:]  # (B, w)
    return rows[:, :, None] | columns[:, None, :]
