"""What models with denoising queries have (DINO, RT-DETR): queries proposed by the encoder, and noised objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detrkit.backbones.base import Padding
from detrkit.layers.deformable_transformer import DeformableDecoderOutput
from detrkit.layers.denoising import DenoisingQueries, make_denoising_queries
from detrkit.models.base import DetectionModel
from detrkit.models.proposals import best_tokens, gathered, inverse_sigmoid, make_anchors
from detrkit.structures.outputs import MASKED_LOGIT, Capture, Capturing, Outputs, Target


class Proposals(NamedTuple):
    """The matching queries, from the encoder.

    Attributes:
        outputs: logits and boxes of the tokens chosen.
        contents: (B, Q, D) their features, without gradient.
        indices: (B, Q) int64, the tokens.
        padding_mask: (B, Q) bool, True for queries that came from padding, or None.
    """

    outputs: Outputs
    contents: Tensor
    indices: Tensor
    padding_mask: Tensor | None


class Queries(NamedTuple):
    """What the decoder starts from: denoising queries, if there are any, then matching queries.

    Attributes:
        tgt: (B, Q, D) contents.
        reference_points: (B, Q, 4) cxcywh in [0, 1].
        padding_mask: (B, Q) bool, True for queries that the others must not see, or None.
        attn_mask: (Q, Q) bool, True where a query must not attend to another, or None.
    """

    tgt: Tensor
    reference_points: Tensor
    padding_mask: Tensor | None
    attn_mask: Tensor | None


class Predictions(NamedTuple):
    """Result of `DenoisingModel._predict`.

    Attributes:
        outputs: of the matching queries, with those of the encoder and of the denoising queries.
        matching: result of the decoder, of the matching queries alone.
    """

    outputs: Outputs
    matching: DeformableDecoderOutput


class DenoisingModel(DetectionModel):
    """The way from the encoder's tokens to the outputs, in training past noised objects too (DINO, Sec. 3.3 and 3.4).

    A model has these, and defines `_contents`, `_decode` and `_capture`.

    Attributes:
        log_odds_eps: of the log-odds of boxes.
        few_are_groups: what a small `dn_number` means, see `DenoisingLayout.of`.
        padding: as in `DETR`.
        aux_loss: return the outputs of every decoder layer.
        dn_number, dn_label_noise_ratio, dn_box_noise_scale: as of `DINO`.
        label_embed: contents of the denoising queries.
        proposal_memory, proposal_memory_norm: of the tokens, before they are scored.
        class_heads, box_heads: the last ones are the encoder's.
    """

    log_odds_eps: ClassVar[float] = 1e-5
    few_are_groups: ClassVar[bool] = False
    padding: Padding = "exact"
    aux_loss: bool
    dn_number: int
    dn_label_noise_ratio: float
    dn_box_noise_scale: float
    label_embed: nn.Embedding
    proposal_memory: nn.Linear
    proposal_memory_norm: nn.Module
    class_heads: nn.ModuleList
    box_heads: nn.ModuleList

    def _contents(self, proposals: Proposals) -> Tensor:
        """Return the contents (B, Q, D) of the matching queries."""
        raise NotImplementedError

    def _decode(self, images: Any, queries: Queries, capture: Capturing) -> DeformableDecoderOutput:
        """Decode the queries; arguments as of `_predict`."""
        raise NotImplementedError

    def _capture(
        self, images: Any, decoded: DeformableDecoderOutput, proposal_index: Tensor | None, capture: Capturing
    ) -> Capture | None:
        """Return what a forward pass is asked to keep, of the matching queries."""
        raise NotImplementedError

    def _predict(
        self,
        images: Any,
        targets: Sequence[Target] | None,
        noise: Mapping[str, Any] | None,
        capture: Capturing,
    ) -> Predictions:
        """Choose the queries, add noised objects in training, decode, and take the two apart again.

        Args:
            images: after the encoder, as the model's `encode` returns them.
            targets: one per image, as of the model's `forward`.
            noise: likewise.
            capture: likewise.
        """
        proposals = self._propose(images)
        denoising = None
        if self.training and targets is not None and self.dn_number:
            denoising = make_denoising_queries(
                targets,
                number=self.dn_number,
                num_classes=self.num_classes,
                label_ratio=self.dn_label_noise_ratio,
                box_scale=self.dn_box_noise_scale,
                few_are_groups=self.few_are_groups,
                noise=noise,
            )
        decoded = self._decode(images, self._queries(proposals, denoising), capture)
        first = 0 if denoising is None else denoising.layout.size
        matching = decoded if denoising is None else decoded.of_queries(first, first + proposals.indices.shape[1])
        outputs = matching.outputs(aux=self.aux_loss)
        outputs.encoder = proposals.outputs
        if denoising is not None:
            noised = decoded.of_queries(0, first).outputs(aux=self.aux_loss)
            outputs.denoising = denoising.layout.predictions(noised)
        outputs.capture = self._capture(images, matching, proposals.indices, capture)
        return Predictions(outputs, matching)

    def _propose(self, images: Any) -> Proposals:
        """Choose the tokens with the best score of any class, and propose a box for each (DINO, Sec. 3.4).

        Args:
            images: as of `_predict`.
        """
        anchors = make_anchors(images.spatial_shapes, images.valid_sizes, images.padding_mask)
        tokens = images.memory.masked_fill(~anchors.valid[..., None], 0.0)
        tokens = self.proposal_memory_norm(self.proposal_memory(tokens))
        logits = self.class_heads[-1](tokens)  # (B, S, num_classes)
        padding_mask = images.key_padding_mask if self.padding == "exact" else None
        indices = best_tokens(logits.amax(-1), self.num_queries, padding_mask)  # (B, Q)
        logits = gathered(logits, indices)
        chosen = gathered(tokens, indices)  # the box head sees these, not all tokens
        box_logits = self.box_heads[-1](chosen) + gathered(anchors.logits, indices)  # (B, Q, 4)
        padded = None
        if padding_mask is not None:
            # an image with fewer cells than queries has as many queries as cells; the rest came from padding
            padded = padding_mask.gather(1, indices)  # (B, Q)
            logits = logits.masked_fill(padded[..., None], MASKED_LOGIT)
        return Proposals(Outputs(logits, box_logits.sigmoid()), chosen.detach(), indices, padded)

    def _queries(self, proposals: Proposals, denoising: DenoisingQueries | None) -> Queries:
        """Put the queries together: noised objects, then those that the encoder chose."""
        tgt = self._contents(proposals)  # (B, Q, D)
        if self.training:
            # also without objects or denoising the table is part of the graph: where the gradients of processes are
            # averaged, each waits for every parameter
            tgt = tgt + 0.0 * self.label_embed.weight[0]
        reference_points = proposals.outputs.boxes.detach()
        if denoising is None:
            return Queries(tgt, reference_points, proposals.padding_mask, None)
        layout, (images, count) = denoising.layout, proposals.indices.shape
        contents = layout.placed(self.label_embed(denoising.labels), images)
        tgt = torch.cat([contents.to(tgt.dtype), tgt], 1)
        boxes = layout.placed(inverse_sigmoid(denoising.boxes, self.log_odds_eps), images).sigmoid()
        reference_points = torch.cat([boxes.to(reference_points.dtype), reference_points], 1)
        padding_mask = None
        if self.padding == "exact":
            padded = proposals.padding_mask
            padded = torch.zeros_like(proposals.indices, dtype=torch.bool) if padded is None else padded
            padding_mask = torch.cat([layout.padding_mask(images), padded], 1)
        return Queries(tgt, reference_points, padding_mask, layout.attn_mask(count))
