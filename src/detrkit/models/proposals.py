"""The first stage of two-stage models: boxes proposed by the encoder's tokens (Deformable DETR Sec. 4.2 and A.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from detrkit.layers.deformable_transformer import cell_centers


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the log-odds of x in [0, 1], clamped to those of eps (published: 1e-5; DINO: 1e-3)."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


_observer: ContextVar[TokenChoice | None] = ContextVar("observer", default=None)


class Anchors(NamedTuple):
    """A box for every token, which the first stage corrects.

    Attributes:
        logits: (B, S, 4) log-odds of cxcywh; infinite where there is no anchor.
        valid: (B, S) bool, False for padding and for anchors that touch the border of the image.
    """

    logits: Tensor
    valid: Tensor


def make_anchors(spatial_shapes: Sequence[tuple[int, int]], valid_sizes: Tensor, padding_mask: Tensor) -> Anchors:
    """Make the anchors: centered on the tokens' cells, with sides of 0.05 on the finest level, twice that on the next.

    Args:
        spatial_shapes: (height, width) of every level in cells.
        valid_sizes: (B, L, 2) width and height of the valid part in cells.
        padding_mask: (B, S) bool, True where padded.
    """
    centers = cell_centers(spatial_shapes, valid_sizes)  # (B, S, 2)
    sides = torch.cat([centers.new_full((h * w,), 0.05 * 2.0**i) for i, (h, w) in enumerate(spatial_shapes)])
    boxes = torch.cat([centers, sides[None, :, None].expand(centers.shape[0], -1, 2)], -1)  # (B, S, 4) cxcywh
    valid = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~padding_mask  # (B, S)
    return Anchors((boxes / (1 - boxes)).log().masked_fill(~valid[..., None], float("inf")), valid)


def best_tokens(scores: Tensor, count: int, padding_mask: Tensor | None) -> Tensor:
    """Return the (B, Q) indices of the best tokens, best first; fewer than `count` where there are fewer.

    Args:
        scores: (B, S).
        count: how many.
        padding_mask: (B, S) bool of tokens that come last; None where padding may be chosen, too, as published.
    """
    if padding_mask is not None:
        scores = scores.masked_fill(padding_mask, float("-inf"))
    # an exported graph has one number of queries: `least_side` says which images it takes
    count = count if torch.compiler._is_exporting_flag else min(count, scores.shape[1])
    indices = scores.topk(count, dim=1).indices
    choice = _observer.get()
    if choice is not None:
        choice.scores, choice.indices = scores, indices
        indices = indices if choice.forced is None else choice.forced
    return indices


@dataclass
class TokenChoice:
    """The choice of tokens in a forward pass, for the export and its checks.

    Attributes:
        forced: (B, Q) int64 tokens that are taken in place of the best ones, or None.
        scores: (B, S) of all tokens, -inf where padded; None until a model with two stages has run.
        indices: (B, Q) int64, the best tokens.
    """

    forced: Tensor | None = None
    scores: Tensor | None = None
    indices: Tensor | None = None


@contextmanager
def observed_choice(forced: Tensor | None = None) -> Iterator[TokenChoice]:
    """Observe which tokens `best_tokens` chooses within a `with` block, and replace them by others if asked.

    Nearly equal tokens change places between two computations of one model, and their queries with them. So a file is
    compared with the model by the same tokens, and the tokens by their scores.

    Args:
        forced: (B, Q) int64 tokens to take, or None.
    """
    choice = TokenChoice(forced)
    token = _observer.set(choice)
    try:
        yield choice
    finally:
        _observer.reset(token)


def least_side(strides: Sequence[int], count: int) -> int:
    """Return the side in pixels of the smallest square that has `count` tokens, on maps at these strides."""
    side = 1
    while sum((-(-side // stride)) ** 2 for stride in strides) < count:
        side += 1
    return side


def gathered(rows: Tensor, indices: Tensor) -> Tensor:
    """Gather from (B, S, D) the rows (B, Q) of each image: (B, Q, D)."""
    return rows.gather(1, indices[..., None].expand(-1, -1, rows.shape[-1]))


def sine_of_boxes(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Encode (B, Q, 4) boxes in [0, 1] by sines and cosines, `width` channels per coordinate: (B, Q, 4 * width)."""
    index = torch.arange(width, dtype=torch.float32, device=boxes.device)
    wavelength = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / width)
    angle = boxes[..., None] * (2 * math.pi) / wavelength  # (B, Q, 4, width)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(2)
