"""Masks for the objects that DETR finds (Carion et al. 2020, Sec. 4.4 and Fig. 8), in the order the data meets them.

At 800 x 1066 pixels a mask takes 2 GFLOP and, in training, 46 MiB; the detector (R50) takes 163 GFLOP. Masks of all
100 queries would be more than half of the work. But the loss needs those of matched queries alone, and panoptic
post-processing those of confident ones. So the maps that all masks of an image share are computed once, and the
rest for requested queries (`DeferredMasks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones.base import Backbone
from detrkit.layers.norms import group_norm_of_valid
from detrkit.structures.batch import Batch, TracedBatch

# cells of the masks computed at once: 4 masks at 800 x 1066 pixels; 16 took twice as long on a CPU core
MASK_CELLS_PER_CHUNK = 2**18
MIN_PRIOR_SIDE = 0.02  # of an image: a smaller box has the prior of one of this side
NORM_GROUPS = 8  # as published; fewer where 8 do not divide the channels


class AttentionMaps(nn.Module):
    """Attention of each query over the encoder memory, per head: a coarse mask (Fig. 8).

    Args:
        width: channels of queries and memory.
        heads: number of maps a query has; divides `width`.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        for projection in (self.query, self.key):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, hidden_states: Tensor, memory: Tensor, padding_mask: Tensor, prior: Tensor | None = None
    ) -> Tensor:
        """Attend from queries to cells; heads and cells of a query sum to 1 together.

        Args:
            hidden_states: (B, Q, D) of the last decoder layer.
            memory: (B, S, D), S = h * w cells.
            padding_mask: (B, h, w) bool, True where padded: these cells get no attention.
            prior: (B, Q, H, S) added to the attention logits, or None.

        Returns:
            (B, Q, H, h, w) weights.
        """
        q = self.query(hidden_states).unflatten(-1, (self.heads, -1))  # (B, Q, H, D / H)
        k = self.key(memory).unflatten(-1, (self.heads, -1))  # (B, S, H, D / H)
        scores = torch.einsum("bqnd,bsnd->bqns", q * q.shape[-1] ** -0.5, k)
        if prior is not None:
            scores = scores + prior
        scores = scores.masked_fill(padding_mask.flatten(1)[:, None, None], float("-inf"))
        weights = scores.flatten(2).softmax(-1).view(*scores.shape[:3], *padding_mask.shape[1:])
        return weights.to(hidden_states.dtype)  # a prior is float32 in models of every dtype


class BoxPrior(nn.Module):
    """Gaussian bias on the attention logits, centered on the predicted box and as wide as the box.

    Deformable DETR needs it: its hidden states say how a box differs from a reference, not where it is, so that
    attention from them alone covers all objects of a class: on generated shapes PQ of things was 7 after eight epochs.
    The form is that of Gao et al. (2021, SMCA, Sec. 3.2), on the predicted box, with a sharpness for each head.

    Args:
        heads: attention maps of a query.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.linspace(-1.0, 2.0, heads))  # log; from wide to narrow

    def forward(self, boxes: Tensor, wh: Tensor, shape: tuple[int, int], stride: int) -> Tensor:
        """Compute the bias.

        Args:
            boxes: (B, Q, 4) cxcywh in [0, 1].
            wh: (B, 2) width and height in pixels of the images without padding, to which the boxes are relative.
            shape: (h, w) of the map.
            stride: pixels between its cells.

        Returns:
            (B, Q, H, h * w): 0 at the center, falling with the squared distance in sides of the box.
        """
        # (B, Q, 2) xy each, detached: the detector learns from its boxes, not from its masks
        center, side = boxes.detach().float().split(2, -1)
        image = wh[:, None]  # (B, 1, 2)
        distances = []
        for axis, count in enumerate((shape[1], shape[0])):
            cells = (
                (torch.arange(count, dtype=torch.float32, device=boxes.device) + 0.5) * stride / image[..., axis]
            )  # (B, count)
            offset = cells[:, None] - center[..., axis, None]  # (B, Q, count)
            distances.append((offset / side[..., axis, None].clamp(min=MIN_PRIOR_SIDE)).square())
        squares = (distances[1][..., :, None] + distances[0][..., None, :]).flatten(2)  # (B, Q, h * w)
        return -2 * self.sharpness.exp()[:, None] * squares[:, :, None]


class MaskHead(nn.Module):
    """A small FPN from the attention maps of a query to its mask at stride 4 (Fig. 8; Lin et al. 2017, FPN).

    3x3 convolutions with group norm halve the channels from level to level. In between, the result is upsampled to the
    next finer map of the backbone and added to that map, which a 1x1 convolution (adapter) projects to its channels.

    Args:
        width: channels of the projected map that the transformer reads.
        heads: attention maps of a query.
        channels: of the finer maps of the backbone, coarsest first, down to stride 4 (ResNet-50: 1024, 512, 256).
    """

    def __init__(self, width: int, heads: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.heads = heads
        widths = [width + heads, *(width // 2**i for i in range(1, len(channels) + 2))]  # 264, 128, 64, 32, 16
        if widths[-1] < 1:
            raise ValueError(f"masks need hidden_dim >= {2 ** (len(channels) + 1)}, not {width}")
        self.first = nn.Conv2d(widths[0], widths[0], 3, padding=1)
        self.convolutions = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(NORM_GROUPS, c), c) for c in widths)
        self.adapters = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths[1:-1], strict=True))
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def share(self, src: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """Compute the maps that all queries of an image share, coarsest first.

        The first convolution reads the projected map and the attention maps, which are 8 of 264 channels: its response
        to the other 256 is the same for every query.

        Args:
            src: (B, D, h, w) projected map, zero where padding must not be seen.
            pyramid: (B, C, h, w) finer maps of the backbone, coarsest first.

        Returns:
            (B, D + H, h, w), and the adapted maps of the pyramid.
        """
        common = F.conv2d(src, self.first.weight[:, : -self.heads], self.first.bias, padding=1)
        return [common, *(adapter(x) for adapter, x in zip(self.adapters, pyramid, strict=True))]

    def forward(self, attention: Tensor, shared: Sequence[Tensor]) -> Tensor:
        """Compute the masks of some queries of one image.

        Args:
            attention: (N, H, h, w) maps of N queries.
            shared: (1, C, h, w) maps of their image, from `share`.

        Returns:
            (N, h, w) logits at the size of the finest map.
        """
        x = shared[0] + F.conv2d(attention, self.first.weight[:, -self.heads :], padding=1)
        x = F.relu(self.norms[0](x), inplace=True)
        x = F.relu(self.norms[1](self.convolutions[0](x)), inplace=True)
        for adapted, convolution, norm in zip(shared[1:], self.convolutions[1:], self.norms[2:], strict=True):
            x = adapted + F.interpolate(
                x, size=adapted.shape[-2:]
            )  # nearest: cell i // 2, as sides are halved and rounded up
            x = F.relu(norm(convolution(x)), inplace=True)
        masks: Tensor = self.out(x)[:, 0]
        return masks


class DeferredMasks:
    """Masks of a batch, computed on request for chosen queries.

    Each image is computed by itself, on its part of the maps, so that its masks do not depend on the padding. (With
    `padding="official"` its part is the whole batch, as published.)

    This is no dataclass, because engines convert the fields of dataclasses, and these tensors must stay as they are.

    Args:
        head: computes the masks.
        attention: (B, Q, H, h, w) weights.
        shared: (B, C, h, w) maps from `MaskHead.share`.
        parts: per image the (height, width) of its part of each map of `shared`.
        by_cells: multiply the weights by the number of cells. A weight is a share of all cells, too small beside the
            projected map for the head to notice at the start of training.
    """

    def __init__(
        self,
        head: MaskHead,
        attention: Tensor,
        shared: Sequence[Tensor],
        parts: Sequence[Sequence[tuple[int, int]]],
        *,
        by_cells: bool = False,
    ) -> None:
        self.head = head
        self.attention = attention
        self.shared = shared
        self.parts = parts
        self.by_cells = by_cells
        # masks are computed after the forward pass but belong to it: same precision, and no graph if it had none
        self._gradients = torch.is_grad_enabled()
        device = attention.device.type
        self._autocast = (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None

    def of(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Compute the masks of the queries (N,) of every image: B (N, h, w) logits at the size of the image's part."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self._gradients and torch.is_grad_enabled()))
            if self._autocast is not None:
                stack.enter_context(torch.autocast(*self._autocast))
            return [self._of_image(i, indices) for i, indices in enumerate(queries)]

    def all(self) -> Tensor:
        """Compute the masks of all queries, (B, Q, h, w), zero where padded."""
        queries = torch.arange(self.attention.shape[1], device=self.attention.device)
        height, width = self.shared[-1].shape[-2:]
        masks = self.of([queries] * len(self.attention))
        return torch.stack([F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in masks])

    def _of_image(self, image: int, queries: Tensor) -> Tensor:
        """Compute (N, h, w) masks of one image, a few at a time."""
        parts = self.parts[image]
        shared = [x[image, None, :, :h, :w] for x, (h, w) in zip(self.shared, parts, strict=True)]
        (h, w), finest = parts[0], parts[-1]
        attention = self.attention[image, ..., :h, :w][queries]  # (N, H, h, w)
        if self.by_cells:
            attention = attention * (h * w)
        chunk = max(1, MASK_CELLS_PER_CHUNK // (finest[0] * finest[1]))
        return torch.cat([self.head(maps, shared) for maps in attention.split(chunk)])


class TracedMasks(DeferredMasks):
    """Masks of a `TracedBatch`: all queries of all images at once, padded cells set to zero before every layer.

    The result is that of `DeferredMasks`, which computes each image on its part: a convolution sees zeros beyond the
    valid cells, a norm takes its statistics from these.

    Args:
        head, attention, shared, by_cells: as of `DeferredMasks`.
        valid: for each map of `shared` (B, 1, h, w) bool, False where padded; empty if padding may be seen.
    """

    def __init__(
        self,
        head: MaskHead,
        attention: Tensor,
        shared: Sequence[Tensor],
        valid: Sequence[Tensor],
        *,
        by_cells: bool = False,
    ) -> None:
        super().__init__(head, attention, shared, [], by_cells=by_cells)
        self.valid = valid

    def all(self) -> Tensor:
        """Compute the masks of all queries, (B, Q, h, w), zero where padded."""
        head, queries = self.head, self.attention.shape[1]
        attention = self.attention
        if self.by_cells:
            h, w = attention.shape[-2:]
            cells = self.valid[0].sum((1, 2, 3)) if self.valid else attention.new_ones(attention.shape[0]) * (h * w)
            attention = attention * cells[:, None, None, None, None]

        def of_each(x: Tensor) -> Tensor:
            """Repeat (B, ...) for every query: (B * Q, ...)."""
            return x[:, None].expand(-1, queries, *x.shape[1:]).flatten(0, 1)

        valid: list[Tensor | None] = [of_each(v) for v in self.valid]
        valid = valid or [None] * len(self.shared)
        attended = F.conv2d(attention.flatten(0, 1), head.first.weight[:, -head.heads :], padding=1)
        x = of_each(self.shared[0]) + attended
        x = _norm_relu(head.norms[0], x, valid[0])
        x = _norm_relu(head.norms[1], head.convolutions[0](x), valid[0])
        for adapted, keep, convolution, norm in zip(
            self.shared[1:], valid[1:], head.convolutions[1:], head.norms[2:], strict=True
        ):
            x = of_each(adapted) + F.interpolate(x, size=adapted.shape[-2:])
            x = x if keep is None else x.masked_fill(~keep, 0.0)
            x = _norm_relu(norm, convolution(x), keep)
        masks: Tensor = head.out(x)[:, 0]
        masks = masks if valid[-1] is None else masks.masked_fill(~valid[-1][:, 0], 0.0)
        return masks.unflatten(0, (-1, queries))


def _norm_relu(norm: nn.Module, x: Tensor, valid: Tensor | None) -> Tensor:
    """Apply a group norm and a ReLU to a (N, C, h, w) map, and set cells that are not `valid`, (N, 1, h, w), to 0."""
    assert isinstance(norm, nn.GroupNorm)
    if valid is None:
        return F.relu(norm(x))
    return F.relu(group_norm_of_valid(norm, x, valid)).masked_fill(~valid, 0.0)


class MaskPredictor(nn.Module):
    """Attention maps and mask head: they make a panoptic model of a detector.

    Args:
        width: channels of the transformer.
        heads: of the attention maps.
        backbone: returns all stages from 2 (stride 4) to the one that the transformer reads.
        prior: bias the attention to the boxes, see `BoxPrior`. The published DETR does not need it: its hidden states
            know where an object is.
    """

    def __init__(self, width: int, heads: int, backbone: Backbone, *, prior: bool = False) -> None:
        super().__init__()
        self.attention = AttentionMaps(width, heads)
        self.prior = BoxPrior(heads) if prior else None
        self.head = MaskHead(width, heads, backbone.channels[-2::-1])
        self.strides = backbone.strides[::-1]

    def forward(
        self,
        hidden_states: Tensor,
        memory: Tensor,
        src: Tensor,
        features: Sequence[tuple[Tensor, Tensor]],
        batch: Batch,
        *,
        boxes: Tensor,
        exact: bool,
    ) -> DeferredMasks:
        """Prepare the masks of a batch.

        Args:
            hidden_states: (B, Q, D) of the last decoder layer.
            memory: (B, S, D), S = h * w cells of the map that the transformer reads, the backbone's last.
            src: (B, D, h, w), that map projected.
            features: of the backbone, finest first: (B, C, h, w) maps and their (B, h, w) bool padding masks.
            batch: the images.
            boxes: (B, Q, 4) cxcywh in [0, 1], predicted.
            exact: whether padding must not be seen.
        """
        padding_mask = features[-1][1]
        shape = (padding_mask.shape[1], padding_mask.shape[2])
        prior = None if self.prior is None else self.prior(boxes, batch.wh(boxes.float()), shape, self.strides[0])
        attention = self.attention(hidden_states, memory, padding_mask, prior)
        if exact and batch.padded:
            src = src.masked_fill(padding_mask[:, None], 0.0)
        shared = self.head.share(src, [feature for feature, _ in features[-2::-1]])
        if isinstance(batch, TracedBatch):
            valid = [~batch.padding_mask(stride)[:, None] for stride in self.strides] if exact and batch.padded else []
            return TracedMasks(self.head, attention, shared, valid, by_cells=prior is not None)
        height, width = batch.images.shape[-2:]
        sizes = batch.sizes if exact else [(int(height), int(width))] * len(batch)
        parts = [[(-(-h // s), -(-w // s)) for s in self.strides] for h, w in sizes]
        return DeferredMasks(self.head, attention, shared, parts, by_cells=prior is not None)
