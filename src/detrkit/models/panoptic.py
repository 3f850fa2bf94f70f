"""Masks for the objects that DETR finds (Carion et al. 2020, Sec. 4.4 and Fig. 8), in the order the data meets them.

At 800 x 1066 pixels a mask takes 2 GFLOP and, in training, 46 MiB; the detector (R50) takes 163 GFLOP. Masks of all
100 queries would be more than half of the work. But the loss asks for those of matched queries alone, and panoptic
post-processing for those of confident ones. So what the masks of an image share is computed at once, the rest for the
queries that somebody asks for (`DeferredMasks`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones.resnet import ResNetBackbone
from detrkit.models.batch import Batch

# of masks that are computed together: 4 at 800 x 1066 pixels; 16 at a time took twice as long on a processor core
CELLS = 2**18
SMALLEST_SIDE = 0.02  # of an image, for a box that is to draw attention
GROUPS = 8  # of the norms, as published; fewer where 8 do not divide the channels


class AttentionMaps(nn.Module):
    """How much a query attends to every cell of the encoder's memory, per head: masks in the rough (Fig. 8).

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

    def forward(self, states: Tensor, memory: Tensor, padding: Tensor, prior: Tensor | None = None) -> Tensor:
        """Attends from queries to cells; heads and cells of a query sum to 1 together.

        Args:
            states: (B, Q, D) of the last decoder layer.
            memory: (B, S, D), S = h * w cells.
            padding: (B, h, w) bool, True where padded: nobody attends there.
            prior: (B, Q, heads, S) to be added to the scores, or None.

        Returns:
            (B, Q, heads, h, w) weights.
        """
        q = self.query(states).unflatten(-1, (self.heads, -1))  # (B, Q, heads, D / heads)
        k = self.key(memory).unflatten(-1, (self.heads, -1))  # (B, S, heads, D / heads)
        scores = torch.einsum("bqnd,bsnd->bqns", q * q.shape[-1] ** -0.5, k)
        if prior is not None:
            scores = scores + prior
        scores = scores.masked_fill(padding.flatten(1)[:, None, None], float("-inf"))
        weights = scores.flatten(2).softmax(-1).view(*scores.shape[:3], *padding.shape[1:])
        return weights.to(states.dtype)  # a prior is float32 in models of every dtype


class BoxPrior(nn.Module):
    """Draws the attention of a query to its predicted box: a Gaussian around the centre, as wide as the box.

    For Deformable DETR. Its states say how a box differs from a reference, not where it is, so that attention from them
    alone finds all objects of a kind: on generated shapes PQ of things was 7 after eight epochs. The form is that of
    Gao et al. (2021, SMCA, Sec. 3.2), on the box that is already known, and with a sharpness for each head.

    Args:
        heads: attention maps of a query.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.sharpness = nn.Parameter(torch.linspace(-1.0, 2.0, heads))  # log; from the surroundings to the middle

    def forward(self, boxes: Tensor, sizes: Sequence[tuple[int, int]], shape: tuple[int, int], stride: int) -> Tensor:
        """What is added to the scores of the attention.

        Args:
            boxes: (B, Q, 4) cxcywh in [0, 1].
            sizes: (height, width) in pixels of the images without padding, to which the boxes are relative.
            shape: (h, w) of the map.
            stride: pixels between its cells.

        Returns:
            (B, Q, heads, h * w): 0 at the centre, the less the farther away in sides of the box.
        """
        centre, side = (
            boxes.detach().float().split(2, -1)
        )  # (B, Q, 2) xy; the detector learns from boxes, not from here
        image = centre.new_tensor([(w, h) for h, w in sizes])[:, None]  # (B, 1, 2)
        distances = []
        for axis, count in enumerate((shape[1], shape[0])):
            cells = (
                (torch.arange(count, dtype=torch.float32, device=boxes.device) + 0.5) * stride / image[..., axis]
            )  # (B, count)
            apart = cells[:, None] - centre[..., axis, None]  # (B, Q, count)
            distances.append((apart / side[..., axis, None].clamp(min=SMALLEST_SIDE)).square())
        squares = (distances[1][..., :, None] + distances[0][..., None, :]).flatten(2)  # (B, Q, h * w)
        return -2 * self.sharpness.exp()[:, None] * squares[:, :, None]


class MaskHead(nn.Module):
    """A small FPN from the attention maps of a query to its mask at stride 4 (Fig. 8; Lin et al. 2017, FPN).

    3x3 convolutions with group norm halve the channels from map to map; in between, the result is enlarged to the next
    finer map of the backbone, which a 1x1 convolution (adapter) brings to as many channels, and added to it.

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
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(GROUPS, c), c) for c in widths)
        self.adapters = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(channels, widths[1:-1], strict=True))
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def share(self, source: Tensor, pyramid: Sequence[Tensor]) -> list[Tensor]:
        """What all queries of an image have in common, coarsest first.

        The first convolution reads the projected map beside the attention maps, which are 8 of 264 channels: what it
        makes of the other 256 is the same for every query.

        Args:
            source: (B, D, h, w) projected map, zero where padding must not be seen.
            pyramid: (B, C, h, w) finer maps of the backbone, coarsest first.

        Returns:
            (B, D + heads, h, w), and the adapted maps of the pyramid.
        """
        common = F.conv2d(source, self.first.weight[:, : -self.heads], self.first.bias, padding=1)
        return [common, *(adapter(x) for adapter, x in zip(self.adapters, pyramid, strict=True))]

    def forward(self, attention: Tensor, shared: Sequence[Tensor]) -> Tensor:
        """The masks of some queries of one image.

        Args:
            attention: (N, heads, h, w) maps of N queries.
            shared: (1, C, h, w) maps of their image, from `share`.

        Returns:
            (N, H, W) logits at the size of the finest map.
        """
        x = shared[0] + F.conv2d(attention, self.first.weight[:, -self.heads :], padding=1)
        x = F.relu(self.norms[0](x), inplace=True)
        x = F.relu(self.norms[1](self.convolutions[0](x)), inplace=True)
        for adapted, convolution, norm in zip(shared[1:], self.convolutions[1:], self.norms[2:], strict=True):
            x = adapted + F.interpolate(x, size=adapted.shape[-2:])  # nearest; sides are halved upwards: cell i // 2
            x = F.relu(norm(convolution(x)), inplace=True)
        masks: Tensor = self.out(x)[:, 0]
        return masks


class DeferredMasks:
    """The masks of a batch, made for the queries that somebody asks for.

    Each image is computed by itself, on the part of the maps that is its own: so its masks do not depend on the
    padding. (With `padding="official"` its part is all of the batch, as published.)

    No dataclass: engines convert the fields of those, and these tensors are the model's own business.

    Args:
        head: makes the masks.
        attention: (B, Q, heads, h, w) weights.
        shared: (B, C, h, w) maps from `MaskHead.share`.
        parts: per image the (height, width) of its own part of each map of `shared`.
        by_cells: whether the head reads weights times the number of cells. A weight is a share of all cells: beside the
            projected map the head, at the start of training, hardly sees it.
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
        # masks are asked for after the forward pass, but belong to it: same precision, and no graph if it had none
        self._gradients = torch.is_grad_enabled()
        device = attention.device.type
        self._autocast = (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None

    def of(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """The masks of the queries (N,) of every image: B tensors (N, h, w), at the size of the image's own part."""
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self._gradients and torch.is_grad_enabled()))
            if self._autocast is not None:
                stack.enter_context(torch.autocast(*self._autocast))
            return [self._of_image(i, chosen) for i, chosen in enumerate(queries)]

    def all(self) -> Tensor:
        """The masks of all queries, (B, Q, h, w), zero where padded."""
        every = torch.arange(self.attention.shape[1], device=self.attention.device)
        height, width = self.shared[-1].shape[-2:]
        made = self.of([every] * len(self.attention))
        return torch.stack([F.pad(m, (0, width - m.shape[2], 0, height - m.shape[1])) for m in made])

    def _of_image(self, image: int, queries: Tensor) -> Tensor:
        """(N, h, w) masks of one image, not too many at once."""
        parts = self.parts[image]
        shared = [x[image, None, :, :h, :w] for x, (h, w) in zip(self.shared, parts, strict=True)]
        (h, w), finest = parts[0], parts[-1]
        attention = self.attention[image, ..., :h, :w][queries]  # (N, heads, h, w)
        if self.by_cells:
            attention = attention * (h * w)
        together = max(1, CELLS // (finest[0] * finest[1]))
        return torch.cat([self.head(some, shared) for some in attention.split(together)])


class MaskPredictor(nn.Module):
    """Attention maps and mask head together: what turns a detector into a panoptic one.

    Args:
        width: channels of the transformer.
        heads: of the attention maps.
        backbone: returns all stages from 2 (stride 4) to the one that the transformer reads.
        prior: whether boxes draw attention, see `BoxPrior`. The published DETR does without: its states know where.
    """

    def __init__(self, width: int, heads: int, backbone: ResNetBackbone, *, prior: bool = False) -> None:
        super().__init__()
        self.attention = AttentionMaps(width, heads)
        self.prior = BoxPrior(heads) if prior else None
        self.head = MaskHead(width, heads, backbone.channels[-2::-1])
        self.strides = backbone.strides[::-1]

    def forward(
        self,
        states: Tensor,
        memory: Tensor,
        source: Tensor,
        features: Sequence[tuple[Tensor, Tensor]],
        batch: Batch,
        *,
        boxes: Tensor,
        exact: bool,
    ) -> DeferredMasks:
        """What the masks of a batch are made of.

        Args:
            states: (B, Q, D) of the last decoder layer.
            memory: (B, S, D), S = h * w cells of the map that the transformer reads, the backbone's last.
            source: (B, D, h, w), that map projected.
            features: of the backbone, finest first: (B, C, h, w) maps and their (B, h, w) bool padding.
            batch: the images.
            boxes: (B, Q, 4) cxcywh in [0, 1], predicted.
            exact: whether padding must not be seen.
        """
        padding = features[-1][1]
        shape = (int(padding.shape[1]), int(padding.shape[2]))
        prior = None if self.prior is None else self.prior(boxes, batch.sizes, shape, self.strides[0])
        attention = self.attention(states, memory, padding, prior)
        if exact and batch.padded:
            source = source.masked_fill(padding[:, None], 0.0)
        shared = self.head.share(source, [feature for feature, _ in features[-2::-1]])
        height, width = batch.images.shape[-2:]
        sizes = batch.sizes if exact else [(int(height), int(width))] * len(batch)
        parts = [[(-(-h // s), -(-w // s)) for s in self.strides] for h, w in sizes]
        return DeferredMasks(self.head, attention, shared, parts, by_cells=prior is not None)
