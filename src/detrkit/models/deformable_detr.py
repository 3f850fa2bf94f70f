"""Deformable DETR (Zhu et al. 2021) with refinement and two stages, from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones import build_backbone
from detrkit.backbones.resnet import Norm, Padding
from detrkit.layers import MLP, GroupNorm, position_encoding
from detrkit.layers.checkpointing import checkpointed
from detrkit.layers.deformable import DeformableDecoderLayer, DeformableEncoderLayer, MSDeformAttention
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.batch import Batch
from detrkit.models.outputs import Capture, Outputs, Target, numbered
from detrkit.models.panoptic import MaskPredictor, Segmenter
from detrkit.ops.dense import convolve_as

NEVER = -1e4  # a logit whose probability is 0 and whose loss is 0, in every precision


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Log-odds of x in [0, 1], clamped to those of eps (published: 1e-5)."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class DeformableDETR(Segmenter):
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
        freeze = ("conv1", "bn1", "layer1") if backbone_norm == "frozen" else ()
        self.stages = tuple(backbone_stages)[:num_feature_levels] if num_feature_levels > 1 else (5,)
        self.backbone = build_backbone(
            backbone,
            dilation=dilation,
            norm=backbone_norm,
            width=backbone_width,
            stages=range(2, max(self.stages) + 1) if masks else self.stages,
            padding=padding,
            freeze=freeze,
        )
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

        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(
                hidden_dim, nheads, dim_feedforward, levels=num_feature_levels, points=enc_n_points, dropout=dropout
            )
            for _ in range(enc_layers)
        )
        self.decoder = nn.ModuleList(
            DeformableDecoderLayer(
                hidden_dim, nheads, dim_feedforward, levels=num_feature_levels, points=dec_n_points, dropout=dropout
            )
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

        # one head shared by all layers, or one a layer under refinement; two-stage adds the encoder's
        count = (dec_layers if with_box_refine else 1) + two_stage
        self.class_heads = nn.ModuleList(Linear(hidden_dim, num_classes) for _ in range(count))
        self.box_heads = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, layers=3) for _ in range(count))
        self._reset_parameters()
        self.segmentation = MaskPredictor(hidden_dim, nheads, self.backbone, prior=True) if masks else None

    def _reset_parameters(self) -> None:
        """Published initialisation: Xavier transformer, rays of sampling points, rare objects, small first boxes."""
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
        capture: bool = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Predicts a set of objects for every image.

        Args:
            images: normalised (3, H, W) float tensors of any sizes, or a Batch.
            targets: not used; part of the interface the models share.
            capture: also return sampling locations, attention weights and intermediate tensors.
            defer_masks: as in `DETR.forward`.

        Returns:
            Outputs with logits (B, Q, num_classes), boxes (B, Q, 4) cxcywh in [0, 1], and masks (B, Q, H / 4, W / 4) of
            models that have them; `encoder` in two-stage models: column 0 of its logits is an objectness in all but
            name (its targets all have label 0).
        """
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        features = self.backbone(batch, every_stage=capture)
        stages = range(2, max(self.stages) + 1) if capture else self.backbone.stages
        by_stage = dict(zip(stages, features, strict=True))
        maps, masks = self._pyramid(batch, [by_stage[stage] for stage in self.stages])
        shapes = [(int(m.shape[2]), int(m.shape[3])) for m in maps]
        tokens = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # (B, S, D)
        positions = [self.position_encoding(mask).to(tokens.dtype) for mask in masks]  # (B, h, w, D) each
        position = torch.cat(
            [(own + self.level_embed[level]).flatten(1, 2) for level, own in enumerate(positions)], 1
        )  # (B, S, D)
        padded = torch.cat([m.flatten(1) for m in masks], 1)  # (B, S)
        valid = torch.stack([torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], -1) for m in masks], 1)
        valid = valid.to(position.dtype)  # (B, L, 2) width, height in cells
        ratios = valid / valid.new_tensor([(w, h) for h, w in shapes])  # (B, L, 2)
        hidden = padded if batch.padded else None

        memory, record, tokens_after = tokens, Capture(), []
        references = _cell_centres(shapes, valid)[:, :, None] * ratios[:, None]  # (B, S, L, 2)
        for layer in self.encoder:
            memory, locations, weights = checkpointed(
                layer, memory, position, references, shapes, padding=hidden, on=self.checkpointing
            )
            if capture:
                tokens_after.append(memory)
                record.encoder_locations.append(locations)
                record.encoder_attention.append(weights)

        encoder_outputs, chosen, absent = None, None, None
        if self.two_stage:
            encoder_outputs, states, query_position, reference, chosen = self._proposals(memory, shapes, valid, padded)
            if self.padding == "exact" and hidden is not None:
                # an image with fewer cells than queries has as many queries as cells; the rest came from padding
                absent = padded.gather(1, chosen)  # (B, Q)
        else:
            query_position, states = self.queries.weight.expand(len(batch), -1, -1).chunk(2, -1)  # (B, Q, D) each
            reference = self.reference_points(query_position).sigmoid()  # (B, Q, 2)

        layers, all_states, all_references = [], [], [reference]
        for i, layer in enumerate(self.decoder):
            scaled = reference[:, :, None] * ratios.repeat(1, 1, reference.shape[-1] // 2)[:, None]  # (B, Q, L, 2 | 4)
            states, among, locations, weights = checkpointed(
                layer,
                states,
                query_position,
                scaled,
                memory,
                shapes,
                padding=hidden,
                absent=absent,
                capture=capture,
                on=self.checkpointing,
            )
            head = i if self.with_box_refine else 0
            boxes = self._boxes(self.box_heads[head](states), reference)
            logits = self.class_heads[head](states)
            if absent is not None:
                logits = logits.masked_fill(absent[..., None], NEVER)
            layers.append(Outputs(logits, boxes))
            if self.with_box_refine:
                reference = boxes.detach()
            all_states.append(states)
            all_references.append(reference)
            if capture:
                record.decoder_locations.append(locations)
                record.decoder_attention.append(weights)
                record.query_attention.append(among)

        outputs = layers[-1]
        outputs.encoder = encoder_outputs
        outputs.aux = layers[:-1] if self.aux_loss else []
        if capture:
            record.feature_shapes = shapes
            record.padding = padded
            record.stages = {
                **numbered("backbone", [feature for feature, _ in features], first=2),
                **numbered("projection", maps),
                **numbered("position", [own.permute(0, 3, 1, 2) for own in positions]),
                **numbered("encoder", tokens_after),
                "memory": memory,
                **numbered("decoder", all_states),
                "queries": torch.stack(all_states),
                "init_reference": all_references[0],
                "inter_references": torch.stack(all_references[1:]),
            }
            if chosen is not None:
                record.stages["proposal_index"] = chosen
            outputs.capture = record
        level = len(self.stages) - 1  # of the backbone's last stage; finer levels come before it, coarser ones after
        source, first = maps[level], sum(h * w for h, w in shapes[:level])
        cells = memory[:, first : first + source[0, 0].numel()]  # (B, h * w, D)
        self._add_masks(outputs, states, cells, source, features, batch, defer=defer_masks)
        return outputs

    def _pyramid(self, batch: Batch, features: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps of all levels (B, D, h, w) and their (B, h, w) padding masks, from those of the stages it reads."""
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
        """The box head's correction (B, Q, 4), added to the reference (B, Q, 2 or 4) in log-odds: (B, Q, 4) cxcywh."""
        origin = inverse_sigmoid(reference)
        if origin.shape[-1] == 2:
            origin = F.pad(origin, (0, 2))  # only the centre is relative
        return (correction + origin).sigmoid()

    def _proposals(
        self, memory: Tensor, shapes: Sequence[tuple[int, int]], valid: Tensor, padded: Tensor
    ) -> tuple[Outputs, Tensor, Tensor, Tensor, Tensor]:
        """First stage: a box and an objectness for every token, the best become queries (Sec. 4.2).

        Args:
            memory: (B, S, D).
            shapes: (height, width) of every level.
            valid: (B, L, 2) width and height of the valid part, in cells.
            padded: (B, S) bool.

        Returns:
            Outputs over all tokens; (B, Q, D) initial states; (B, Q, D) query positions; (B, Q, 4) references;
            (B, Q) chosen tokens.
        """
        centres = _cell_centres(shapes, valid)  # (B, S, 2)
        sides = torch.cat([centres.new_full((h * w,), 0.05 * 2.0**level) for level, (h, w) in enumerate(shapes)])
        boxes = torch.cat([centres, sides[None, :, None].expand(len(memory), -1, 2)], -1)  # (B, S, 4)
        usable = ((boxes > 0.01) & (boxes < 0.99)).all(-1) & ~padded  # (B, S)
        logodds = (boxes / (1 - boxes)).log().masked_fill(~usable[..., None], float("inf"))
        states = self.proposal_memory_norm(self.proposal_memory(memory.masked_fill(~usable[..., None], 0.0)))
        logits = self.class_heads[-1](states)  # (B, S, num_classes)
        proposals = self.box_heads[-1](states) + logodds  # (B, S, 4), log-odds

        score = logits[..., 0]
        if self.padding == "exact":
            score = score.masked_fill(padded, float("-inf"))  # padding must not fill up the queries of an image
        chosen = score.topk(min(self.num_queries, score.shape[1]), dim=1).indices  # (B, Q)
        best = proposals.gather(1, chosen[..., None].expand(-1, -1, 4)).detach()
        reference = best.sigmoid()
        embedded = _sine_of_boxes(reference, self.level_embed.shape[1] // 2).to(memory.dtype)  # (B, Q, 2 * D)
        query_position, start = self.proposal_query_norm(self.proposal_query(embedded)).chunk(2, -1)
        return Outputs(logits, proposals.sigmoid()), start, query_position, reference, chosen


def _cell_centres(shapes: Sequence[tuple[int, int]], valid: Tensor) -> Tensor:
    """Centres of all cells, (B, S, 2) xy as a share of the valid part.

    Args:
        shapes: (height, width) of every level.
        valid: (B, L, 2) width and height of the valid part, in cells.
    """
    centres = []
    for level, (h, w) in enumerate(shapes):
        y, x = torch.meshgrid(
            torch.arange(h, dtype=valid.dtype, device=valid.device) + 0.5,
            torch.arange(w, dtype=valid.dtype, device=valid.device) + 0.5,
            indexing="ij",
        )
        centres.append(torch.stack([x, y], -1).view(1, -1, 2) / valid[:, level, None])
    return torch.cat(centres, 1)


def _sine_of_boxes(boxes: Tensor, width: int, temperature: float = 10000.0) -> Tensor:
    """Sine encoding of (B, Q, 4) cxcywh in [0, 1], `width` channels a coordinate: (B, Q, 4 * width)."""
    index = torch.arange(width, dtype=torch.float32, device=boxes.device)
    wavelength = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / width)
    angle = boxes[..., None] * (2 * math.pi) / wavelength  # (B, Q, 4, width)
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], -1).flatten(2)
