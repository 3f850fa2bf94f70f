"""Multi-scale deformable attention on a CPU, built from PyTorch's own operators.

The output of a query and head is a weighted sum of rows of a table: four corners of each of its L * P points, a row
being the D channels of one pixel and head. That is what `embedding_bag` computes, with vector instructions and
prefetching. Backward, the same sums run the other way: sorted by pixel, the gradient of a pixel is a weighted sum of
rows of the output's gradient; and the gradient of a corner's weight is one product of two rows, over the pattern that
`sampled_addmm` takes.

Compared with `grid_sample` in benchmarks/ms_deform.py. No two threads ever add to one place, so results do not
differ between runs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

# PyTorch gives a thread at least this many elements of an elementwise operation; more would not fit into the caches.
_ELEMENTS_PER_THREAD = 32768


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Compute `detrkit.ops.ms_deform_attn`, with the same arguments and result."""
    b, _, h, d = value.shape
    table, points, shares = _rows(value, locations, weights)
    out = table.new_empty(len(points), d)
    if len(points):
        chunk = _Chunk(_pyramid(shapes, h, points.shape[1], table.dtype), table, points, queries=locations.shape[1])
        share = torch.empty_like(chunk.index, dtype=table.dtype)
        starts = torch.arange(0, chunk.index.numel(), chunk.index[0].numel(), dtype=torch.int32, device="cpu")
        for part in chunk.parts():
            x, y = chunk.move_to(part)
            n = len(x.near)
            _corner_shares(x, y, shares[part], share[:n].unbind(1))
            out[part] = F.embedding_bag(
                chunk.index[:n].view(-1), table, starts[:n], mode="sum", per_sample_weights=share[:n].view(-1)
            )
    return out.view(b, locations.shape[1], h * d).to(value.dtype)


def backward(
    grad: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of `forward`.

    At a location exactly on a pixel center, where the bilinear function has a kink, the slope to its right is used.

    Args:
        grad: (B, Q, H * D), of the output.
        value: as in `forward`.
        shapes: as in `forward`.
        locations: as in `forward`.
        weights: as in `forward`.

    Returns:
        Gradients of value, locations and weights, of their shapes and dtypes.
    """
    h, d = value.shape[2:]
    table, points, shares = _rows(value, locations, weights)
    if not len(points):
        return torch.zeros_like(value), torch.zeros_like(locations), torch.zeros_like(weights)
    pyramid = _pyramid(shapes, h, points.shape[1], table.dtype)
    chunk = _Chunk(pyramid, table, points, queries=locations.shape[1])
    grads = grad.to(table.dtype).reshape(-1, d)  # (B * Q * H, D)
    grad_points, grad_shares = torch.empty_like(points), torch.empty_like(shares)
    # The three other corners follow from the first: a quarter of the keys to sort, for three more maps to add up. That
    # pays in an encoder, not in a decoder.
    corners = 4 if shares.numel() < len(table) else 1
    pixel = torch.empty(corners, *shares.shape, dtype=torch.int32, device="cpu")
    share = table.new_empty(4, *shares.shape)
    ends = torch.arange(len(chunk.index) + 1, dtype=torch.int32, device="cpu") * chunk.index[0].numel()
    for part in chunk.parts():
        x, y = chunk.move_to(part)
        n = len(x.near)
        index = chunk.index[:n]
        pixel[:, part] = index.transpose(0, 1)[:corners]
        _corner_shares(x, y, shares[part], share[:, part].unbind(0))
        product = _row_products(ends[: n + 1], index.view(-1), grads[part], table)
        p0, p1, p2, p3 = product.view(index.shape).unbind(1)  # with the values at the four corners
        above, below = x.near * p0 + x.far * p1, x.near * p2 + x.far * p3
        grad_shares[part] = y.near * above + y.far * below
        (x_near, x_far), (y_near, y_far) = x.slopes(), y.slopes()
        along_x = y.near * (x_near * p0 + x_far * p1) + y.far * (x_near * p2 + x_far * p3)
        along_y = y_near * above + y_far * below
        grad_points[part, :, 0] = along_x * shares[part] * x.size
        grad_points[part, :, 1] = along_y * shares[part] * y.size
    bags = _Bags(pixel, len(table))
    if corners == 4:
        grad_table = bags.sum(grads, share)
    else:
        grad_table = torch.zeros_like(table)
        for corner in range(4):
            corner_grad = bags.sum(grads, share[corner])
            for begin, end, steps in pyramid.blocks(len(table)):
                grad_table[begin + steps[corner] : end] += corner_grad[begin : end - steps[corner]]
    return (
        grad_table.view(value.shape).to(value.dtype),
        grad_points.view(locations.shape).to(locations.dtype),
        grad_shares.view(weights.shape).to(weights.dtype),
    )


def _rows(value: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 or 64: (B * S * H, D) table, (B * Q * H, L * P, 2) locations, (B * Q * H, L * P) weights."""
    dtype = torch.promote_types(value.dtype, torch.float32)
    k = weights.shape[3] * weights.shape[4]
    rows = weights.shape[:3].numel()
    table = value.to(dtype).reshape(-1, value.shape[3])
    return table, locations.to(dtype).reshape(rows, k, 2), weights.to(dtype).reshape(rows, k)


class _Axis(NamedTuple):
    """One coordinate of (n, L * P) points: two neighboring pixels of the map and the share of each.

    For a point outside, they are the two pixels at the border: their tents max(0, 1 - distance) are what the true
    neighbors would get where those lie in the map, and 0 otherwise.
    """

    pixel: Tensor  # the neighbor nearer to the origin, int32
    offset: Tensor  # from its center, in pixels; outside [0, 1) for a point outside the map
    near: Tensor
    far: Tensor
    size: Tensor  # of the level, in pixels

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Return the derivative of both shares by the coordinate in pixels."""
        cell = self.offset.floor()
        inside = (cell == 0).to(cell.dtype)
        near = (cell == -1).to(cell.dtype) - inside
        far = inside - (cell == 1).to(cell.dtype)
        return near, far * (self.size > 1)


class _Pyramid:
    """Constants of the levels at the size of a chunk, (rows, L * P), so that every operation is one run over memory.

    Args:
        shapes: (height, width) of every level.
        heads: H; the table's rows are pixel after pixel, each with its heads.
        k: L * P.
        dtype: of the table.
        threads: that will share a chunk.
    """

    def __init__(
        self, shapes: Sequence[tuple[int, int]], heads: int, k: int, *, dtype: torch.dtype, threads: int
    ) -> None:
        self.heads = heads
        self.rows = max(1, _ELEMENTS_PER_THREAD * threads // (k * heads)) * heads
        self.points = k // len(shapes)
        self.levels = list(shapes)
        self.rows_per_image = sum(h * w for h, w in shapes) * heads
        widths, heights = [w for _, w in shapes], [h for h, _ in shapes]
        starts = [sum(h * w for h, w in shapes[:i]) * heads for i in range(len(shapes))]
        self.sizes = [self._constant(sides, dtype) for sides in (widths, heights)]
        self.lasts = [self._constant([max(n - 2, 0) for n in sides], torch.int32) for sides in (widths, heights)]
        # the far pixel's tent is 0 two pixels on; a map one pixel wide has no far pixel
        self.reaches = [self._constant([2.0 if n > 1 else -1e30 for n in sides], dtype) for sides in (widths, heights)]
        self.line = self._constant([w * heads for w in widths], torch.int32)
        self.right, self.down = (
            self._constant(steps, torch.int32) for steps in zip(*(self._steps(*s) for s in shapes), strict=True)
        )
        head = torch.arange(heads, dtype=torch.int32, device="cpu").repeat(self.rows // heads)
        self.first = self._constant(starts, torch.int32) + head[:, None]
        self.minus_half = torch.full((self.rows, k), -0.5, dtype=dtype, device="cpu")

    def _constant(self, values: Sequence[float], dtype: torch.dtype) -> Tensor:
        return (
            torch.tensor(values, dtype=dtype, device="cpu")
            .repeat_interleave(self.points)
            .expand(self.rows, -1)
            .contiguous()
        )

    def _steps(self, height: int, width: int) -> tuple[int, int]:
        """Return the table rows from a pixel to the next one on its right and below; 0 where there is none."""
        return self.heads if width > 1 else 0, width * self.heads if height > 1 else 0

    def blocks(self, rows: int) -> Iterator[tuple[int, int, list[int]]]:
        """Yield begin and end of every image's levels in a table of `rows`, and the steps to a pixel's four corners."""
        for begin in range(0, rows, self.rows_per_image):
            for height, width in self.levels:
                right, down = self._steps(height, width)
                end = begin + height * width * self.heads
                yield begin, end, [0, right, down, down + right]
                begin = end


@lru_cache(maxsize=4)  # twelve layers and their gradients share one
def _cached_pyramid(
    shapes: tuple[tuple[int, int], ...], heads: int, k: int, dtype: torch.dtype, threads: int
) -> _Pyramid:
    with torch.inference_mode(False):  # tensors made in inference mode could not be used in a training step
        return _Pyramid(shapes, heads, k, dtype=dtype, threads=threads)


def _pyramid(shapes: Sequence[tuple[int, int]], heads: int, k: int, dtype: torch.dtype) -> _Pyramid:
    return _cached_pyramid(tuple(shapes), heads, k, dtype, torch.get_num_threads())


class _Chunk:
    """Buffers for a part of the points at a time: new buffers would be new memory pages each time.

    Args:
        pyramid: the levels.
        table: (B * S * H, D).
        points: (B * Q * H, L * P, 2) locations.
        queries: Q.
    """

    def __init__(self, pyramid: _Pyramid, table: Tensor, points: Tensor, *, queries: int) -> None:
        self.pyramid, self.points = pyramid, points
        self.rows = min(pyramid.rows, len(points))
        self.images = len(table) // pyramid.rows_per_image
        self.rows_per_image = queries * pyramid.heads
        k = points.shape[1]
        self.index = torch.empty(
            self.rows, 4, k, dtype=torch.int32, device="cpu"
        )  # corners: top left, top right, bottom left, right
        self._whole = torch.empty(3, self.rows, k, dtype=torch.int32, device="cpu")
        self._float = table.new_empty(2, 3, self.rows, k)

    def parts(self) -> Iterator[slice]:
        """Yield the rows of all chunks."""
        for start in range(0, len(self.points), self.rows):
            yield slice(start, min(start + self.rows, len(self.points)))

    def move_to(self, part: slice) -> tuple[_Axis, _Axis]:
        """Return pixels and shares along x and y of the points in `part`; write their corners' rows into `index`."""
        points, p = self.points[part], self.pyramid
        n = len(points)
        x, y = (self._axis(axis, points[..., axis]) for axis in (0, 1))
        base = self._whole[2, :n]
        torch.addcmul(p.first[:n], y.pixel, p.line[:n], out=base).add_(x.pixel, alpha=p.heads)
        if self.images > 1:
            image = torch.arange(part.start, part.stop, device="cpu").div_(self.rows_per_image, rounding_mode="floor")
            base += (image * p.rows_per_image).to(torch.int32)[:, None]
        top_left, top_right, bottom_left, bottom_right = self.index[:n].unbind(1)
        top_left.copy_(base)
        torch.add(base, p.right[:n], out=top_right)
        base += p.down[:n]
        bottom_left.copy_(base)
        torch.add(base, p.right[:n], out=bottom_right)
        return x, y

    def _axis(self, axis: int, coordinate: Tensor) -> _Axis:
        p, n = self.pyramid, len(coordinate)
        pixel = self._whole[axis, :n]
        offset, near, far = self._float[axis, :, :n].unbind(0)
        size = p.sizes[axis][:n]
        torch.addcmul(p.minus_half[:n], coordinate, size, out=offset)  # in pixels, from the center of the first
        # truncated, not floored: below pixel 0 both end there. Values beyond int32, and NaN, end somewhere in the
        # map, with shares of 0, or NaN
        pixel.copy_(offset)
        torch.minimum(pixel, p.lasts[axis][:n], out=pixel).clamp_min_(0)
        offset.sub_(pixel)
        torch.abs(offset, out=near).neg_().add_(1).clamp_min_(0)
        torch.sub(p.reaches[axis][:n], offset, out=far)
        torch.minimum(far, offset, out=far).clamp_min_(0)
        return _Axis(pixel, offset, near, far, size)


def _corner_shares(x: _Axis, y: _Axis, shares: Tensor, out: Sequence[Tensor]) -> None:
    """Write attention weight times bilinear share of the four corners into four (n, L * P) tensors."""
    above, below = y.near * shares, y.far * shares
    torch.mul(above, x.near, out=out[0])
    torch.mul(above, x.far, out=out[1])
    torch.mul(below, x.near, out=out[2])
    torch.mul(below, x.far, out=out[3])


def _row_products(ends: Tensor, index: Tensor, grads: Tensor, table: Tensor) -> Tensor:
    """Compute scalar products of row i of `grads` with the table rows that `index` lists for it: (len(index),).

    Args:
        ends: (n + 1,) int32, where in `index` the entries of each row begin, and where the last ends.
        index: int32 rows of the table.
        grads: (n, D).
        table: (rows, D).
    """
    per_row = len(index) // len(grads)
    if per_row > len(table):  # a sparse matrix cannot have more entries than positions
        return (grads @ table.t()).gather(1, index.view(-1, per_row).long())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            ends, index, table.new_zeros(len(index)), (len(grads), len(table)), check_invariants=False
        )
        product: Tensor = torch.sparse.sampled_addmm(pattern, grads, table.t(), beta=0.0)
    return product.values()


class _Bags:
    """The points that sample each pixel.

    Args:
        pixel: (C, B * Q * H, L * P) int32 rows of the table.
        rows: of the table.
    """

    def __init__(self, pixel: Tensor, rows: int) -> None:
        _, n, k = pixel.shape
        self.order = torch.sort(pixel.view(-1), stable=True).indices
        self.row = self.order.remainder(n * k).div_(k, rounding_mode="floor").to(torch.int32)
        counts = torch.bincount(pixel.view(-1), minlength=rows)
        self.starts = (counts.cumsum(0) - counts).to(torch.int32)

    def sum(self, grads: Tensor, share: Tensor) -> Tensor:
        """Sum the gradients of the points that sample each pixel: (rows, D).

        Args:
            grads: (B * Q * H, D), gradients of the sampled values.
            share: weight of each sample, of the pixels' shape.
        """
        share = share.reshape(-1).index_select(0, self.order)
        return F.embedding_bag(self.row, grads, self.starts, mode="sum", per_sample_weights=share)
