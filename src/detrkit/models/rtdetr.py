"""RT-DETR (Zhao et al. 2024) and RT-DETRv2 (Lv et al. 2024): a DETR in real time; from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from detrkit.backbones import build_backbone
from detrkit.backbones.base import Norm
from detrkit.layers import MLP
from detrkit.layers.conv_norm import ConvNorm
from detrkit.layers.deformable_transformer import (
    DeformableDecoder,
    DeformableDecoderLayer,
    DeformableDecoderOutput,
    HeadsOutput,
)
from detrkit.layers.hybrid_encoder import HybridEncoder, HybridEncoderOutput
from detrkit.layers.linear import Linear
from detrkit.models.denoising_base import DenoisingModel, Proposals, Queries
from detrkit.models.proposals import inverse_sigmoid
from detrkit.models.registry import register_model
from detrkit.models.rtdetr_criterion import rtdetr_criterion
from detrkit.models.rtdetr_names import RTDETR_NAMES, RTDETRV2_NAMES
from detrkit.ops.ms_deform import widths_and_heights
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import MASKED_LOGIT, Capture, Capturing, Outputs, Target, numbered

STAGES = (3, 4, 5)  # of the backbone: strides 8, 16, 32

# scaled as the paper's Sec. 4.4 says; R50-m is trained with 6 decoder layers of which 3 predict
_BATCH_NORM = {"backbone_norm": "batch", "enc_expansion": 0.5}
_SIZES: dict[str, dict[str, Any]] = {
    "r18": {"backbone": "presnet18", "dec_layers": 3, **_BATCH_NORM},
    "r34": {"backbone": "presnet34", "dec_layers": 4, **_BATCH_NORM},
    "r50-m": {"enc_expansion": 0.5, "eval_layers": 3},
    "r50": {},
    "r101": {"backbone": "presnet101", "enc_hidden_dim": 384, "enc_dim_feedforward": 2048},
}
# pixels in [0, 1] without normalization, every image squashed to a square
_INPUT: dict[str, Any] = {
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
    "size": 640,
    "max_size": None,
    "square": True,
}


class EncodedMaps(NamedTuple):
    """Images after the encoder.

    Attributes:
        features: maps of the backbone with their padding masks, by stage.
        encoded: result of the encoder.
        memory: (B, S, D), what the decoder reads.
        spatial_shapes: (height, width) of every level in cells.
        valid_sizes: (B, L, 2) width and height of the valid part of every level in cells.
        valid_ratios: (B, L, 2) the same as a share of the padded map.
        padding_mask: (B, S) bool, True where padded.
        padded: whether any token is.
    """

    features: dict[int, tuple[Tensor, Tensor]]
    encoded: HybridEncoderOutput
    memory: Tensor
    spatial_shapes: list[tuple[int, int]]
    valid_sizes: Tensor
    valid_ratios: Tensor
    padding_mask: Tensor
    padded: bool

    @property
    def key_padding_mask(self) -> Tensor | None:
        """`padding_mask`, or None in a batch without padding."""
        return self.padding_mask if self.padded else None


@register_model(
    {f"rtdetr-{size}": options for size, options in _SIZES.items()},
    activation="sigmoid",
    num_classes=80,
    criterion=rtdetr_criterion,
    official=RTDETR_NAMES,
    **_INPUT,
)
class RTDETR(DenoisingModel):
    """A convolutional backbone, the hybrid encoder, queries chosen by their scores, a deformable decoder.

    An image's outputs in inference do not depend on the batch it is in; it is meant to be squashed to a square, but any
    size goes. The queries are computed: `num_queries` may be another one at every forward pass.

    Args:
        num_classes: columns of the logits; each is a sigmoid of its own, there is no "no object".
        backbone, backbone_norm, backbone_width, train_backbone: as in `DETR`; published: PResNet-vd.
        num_queries: matching queries: the tokens of the encoder with the best score of any class (Sec. 4.3).
        num_select: detections of an image, the best over queries and classes.
        discrete_sampling: the decoder reads whole cells (RT-DETRv2, Sec. 3.1); see `MSDeformAttention`.
        level_points: sampled points of each level, the finest first (RT-DETRv2, Sec. 3.1); empty: `dec_n_points` each.
        hidden_dim, nheads, dim_feedforward, dec_layers, dec_n_points, dropout: the decoder.
        eval_layers: decoder layers that predict at inference (Sec. 5.4: fewer are faster, without training again);
            None: all.
        enc_hidden_dim, enc_dim_feedforward, enc_layers: width of the encoder, and its attention.
        enc_expansion: channels of the encoder's blocks as a share of its width.
        dn_number, dn_label_noise_ratio, dn_box_noise_scale: denoising queries in training, as in `DINO`.
        aux_loss: return the outputs of every decoder layer.
    """

    free_options: ClassVar[frozenset[str]] = frozenset({"num_queries", "eval_layers"})
    chooses_tokens = True

    def __init__(
        self,
        *,
        num_classes: int = 80,
        backbone: str = "presnet50",
        backbone_norm: Norm = "frozen",
        backbone_width: int = 64,
        num_queries: int = 300,
        num_select: int = 300,
        hidden_dim: int = 256,
        nheads: int = 8,
        dim_feedforward: int = 1024,
        dec_layers: int = 6,
        eval_layers: int | None = None,
        dec_n_points: int = 4,
        discrete_sampling: bool = False,
        level_points: Sequence[int] = (),
        enc_hidden_dim: int = 256,
        enc_dim_feedforward: int = 1024,
        enc_layers: int = 1,
        enc_expansion: float = 1.0,
        dropout: float = 0.0,
        dn_number: int = 100,
        dn_label_noise_ratio: float = 0.5,
        dn_box_noise_scale: float = 1.0,
        aux_loss: bool = True,
        train_backbone: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_queries, self.num_select = num_classes, num_queries, num_select
        self.eval_layers, self.aux_loss, self.dn_number = eval_layers, aux_loss, dn_number
        self.dn_label_noise_ratio, self.dn_box_noise_scale = dn_label_noise_ratio, dn_box_noise_scale
        self.backbone = build_backbone(backbone, norm=backbone_norm, width=backbone_width, stages=STAGES)
        self.backbone.freeze_early_layers()
        if not train_backbone:
            self.backbone.requires_grad_(False)
        self.encoder = HybridEncoder(
            self.backbone.channels,
            enc_hidden_dim,
            heads=nheads,
            dim_feedforward=enc_dim_feedforward,
            layers=enc_layers,
            dropout=dropout,
            expansion=enc_expansion,
        )
        self.projections = nn.ModuleList(ConvNorm(enc_hidden_dim, hidden_dim, 1) for _ in STAGES)
        self.proposal_memory = Linear(hidden_dim, hidden_dim)
        self.proposal_memory_norm = nn.LayerNorm(hidden_dim)
        self.label_embed = nn.Embedding(num_classes + 1, hidden_dim)  # the published table has a row too many
        self.query_position = MLP(4, 2 * hidden_dim, hidden_dim, layers=2)
        sampling: dict[str, Any] = {"points": tuple(level_points) or dec_n_points, "discrete": discrete_sampling}
        self.decoder = DeformableDecoder(
            DeformableDecoderLayer(hidden_dim, nheads, dim_feedforward, levels=len(STAGES), dropout=dropout, **sampling)
            for _ in range(dec_layers)
        )
        # a head for every decoder layer, and the encoder's
        self.class_heads = nn.ModuleList(Linear(hidden_dim, num_classes) for _ in range(dec_layers + 1))
        self.box_heads = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, layers=3) for _ in range(dec_layers + 1))
        self._reset_parameters()

    @property
    def points_by_level(self) -> list[tuple[int, ...]]:
        """Sampled points per head and level of every decoder layer."""
        layers: list[Any] = list(self.decoder)
        return [layer.cross_attention.points_by_level for layer in layers]

    def _reset_parameters(self) -> None:
        """Initialize as published: rays of sampling points, rare objects, uncorrected boxes."""
        for linear in (self.proposal_memory, *self.query_position.layers, *(p.conv for p in self.projections)):
            nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(self.label_embed.weight[-1:].data)
        for class_head, box_head in zip(self.class_heads, self.box_heads, strict=True):
            assert isinstance(class_head, nn.Linear) and isinstance(box_head, MLP)
            nn.init.constant_(class_head.bias, -math.log(99))  # every class starts at probability 0.01
            last = box_head.layers[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
        noise: Mapping[str, Any] | None = None,
    ) -> Outputs:
        """Predict a set of objects for every image.

        Args:
            images: (3, h, w) float tensors in [0, 1] of any sizes, or a Batch.
            targets: one per image; in training, denoising queries are made of their objects.
            capture: as of `DeformableDETR.forward`; of the matching queries. The encoder's attention is that of the
                coarsest map.
            defer_masks: not used: there are no masks.
            noise: of the denoising queries in place of random draws, see `detrkit.layers.denoising.given_noise`.

        Returns:
            Outputs of the matching queries: logits (B, Q, num_classes), boxes (B, Q, 4) cxcywh in [0, 1]; `encoder` of
            the tokens that became queries, with logits of the classes; in training with targets, `denoising`.
        """
        return self._predict(self.encode(images, capture), targets, noise, capture).outputs

    def encode(self, images: Sequence[Tensor] | Batch, capture: Capturing = False) -> EncodedMaps:
        """Compute the backbone's maps, encode them, and project them to the decoder's width.

        Args:
            images: as of `forward`.
            capture: as in `forward`.
        """
        batch = images if isinstance(images, Batch) else Batch.from_images(images)
        stages = self.backbone.all_stages if capture is True else self.backbone.stages
        features = dict(zip(stages, self.backbone(batch, every_stage=capture is True), strict=True))
        masks = [features[stage][1] for stage in STAGES]
        encoded: HybridEncoderOutput = self.encoder(
            [features[stage][0] for stage in STAGES], masks, padded=batch.padded, capture=capture
        )
        maps = [projection(x) for projection, x in zip(self.projections, encoded.maps, strict=True)]  # L (B, D, h, w)
        spatial_shapes = [(m.shape[2], m.shape[3]) for m in maps]
        memory = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1)  # (B, S, D)
        valid_sizes = torch.stack([torch.stack([(~m[:, 0]).sum(1), (~m[:, :, 0]).sum(1)], -1) for m in masks], 1)
        valid_sizes = valid_sizes.to(memory.dtype)  # (B, L, 2) width, height in cells
        valid_ratios = valid_sizes / widths_and_heights(spatial_shapes, valid_sizes)
        padding_mask = torch.cat([m.flatten(1) for m in masks], 1)  # (B, S)
        return EncodedMaps(
            features, encoded, memory, spatial_shapes, valid_sizes, valid_ratios, padding_mask, batch.padded
        )

    def _contents(self, proposals: Proposals) -> Tensor:
        """Return the features (B, Q, D) of the tokens chosen."""
        return proposals.contents

    def _decode(self, images: EncodedMaps, queries: Queries, capture: Capturing) -> DeformableDecoderOutput:
        """Decode the queries; a query's position is that of its box, in every layer anew."""

        def heads(layer: int, hidden_states: Tensor, reference_points: Tensor) -> HeadsOutput:
            logits = self.class_heads[layer](hidden_states)
            if queries.padding_mask is not None:
                logits = logits.masked_fill(queries.padding_mask[..., None], MASKED_LOGIT)
            correction = self.box_heads[layer](hidden_states)
            boxes = (inverse_sigmoid(reference_points) + correction).sigmoid()
            # a layer learns from the next one's loss, and from no later one's
            following = (inverse_sigmoid(reference_points.detach()) + correction).sigmoid() if self.training else boxes
            return HeadsOutput(logits, boxes, following)

        decoded: DeformableDecoderOutput = self.decoder(
            queries.tgt,
            query_pos=self.query_position,
            reference_points=queries.reference_points,
            memory=images.memory,
            spatial_shapes=images.spatial_shapes,
            valid_ratios=images.valid_ratios,
            padding_mask=images.key_padding_mask,
            heads=heads,
            look_forward_twice=True,
            layers=None if self.training else self.eval_layers,
            query_padding_mask=queries.padding_mask,
            attn_mask=queries.attn_mask,
            capture=capture,
        )
        return decoded

    def _capture(
        self, images: EncodedMaps, decoded: DeformableDecoderOutput, proposal_index: Tensor | None, capture: Capturing
    ) -> Capture | None:
        """Return what a forward pass is asked to keep; arguments as of `DeformableModel._capture`."""
        if not capture:
            return None
        stages: dict[str, Tensor] = {}
        if capture is True:
            stages = {
                **{f"backbone.{stage}": feature for stage, (feature, _) in images.features.items()},
                **numbered("projection", images.encoded.projected),
                "position.2": images.encoded.position.permute(2, 0, 1)[None],
                **numbered("encoder", images.encoded.hidden_states),
                **numbered("fused", images.encoded.maps),
                "memory": images.memory,
                **numbered("decoder", decoded.hidden_states),
                "queries": torch.stack(decoded.hidden_states),
                "init_reference": decoded.reference_points[0],
                "inter_references": torch.stack(decoded.reference_points[1:]),
                **({} if proposal_index is None else {"proposal_index": proposal_index}),
            }
        return Capture(
            encoder_weights=images.encoded.attn_weights,
            decoder_weights=decoded.attention_weights,
            decoder_locations=decoded.sampling_locations,
            query_weights=decoded.self_attn_weights,
            feature_shapes=images.spatial_shapes,
            padding=images.padding_mask,
            logits=torch.stack(decoded.logits),
            boxes=torch.stack(decoded.boxes),
            references=torch.stack(decoded.reference_points),
            proposal_index=proposal_index,
            stages=stages,
        )


@register_model(
    {f"rtdetrv2-{size}": options for size, options in _SIZES.items()},
    activation="sigmoid",
    num_classes=80,
    criterion=rtdetr_criterion,
    official=RTDETRV2_NAMES,
    **_INPUT,
)
class RTDETRv2(RTDETR):
    """RT-DETRv2: the same network, trained by another recipe; its files say how the decoder samples."""
