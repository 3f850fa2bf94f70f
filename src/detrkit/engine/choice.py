"""The choice of a recipe, from the data and the machine: a function from facts to settings, with its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from detrkit.config import TrainConfig, load_config
from detrkit.engine.schedule import steps_per_epoch
from detrkit.engine.training_facts import FINE_TUNED, Facts
from detrkit.utils.durations import duration
from detrkit.utils.messages import counted

PUBLISHED = "detr-300"  # the recipe of the published settings
SMALL_SIZES = (192, 384)  # pixels of the short side of `own-data`
SMALL_OBJECT = 14  # pixels that a small object should have in the input: the finest map has a cell per 8
SMALL_QUERIES = 100  # of `own-data` and of DETR
MOST_QUERIES = 1000  # that are chosen: self-attention costs their square, and DINO learns COCO with 900
DENSE_OBJECTS = 60  # in an image, above which a hundred queries are few
FEW_IMAGES = 60  # for which there is a recipe of its own
PATIENT_SECONDS = 3600.0  # that the default takes on a CPU before it rather takes the small model
SMALL_SECONDS = 600.0  # of training, on a CPU: the whole run ends within a quarter of an hour
# Core-seconds per image and megapixel of a training step, measured on two cores of 2.x GHz (a step of `own-data` with 8
# images at 256 takes 1.5 core-seconds, one image of DETR-R50 at 800 about 10).
_SMALL_COST, _R50_COST = 3.5, 14.0
_MIXED_SIZES = 0.66  # mean area of the augmented images, as a part of that at full size
_GIB_PER_IMAGE, _GIB_MODEL = 2.7, 1.5  # of GPU memory: DETR-R50 training at 800 x 1333, and the rest
_GLOBAL_BATCH = 16  # images per step of a fine-tuning, as `finetune` has
_FEW_EPOCHS, _MANY_EPOCHS = 20, 150  # an epoch is the training split while a run has so many


@dataclass(frozen=True)
class Choice:
    """A recipe, what is changed in it, and why.

    Attributes:
        recipe: its name.
        overrides: section -> field -> value.
        reasons: in words, each a part of a sentence.
        steps: optimizer steps in all.
        seconds: rough time of training; None where there is no experience.
    """

    recipe: str
    overrides: dict[str, dict[str, Any]]
    reasons: tuple[str, ...]
    steps: int
    seconds: float | None = None

    def config(self) -> TrainConfig:
        """Return the settings."""
        return load_config(self.recipe).changed(**self.overrides)

    def lines(self, facts: Facts, config: TrainConfig | None = None, *, guess: bool = True) -> list[str]:
        """Return the lines that say what was chosen and why.

        Args:
            facts: of data and machine.
            config: the settings with those that were given; by default the choice alone.
            guess: say the time; without, since it will be measured.
        """
        config = self.config() if config is None else config
        cores = f"{facts.cores} CPU core{'s' if facts.cores != 1 else ''}"
        where = cores if facts.on_cpu else f"{facts.processes} GPU{'s' if facts.processes > 1 else ''}"
        if not facts.on_cpu and facts.gpu_memory:
            where += f" of {facts.gpu_memory:.0f} GiB"
        start = f" --init-from {config.run.init_from}" if config.run.init_from else ""
        size = f", images of {config.data.size} pixels" if config.data.size else ""
        images = f"{counted(facts.images, 'image')} of {facts.width} x {facts.height}"
        images += f" ({facts.turn} in an epoch)" if facts.turn != facts.images else ""
        steps = config.optim.epochs * steps_per_epoch(config, facts.turn, facts.processes)
        lines = [
            f"chosen for {images} on {where}: --recipe {self.recipe}{start}, {_length(config, facts, steps)}{size}"
        ]
        lines += [f"  {reason}" for reason in [*self.reasons, *_part_of_images(config, facts)]]
        if guess and self.seconds is not None and config.run.minutes is None and not config.run.overfit:
            seconds = self.seconds * steps / self.steps
            lines.append(f"  this takes about {duration(seconds)} of training, as a first guess")
        lines.append("  other choices: --recipe NAME, --minutes N, or any setting; what you give stays as given")
        return lines


def _part_of_images(config: TrainConfig, facts: Facts) -> list[str]:
    """Say how many images the run sees, if an epoch is a part of them or has them several times.

    With a budget that is measured later; a number of epochs that is given is one of turns through all images.
    """
    part = config.data.epoch_images
    if part is None or config.run.minutes is not None or config.run.overfit:
        return []
    if part > facts.turn:
        steps = steps_per_epoch(config, facts.turn, facts.processes)
        return [f"an epoch has {counted(steps, 'step')}: every image comes several times"]
    seen = 100 * min(1.0, config.optim.epochs * part / facts.turn)
    return [f"an epoch is a part of the training images; all epochs see {seen:.0f} % of them"]


def _length(config: TrainConfig, facts: Facts, steps: int) -> str:
    """Describe how long a run is."""
    batch = config.data.batch_size * config.optim.accumulate * facts.processes
    if config.run.overfit:
        return f"{batch} images a step"
    if config.run.minutes is not None:
        return f"as many epochs as fit into {config.run.minutes:g} minutes, {batch} images a step"
    epochs = f"{config.optim.epochs} epoch{'s' if config.optim.epochs > 1 else ''}"
    if config.data.epoch_images is not None:
        epochs += f" of {config.data.epoch_images} images"
    return f"{epochs} ({counted(steps, 'step')} of {counted(batch, 'image')})"


def choose(facts: Facts) -> Choice:
    """Choose recipe, first weights, size of the input, batch and epochs."""
    if facts.init_from is not None:
        return _fine_tuning(
            facts, facts.init_from, [f"{facts.init_from} keeps its model; schedule and batch are chosen"]
        )
    if facts.model is not None:
        return _published(facts)
    weights, refusal = _weights(facts)
    if weights is not None:
        how = "at hand" if facts.weights[weights] == "cached" else "downloaded once, 160 MB"
        return _fine_tuning(facts, facts.source, [f"{weights} is fine-tuned: its trained weights are {how}"])
    return _small(facts, refusal)


def _weights(facts: Facts) -> tuple[str | None, str]:
    """Return the published weights to start from, or None and the reason for none."""
    at_hand = facts.weights.get(FINE_TUNED)
    if facts.on_cpu:
        if at_hand != "cached":
            return (
                None,
                "a small model from random weights: no trained weights are at hand, and large models need a GPU",
            )
        takes = _fine_tuning(facts, FINE_TUNED, []).seconds or 0.0
        if takes > PATIENT_SECONDS:
            return None, (
                f"a small model from random weights: fine-tuning {FINE_TUNED}, which is at hand, would take about "
                f"{duration(takes)} here (--recipe finetune --init-from {FINE_TUNED})"
            )
        return FINE_TUNED, ""
    if facts.gpu_memory < _GIB_MODEL + _GIB_PER_IMAGE:
        return None, f"a small model from random weights: {facts.gpu_memory:.0f} GiB are too few for DETR-R50 at 800"
    if at_hand is None:
        return None, "a small model from random weights: trained weights are not at hand and cannot be downloaded"
    return FINE_TUNED, ""


def _case(facts: Facts, wanted: float) -> tuple[str, str]:
    """Return the recipe of a small model for data like these, and the reason for it.

    Args:
        facts: of data and machine.
        wanted: short side in pixels at which the small objects have `SMALL_OBJECT` of them.
    """
    if facts.most_objects > DENSE_OBJECTS:
        return "dense", f"for many objects: an image has {facts.most_objects}"
    if wanted > 1.5 * SMALL_SIZES[1] and min(facts.height, facts.width) > SMALL_SIZES[1]:
        share = f"{100 * facts.small_object:.1f}"
        return "small-objects", f"for small objects: a tenth of them is below {share} % of the image's short side"
    if facts.images <= FEW_IMAGES:
        return (
            "few-images",
            "for few images: every one comes many times, in smaller steps and with more weight decay",
        )
    return "own-data", ""


def _small(facts: Facts, reason: str) -> Choice:
    """Choose for the small model from random weights, of the recipe for data like these."""
    reasons = [reason]
    short = min(facts.height, facts.width)
    wanted = 256 if facts.small_object <= 0 else round(SMALL_OBJECT / facts.small_object)
    recipe, case = _case(facts, wanted)
    reasons += [case] if case else []
    made = load_config(recipe)
    low, high = SMALL_SIZES if facts.on_cpu else (256, 640)
    high = max(high, made.data.size or high)
    size = facts.size or _rounded(min(max(wanted, made.data.size or 256, low), high, max(short, 128)))
    if facts.size is None and size > 256:
        reasons.append(f"images of {size} pixels instead of 256: the small objects have few pixels")
    batch = facts.batch_size or made.data.batch_size
    overrides: dict[str, dict[str, Any]] = {"data": {"size": size, "batch_size": batch}, "optim": {}, "run": {}}
    if 1.3 * facts.most_objects > (made.model.num_queries or 0):
        _objects(facts, overrides, reasons, enough=0)
    # a map of stride 4 and more queries cost as much again
    cost = _SMALL_COST * (2.0 if 2 in (made.model.backbone_stages or ()) else 1.0)
    per_step = _step_seconds(facts, cost, size, batch)
    # few images a step are as many images in all
    steps = _steps(facts.images, least=600 * 8 // batch, most=12_000 * 8 // batch)
    if not facts.on_cpu:
        steps = _steps(facts.images, least=2000, most=60_000)
    else:
        steps = _within(steps, per_step, SMALL_SECONDS * max(1.0, facts.images / 1000) ** 0.5)
    if facts.masks:
        overrides["model"] = {**overrides.get("model", {}), "masks": True}
    return _with_epochs(facts, recipe, overrides, reasons, steps, batch, per_step if facts.on_cpu else None)


def _fine_tuning(facts: Facts, weights: str, reasons: list[str]) -> Choice:
    """Choose for a fine-tuning of trained weights."""
    short = min(facts.height, facts.width)
    size = facts.size
    overrides: dict[str, dict[str, Any]] = {"data": {}, "optim": {}, "run": {}}
    if facts.init_from is None:
        overrides["run"]["init_from"] = weights
        if size is None:
            size = _rounded(min(512, max(256, short))) if facts.on_cpu else 800
        if not facts.on_cpu and facts.size is None and 0 < facts.small_object * 800 < 32:
            fits = facts.gpu_memory >= _GIB_MODEL + 1.6 * _GIB_PER_IMAGE
            size = 1024 if fits else 800
            reasons.append(f"images of {size} pixels: the small objects are smaller than a cell of the model at 800")
        elif facts.on_cpu and facts.size is None and size < 800:
            reasons.append(f"images of {size} pixels instead of 800, which a CPU is too slow for")
        overrides["data"]["size"] = size
        _objects(facts, overrides, reasons)
        if facts.masks:
            overrides["model"] = {**overrides.get("model", {}), "masks": True}
    batch = facts.batch_size or _batch(facts, size or 800)
    whole = 4 if facts.on_cpu else _GLOBAL_BATCH
    accumulate = max(1, round(whole / (batch * facts.processes)))
    overrides["data"]["batch_size"] = batch
    overrides["optim"]["accumulate"] = accumulate
    steps = _steps(facts.images, least=200, most=2000)
    if not facts.on_cpu:
        steps = _steps(facts.images, least=300, most=40_000, power=0.6)
    # the size and the model of weights that somebody gives are not known yet
    guess = facts.on_cpu and size is not None
    per_step = _step_seconds(facts, _R50_COST, size, batch * accumulate) if guess and size is not None else None
    made = _with_epochs(facts, "finetune", overrides, reasons, steps, batch * accumulate, per_step)
    epochs = made.overrides["optim"]["epochs"]
    made.overrides["optim"]["lr_drop"] = max(1, round(0.8 * epochs))
    return made


def _published(facts: Facts) -> Choice:
    """Choose for a model that was asked for: its published options, and a schedule and batch for the machine."""
    reasons = [f"{facts.model} keeps its published options; schedule and batch are chosen"]
    if facts.weights.get(facts.model or "") == "cached":
        reasons.append(f"its trained weights are at hand: --init-from {facts.model} starts from them")
    size = facts.size or 800
    batch = facts.batch_size or _batch(facts, size)
    accumulate = max(1, round(_GLOBAL_BATCH / (batch * facts.processes))) if not facts.on_cpu else 1
    overrides: dict[str, dict[str, Any]] = {
        "data": {"batch_size": batch},
        "optim": {"accumulate": accumulate},
        "run": {},
    }
    _objects(facts, overrides, reasons, enough=(facts.queries or SMALL_QUERIES) * 0.9)
    per_step = _step_seconds(facts, _R50_COST, size, batch * accumulate)
    steps = _steps(facts.images, least=2000, most=300_000, power=0.75)
    made = _with_epochs(
        facts, PUBLISHED, overrides, reasons, steps, batch * accumulate, per_step if facts.on_cpu else None, most=300
    )
    epochs = made.overrides["optim"]["epochs"]
    made.overrides["optim"]["lr_drop"] = max(1, round(epochs * 2 / 3))
    if facts.on_cpu:
        reasons = [*made.reasons, "a model of this size needs a GPU: without --model, one for this CPU is chosen"]
        return Choice(made.recipe, made.overrides, tuple(reasons), made.steps, made.seconds)
    return made


def _objects(
    facts: Facts,
    overrides: dict[str, dict[str, Any]],
    reasons: list[str],
    *,
    enough: float = 0.9 * SMALL_QUERIES,
) -> None:
    """Raise the number of queries, and of counted detections, where an image has more objects.

    Args:
        facts: of data and machine.
        overrides: completed.
        reasons: likewise.
        enough: objects in an image for which the model's own queries are enough.
    """
    most = facts.most_objects
    if most > 0.9 * SMALL_QUERIES:
        overrides["run"]["max_dets"] = min(max(100, -(-most // 100) * 100), MOST_QUERIES)
    if most <= enough or facts.queries_fixed:
        return
    queries = min(-(-round(1.3 * most) // 50) * 50, MOST_QUERIES)
    overrides["model"] = {**overrides.get("model", {}), "num_queries": queries}
    words = f"{queries} queries: an image has {most} objects"
    if most > queries:
        words += f", of which {most - queries} are not learned; --num-queries and --max-dets for more, at their cost"
    reasons.append(words)


def _batch(facts: Facts, size: int) -> int:
    """Return the images of a step that a GPU holds in training DETR-R50, as a power of two."""
    if facts.on_cpu:
        return 2
    each = _GIB_PER_IMAGE * (size / 800) ** 2 * (1.5 if facts.masks else 1.0)
    fits = max(1, int((0.9 * facts.gpu_memory - _GIB_MODEL) / each))
    most = max(1, _GLOBAL_BATCH // facts.processes)
    return 1 << min(fits, most).bit_length() - 1


def _steps(images: int, *, least: int, most: int, power: float = 0.35) -> int:
    """Return the number of steps for so many images: few images are learned within a number of steps, not of epochs."""
    return int(min(most, least * max(1.0, (images / 50) ** power)))


def _step_seconds(facts: Facts, cost: float, size: int, images: int) -> float:
    """Estimate the seconds of a step on a CPU."""
    short, long = sorted((facts.height, facts.width))
    megapixels = size * size * long / short / 1e6
    masks = 1.4 if facts.masks else 1.0
    return masks * cost * megapixels * _MIXED_SIZES * images / max(1, facts.cores) * facts.processes


def _within(steps: int, per_step: float, seconds: float) -> int:
    """Return the steps that fit into a time, at least a hundred."""
    return max(100, min(steps, int(seconds / per_step)))


def _with_epochs(
    facts: Facts,
    recipe: str,
    overrides: dict[str, dict[str, Any]],
    reasons: list[str],
    steps: int,
    batch: int,
    per_step: float | None,
    *,
    most: int = _MANY_EPOCHS,
) -> Choice:
    """Make a choice of a number of steps: epochs, images per epoch where these are not the split, evaluations.

    Args:
        facts: of data and machine.
        recipe: name.
        overrides: so far; completed.
        reasons: so far.
        steps: in all.
        batch: images of one process in a step.
        per_step: seconds, or None.
        most: epochs.
    """
    whole = batch * facts.processes
    per_epoch = max(1, facts.turn // whole)
    epochs, epoch_images = max(1, round(steps / per_epoch)), None
    if epochs > most or epochs < 2 or (facts.on_cpu and epochs < _FEW_EPOCHS and steps >= 40 * _FEW_EPOCHS):
        epochs = _FEW_EPOCHS
        per_epoch = max(1, round(steps / epochs))
        epoch_images = per_epoch * whole
    overrides["optim"]["epochs"] = epochs
    overrides["data"]["epoch_images"] = epoch_images
    overrides["run"]["eval_every"] = max(1, round(epochs / 20))
    steps = epochs * per_epoch
    warmup = load_config(recipe).optim.warmup_steps
    if warmup > steps // 5:
        overrides["optim"]["warmup_steps"] = steps // 5
    seconds = None if per_step is None else steps * per_step
    return Choice(recipe, overrides, tuple(reasons), steps, seconds)


def _rounded(size: float) -> int:
    return int(round(size / 32) * 32)
