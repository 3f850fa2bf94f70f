"""The loader of a training run, from its settings."""

from __future__ import annotations

from typing import Any

from detrkit.config import TrainConfig
from detrkit.data import Dataset, make_loader, train_transform
from detrkit.data.image_mix import NO_MIX, ImageMix
from detrkit.data.loader import Loader
from detrkit.weights.checkpoint import ModelSpec

PLAIN_SHARE = 5  # by default one of so many epochs, the last ones, mixes no images


def train_loader(dataset: Dataset, config: TrainConfig, spec: ModelSpec, **process: Any) -> Loader:
    """Make the loader of a training run. A run that overfits sees its images as they are.

    Args:
        dataset: the training split.
        config: of the run.
        spec: of its model.
        **process: `rank`, `world_size`, `device` and `rates`, as for `make_loader`.

    Raises:
        DetrkitError: an image that cannot be decoded, or images that cannot be mixed.
    """
    data, overfit = config.data, bool(config.run.overfit)
    return make_loader(
        dataset,
        transform=train_transform(
            spec.size, spec.max_size, square=spec.square, augment="none" if overfit else data.augment
        ),
        batch_size=data.batch_size,
        training=True,
        seed=config.run.seed,
        workers=data.workers,
        cache=data.cache,
        draft=data.draft,
        color=0.0 if overfit else data.color,
        mix=NO_MIX if overfit else image_mix(config),
        group_by_size=data.group_by_size,
        accumulate=config.optim.accumulate,
        epoch_images=data.epoch_images,
        mean=spec.mean,
        std=spec.std,
        **process,
    )


def image_mix(config: TrainConfig) -> ImageMix:
    """Return how often images are mixed or changed strongly, and when: the last epochs of the run are plain."""
    data, epochs = config.data, config.optim.epochs
    plain = data.plain_epochs
    if plain is None:
        plain = max(1, round(epochs / PLAIN_SHARE)) if epochs > 1 else 0
    return ImageMix(
        mosaic=data.mosaic,
        mixup=data.mixup,
        copy_paste=data.copy_paste,
        zoom_out=data.zoom_out,
        iou_crop=data.iou_crop,
        multi_scale=data.multi_scale,
        epochs=max(0, epochs - plain),
    )
