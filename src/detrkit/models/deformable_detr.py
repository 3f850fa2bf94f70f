"""Deformable DETR (Zhu et al. 2021) with refinement and two stages, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.layers import MLP
from detrkit.layers.deformable import MSDeformAttention
from detrkit.layers.deformable_transformer import (
    DeformableDecoderOutput,
    HeadsOutput,
)
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.deformable_base import DeformableModel, EncodedImages
from detrkit.models.official_names import DEFORMABLE_NAMES
from detrkit.models.panoptic import MaskPredictor
from detrkit.models.proposals import best_tokens, gathered, inverse_sigmoid, make_anchors, sine_of_boxes
from detrkit.models.registry import register_model
from detrkit.ops.dense import linear
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import MASKED_LOGIT, Capturing, DeferredOutputs, Outputs, Target


class Queries(NamedTuple):
    """What the decoder starts from.

    Attributes:
        tgt: (B, Q, D) first hidden states.
        query_pos: (B, Q, D).
        reference_points: (B, Q, 2) xy or (B, Q, 4) cxcywh in [0, 1].
        padding_mask: (B, Q) bool, True for queries that came from padding, or None.
        proposals: of all S tokens, with objectness logits; None of one-stage models.
        indices: (B, Q) int64, the tokens that became queries, or None.
    """

    tgt: Tensor
    query_pos: Tensor
    reference_points: Tensor
    padding_mask: Tensor | None = None
    proposals: Outputs | None = None
    indices: Tensor | None = None

    def of_first(self, count: int) -> Queries:
        """Return the first queries alone, with all proposals."""
        tgt, query_pos, reference_points, padding_mask, proposals, indices = self
        return Queries(
            tgt[:, :count],
            query_pos[:, :count],
            reference_points[:, :count],
            None if padding_mask is None else padding_mask[:, :count],
            proposals,
            None if indices is None else indices[:, :count],
        )


@register_model(
    {
        "deformable-detr-r50-single-scale": {"num_feature_levels": 1},
        "deformable-detr-r50-single-scale-dc5": {"num_feature_levels": 1, "dilation": True},
        "deformable-detr-r50": {},
        "deformable-detr-r50-refine": {"with_box_refine": True},
        "deformable-detr-r50-two-stage": {"with_box_refine": True, "two_stage": True},
    },
    activation="sigmoid",
    official=DEFORMABLE_NAMES,
)
class DeformableDETR(DeformableModel):
    """Multi-scale features, deformable encoder and decoder, a class and a box per query.

    Args:
        with_box_refine: every decoder layer corrects the boxes of the one before (Sec. 4.2).
        two_stage: the queries are the best proposals of the encoder (Sec. 4.2).
        mixed_selection: two-stage models: the proposals give the positions of the queries alone, whose contents are
            learned (DINO Sec. 3.4).
        look_forward_twice: models with refinement: a layer learns from the loss of the next one, too (DINO Sec. 3.5).
        nheads, masks, options: as of `DeformableModel`.
    """

    def __init__(
        self,
        *,
        with_box_refine: bool = False,
        two_stage: bool = False,
        mixed_selection: bool = False,
        look_forward_twice: bool = False,
        nheads: int = 8,
        masks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(nheads=nheads, masks=masks, **options)
        hidden_dim, num_queries = self.hidden_dim, self.num_queries
        self.with_box_refine = with_box_refine
        self.two_stage = self.chooses_tokens = two_stage
        self.mixed_selection = mixed_selection
        self.look_forward_twice = look_forward_twice
        if two_stage:
            self.proposal_memory = Linear(hidden_dim, hidden_dim)
            self.proposal_memory_norm = nn.LayerNorm(hidden_dim)
            self.proposal_query = Linear(2 * hidden_dim, 2 * hidden_dim)
            self.proposal_query_norm = nn.LayerNorm(2 * hidden_dim)
            if mixed_selection:
                self.queries = nn.Embedding(num_queries, hidden_dim)
        else:
            self.queries = nn.Embedding(num_queries, 2 * hidden_dim)
            self.reference_points = Linear(hidden_dim, 2)

        # one head shared by all layers, or one per layer under refinement; two-stage adds the encoder's
        count = (len(self.decoder) if with_box_refine else 1) + two_stage
        self.class_heads = nn.ModuleList(Linear(hidden_dim, self.num_classes) for _ in range(count))
        self.box_heads = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, layers=3) for _ in range(count))
        self._reset_parameters()
        self.segmentation = MaskPredictor(hidden_dim, nheads, self.backbone, prior=True) if masks else None

    def _reset_parameters(self) -> None:
        """Initialize as published: Xavier transformer, rays of sampling points, rare objects, small first boxes."""
        init_transformer(self.encoder, self.decoder)
        for module in self.modules():
            if isinstance(module, MSDeformAttention):
                module.reset_parameters()
        if self.two_stage:
            nn.init.xavier_uniform_(self.proposal_memory.weight)
            nn.init.xavier_uniform_(self.proposal_query.weight)
        else:
            nn.init.xavier_uniform_(self.reference_points.weight)
            nn.init.zeros_(self.reference_points.bias)
        for head in self.class_heads:
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, -math.log(99))  # every class starts at probability 0.01
        for i, head in enumerate(self.box_heads):
            assert isinstance(head, MLP)
            last = head.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if i == 0 and not self.two_stage:
                nn.init.constant_(last.bias[2:], -2.0)

    def forward(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Predict a set of objects for every image.

        Args:
            images: normalized (3, h, w) float tensors of any sizes, or a Batch.
            targets: not used; part of the interface that the models share.
            capture: return sampling locations, attention weights and intermediate tensors, too; "attention": without
                the intermediate ones.
            defer_masks: as in `DETR.forward`.

        Returns:
            Outputs with logits (B, Q, num_classes), boxes (B, Q, 4) cxcywh in [0, 1], and masks (B, Q, h / 4, w / 4) of
            models that have them; `encoder` in two-stage models: column 0 of its logits is an objectness in all but
            name (its targets all have label 0).
        """
        encoded = self.encode(images, capture)
        queries = self._queries(encoded, self.num_queries)
        decoded = self._decode(encoded, queries, capture=capture)
        return self._predictions(encoded, queries, decoded, capture=capture, defer_masks=defer_masks)

    def _decode(
        self,
        images: EncodedImages,
        queries: Queries,
        *,
        attn_mask: Tensor | None = None,
        capture: Capturing,
    ) -> DeformableDecoderOutput:
        """Decode the queries, some of which (`attn_mask`, (Q, Q) bool, True) may not see others."""

        def heads(layer: int, hidden_states: Tensor, reference_points: Tensor) -> HeadsOutput:
            head = layer if self.with_box_refine else 0
            correction = self.box_heads[head](hidden_states)
            boxes = self._boxes(correction, reference_points)
            logits = self.class_heads[head](hidden_states)
            if queries.padding_mask is not None:
                logits = logits.masked_fill(queries.padding_mask[..., None], MASKED_LOGIT)
            following = boxes if self.with_box_refine else None
            if self.look_forward_twice:  # a layer learns from the next one's loss, and from no later one's
                following = self._boxes(correction, reference_points.detach())
            return HeadsOutput(logits, boxes, following)

        decoded: DeformableDecoderOutput = self.decoder(
            queries.tgt,
            query_pos=queries.query_pos,
            reference_points=queries.reference_points,
            memory=images.memory,
            spatial_shapes=images.spatial_shapes,
            valid_ratios=images.valid_ratios,
            padding_mask=images.key_padding_mask,
            heads=heads,
            look_forward_twice=self.look_forward_twice,
            query_padding_mask=queries.padding_mask,
            attn_mask=attn_mask,
            capture=capture,
        )
        return decoded

    def _predictions(
        self,
        images: EncodedImages,
        queries: Queries,
        decoded: DeformableDecoderOutput,
        *,
        capture: Capturing,
        defer_masks: bool | None,
    ) -> Outputs:
        """Return the outputs for the queries and what was decoded from them."""
        outputs = decoded.outputs(aux=self.aux_loss)
        outputs.encoder = queries.proposals
        outputs.capture = self._capture(images, decoded, queries.indices, capture)
        self._add_masks_of_levels(outputs, decoded.hidden_states[-1], images, defer=defer_masks)
        return outputs

    def _boxes(self, correction: Tensor, reference: Tensor) -> Tensor:
        """Add the box head's (B, Q, 4) correction to the (B, Q, 2 or 4) reference in logits: (B, Q, 4) cxcywh."""
        reference = inverse_sigmoid(reference)
        if reference.shape[-1] == 2:
            reference = F.pad(reference, (0, 2))  # only the center is relative
        return (correction + reference).sigmoid()

    def _queries(self, images: EncodedImages, count: int) -> Queries:
        """Return `count` queries: learned, or of two-stage models made of the best proposals."""
        if self.two_stage:
            return self._propose(images, count)
        query_pos, tgt = self.queries.weight[:count].expand(images.batch.count, -1, -1).chunk(2, -1)  # (B, Q, D) each
        return Queries(tgt, query_pos, self.reference_points(query_pos).sigmoid())

    def _propose(self, images: EncodedImages, count: int) -> Queries:
        """Compute the first stage: a box and an objectness per token; the best become queries (Sec. 4.2)."""
        anchors = make_anchors(images.spatial_shapes, images.valid_sizes, images.padding_mask)
        tokens = images.memory.masked_fill(~anchors.valid[..., None], 0.0)
        tokens = self.proposal_memory_norm(self.proposal_memory(tokens))
        exact = self.padding == "exact"
        masked = images.padding_mask if exact and images.key_padding_mask is not None else None  # nothing to learn from

        def score_and_box() -> tuple[Tensor, Tensor]:
            logits = self.class_heads[-1](tokens)  # (B, S, num_classes)
            logits = logits if masked is None else logits.masked_fill(masked[..., None], MASKED_LOGIT)
            return logits, self.box_heads[-1](tokens) + anchors.logits  # and (B, S, 4)

        if torch.is_grad_enabled():  # the losses read all of them
            logits, box_logits = score_and_box()
            proposals = Outputs(logits, box_logits.sigmoid())
            indices = best_tokens(logits[..., 0], count, images.padding_mask if exact else None)  # (B, Q)
            chosen = gathered(box_logits, indices).detach()
        else:  # a column of the scores and the boxes of the chosen tokens are all that the queries are made of
            proposals = DeferredOutputs(score_and_box)
            head = self.class_heads[-1]
            assert isinstance(head, nn.Linear)
            objectness = linear(tokens, head.weight[:1], head.bias[:1])[..., 0]
            objectness = objectness if masked is None else objectness.masked_fill(masked, MASKED_LOGIT)
            indices = best_tokens(objectness, count, images.padding_mask if exact else None)
            chosen = self.box_heads[-1](gathered(tokens, indices)) + gathered(anchors.logits, indices)
        reference_points = chosen.sigmoid()  # (B, Q, 4)
        embedded = sine_of_boxes(reference_points, self.hidden_dim // 2).to(images.memory.dtype)  # (B, Q, 2 * D)
        query_pos, tgt = self.proposal_query_norm(self.proposal_query(embedded)).chunk(2, -1)  # (B, Q, D) each
        if self.mixed_selection:
            tgt = self.queries.weight[: indices.shape[1]].expand(indices.shape[0], -1, -1)
        padded = None
        if exact and images.key_padding_mask is not None:
            # an image with fewer cells than queries has as many queries as cells; the rest came from padding
            padded = images.padding_mask.gather(1, indices)  # (B, Q)
        return Queries(tgt, query_pos, reference_points, padded, proposals, indices)
