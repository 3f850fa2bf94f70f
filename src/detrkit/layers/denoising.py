"""Contrastive denoising: queries made from the objects themselves, which train the decoder directly (DINO, Sec. 3.3).

An object gives two noised queries in each of several groups. The decoder shall restore the object from the one of less
noise, the positive, and answer "no object" to the other, the negative. Matching queries never see these, and groups do
not see each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from detrkit.ops.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from detrkit.structures.outputs import Denoising, Outputs, Target

FEW = 100  # numbers of denoising queries below which they count groups in the code of DINO


class Noise(NamedTuple):
    """The random numbers behind the N = 2 * groups * objects denoising queries, in the order of `DenoisingLayout`.

    Attributes:
        label_draw: (N,) in [0, 1); below half the ratio of label noise, a query gets the new label.
        new_label: (N,) int64.
        sign: (N, 4) +1 or -1, of the corners x0, y0, x1, y1.
        part: (N, 4) in [0, 1): the noise in halves of the box's width and height, to which 1 is added for negatives.
    """

    label_draw: Tensor
    new_label: Tensor
    sign: Tensor
    part: Tensor


class DenoisingLayout(NamedTuple):
    """Where the denoising queries of a batch are.

    The G groups of an image follow each other. A group has M slots for positives and M for negatives, where M is the
    largest number of objects in an image of the batch; slots of images with fewer objects are padding.

    Attributes:
        groups: G, at least 1.
        slots: M; 0 in a batch without objects.
        image: (N,) int64, the image of each denoising query: in each group all positives, then all negatives.
        position: (N,) int64, its place among the denoising queries of its image.
        target: (N,) int64, its object among the concatenated objects of the batch.
        negative: (N,) bool.
    """

    groups: int
    slots: int
    image: Tensor
    position: Tensor
    target: Tensor
    negative: Tensor

    @property
    def size(self) -> int:
        """Denoising queries of an image, padding included."""
        return 2 * self.groups * self.slots

    @classmethod
    def of(
        cls, counts: Sequence[int], number: int, device: torch.device, *, few_are_groups: bool = True
    ) -> DenoisingLayout:
        """Lay out the queries of a batch.

        Args:
            counts: objects of each image.
            number: pairs of denoising queries of an image, shared out among as many groups as fit.
            device: of the tensors.
            few_are_groups: where `number` is below 50, the number of groups is twice it, as in the code of DINO.
        """
        slots = max(counts, default=0)
        pairs = 2 * number
        groups = 1 if not slots else max(1, pairs if few_are_groups and pairs < FEW else number // slots)
        objects = sum(counts)
        image = torch.repeat_interleave(
            torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)
        )  # (objects,)
        starts = torch.tensor([0, *counts], dtype=torch.int64).cumsum(0)
        slot = torch.arange(objects) - starts[image]
        half = torch.arange(2 * groups)  # positives and negatives of every group
        position = (slot + half[:, None] * slots).flatten()
        negative = (half % 2 == 1).repeat_interleave(objects)
        columns = (image.repeat(2 * groups), position, torch.arange(objects).repeat(2 * groups), negative)
        return cls(groups, slots, *(column.to(device, non_blocking=True) for column in columns))

    def placed(self, rows: Tensor, images: int) -> Tensor:
        """Put the (N, D) rows of the denoising queries into their slots: (B, size, D), zero in padded ones."""
        return rows.new_zeros(images, self.size, rows.shape[-1]).index_put((self.image, self.position), rows)

    def padding_mask(self, images: int) -> Tensor:
        """Return (B, size) bool, True for padded slots."""
        mask = torch.ones(images, self.size, dtype=torch.bool, device=self.image.device)
        return mask.index_put((self.image, self.position), torch.zeros_like(self.negative))

    def predictions(self, outputs: Outputs) -> Denoising:
        """Return the outputs of the denoising queries with what the losses have to know of them."""
        positive = (~self.negative).nonzero()[:, 0]
        columns = (self.image[positive], self.position[positive], self.target[positive])
        return Denoising(outputs, self.groups, *columns)

    def attn_mask(self, queries: int) -> Tensor:
        """Return (size + queries, size + queries) bool, True where a query must not attend to another.

        Args:
            queries: matching queries, which follow the denoising ones.
        """
        device = self.image.device
        # the matching queries are a group of their own, which the others may see
        kind = torch.arange(self.size, device=device) // max(1, 2 * self.slots)
        kind = torch.cat([kind, kind.new_full((queries,), self.groups)])
        return (kind[:, None] != kind) & (kind < self.groups)


def draw_noise(queries: int, num_classes: int, device: torch.device) -> Noise:
    """Draw the noise of N queries from torch's generator of the device."""
    return Noise(
        torch.rand(queries, device=device),
        torch.randint(num_classes, (queries,), device=device),
        torch.randint(2, (queries, 4), device=device) * 2.0 - 1.0,
        torch.rand(queries, 4, device=device),
    )


def given_noise(noise: Mapping[str, Any], label_ratio: float, device: torch.device) -> Noise:
    """Read noise from arrays as the goldens hold it.

    Args:
        noise: noise_label_draw (N,); noise_new_label, of the M queries alone whose draw is below half of
            `label_ratio`; noise_sign (N, 4), positive or not; noise_part (N, 4).
        label_ratio: of label noise.
        device: of the result.
    """
    draw, new, sign, part = (
        torch.as_tensor(noise[f"noise_{name}"], device=device) for name in ("label_draw", "new_label", "sign", "part")
    )
    new_label = torch.zeros(len(draw), dtype=torch.int64, device=device)
    new_label[draw < 0.5 * label_ratio] = new.long()
    return Noise(draw, new_label, torch.where(sign > 0, 1.0, -1.0), part.float())


def noised_labels(labels: Tensor, noise: Noise, ratio: float) -> Tensor:
    """Replace labels (N,) by random ones, with half of `ratio` as probability (published: 0.25)."""
    return torch.where(noise.label_draw < 0.5 * ratio, noise.new_label, labels)


def noised_boxes(boxes: Tensor, noise: Noise, negative: Tensor, scale: float) -> Tensor:
    """Move the corners of (N, 4) boxes cxcywh in [0, 1].

    Each coordinate moves by less than half of the width or height of its box times `scale`; in negatives, by that much
    and up to twice of it (Sec. 3.3, lambda 1 and 2). Corners stay in [0, 1]; those of a negative may pass each other.

    Args:
        boxes: (N, 4).
        noise: of the N queries.
        negative: (N,) bool.
        scale: of the noise (published: 1).
    """
    if scale <= 0:
        return boxes
    half = boxes[:, 2:].repeat(1, 2) / 2
    moved = cxcywh_to_xyxy(boxes) + (noise.part + negative[:, None]) * noise.sign * half * scale
    return xyxy_to_cxcywh(moved.clamp(0.0, 1.0))


class DenoisingQueries(NamedTuple):
    """The denoising queries of a batch.

    Attributes:
        layout: where they are.
        labels: (N,) int64, noised.
        boxes: (N, 4) cxcywh in [0, 1], noised.
    """

    layout: DenoisingLayout
    labels: Tensor
    boxes: Tensor


def make_denoising_queries(
    targets: Sequence[Target],
    *,
    number: int,
    num_classes: int,
    label_ratio: float,
    box_scale: float,
    few_are_groups: bool = True,
    noise: Mapping[str, Any] | None = None,
) -> DenoisingQueries:
    """Make denoising queries from the objects of a batch.

    Args:
        targets: one per image.
        number: as of `DenoisingLayout.of`.
        num_classes: labels that noise draws from.
        label_ratio: twice the probability that a label is drawn anew.
        box_scale: as of `noised_boxes`.
        few_are_groups: as of `DenoisingLayout.of`.
        noise: arrays in place of random draws, see `given_noise`.

    Raises:
        ValueError: noise for another number of queries.
    """
    labels = torch.cat([t.labels for t in targets]).long()
    boxes = torch.cat([t.boxes for t in targets]).float()
    layout = DenoisingLayout.of([len(t) for t in targets], number, labels.device, few_are_groups=few_are_groups)
    queries = len(layout.target)
    if noise is None:
        draws = draw_noise(queries, num_classes, labels.device)
    else:
        draws = given_noise(noise, label_ratio, labels.device)
        if len(draws.label_draw) != queries:
            raise ValueError(f"noise for {len(draws.label_draw)} denoising queries, these targets make {queries}")
    return DenoisingQueries(
        layout,
        noised_labels(labels[layout.target], draws, label_ratio),
        noised_boxes(boxes[layout.target], draws, layout.negative, box_scale),
    )
