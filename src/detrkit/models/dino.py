"""DINO (Zhang et al. 2023): contrastive denoising, mixed query selection, look forward twice; from top to bottom."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from detrkit.layers import MLP
from detrkit.layers.deformable import MSDeformAttention
from detrkit.layers.deformable_transformer import DeformableDecoderOutput, HeadsOutput
from detrkit.layers.linear import Linear
from detrkit.layers.transformer import init_transformer
from detrkit.models.deformable_base import DeformableModel, EncodedImages
from detrkit.models.denoising_base import DenoisingModel, Proposals, Queries
from detrkit.models.dino_criterion import dino_criterion
from detrkit.models.official_names import DINO_NAMES
from detrkit.models.panoptic import MaskPredictor
from detrkit.models.proposals import inverse_sigmoid, sine_of_boxes
from detrkit.models.registry import register_model
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import MASKED_LOGIT, Capturing, Outputs, Target

EPS = 1e-3  # of the log-odds of boxes, as published


@register_model(
    {
        "dino-r50-4scale": {},
        "dino-r50-5scale": {"backbone_stages": (2, 3, 4, 5), "num_feature_levels": 5},
    },
    activation="sigmoid",
    criterion=dino_criterion,
    official=DINO_NAMES,
)
class DINO(DeformableModel, DenoisingModel):
    """Two-stage deformable model with learned contents and proposed positions, trained on noised objects, too.

    Args:
        num_queries: matching queries: the tokens of the encoder with the best score of any class (Sec. 3.4).
        num_select: detections of an image, the best over queries and classes.
        dn_number: pairs of denoising queries of an image in training (Sec. 3.3); 0 for none. See
            `detrkit.layers.denoising`.
        dn_label_noise_ratio: twice the share of denoising queries whose label is drawn anew.
        dn_box_noise_scale: noise of their boxes in halves of a box's width and height. The published models were
            trained with 1, which their scripts set; the published configuration file says 0.4.
        dim_feedforward, dropout: as published for this model.
        nheads, masks, options: as of `DeformableModel`. With padding="official" padded slots of denoising queries count
            as background, and the position of a query depends on the padding of its image.
    """

    position_temperature = 20.0
    position_offset = 0.0
    log_odds_eps = EPS
    few_are_groups = True
    chooses_tokens = True

    def __init__(
        self,
        *,
        num_queries: int = 900,
        num_select: int = 300,
        dn_number: int = 100,
        dn_label_noise_ratio: float = 0.5,
        dn_box_noise_scale: float = 1.0,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        nheads: int = 8,
        masks: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            num_queries=num_queries,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            nheads=nheads,
            masks=masks,
            **options,
        )
        hidden_dim, num_classes = self.hidden_dim, self.num_classes
        self.num_select = num_select
        self.dn_number = dn_number
        self.dn_label_noise_ratio = dn_label_noise_ratio
        self.dn_box_noise_scale = dn_box_noise_scale
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_position = MLP(2 * hidden_dim, hidden_dim, hidden_dim, layers=2)
        self.proposal_memory = Linear(hidden_dim, hidden_dim)
        self.proposal_memory_norm = nn.LayerNorm(hidden_dim)
        self.queries = nn.Embedding(num_queries, hidden_dim)
        self.label_embed = nn.Embedding(num_classes + 1, hidden_dim)  # the published table has a row too many
        # one head for all decoder layers, and the encoder's
        self.class_heads = nn.ModuleList(Linear(hidden_dim, num_classes) for _ in range(2))
        self.box_heads = nn.ModuleList(MLP(hidden_dim, hidden_dim, 4, layers=3) for _ in range(2))
        self._reset_parameters()
        self.segmentation = MaskPredictor(hidden_dim, nheads, self.backbone, prior=True) if masks else None

    def _reset_parameters(self) -> None:
        """Initialize as published: Xavier transformer, rays of sampling points, rare objects, uncorrected boxes."""
        init_transformer(self.encoder, self.decoder)
        for module in self.modules():
            if isinstance(module, MSDeformAttention):
                module.reset_parameters()
        nn.init.xavier_uniform_(self.proposal_memory.weight)
        nn.init.xavier_uniform_(self.queries.weight)
        for layer in self.query_position.layers:
            assert isinstance(layer, nn.Linear)
            nn.init.xavier_uniform_(layer.weight)
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
            images: normalized (3, h, w) float tensors of any sizes, or a Batch.
            targets: one per image; in training, denoising queries are made of their objects.
            capture: as of `DeformableDETR.forward`; of the matching queries.
            defer_masks: as in `DETR.forward`.
            noise: of the denoising queries in place of random draws, see `detrkit.layers.denoising.given_noise`.

        Returns:
            Outputs of the matching queries: logits (B, Q, num_classes), boxes (B, Q, 4) cxcywh in [0, 1]; `encoder` of
            the tokens that became queries, with logits of the classes; in training with targets, `denoising`.
        """
        encoded = self.encode(images, capture)
        outputs, matching = self._predict(encoded, targets, noise, capture)
        hidden_states = self.decoder_norm(matching.hidden_states[-1])
        self._add_masks_of_levels(outputs, hidden_states, encoded, defer=defer_masks)
        return outputs

    def _contents(self, proposals: Proposals) -> Tensor:
        """Return the learned contents (B, Q, D): the proposals give the positions alone (Sec. 3.4)."""
        images, count = proposals.indices.shape
        return self.queries.weight[:count].expand(images, -1, -1)

    def _decode(self, images: EncodedImages, queries: Queries, capture: Capturing) -> DeformableDecoderOutput:
        """Decode the queries; a query's position is that of its box, in every layer anew."""
        # published: relative to the padded map
        scale = images.valid_ratios[:, :1].repeat(1, 1, 2) if self.padding == "official" else None  # (B, 1, 4)

        def query_pos(reference_points: Tensor) -> Tensor:
            boxes = reference_points if scale is None else reference_points * scale
            yxwh = boxes[..., [1, 0, 2, 3]]
            embedded = sine_of_boxes(yxwh, self.hidden_dim // 2).to(images.memory.dtype)
            position: Tensor = self.query_position(embedded)
            return position

        def heads(layer: int, hidden_states: Tensor, reference_points: Tensor) -> HeadsOutput:
            normed = self.decoder_norm(hidden_states)
            logits = self.class_heads[0](normed)
            if queries.padding_mask is not None:
                logits = logits.masked_fill(queries.padding_mask[..., None], MASKED_LOGIT)
            boxes = _moved(reference_points, self.box_heads[0](normed))
            if layer + 1 == len(self.decoder):
                return HeadsOutput(logits, boxes, boxes)
            # as published, the next layer's boxes come from the states before the norm
            following = _moved(reference_points.detach(), self.box_heads[0](hidden_states))
            return HeadsOutput(logits, boxes, following)

        decoded: DeformableDecoderOutput = self.decoder(
            queries.tgt,
            query_pos=query_pos,
            reference_points=queries.reference_points,
            memory=images.memory,
            spatial_shapes=images.spatial_shapes,
            valid_ratios=images.valid_ratios,
            padding_mask=images.key_padding_mask,
            heads=heads,
            look_forward_twice=True,
            query_padding_mask=queries.padding_mask,
            attn_mask=queries.attn_mask,
            capture=capture,
        )
        return decoded


def _moved(boxes: Tensor, correction: Tensor) -> Tensor:
    """Add a (B, Q, 4) correction to the log-odds of (B, Q, 4) boxes cxcywh."""
    return (inverse_sigmoid(boxes, EPS) + correction).sigmoid()
