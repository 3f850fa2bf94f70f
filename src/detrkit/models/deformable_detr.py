"""Deformable DETR (Zhu et al. 2021) with refinement and two stages, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones import build_backbone
from detrkit.backbones.base import Norm, Padding
from detrkit.layers import MLP, GroupNorm, position_encoding
from detrkit.layers.deformable import MSDeformAttention
from detrkit.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableEncoder,
    DeformableEncoderLayer,
    cell_centers,
)
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.base import DetectionModel
from detrkit.models.official_names import DEFORMABLE_NAMES
from detrkit.models.panoptic import MaskPredictor
from detrkit.models.registry import register_model
from detrkit.ops.dense import convolve_as
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Capturing, Outputs, Target, numbered

MASKED_LOGIT = -1e4  # its probability and its loss are 0 in every precision


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the log-odds of x in [0, 1], clamped to those of eps (published: 1e-5)."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class Proposals(NamedTuple):
    """Result of the first stage of a two-stage model.

    Attributes:
        outputs: objectness logits and boxes of all S tokens.
        indices: (B, Q) int64, the tokens that become queries.
        tgt: (B, Q, D) first hidden states of the decoder.
        query_pos: (B, Q, D).
        reference_points: (B, Q, 4) cxcywh in [0, 1], without gradient.
    """

    outputs: Outputs
    indices: Tensor
    tgt: Tensor
    query_pos: Tensor
    reference_points: Tensor


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
class DeformableDETR(DetectionModel):
    """Multi-scale features, deformable encoder and decoder, a class and a box per query.

    Args:
        num_classes: columns of the logits; each is a sigmoid of its own, there is no "no object".
        backbone, backbone_norm, backbone_width, dilation, train_backbone: as in `DETR`.
        position_embedding, position_entries: as in `DETR`, of every level's map. The finest has stride 8, where the
            published 50 entries hold an image of 400 pixels.
        num_feature_levels: 1 reads the last backbone stage; more reads `backbone_stages`, and further levels come
            from 3x3 convolutions of stride 2 (Sec. A.2).
        backbone_stages: stages read with more than one level (published: 3, 4, 5).
        num_queries: queries, and proposals kept in two-stage models.
        hidden_dim, nheads, dim_feedforward, enc_layers, dec_layers, dropout: the transformer.
        enc_n_points, dec_n_points: sampled points per head and level.
        with_box_refine: every decoder layer corrects the boxes of the one before (Sec. 4.2).
        two_stage: the queries are the best proposals of the encoder (Sec. 4.2).
        masks: predict a mask for every query, too: as in `DETR`, from the level of the last backbone stage.
        aux_loss: return the outputs of every decoder layer.
        padding: as in `DETR`.
    """

    def __init__(
        self,
        *,
        num_classes: int = 91,
        backbone: str = "resnet50",
        backbone_norm: Norm = "frozen",
        backbone_width: int = 64,
        backbone_stages: Sequence[int] = (3, 4, 5),
        dilation: bool = False,
        position_embedding: Literal["sine", "learned"] = "sine",
        position_entries: int = 50,
        num_feature_levels: int = 4,
        num_queries: int = 300,
        hidden_dim: int = 256,
        nheads: int = 8,
        dim_feedforward: int = 1024,
        enc_layers: int = 6,
        dec_layers: int = 6,
        enc_n_points: int = 4,
        dec_n_points: int = 4,
        dropout: float = 0.1,
        with_box_refine: bool = False,
        two_stage: bool = False,
        masks: bool = False,
        aux_loss: bool = True,
        padding: Padding = "exact",
        train_backbone: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.with_box_refine = with_box_refine
        self.two_stage = two_stage
        self.aux_loss = aux_loss
        self.padding = padding
        self.stages = tuple(backbone_stages)[:num_feature_levels] if num_feature_levels > 1 else (5,)
        self.backbone = build_backbone(
            backbone,
            dilation=dilation,
            norm=backbone_norm,
            width=backbone_width,
            stages=range(2, max(self.stages) + 1) if masks else self.stages,
            padding=padding,
        )
        self.backbone.freeze_early_layers()
        if not train_backbone:
            self.backbone.requires_grad_(False)

        # every level to hidden_dim: 1x1 on backbone maps, 3x3 of stride 2 below them
        channels = [c for s, c in zip(self.backbone.stages, self.backbone.channels, strict=True) if s in self.stages]
        convolutions = [nn.Conv2d(c, hidden_dim, 1) for c in channels]
        width_in = channels[-1]
        for _ in range(num_feature_levels - len(channels)):
            convolutions.append(nn.Conv2d(width_in, hidden_dim, 3, stride=2, padding=1))
            width_in = hidden_dim
        self.projections = nn.ModuleList(convolutions)
        self.projection_norms = nn.ModuleList(GroupNorm(min(32, hidden_dim // 4), hidden_dim) for _ in convolutions)
        for convolution in convolutions:
            nn.init.xavier_uniform_(convolution.weight)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
        # one for all levels: a learned table is shared, as in the official code
        self.position_encoding = position_encoding(position_embedding, hidden_dim, entries=position_entries, offset=0.5)
        self.level_embed = nn.Parameter(torch.randn(num_feature_levels, hidden_dim))

        sizes: dict[str, Any] = {"levels": num_feature_levels, "dropout": dropout}
        self.encoder = DeformableEncoder(
            DeformableEncoderLayer(hidden_dim, nheads, dim_feedforward, points=enc_n_points, **sizes)
            for _ in range(enc_layers)
        )
        self.decoder = DeformableDecoder(
            DeformableDecoderLayer(hidden_dim, nheads, dim_feedforward, points=dec_n_points, **sizes)
            for _ in range(dec_layers)
        )
        if two_stage:
            self.proposal_memory = Linear(hidden_dim, hidden_dim)
            self.proposal_memory_norm = nn.LayerNorm(hidden_dim)
            self.proposal_query = Linear(2 * hidden_dim, 2 * hidden_dim)
            self.proposal_query_norm = nn.LayerNorm(2 * hidden_dim)
        else:
            self.queries = nn.Embedding(num_queries, 2 * hidden_dim)
            self.reference_points = Linear(hidden_dim, 2)

        # one head shared by all layers, or one per layer under refinement; two-stage adds the encoder's
        count = (dec_layers if with_box_refine else 1) + two_stage
        self.class_heads = nn.ModuleList(Linear(hidden_dim, num_classes) for _ in range(count))
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
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        features = self.backbone(batch, every_stage=capture is True)
        stages = self.backbone.all_stages if capture is True else self.backbone.stages
        by_stage = dict(zip(stages, features, strict=True))
        srcs, masks = self._levels(batch, [by_stage[stage] for stage in self.stages])
        spatial_shapes = [(int(m.shape[2]), int(m.shape[3])) for m in srcs]
        src = torch.cat([m.flatten(2).transpose(1, 2) for m in srcs], 1)  # (B, S, D)
        pos = [self.position_encoding(mask).to(src.dtype) for mask in masks]  # L (B, h, w, D)
        pos_embed = torch.cat([(p + self.level_embed[level]).flatten(1, 2) for level, p in enumerate(pos)], 1)
        padding_mask = torch.cat([m.flatten(1) for m in masks], 1)  # (B, S)
        valid_sizes = torch.stack([torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], -1) for m in masks], 1)
        valid_sizes = valid_sizes.to(pos_embed.dtype)  # (B, L, 2) width, height in cells
        valid_ratios = valid_sizes / valid_sizes.new_tensor([(w, h) for h, w in spatial_shapes])  # (B, L, 2)
        key_padding_mask = padding_mask if batch.padded else None

        encoded = self.encoder(
            src,
            pos_embed=pos_embed,
            spatial_shapes=spatial_shapes,
            valid_sizes=valid_sizes,
            valid_ratios=valid_ratios,
            padding_mask=key_padding_mask,
            capture=capture,
        )
        memory = encoded.memory

        proposals, query_padding_mask = None, None
        if self.two_stage:
            proposals = self._propose(memory, spatial_shapes, valid_sizes, padding_mask)
            tgt, query_pos, reference_points = proposals.tgt, proposals.query_pos, proposals.reference_points
            if self.padding == "exact" and key_padding_mask is not None:
                # an image with fewer cells than queries has as many queries as cells; the rest came from padding
                query_padding_mask = padding_mask.gather(1, proposals.indices)  # (B, Q)
        else:
            query_pos, tgt = self.queries.weight.expand(len(batch), -1, -1).chunk(2, -1)  # (B, Q, D) each
            reference_points = self.reference_points(query_pos).sigmoid()  # (B, Q, 2)

        def heads(layer: int, hidden_states: Tensor, reference_points: Tensor) -> tuple[Tensor, Tensor]:
            head = layer if self.with_box_refine else 0
            boxes = self._boxes(self.box_heads[head](hidden_states), reference_points)
            logits = self.class_heads[head](hidden_states)
            if query_padding_mask is not None:
                logits = logits.masked_fill(query_padding_mask[..., None], MASKED_LOGIT)
            return logits, boxes

        decoded = self.decoder(
            tgt,
            query_pos=query_pos,
            reference_points=reference_points,
            memory=memory,
            spatial_shapes=spatial_shapes,
            valid_ratios=valid_ratios,
            padding_mask=key_padding_mask,
            heads=heads,
            refine=self.with_box_refine,
            query_padding_mask=query_padding_mask,
            capture=capture,
        )

        *aux, outputs = map(Outputs, decoded.logits, decoded.boxes)
        outputs.encoder = None if proposals is None else proposals.outputs
        outputs.aux = aux if self.aux_loss else []
        if capture:
            outputs.capture = Capture(
                encoder_weights=encoded.attention_weights,
                decoder_weights=decoded.attention_weights,
                encoder_locations=encoded.sampling_locations,
                decoder_locations=decoded.sampling_locations,
                query_weights=decoded.self_attn_weights,
                feature_shapes=spatial_shapes,
                padding=padding_mask,
                logits=torch.stack(decoded.logits),
                boxes=torch.stack(decoded.boxes),
                references=_same_width(decoded.reference_points),
                proposal_index=None if proposals is None else proposals.indices,
                stages={}
                if capture == "attention"
                else {
                    **{f"backbone.{stage}": feature for stage, (feature, _) in by_stage.items()},
                    **numbered("projection", srcs),
                    **numbered("position", [p.permute(0, 3, 1, 2) for p in pos]),
                    **numbered("encoder", encoded.hidden_states),
                    "memory": memory,
                    **numbered("decoder", decoded.hidden_states),
                    "queries": torch.stack(decoded.hidden_states),
                    "init_reference": decoded.reference_points[0],
                    "inter_references": torch.stack(decoded.reference_points[1:]),
                    **({} if proposals is None else {"proposal_index": proposals.indices}),
                },
            )
        level = len(self.stages) - 1  # of the backbone's last stage; finer levels come before it, coarser ones after
        start, (h, w) = sum(h * w for h, w in spatial_shapes[:level]), spatial_shapes[level]
        cells = memory[:, start : start + h * w]  # (B, h * w, D)
        self._add_masks(outputs, decoded.hidden_states[-1], cells, srcs[level], features, batch, defer=defer_masks)
        return outputs

    def _levels(self, batch: Batch, features: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """Compute the (B, D, h, w) maps of all levels and their (B, h, w) padding masks from the backbone's."""
        strides = [self.backbone.strides[-1]]
        maps, masks = [], []
        last = features[-1][0]
        for level, (convolution, norm) in enumerate(zip(self.projections, self.projection_norms, strict=True)):
            if level < len(features):
                x, mask = features[level]
            else:
                x = last
                strides.append(strides[-1] * 2)
                mask = self.backbone.padding_mask(batch, strides[-1])
            assert isinstance(convolution, nn.Conv2d)
            x = convolve_as(convolution, x)
            keep = ~mask[:, None] if self.padding == "exact" and batch.padded else None
            x = norm(x, keep)
            if level >= len(features):
                last = x if keep is None else x.masked_fill(~keep, 0.0)
            maps.append(x)
            masks.append(mask)
        return maps, masks

    def _boxes(self, correction: Tensor, reference: Tensor) -> Tensor:
        """Add the box head's (B, Q, 4) correction to the (B, Q, 2 or 4) reference in logits: (B, Q, 4) cxcywh."""
        reference = inverse_sigmoid(reference)
        if reference.shape[-1] == 2:
            reference = F.pad(reference, (0, 2))  # only the center is relative
        return (correction + reference).sigmoid()

    def _propose(
        self, memory: Tensor, spatial_shapes: Sequence[tuple[int, int]], valid_sizes: Tensor, padding_mask: Tensor
    ) -> Proposals:
        """Compute the first stage: a box and an objectness per token; the best become queries (Sec. 4.2).

        Args:
            memory: (B, S, D).
            spatial_shapes: (height, width) of every level in cells.
            valid_sizes: (B, L, 2) width and height of the valid part in cells.
            padding_mask: (B, S) bool, True where padded.
        """
        centers = cell_centers(spatial_shapes, valid_sizes)  # (B, S, 2)
        sides = torch.cat([centers.new_full((h * w,), 0.05 * 2.0**i) for i, (h, w) in enumerate(spatial_shapes)])
        anchors = torch.cat([centers, sides[None, :, None].expand(len(memory), -1, 2)], -1)  # (B, S, 4) cxcywh
        valid = ((anchors > 0.01) & (anchors < 0.99)).all(-1) & ~padding_mask  # (B, S)
        anchor_logits = (anchors / (1 - anchors)).log().masked_fill(~valid[..., None], float("inf"))
        tokens = self.proposal_memory_norm(self.proposal_memory(memory.masked_fill(~valid[..., None], 0.0)))
        logits = self.class_heads[-1](tokens)  # (B, S, num_classes)
        box_logits = self.box_heads[-1](tokens) + anchor_logits  # (B, S, 4)

        objectness = logits[..., 0]  # (B, S)
        if self.padding == "exact":
            objectness = objectness.masked_fill(padding_mask, float("-inf"))  # padding must not become queries
        indices = objectness.topk(min(self.num_queries, objectness.shape[1]), dim=1).indices  # (B, Q)
        reference_points = box_logits.gather(1, indices[..., None].expand(-1, -1, 4)).detach().sigmoid()  # (B, Q, 4)
        embedded = _sine_of_boxes(reference_points, self.level_embed.shape[1] // 2).to(memory.dtype)  # (B, Q, 2 * D)
        query_pos, tgt = self.proposal_query_norm(self.proposal_query(embedded)).chunk(2, -1)  # (B, Q, D) each
        return Proposals(Outputs(logits, box_logits.sigmoid()), indices, tgt, query_pos, reference_points)


def _same_width(references: Sequence[Tensor]) -> Tensor:
    """Stack (B, Q, 2 or 4) references; where some are boxes, a point is a box without extent."""
    width = max(r.shape[-1] for r in references)
    return torch.stack([F.pad(r, (0, width - r.shape[-1])) for r in references])


def _sine_of_boxes(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Encode (B, Q, 4) cxcywh in [0, 1] by sines and cosines, `width` channels per coordinate: (B, Q, 4 * width)."""
    index = torch.arange(width, dtype=torch.float32, device=boxes.device)
    wavelength = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / width)
    angle = boxes[..., None] * (2 * math.pi) / wavelength  # (B, Q, 4, width)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(2)
