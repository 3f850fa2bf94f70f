"""Iterations of prediction or training with and without a stopwatch: time of the parts, and of their whole."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import detrkit.detector
from detrkit.config import OptimConfig, RunConfig, TrainConfig
from detrkit.data import make_loader, train_transform
from detrkit.data.images import as_rgb
from detrkit.data.loader import Loader, default_workers
from detrkit.detector import Detector, has_masks
from detrkit.engine.memory import peak_mib, reset_peak
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.setup import make_fabric
from detrkit.engine.update import Update
from detrkit.models.criterion import build_criterion
from detrkit.models.matcher import NonFiniteError
from detrkit.models.registry import architecture
from detrkit.profiling.parts import (
    BACKWARD,
    BATCHING,
    CLIPPING,
    LOADING,
    LOSSES,
    MATCHING,
    ORDER,
    POSTPROCESSING,
    READING,
    RESIZING,
    REST,
    STEPPING,
    modules_of,
)
from detrkit.profiling.pictures import dataset_of
from detrkit.profiling.stopwatch import Stopwatch, finished, watched
from detrkit.structures.batch import Batch
from detrkit.utils.console import meter
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec

WARM_UP = 2  # iterations of either kind that are not counted: the first ones compile, allocate and fold
FOUND = 7  # objects per image, as in COCO, for which a model with random weights computes masks


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement.

    Attributes:
        spec: of the model, with the size of the input.
        files: images; batches cycle through them.
        batch: images per iteration.
        device: where to run; None chooses as `detrkit predict` and `detrkit train` do.
        precision: "bf16": autocast.
        repeats: iterations with the stopwatch, and as many without.
        random: whether the weights are random, so that scores have no meaning.
    """

    spec: ModelSpec
    files: Sequence[Path]
    batch: int = 1
    device: torch.device | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    repeats: int = 7
    random: bool = False


@dataclass(frozen=True)
class Measured:
    """Results of a measurement.

    Attributes:
        work: "predicting" or "training".
        parts: name -> seconds in every iteration with the stopwatch, in the order of execution.
        whole: seconds of every iteration without the stopwatch.
        images: images per iteration.
        memory: peak memory in MiB: allocated on a GPU, resident on a CPU.
        device: where the model ran.
        inputs: (height, width) in pixels of the iterations' inputs with the smallest and the largest area.
        found: detected objects or segments per image, on average; None for training.
        workers: number of processes that load images for `beside`.
        beside: images per second with processes that load images, as `detrkit train` uses them on this device; None if
            it uses none there.
    """

    work: Literal["predicting", "training"]
    parts: dict[str, list[float]]
    whole: list[float]
    images: int
    memory: float
    device: torch.device
    inputs: tuple[tuple[int, int], tuple[int, int]]
    found: float | None = None
    workers: int = 0
    beside: float | None = None

    @property
    def medians(self) -> dict[str, float]:
        """Seconds of every part: the median over the iterations."""
        return {name: statistics.median(taken) for name, taken in self.parts.items()}

    @property
    def total(self) -> float:
        """Seconds of all parts together: the median over the iterations."""
        return statistics.median(sum(turn) for turn in zip(*self.parts.values(), strict=True))

    @property
    def median(self) -> float:
        """Seconds of an iteration without the stopwatch: the median."""
        return statistics.median(self.whole)

    @property
    def rate(self) -> float:
        """Images per second over all iterations without the stopwatch: sizes differ, and slow iterations count, too."""
        return self.images * len(self.whole) / sum(self.whole)


@dataclass
class _Turns:
    """Measurements of iterations.

    Attributes:
        device: where the model runs.
        whole: seconds of iterations without the stopwatch.
        watches: stopwatches of the other iterations.
    """

    device: torch.device
    whole: list[float] = field(default_factory=list)
    watches: list[Stopwatch] = field(default_factory=list)

    def without(self, turn: Callable[[], object]) -> None:
        """Time an iteration without the stopwatch, as users run it."""
        began = finished(self.device)
        turn()
        self.whole.append(finished(self.device) - began)

    def parts(self, order: Sequence[str]) -> dict[str, list[float]]:
        """Return seconds in every iteration, for each part that was measured."""
        names = [name for name in order if any(name in watch.seconds for watch in self.watches)]
        return {name: [watch.seconds.get(name, 0.0) for watch in self.watches] for name in names}


def measure(model: nn.Module, setting: Setting, *, training: bool = False) -> Measured:
    """Measure a model on the code path of users: `Detector.predict`, or loader and `engine.Update`.

    Iterations with and without the stopwatch alternate on the same images, so other load on the machine affects both.

    Args:
        model: with its weights; training changes them.
        setting: of the measurement.
        training: measure optimizer steps instead of predictions.

    Raises:
        DetrkitError: images that cannot be read, or a device that is not available or has too little memory.
    """
    try:
        return _training(model, setting) if training else _predicting(model, setting)
    except torch.OutOfMemoryError as error:
        raise DetrkitError(
            f"batch {setting.batch}, size {setting.spec.size}: the device has too little memory; give a smaller "
            "--batch or --size"
        ) from error


def _predicting(model: nn.Module, setting: Setting) -> Measured:
    """Profile prediction, from image files to results."""
    detector = Detector(model, setting.spec, device=setting.device)
    device, turns = detector.device, _Turns(detector.device)
    functions = [
        (detrkit.detector, "as_rgb", READING),
        (detector, "_prepared", RESIZING),
        (detrkit.detector, "postprocess", POSTPROCESSING),
        (detrkit.detector, "panoptic", POSTPROCESSING),
    ]
    threshold = None
    if setting.random and has_masks(model):
        threshold = _threshold(detector, setting.files[0])
    inputs: list[tuple[int, int]] = []
    counts: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: inputs.append(_shape(args[0])))

    def predict(files: list[str | Path]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            results = detector.stream(files, threshold=threshold, batch_size=setting.batch)
            counts.extend(_count(result) for result in results)

    def with_watch(files: list[str | Path]) -> None:
        watch = Stopwatch(device)
        with watched(watch, modules=modules_of(model), functions=functions), watch.part(BATCHING):
            predict(files)
        turns.watches.append(watch)

    try:
        _by_turns(turns, setting, lambda k: _round(setting.files, k, setting.batch), predict, with_watch)
    finally:
        hook.remove()
    return _measured("predicting", turns, setting, inputs, found=statistics.mean(counts))


def _training(model: nn.Module, setting: Setting) -> Measured:
    """Profile a training step, from image files to updated weights, as `engine.Trainer` runs it."""
    kind: Literal["auto", "cpu", "cuda"] = "auto"
    if setting.device is not None:
        if setting.device.type not in ("cpu", "cuda") or setting.device.index is not None:
            raise DetrkitError(f"--device {setting.device}: --train takes cpu or cuda, as `detrkit train` does")
        kind = "cuda" if setting.device.type == "cuda" else "cpu"
    fabric = make_fabric(TrainConfig(run=RunConfig(device=kind, precision=setting.precision)))
    device, turns, config, spec = fabric.device, _Turns(fabric.device), OptimConfig(), setting.spec
    criterion = build_criterion(spec.name, num_classes=spec.num_classes).to(device)
    wrapped, optimizer = fabric.setup(model.train(), build_optimizer(model, config))
    update = Update(
        fabric,
        wrapped,
        optimizer,
        criterion,
        queries=int(model.num_queries),  # type: ignore[arg-type]
        clip_max_norm=config.clip_max_norm,
        spread=StopSignals(world=1).spread,
    )
    workers = default_workers()
    steps = setting.repeats + max(WARM_UP, 2 * workers + 1)
    files = _round(setting.files, 0, setting.batch * steps)
    dataset = dataset_of(files, num_classes=spec.num_classes, masks=has_masks(model))

    def loader(processes: int) -> Loader:
        return make_loader(
            dataset,
            transform=train_transform(spec.size, spec.max_size),
            batch_size=setting.batch,
            training=True,
            workers=processes,
            cache="none",  # real datasets are too large to be cached in memory
            mean=spec.mean,
            std=spec.std,
            device=device,
        )

    functions = [
        (fabric, "backward", BACKWARD),
        (fabric, "clip_gradients", CLIPPING),
        (criterion.matcher, "match", MATCHING),
        (optimizer, "step", STEPPING),
    ]
    inputs: list[tuple[int, int]] = []
    plain, timed = iter(loader(0)), iter(loader(0))  # the same batches

    def step(_: object) -> None:
        update([next(plain)])

    def with_watch(_: object) -> None:
        watch = Stopwatch(device)
        with watch.part(LOADING):
            part = next(timed)
        inputs.append(_shape(part[0]))
        modules = [*modules_of(model), (criterion, LOSSES)]
        with watched(watch, modules=modules, functions=functions), watch.part(REST):
            update([part])
        turns.watches.append(watch)

    try:
        _by_turns(turns, setting, lambda k: k, step, with_watch)
        measured = _measured("training", turns, setting, inputs)
        if workers == 0:
            return measured
        return replace(measured, workers=workers, beside=_beside(update, loader(workers), setting, workers, device))
    except NonFiniteError as error:
        raise DetrkitError(f"{error.what} is not finite: give --precision fp32, or other weights") from error


def _by_turns(
    turns: _Turns,
    setting: Setting,
    given: Callable[[int], Any],
    plain: Callable[[Any], object],
    with_watch: Callable[[Any], object],
) -> None:
    """Run the warm-up, then iterations of both kinds, each on what `given` returns for its number."""
    with meter("bench", WARM_UP + setting.repeats) as bar:
        for k in range(WARM_UP + setting.repeats):
            if k == WARM_UP:
                turns.whole.clear()
                turns.watches.clear()
                reset_peak(turns.device)
            kinds = [lambda k=k: turns.without(lambda: plain(given(k))), lambda k=k: with_watch(given(k))]
            for kind in kinds if k % 2 == 0 else reversed(kinds):  # each kind is first in every other iteration
                kind()
            bar.advance()


def _beside(update: Update, loader: Loader, setting: Setting, workers: int, device: torch.device) -> float:
    """Measure images per second with processes that load ahead, after enough steps to use up the batches in advance."""
    batches = iter(loader)
    for _ in range(2 * workers + 1):
        update([next(batches)])
    began = finished(device)
    for _ in range(setting.repeats):
        update([next(batches)])
    return setting.batch * setting.repeats / (finished(device) - began)


def _measured(
    work: Literal["predicting", "training"], turns: _Turns, setting: Setting, inputs: list[tuple[int, int]], **more: Any
) -> Measured:
    areas = sorted(inputs, key=lambda size: size[0] * size[1])
    return Measured(
        work,
        parts=turns.parts(ORDER[work]),
        whole=turns.whole,
        images=setting.batch,
        memory=peak_mib(turns.device),
        device=turns.device,
        inputs=(areas[0], areas[-1]),
        **more,
    )


@torch.inference_mode()
def _threshold(detector: Detector, file: Path) -> float:
    """Return a score that `FOUND` queries of an image exceed: the time of masks depends on their number."""
    batch = Batch.from_images([detector._prepared(as_rgb(file))]).to(detector.device)
    logits = detector.model(batch, defer_masks=True).logits[0].float()  # (Q, C)
    softmax = architecture(detector.spec.name).activation == "softmax"
    scores = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
    best = scores.amax(-1).sort(descending=True).values  # (Q,)
    return float(best[min(FOUND, len(best) - 1)])


def _count(result: detrkit.detector.Found) -> int:
    return len(result.segments) if hasattr(result, "segments") else len(result.scores)


def _shape(batch: Batch) -> tuple[int, int]:
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


def _round(files: Sequence[Path], turn: int, count: int) -> list[Any]:
    """Return the `count` images of an iteration, cycling through the files."""
    return [files[(turn * count + k) % len(files)] for k in range(count)]
