"""DETRdemo: the 50-line model of the DETR notebook (detr_demo-da2a99e9.pth), on the same layers.

It differs from DETR where the notebook is simpler: ordinary batch norm, a learned encoding added once at the input,
queries as the decoder's input, a linear box head, a final norm after the encoder, no auxiliary outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detrkit.backbones import build_backbone
from detrkit.backbones.resnet import Norm, Padding
from detrkit.errors import ImageSizeError
from detrkit.layers import Decoder, Encoder
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.batch import Batch
from detrkit.models.outputs import Capture, Outputs, Target
from detrkit.ops.dense import convolve_as


class DETRdemo(nn.Module):
    """The notebook's model.

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
        self.backbone = build_backbone(backbone, norm=backbone_norm, padding=padding, freeze=())
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
        capture: bool = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """As `DETR.forward`, without masks; the published model was run on one image at a time.

        Raises:
            ImageSizeError: an image too large for the learned encoding (more than 32 * position_entries pixels a side).
        """
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        features = self.backbone(batch, every_stage=capture)
        feature, padding = features[-1]  # (B, C, h, w), (B, h, w)
        h, w = padding.shape[1:]
        entries = len(self.row_embed)
        if max(h, w) > entries:
            raise ImageSizeError(
                f"the demo model encodes {entries} cells of 32 pixels a side, the image has {h} x {w}: "
                f"resize it to at most {32 * entries} pixels"
            )
        source = convolve_as(self.input_projection, feature)  # (B, D, h, w)
        columns = self.col_embed[:w].expand(h, w, -1)
        rows = self.row_embed[:h, None].expand(h, w, -1)
        position = torch.cat([columns, rows], -1).flatten(0, 1)  # (S, D)

        tokens = position + 0.1 * source.flatten(2).transpose(1, 2)  # (B, S, D)
        hidden = padding.flatten(1) if batch.padded else None
        memory, tokens_after, encoder_attention = self.encoder(tokens, position=None, padding=hidden, capture=capture)
        states, before_norm, among, across = self.decoder(
            self.queries.expand(len(batch), -1, -1),
            memory,
            position=None,
            query_position=None,
            padding=hidden,
            capture=capture,
        )  # (L, B, Q, D)
        outputs = Outputs(self.class_head(states[-1]), self.box_head(states[-1]).sigmoid())
        if capture:
            outputs.capture = Capture.of_one_map(
                attention=(encoder_attention, across, among),
                padding=padding,
                features=features,
                projection=source,
                position=position.T.unflatten(1, (h, w)).expand(len(batch), -1, -1, -1),
                encoder=tokens_after,
                memory=memory,
                decoder=before_norm,
                queries=states,
            )
        return outputs
