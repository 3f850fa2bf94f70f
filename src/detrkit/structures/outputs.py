"""Inputs and outputs of a model: `Target`, `Outputs` and `Capture`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from detrkit.structures.attention import AttentionWeights
from detrkit.utils.devices import copies_overlap

if TYPE_CHECKING:
    from detrkit.layers.transformer import DecoderOutput, EncoderOutput
    from detrkit.models.panoptic import DeferredMasks


MASKED_LOGIT = -1e4  # of a query that is none, such as one from padding: probability and loss are 0 in every precision
# what a forward pass keeps: nothing, everything, or attention, boxes and logits without the stages, which take most of
# the memory: 0.2 of 0.4 GB for two-stage Deformable DETR and an image of 800 x 1199 pixels
Capturing = bool | Literal["attention"]


def _moved(value: Any, device: torch.device | str) -> Any:
    """Return `value` with every tensor in it on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=copies_overlap(device))
    if isinstance(value, (Target, Outputs, OneToMany, Denoising, Capture, AttentionWeights)):
        return value.to(device)
    if isinstance(value, (list, tuple)):
        return [_moved(v, device) for v in value]
    return value


def numbered(name: str, tensors: Sequence[Tensor], *, first: int = 0) -> dict[str, Tensor]:
    """Name tensors as stages of a `Capture`: name.0, name.1, ..., or from another `first` number on."""
    return {f"{name}.{i}": tensor for i, tensor in enumerate(tensors, first)}


@dataclass
class Target:
    """The objects of one image, as the criterion reads them.

    Attributes:
        labels: (N,) int64 class indices, contiguous from 0 (or raw COCO ids in the official 91-id mode).
        boxes: (N, 4) float cxcywh in [0, 1], relative to the image without padding.
        masks: (N, H, W) bool, at the size of the network input, or None.
        image_id: the dataset's id of the image; names the image in warnings and errors.
        size: (height, width) in pixels of the network input without padding.
        orig_size: (height, width) in pixels of the image file.
    """

    labels: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    image_id: int | str | None = None
    size: tuple[int, int] | None = None
    orig_size: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Target:
        """Return a copy with all tensors on `device`, copied without blocking when they are pinned."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})

    def pin_memory(self) -> Target:
        """Return a copy with all tensors in page-locked memory; DataLoader calls this."""
        masks = None if self.masks is None else self.masks.pin_memory()
        return replace(self, labels=self.labels.pin_memory(), boxes=self.boxes.pin_memory(), masks=masks)


@dataclass
class Capture:
    """Attention and intermediate tensors of a forward pass, returned by `model(images, capture=True)`.

    `capture="attention"` leaves out the stages.

    Attributes:
        encoder_weights: attention of each encoder layer: `AttentionWeights` of (B, heads, S, S), S = h * w tokens in
            row-major order; deformable models: (B, S, heads, L, P) weights of the sampled points.
        decoder_weights: cross-attention of each decoder layer: `AttentionWeights` of (B, heads, Q, S); deformable
            models: (B, Q, heads, L, P) weights of the sampled points.
        query_weights: self-attention among queries of each decoder layer: `AttentionWeights` of (B, heads, Q, Q).
        encoder_locations: deformable models: per encoder layer (B, S, heads, L, P, 2) xy, the padded map being [0, 1];
            a point may lie outside.
        decoder_locations: deformable models: per decoder layer (B, Q, heads, L, P, 2).
        feature_shapes: (h, w) of the feature map, or of each level of maps, behind the tokens.
        padding: (B, S) bool, True where a token is padding.
        logits: (NL, B, Q, C) of the class head after each of the NL decoder layers.
        boxes: (NL, B, Q, 4) cxcywh in [0, 1], of the box head after each decoder layer.
        references: (NL + 1, B, Q, 2 or 4) xy or cxcywh in [0, 1]. Deformable models: the reference points, or boxes,
            that the first layer starts from, and those after each layer. Others, which have none: the boxes that the
            box head finds in the decoder's input, then `boxes`.
        proposal_index: (B, Q) int64 tokens that became the queries of a two-stage model; None of others.
        stages: intermediate tensors by name, for checks of fidelity, numbered where there are several: `backbone.2` to
            `backbone.5` (B, C, h, w) by stage; `projection.0` and `position.0` (B, D, h, w) by level (the position
            without the level's own embedding); `encoder.0` (B, S, D) and `decoder.0` (B, Q, D) by layer; `memory`,
            what the decoder reads: (B, D, h, w), of Deformable DETR (B, S, D); `queries` (L, B, Q, D), what the heads
            read (DETR: the normed states of the layers). Deformable DETR: `init_reference` (B, Q, 2 or 4),
            `inter_references` (L, B, Q, 2 or 4), `proposal_index` (B, Q). With masks: `mask_attention`
            (B, Q, heads, h, w).
    """

    encoder_weights: Sequence[AttentionWeights | Tensor] = ()
    decoder_weights: Sequence[AttentionWeights | Tensor] = ()
    query_weights: Sequence[AttentionWeights | Tensor] = ()
    encoder_locations: list[Tensor] = field(default_factory=list)
    decoder_locations: list[Tensor] = field(default_factory=list)
    feature_shapes: list[tuple[int, int]] = field(default_factory=list)
    padding: Tensor | None = None
    logits: Tensor | None = None
    boxes: Tensor | None = None
    references: Tensor | None = None
    proposal_index: Tensor | None = None
    stages: dict[str, Tensor] = field(default_factory=dict)

    @property
    def encoder_attention(self) -> list[Tensor]:
        """All of `encoder_weights`, as tensors; computed at each access, so large maps take gigabytes."""
        return _computed(self.encoder_weights)

    @property
    def decoder_attention(self) -> list[Tensor]:
        """All of `decoder_weights`, as tensors; computed at each access."""
        return _computed(self.decoder_weights)

    @property
    def query_attention(self) -> list[Tensor]:
        """All of `query_weights`, as tensors; computed at each access."""
        return _computed(self.query_weights)

    @classmethod
    def of_one_map(
        cls,
        encoded: EncoderOutput,
        decoded: DecoderOutput,
        padding_mask: Tensor,
        *,
        features: Mapping[int, tuple[Tensor, Tensor]],
        src: Tensor,
        pos: Tensor,
        logits: Tensor,
        boxes: Tensor,
        first_boxes: Tensor,
        capture: Capturing = True,
    ) -> Capture:
        """Build the capture of a model that reads a single feature map of h * w = S cells.

        Args:
            encoded: result of the encoder, captured.
            decoded: result of the decoder, captured.
            padding_mask: (B, h, w) bool, True where padded.
            features: (B, C, h, w) maps of the backbone by stage, with their padding masks.
            src: (B, D, h, w) projected map.
            pos: (B, D, h, w) position encoding.
            logits: (NL, B, Q, C) after each decoder layer.
            boxes: (NL, B, Q, 4) cxcywh in [0, 1] after each decoder layer.
            first_boxes: (B, Q, 4) of the box head, of the decoder's input.
            capture: "attention" leaves out the stages.
        """
        h, w = padding_mask.shape[1:]
        stages = {
            **{f"backbone.{stage}": feature for stage, (feature, _) in features.items()},
            "projection.0": src,
            "position.0": pos,
            **numbered("encoder", encoded.hidden_states),
            "memory": encoded.memory.transpose(1, 2).unflatten(2, (h, w)),
            **numbered("decoder", decoded.hidden_states),
            "queries": decoded.hs,
        }
        return cls(
            encoder_weights=encoded.attn_weights,
            decoder_weights=decoded.cross_attn_weights,
            query_weights=decoded.self_attn_weights,
            feature_shapes=[(h, w)],
            padding=padding_mask.flatten(1),
            logits=logits,
            boxes=boxes,
            references=torch.cat([first_boxes[None], boxes]),
            stages=stages if capture is True else {},
        )

    def to(self, device: torch.device | str) -> Capture:
        """Return a copy with all tensors on `device`."""
        moved = {f.name: _moved(getattr(self, f.name), device) for f in fields(self)}
        return replace(self, **moved | {"stages": {k: v.to(device) for k, v in self.stages.items()}})


def _computed(weights: Sequence[AttentionWeights | Tensor]) -> list[Tensor]:
    """Return attention weights as tensors."""
    return [w.full() if isinstance(w, AttentionWeights) else w for w in weights]


@dataclass
class OneToMany:
    """Predictions of further queries that training matches one-to-many (H-DETR Sec. 3.2, "hybrid branch scheme").

    Attributes:
        outputs: of these queries, with those of the earlier layers.
        repeats: queries that an object is matched to (k).
        weight: of the losses (lambda).
    """

    outputs: Outputs
    repeats: int
    weight: float

    def to(self, device: torch.device | str) -> OneToMany:
        """Return a copy with all tensors on `device`."""
        return replace(self, outputs=self.outputs.to(device))


@dataclass
class Denoising:
    """Predictions of denoising queries in training (DINO, Sec. 3.3); the positives know their object.

    Attributes:
        outputs: of the denoising queries, with those of the earlier layers. Padded slots have logits whose loss is 0;
            with padding="official" they count as background, as published.
        groups: groups of queries; each has every object of its image once as a positive and once as a negative.
        image: (M,) int64, the image of each positive.
        query: (M,) int64, its place among the denoising queries of its image.
        target: (M,) int64, its object among the concatenated objects of the batch.
    """

    outputs: Outputs
    groups: int
    image: Tensor
    query: Tensor
    target: Tensor

    def to(self, device: torch.device | str) -> Denoising:
        """Return a copy with all tensors on `device`."""
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})


@dataclass
class Outputs:
    """Predictions of a model for a batch.

    Attributes:
        logits: (B, Q, C) class logits. DETR: softmax logits, the last class is "no object". Queries that came from
            padding have `MASKED_LOGIT` throughout.
        boxes: (B, Q, 4) cxcywh in [0, 1], relative to each image without padding.
        masks: (B, Q, h, w) mask logits at stride 4 of the padded batch, zero where padded; None without masks, or where
            they are deferred.
        aux: Outputs of the earlier decoder layers, first to last but one; empty without auxiliary outputs.
        encoder: Outputs of the two-stage proposal head over all tokens (DINO: over those chosen), or None.
        one_to_many: of hybrid matching in training, or None.
        denoising: of DINO in training, or None.
        capture: attention and intermediate tensors when the model was called with `capture`, else None.
        mask_sizes: (h, w) of the part of `masks` that is each image's own; None: all of it, padding included, as
            published.
        deferred_masks: makes the masks of chosen queries: see `masks_of`.
    """

    logits: Tensor
    boxes: Tensor
    masks: Tensor | None = None
    aux: list[Outputs] = field(default_factory=list)
    encoder: Outputs | None = None
    one_to_many: OneToMany | None = None
    denoising: Denoising | None = None
    capture: Capture | None = None
    mask_sizes: list[tuple[int, int]] | None = None
    deferred_masks: DeferredMasks | None = None

    @property
    def has_masks(self) -> bool:
        """True if the model predicts masks."""
        return self.masks is not None or self.deferred_masks is not None

    def masks_of(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Return the masks of chosen queries, computed now if they were deferred.

        Args:
            queries: per image (N,) int64.

        Returns:
            Per image (N, h, w) logits at stride 4: its own part of the batch if that is known (`mask_sizes`), or all.

        Raises:
            ValueError: a model without masks.
        """
        if self.deferred_masks is not None:
            return self.deferred_masks.of(queries)
        if self.masks is None:
            raise ValueError("these outputs have no masks: build the model with masks=True")
        sizes = self.mask_sizes or [(int(self.masks.shape[2]), int(self.masks.shape[3]))] * len(self.masks)
        return [m[:, :h, :w][chosen] for m, (h, w), chosen in zip(self.masks, sizes, queries, strict=True)]

    def to(self, device: torch.device | str) -> Outputs:
        """Return a copy with all tensors on `device`; deferred masks and proposals are all computed."""
        if self.deferred_masks is not None:
            return replace(self, masks=self.deferred_masks.all(), deferred_masks=None).to(device)
        return replace(self, **{f.name: _moved(getattr(self, f.name), device) for f in fields(self)})


class DeferredOutputs(Outputs):
    """Outputs without a gradient that are computed at the first access: most who predict never read all proposals.

    Args:
        make: returns (B, Q, C) logits and the (B, Q, 4) log-odds of the boxes.
    """

    def __init__(self, make: Callable[[], tuple[Tensor, Tensor]]) -> None:
        self._make = make
        self._made: tuple[Tensor, Tensor] | None = None
        # in the precision of the forward pass, as `DeferredMasks`
        self._autocast = [(d, torch.get_autocast_dtype(d)) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)]
        self.aux = []  # every other field has its default in the class

    def _pair(self) -> tuple[Tensor, Tensor]:
        if self._made is None:
            with torch.no_grad(), ExitStack() as stack:
                for device, dtype in self._autocast:
                    stack.enter_context(torch.autocast(device, dtype))
                logits, box_logits = self._make()
            self._made = logits, box_logits.sigmoid()
        return self._made

    @property
    def logits(self) -> Tensor:  # type: ignore[override]
        """(B, Q, C)."""
        return self._pair()[0]

    @property
    def boxes(self) -> Tensor:  # type: ignore[override]
        """(B, Q, 4) cxcywh in [0, 1]."""
        return self._pair()[1]

    def to(self, device: torch.device | str) -> Outputs:
        """Return a copy with all tensors on `device`, computed now."""
        return Outputs(self.logits, self.boxes).to(device)
