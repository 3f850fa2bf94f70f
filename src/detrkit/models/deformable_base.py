"""What all models with deformable attention have: maps of several levels, an encoder, the layers of a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones import build_backbone
from detrkit.backbones.base import Norm, Padding
from detrkit.layers import GroupNorm, position_encoding
from detrkit.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableDecoderOutput,
    DeformableEncoder,
    DeformableEncoderLayer,
    DeformableEncoderOutput,
)
from detrkit.models.base import DetectionModel
from detrkit.ops.dense import convolve_as
from detrkit.ops.ms_deform import widths_and_heights
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Capturing, Outputs, numbered


class EncodedImages(NamedTuple):
    """Images after the encoder.

    Attributes:
        batch: the images.
        features: maps of the backbone with their padding masks, by stage.
        maps: L (B, D, h, w) maps that the encoder read.
        positions: L (B, h, w, D) position encodings, without the embeddings of the levels.
        encoded: result of the encoder.
        spatial_shapes: (height, width) of every level in cells.
        valid_sizes: (B, L, 2) width and height of the valid part of every level in cells.
        valid_ratios: (B, L, 2) the same as a share of the padded map.
        padding_mask: (B, S) bool, True where padded.
    """

    batch: Batch
    features: dict[int, tuple[Tensor, Tensor]]
    maps: list[Tensor]
    positions: list[Tensor]
    encoded: DeformableEncoderOutput
    spatial_shapes: list[tuple[int, int]]
    valid_sizes: Tensor
    valid_ratios: Tensor
    padding_mask: Tensor

    @property
    def memory(self) -> Tensor:
        """What the decoder reads, (B, S, D)."""
        return self.encoded.memory

    @property
    def key_padding_mask(self) -> Tensor | None:
        """`padding_mask`, or None in a batch without padding."""
        return self.padding_mask if self.batch.padded else None


class DeformableModel(DetectionModel):
    """Backbone, feature levels, deformable encoder and decoder layers (Deformable DETR, Sec. 4.1 and A.2).

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
        masks: predict a mask for every query, too: as in `DETR`, from the level of the last backbone stage.
        aux_loss: return the outputs of every decoder layer.
        padding: as in `DETR`.
    """

    position_temperature = 10000.0  # of a sine encoding, see `SinePositionEncoding`
    position_offset = 0.5

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
        masks: bool = False,
        aux_loss: bool = True,
        padding: Padding = "exact",
        train_backbone: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
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
        self.position_encoding = position_encoding(
            position_embedding,
            hidden_dim,
            entries=position_entries,
            temperature=self.position_temperature,
            offset=self.position_offset,
        )
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

    @property
    def hidden_dim(self) -> int:
        """Width D of the transformer."""
        return self.level_embed.shape[1]

    @property
    def level_strides(self) -> list[int]:
        """Pixels between the cells of each level."""
        strides = self.backbone.strides[-len(self.stages) :]
        return strides + [strides[-1] * 2**i for i in range(1, len(self.projections) - len(strides) + 1)]

    def encode(self, images: Sequence[Tensor] | Batch, capture: Capturing = False) -> EncodedImages:
        """Compute the maps of all levels and encode them.

        Args:
            images: normalized (3, h, w) float tensors of any sizes, or a Batch.
            capture: as in `forward`.
        """
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        features = self.backbone(batch, every_stage=capture is True)
        stages = self.backbone.all_stages if capture is True else self.backbone.stages
        by_stage = dict(zip(stages, features, strict=True))
        maps, masks = self._levels(batch, [by_stage[stage] for stage in self.stages])
        spatial_shapes = [(m.shape[2], m.shape[3]) for m in maps]
        src = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # (B, S, D)
        pos = [self.position_encoding(mask).to(src.dtype) for mask in masks]  # L (B, h, w, D)
        pos_embed = torch.cat([(p + self.level_embed[level]).flatten(1, 2) for level, p in enumerate(pos)], 1)
        padding_mask = torch.cat([m.flatten(1) for m in masks], 1)  # (B, S)
        valid_sizes = torch.stack([torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], -1) for m in masks], 1)
        valid_sizes = valid_sizes.to(pos_embed.dtype)  # (B, L, 2) width, height in cells
        valid_ratios = valid_sizes / widths_and_heights(spatial_shapes, valid_sizes)  # (B, L, 2)
        encoded = self.encoder(
            src,
            pos_embed=pos_embed,
            spatial_shapes=spatial_shapes,
            valid_sizes=valid_sizes,
            valid_ratios=valid_ratios,
            padding_mask=padding_mask if batch.padded else None,
            capture=capture,
        )
        return EncodedImages(
            batch, by_stage, maps, pos, encoded, spatial_shapes, valid_sizes, valid_ratios, padding_mask
        )

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

    def _capture(
        self,
        images: EncodedImages,
        decoded: DeformableDecoderOutput,
        proposal_index: Tensor | None,
        capture: Capturing,
    ) -> Capture | None:
        """Return what a forward pass is asked to keep.

        Args:
            images: after the encoder.
            decoded: result of the decoder, of the matching queries alone.
            proposal_index: (B, Q) tokens that became the queries; None of one-stage models.
            capture: as in `forward`.
        """
        if not capture:
            return None
        stages: dict[str, Tensor] = {}
        if capture is True:
            stages = {
                **{f"backbone.{stage}": feature for stage, (feature, _) in images.features.items()},
                **numbered("projection", images.maps),
                **numbered("position", [p.permute(0, 3, 1, 2) for p in images.positions]),
                **numbered("encoder", images.encoded.hidden_states),
                "memory": images.memory,
                **numbered("decoder", decoded.hidden_states),
                "queries": torch.stack(decoded.hidden_states),
                "init_reference": decoded.reference_points[0],
                "inter_references": torch.stack(decoded.reference_points[1:]),
                **({} if proposal_index is None else {"proposal_index": proposal_index}),
            }
        return Capture(
            encoder_weights=images.encoded.attention_weights,
            decoder_weights=decoded.attention_weights,
            encoder_locations=images.encoded.sampling_locations,
            decoder_locations=decoded.sampling_locations,
            query_weights=decoded.self_attn_weights,
            feature_shapes=images.spatial_shapes,
            padding=images.padding_mask,
            logits=torch.stack(decoded.logits),
            boxes=torch.stack(decoded.boxes),
            references=_same_width(decoded.reference_points),
            proposal_index=proposal_index,
            stages=stages,
        )

    def _add_masks_of_levels(
        self, outputs: Outputs, hidden_states: Tensor, images: EncodedImages, *, defer: bool | None
    ) -> None:
        """Add masks from the level of the backbone's last stage: finer ones come before it, coarser ones after.

        Args:
            outputs: of the last decoder layer.
            hidden_states: (B, Q, D) of the queries after it.
            images: after the encoder.
            defer: as in `_add_masks`.
        """
        level = len(self.stages) - 1
        start, (h, w) = sum(h * w for h, w in images.spatial_shapes[:level]), images.spatial_shapes[level]
        cells = images.memory[:, start : start + h * w]  # (B, h * w, D)
        features = list(images.features.values())
        self._add_masks(outputs, hidden_states, cells, images.maps[level], features, images.batch, defer=defer)


def _same_width(references: Sequence[Tensor]) -> Tensor:
    """Stack (B, Q, 2 or 4) references; where some are boxes, a point is a box without extent."""
    width = max(r.shape[-1] for r in references)
    return torch.stack([F.pad(r, (0, width - r.shape[-1])) for r in references])
