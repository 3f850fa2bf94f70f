"""The settings of the optimizer, its schedule and the number of epochs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from detrkit.config.strict import STRICT
from detrkit.utils.ranges import (
    BatchSize,
    Count,
    CountOrNone,
    Decay,
    Range,
    Share,
    Weight,
)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer, its schedule and the number of epochs."""

    __pydantic_config__ = STRICT

    epochs: Count = 300
    """Passes over the training split."""
    lr: Annotated[float, Range(gt=0, le=100)] = 1e-4
    """Learning rate of the transformer and the heads (AdamW), for the global batch given."""
    lr_backbone: Annotated[float, Range(ge=0, le=100)] = 1e-5
    """Learning rate of the backbone; 0 freezes it."""
    lr_for_batch: Annotated[int, Range(ge=1, le=1_000_000)] | None = None
    """Images a step that lr and lr_backbone are given for. With more or fewer (batch_size x processes x accumulate)
    both are multiplied by the square root of the ratio before the first step; by default they stay."""
    lr_sampling_factor: Weight = 0.1
    """Deformable DETR: share of lr for sampling offsets and reference points."""
    weight_decay: Annotated[float, Range(ge=0, le=100)] = 1e-4
    """Decoupled weight decay, on everything as published."""
    clip_max_norm: Annotated[float, Range(ge=0, le=1e9)] = 0.1
    """Largest global gradient norm; 0 for no clipping."""
    schedule: Literal["step", "cosine", "flat-cosine"] = "step"
    """The learning rate falls to a tenth after lr_drop epochs, or along a cosine, at once or after a flat part."""
    lr_drop: Count = 200
    """Epochs before the drop of the step schedule."""
    lr_flat: Decay = 0.5
    """Share of all steps before the cosine of the flat-cosine schedule."""
    lr_end: Share = 0.0
    """Share of the learning rate at which a cosine ends."""
    warmup_steps: CountOrNone = 0
    """Steps in which the learning rate rises linearly."""
    accumulate: BatchSize = 1
    """Batches per step: the gradient equals that of one batch of all their images. A dataset with too few images for
    one step is repeated to fill it."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, by names or globs of parameters or modules, such as backbone or
    "transformer.encoder.*". Batch norms among them keep their statistics."""
    ema: Decay = 0.0
    """Decay of the exponential moving average of the weights, which is then evaluated and saved; 0 for none."""
    mask_epochs: CountOrNone = 0
    """Train masks in a second phase of this many epochs, as published: first the detector alone, for `epochs`, in the
    folder detector/ of the run; then the masks, with the detector frozen. 0: one phase."""
    mask_lr_drop: Count | None = None
    """Epochs of the second phase before its drop; by default lr_drop in proportion."""
