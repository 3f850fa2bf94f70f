"""DETR: End-to-End Object Detection with Transformers (Carion et al. 2020), from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from detrkit.backbones import build_backbone
from detrkit.backbones.base import Norm, Padding
from detrkit.layers import MLP, Decoder, Encoder, position_encoding
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.base import DetectionModel
from detrkit.models.official_names import DETR_NAMES
from detrkit.models.panoptic import MaskPredictor
from detrkit.models.registry import register_model
from detrkit.ops.dense import convolve_as
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Capturing, Outputs, Target


@register_model(
    {
        "detr-r50": {},
        "detr-r50-dc5": {"dilation": True},
        "detr-r101": {"backbone": "resnet101"},
        "detr-r101-dc5": {"backbone": "resnet101", "dilation": True},
        "detr-r50-panoptic": {"masks": True, "num_classes": 250},
        "detr-r50-dc5-panoptic": {"dilation": True, "masks": True, "num_classes": 250},
        "detr-r101-panoptic": {"backbone": "resnet101", "masks": True, "num_classes": 250},
    },
    activation="softmax",
    official=DETR_NAMES,
)
class DETR(DetectionModel):
    """Backbone, transformer encoder-decoder, and a class and a box for each of N object queries (Sec. 3.2, Fig. 2).

    Args:
        num_classes: labels 0 .. num_classes - 1; the logits have one more column, "no object", the last.
        backbone: a torchvision ResNet, "timm:NAME", or one of another package (see `detrkit.backbones`).
        dilation: DC5, the last stage at stride 16 instead of 32.
        backbone_norm: "frozen" for pretrained weights, "group" to train from random ones.
        backbone_width: channels of the stem; fewer than 64 for small work from random weights.
        backbone_stage: the stage whose map the transformer reads: 5 (published), or 4 or 3 for small images.
        position_embedding: "sine" or "learned".
        position_entries: rows and columns a learned encoding can hold.
        num_queries: the most objects an image can have.
        hidden_dim, nheads, dim_feedforward, enc_layers, dec_layers, dropout, pre_norm: the transformer (Sec. A.3).
        masks: predict a mask for every query, too (Sec. 4.4).
        aux_loss: return the outputs of every decoder layer (Sec. 3.2, "auxiliary decoding losses").
        padding: "exact": an image's outputs do not depend on the batch it is in; "official": they do, as published.
        train_backbone: False freezes the whole backbone (official `--lr_backbone 0`).
    """

    def __init__(
        self,
        *,
        num_classes: int = 91,
        backbone: str = "resnet50",
        dilation: bool = False,
        backbone_norm: Norm = "frozen",
        backbone_width: int = 64,
        backbone_stage: int = 5,
        position_embedding: Literal["sine", "learned"] = "sine",
        position_entries: int = 50,
        num_queries: int = 100,
        hidden_dim: int = 256,
        nheads: int = 8,
        dim_feedforward: int = 2048,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dropout: float = 0.1,
        pre_norm: bool = False,
        masks: bool = False,
        aux_loss: bool = True,
        padding: Padding = "exact",
        train_backbone: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.aux_loss = aux_loss
        self.backbone = build_backbone(
            backbone,
            dilation=dilation,
            norm=backbone_norm,
            width=backbone_width,
            stages=range(2, backbone_stage + 1) if masks else (backbone_stage,),
            padding=padding,
        )
        self.backbone.freeze_early_layers()
        if not train_backbone:
            self.backbone.requires_grad_(False)
        self.input_projection = nn.Conv2d(self.backbone.channels[-1], hidden_dim, 1)
        self.position_encoding = position_encoding(position_embedding, hidden_dim, entries=position_entries)
        self.encoder = Encoder(
            enc_layers, hidden_dim, nheads, dim_feedforward, dropout=dropout, pre_norm=pre_norm, final_norm=pre_norm
        )
        self.decoder = Decoder(dec_layers, hidden_dim, nheads, dim_feedforward, dropout=dropout, pre_norm=pre_norm)
        init_transformer(self.encoder, self.decoder)
        self.queries = nn.Embedding(num_queries, hidden_dim)
        self.class_head = Linear(hidden_dim, num_classes + 1)
        self.box_head = MLP(hidden_dim, hidden_dim, 4, layers=3)
        self.segmentation = MaskPredictor(hidden_dim, nheads, self.backbone) if masks else None

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
            targets: not used by DETR; part of the interface that the models share.
            capture: return attention weights and intermediate tensors, too; "attention": without the latter.
            defer_masks: leave the masks to `Outputs.masks_of`, which computes those of chosen queries; by default in
                training.

        Returns:
            Outputs with logits (B, Q, num_classes + 1), boxes (B, Q, 4) cxcywh in [0, 1], and masks (B, Q, h / 4,
            w / 4) of models that have them.
        """
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        features = self.backbone(batch, every_stage=capture is True)
        feature, padding_mask = features[-1]  # (B, C, h, w), (B, h, w)
        src = convolve_as(self.input_projection, feature)  # (B, D, h, w)
        pos = self.position_encoding(padding_mask).to(src.dtype)  # (B, h, w, D)

        tokens = src.flatten(2).transpose(1, 2)  # (B, S, D), S = h * w
        pos_embed = pos.flatten(1, 2)  # (B, S, D)
        key_padding_mask = padding_mask.flatten(1) if batch.padded else None  # (B, S); None lets attention skip it
        encoded = self.encoder(tokens, pos_embed=pos_embed, key_padding_mask=key_padding_mask, capture=capture)

        query_pos = self.queries.weight.expand(batch.count, -1, -1)  # (B, Q, D)
        decoded = self.decoder(
            torch.zeros_like(query_pos),
            encoded.memory,
            pos_embed=pos_embed,
            query_pos=query_pos,
            key_padding_mask=key_padding_mask,
            capture=capture,
        )
        hs = decoded.hs if self.aux_loss else decoded.hs[-1:]  # (L, B, Q, D)
        logits = self.class_head(hs)  # (L, B, Q, num_classes + 1)
        boxes = self.box_head(hs).sigmoid()  # (L, B, Q, 4)

        # unbound: one stack in the backward pass; each slice would bring a tensor of zeros as large as all together
        *aux, outputs = map(Outputs, logits.unbind(), boxes.unbind())
        outputs.aux = aux
        if capture:
            earlier = decoded.hs[: -len(hs)]  # apart, so that a capture changes no bit of the outputs
            outputs.capture = Capture.of_one_map(
                encoded,
                decoded,
                padding_mask,
                features=dict(zip(self.backbone.all_stages, features, strict=True)) if capture is True else {},
                src=src,
                pos=pos.permute(0, 3, 1, 2),
                logits=torch.cat([self.class_head(earlier), logits]),
                boxes=torch.cat([self.box_head(earlier).sigmoid(), boxes]),
                first_boxes=self.box_head(self.decoder.norm(torch.zeros_like(query_pos))).sigmoid(),
                capture=capture,
            )
        self._add_masks(outputs, hs[-1], encoded.memory, src, features, batch, defer=defer_masks)
        return outputs
