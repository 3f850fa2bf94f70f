"""`Batch`: images of different sizes in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
    def count(self) -> int:
        """Number of images B; while a graph is recorded it may be a symbol, which `len` cannot return."""
        return self.images.shape[0]

    @property
    def padded(self) -> bool:
        """True if any image is smaller than the tensor."""
        full = tuple(self.images.shape[-2:])
        return any(size != full for size in self.sizes)

    def mask(self) -> Tensor:
        """Return the (B, h, w) bool padding mask at full resolution, True where padded."""
        return padding_mask(self.sizes, tuple(self.images.shape[-2:]), self.images.device)

    def cells(self, stride: int) -> list[tuple[int, int]]:
        """Return the (height, width) in cells of every image on a map at `stride`, rounded up."""
        return [(-(-h // stride), -(-w // stride)) for h, w in self.sizes]

    def padding_mask(self, stride: int) -> Tensor:
        """Return the (B, h, w) bool padding mask of a map at `stride`, h = ceil(H / stride), True where padded."""
        return padding_mask(self.cells(stride), _cells_of(self.images, stride), self.images.device)

    def wh(self, like: Tensor) -> Tensor:
        """Return the (B, 2) width and height in pixels of every image without padding, of the dtype of `like`."""
        return like.new_tensor([(w, h) for h, w in self.sizes])

    def to(self, device: torch.device | str) -> Batch:
        """Copy the batch to `device`, without blocking if the images are pinned."""
        return Batch(self.images.to(device, non_blocking=copies_overlap(device)), self.sizes)

    def pin_memory(self) -> Batch:
        """Copy the batch to page-locked memory; DataLoader calls this."""
        return Batch(self.images.pin_memory(), self.sizes)


@dataclass
class TracedBatch(Batch):
    """A batch in a graph that is recorded for an export, whose sizes are tensors: no number of it enters the graph.

    What depends on the padding comes from the mask. Without one no image is padded.

    Attributes:
        images: (B, 3, H, W) float, zero where padded.
        sizes: empty; the numbers are not known while the graph is recorded.
        padding: (B, H, W) bool, True at the right and the bottom where padded; None for models that take no mask.
    """

    sizes: list[tuple[int, int]] = field(default_factory=list)
    padding: Tensor | None = None

    def __len__(self) -> int:
        raise TypeError("a batch in a recorded graph has no number of images: use `count`")

    @property
    def padded(self) -> bool:
        """True if images may be padded: there is a mask."""
        return self.padding is not None

    def mask(self) -> Tensor:
        """Return the (B, H, W) bool padding mask at full resolution, True where padded."""
        if self.padding is None:
            return self.images.new_zeros((self.count, *self.images.shape[-2:]), dtype=torch.bool)
        return self.padding

    def padding_mask(self, stride: int) -> Tensor:
        """Return the mask as `Batch.padding_mask`, from the sizes of the images and not by sampling the mask."""
        shape = _cells_of(self.images, stride)
        if self.padding is None:
            return self.images.new_zeros((self.count, *shape), dtype=torch.bool)
        cells = torch.div(self._hw() + (stride - 1), stride, rounding_mode="trunc")  # (B, 2)
        return padding_mask(cells, shape, self.images.device)

    def wh(self, like: Tensor) -> Tensor:
        """Return width and height as `Batch.wh`."""
        return self._hw().flip(1).to(like.dtype)

    def _hw(self) -> Tensor:
        """Return the (B, 2) int64 height and width in pixels of every image without padding."""
        valid = ~self.mask()
        return torch.stack([valid[:, :, 0].sum(1), valid[:, 0, :].sum(1)], 1)


def _cells_of(images: Tensor, stride: int) -> tuple[int, int]:
    """Return (height, width) in cells of the map of (..., H, W) images at `stride`."""
    height, width = images.shape[-2:]
    return rounded_up(height, stride), rounded_up(width, stride)


def rounded_up(pixels: int, stride: int) -> int:
    """Return how many cells of `stride` hold so many pixels, at least one.

    It is computed as the output size of a convolution, and without negative numbers: exported to ONNX, -(-pixels //
    stride) rounds the other way.
    """
    return (pixels - 1) // stride + 1


def padding_mask(
    sizes: Sequence[tuple[int, int]] | Tensor, shape: tuple[int, ...], device: torch.device | str
) -> Tensor:
    """Compute the (B, h, w) bool mask that is True outside each (height, width) of `sizes` in a map of `shape`."""
    h, w = shape
    limits = sizes if isinstance(sizes, Tensor) else torch.tensor(list(sizes), device=device)  # (B, 2)
    rows = torch.arange(h, device=device) >= limits[:, :1]  # (B, h)
    columns = torch.arange(w, device=device) >= limits[:, 1:]  # (B, w)
    return rows[:, :, None] | columns[:, None, :]
