"""The lines that a run begins with: its size, what it learns from, and warnings where it cannot work."""

from __future__ import annotations

from detrkit.config import TrainConfig
from detrkit.data.loader import MEASURED_IMAGES
from detrkit.data.sampling_report import sampling_lines
from detrkit.engine.objects import count_objects
from detrkit.engine.splits import Splits
from detrkit.engine.trainer import Trainer
from detrkit.utils.console import console
from detrkit.utils.messages import counted
from detrkit.weights.checkpoint import ModelSpec

FEW_STEPS = {True: 2000, False: 500}  # for models of more than ten million parameters, and for others


def announce(config: TrainConfig, spec: ModelSpec, splits: Splits, trainer: Trainer, lines: list[str]) -> None:
    """Print a summary of the run that begins, with a warning where it cannot work."""
    train, val = splits.train, splits.val
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    steps = trainer.steps_per_epoch * config.optim.epochs
    images_per_step = config.data.batch_size * trainer.world * config.optim.accumulate
    console.print(f"{spec.name}: {parameters / 1e6:.1f} M trainable parameters, {counted(spec.num_classes, 'class')}")
    counts = count_objects(splits.learned)
    console.print(
        f"{counted(counts.images, 'image')} to train on"
        + (f", {len(val)} to evaluate on" if val is not None else "")
        + f"; {_length(config, trainer)} of {counted(images_per_step, 'image')}"
        + f" on {trainer.fabric.device}"
        + (f" x {trainer.world}" if trainer.world > 1 else "")
    )
    seen = [] if splits.sampling is None else sampling_lines(splits.sampling)
    for line in [*counts.lines(), *seen, *([splits.evaluated] if splits.evaluated else []), *lines]:
        console.print(line)
    if config.run.pictures:
        after = "" if val is None else " and examples.png"
        console.print(
            f"pictures in {trainer.folder}: labels.png and first_batch.png now, training.png{after} while it trains"
        )
    if config.run.patience and (val is None or not count_objects(val).objects):
        why = "there is no split to evaluate on" if val is None else f"no image of {val.split} has an object"
        console.print(f"warning: {why}, so that --patience has nothing to count and stops nothing")
    trained = config.run.init_from or config.run.freeze_detector
    if steps < FEW_STEPS[parameters > 10e6] and trained is None and not config.run.overfit:
        console.print(
            f"warning: {counted(steps, 'step')} {'is' if steps == 1 else 'are'} few for a detection transformer that "
            "starts from random weights: expect a low AP; train longer, or start from trained weights (--init-from)"
        )
    if config.optim.warmup_steps > steps / 2 and not config.run.overfit:
        console.print(
            f"warning: the warm-up takes {config.optim.warmup_steps} steps, and the run {steps}: the learning rate "
            "hardly gets to optim.lr; lower optim.warmup_steps, or call detrkit.train with shorten_warmup=True"
        )
    most = max(int((~r.crowd).sum()) for r in train.records)
    if most > trainer.queries:
        console.print(
            f"warning: an image has {most} objects, the model only {trainer.queries} queries: raise --num-queries"
        )
    elif (mixed := trainer.loader.most_mixed_objects()) is not None and mixed > trainer.queries:
        console.print(
            f"warning: of {MEASURED_IMAGES} images as they are mixed one has {mixed} objects, the model only "
            f"{trainer.queries} queries: some objects are not learned; raise --num-queries"
        )


def _length(config: TrainConfig, trainer: Trainer) -> str:
    """Describe how long a run is."""
    if config.run.overfit and config.run.minutes is not None:
        return f"until they are learned, for {config.run.minutes:g} minutes at most; steps"
    return f"{counted(config.optim.epochs, 'epoch')} of {counted(trainer.steps_per_epoch, 'step')}"
