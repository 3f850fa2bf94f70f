"""DETRdemo: the 50-line model of the DETR notebook (detr_demo-da2a99e9.pth), on the same layers.

It differs from DETR where the notebook is simpler: ordinary batch norm, a learned encoding added once at the input,
queries as the decoder's input, a linear box head, a final norm after the encoder, no auxiliary outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrkit.backbones import build_backbone
from detrkit.backbones.base import Norm, Padding
from detrkit.layers import Decoder, Encoder
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.base import DetectionModel
from detrkit.models.official_names import DEMO_NAMES
from detrkit.models.registry import register_model
from detrkit.ops.dense import convolve_as
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capture, Capturing, Outputs, Target
from detrkit.utils.errors import ImageSizeError


# the notebook resizes to 800 without a maximum
@register_model("detr-demo", activation="softmax", max_size=None, official=DEMO_NAMES)
class DETRdemo(DetectionModel):
    """Model of the DETR notebook.

    Args:
        num_classes: labels; the logits have one more column, "no object".
        backbone, backbone_norm, padding: as in `DETR`.
        num_queries: the most objects an image can have.
        hidden_dim, nheads, dim_feedforward, enc_layers, dec_layers, dropout: as `torch.nn.Transformer`.
        position_entries: rows and columns of the learned encoding: 50, so images up to 1600 pixels.
    """

    def __init__(
        self,
        *,
        num_classes: int = 91,
        backbone: str = "resnet50",
        backbone_norm: Norm = "batch",
        num_queries: int = 100,
        hidden_dim: int = 256,
        nheads: int = 8,
        dim_feedforward: int = 2048,
        enc_layers: int = 6,
        dec_layers: int = 6,
        dropout: float = 0.1,
        position_entries: int = 50,
        padding: Padding = "exact",
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.segmentation = None
        self.backbone = build_backbone(backbone, norm=backbone_norm, padding=padding)
        self.input_projection = nn.Conv2d(self.backbone.channels[-1], hidden_dim, 1)
        self.row_embed = nn.Parameter(torch.rand(position_entries, hidden_dim // 2))
        self.col_embed = nn.Parameter(torch.rand(position_entries, hidden_dim // 2))
        self.encoder = Encoder(
            enc_layers, hidden_dim, nheads, dim_feedforward, dropout=dropout, pre_norm=False, final_norm=True
        )
        self.decoder = Decoder(dec_layers, hidden_dim, nheads, dim_feedforward, dropout=dropout, pre_norm=False)
        init_transformer(self.encoder, self.decoder)
        self.queries = nn.Parameter(torch.rand(num_queries, hidden_dim))
        self.class_head = Linear(hidden_dim, num_classes + 1)
        self.box_head = Linear(hidden_dim, 4)

    def forward(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Predict as `DETR.forward`, without masks; the published model was run on one image at a time.

        Raises:
            ImageSizeError: an image too large for the learned encoding (over 32 * position_entries pixels per side).
        """
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        features = self.backbone(batch, every_stage=capture is True)
        feature, padding_mask = features[-1]  # (B, C, h, w), (B, h, w)
        h, w = padding_mask.shape[1:]
        entries = len(self.row_embed)
        if h > entries or w > entries:  # apart: `max` of symbols would relate them in an exported graph
            raise ImageSizeError(
                f"the demo model encodes {entries} cells of 32 pixels a side, the image has {h} x {w}: "
                f"resize it to at most {32 * entries} pixels"
            )
        src = convolve_as(self.input_projection, feature)  # (B, D, h, w)
        columns = self.col_embed[:w].expand(h, w, -1)
        rows = self.row_embed[:h, None].expand(h, w, -1)
        pos_embed = torch.cat([columns, rows], -1).flatten(0, 1)  # (S, D)

        tokens = pos_embed + 0.1 * src.flatten(2).transpose(1, 2)  # (B, S, D)
        key_padding_mask = padding_mask.flatten(1) if batch.padded else None  # (B, S)
        encoded = self.encoder(tokens, pos_embed=None, key_padding_mask=key_padding_mask, capture=capture)
        decoded = self.decoder(
            self.queries.expand(batch.count, -1, -1),
            encoded.memory,
            pos_embed=None,
            query_pos=None,
            key_padding_mask=key_padding_mask,
            capture=capture,
        )
        hs = decoded.hs[-1]  # (B, Q, D)
        outputs = Outputs(self.class_head(hs), self.box_head(hs).sigmoid())
        if capture:
            pos = pos_embed.T.unflatten(1, (h, w)).expand(batch.count, -1, -1, -1)  # (B, D, h, w)
            earlier = decoded.hs[:-1]  # apart, so that a capture changes no bit of the outputs
            outputs.capture = Capture.of_one_map(
                encoded,
                decoded,
                padding_mask,
                features=dict(zip(self.backbone.all_stages, features, strict=True)) if capture is True else {},
                src=src,
                pos=pos,
                logits=torch.cat([self.class_head(earlier), outputs.logits[None]]),
                boxes=torch.cat([self.box_head(earlier).sigmoid(), outputs.boxes[None]]),
                first_boxes=self.box_head(self.decoder.norm(self.queries)).sigmoid().expand(batch.count, -1, -1),
                capture=capture,
            )
        return outputs
