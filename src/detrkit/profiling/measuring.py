"""Turns of predicting or training with and without a stopwatch: the parts, and the whole that they should add up to."""

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

WARM_UP = 2  # turns of either kind that are not counted: the first ones compile, allocate and fold
FOUND = 7  # objects a picture, as COCO's, of which random weights give masks


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        spec: of the model, with the size of the input.
        files: pictures; batches go round them.
        batch: pictures a turn.
        device: where; None as `detrkit predict` and `detrkit train` choose.
        precision: "bf16": autocast.
        repeats: turns with the stopwatch, and as many without.
        random: whether the weights are, so that no score means anything.
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
    """What was measured.

    Attributes:
        work: "predicting" or "training".
        parts: name -> seconds in every turn with the stopwatch, in the order in which they happen.
        whole: seconds of every turn without it.
        images: a turn.
        memory: the most memory in use, MiB: allocated on a GPU, resident on a CPU.
        device: where.
        inputs: (height, width) in pixels of the largest input of a turn, smallest and largest area.
        found: objects or segments found in a picture, on average; None of training.
        workers: processes that load images in `beside`.
        beside: images a second with loading processes beside the rest, as `detrkit train` does it on this device; None
            if it uses none there.
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
        """Seconds of every part."""
        return {name: statistics.median(taken) for name, taken in self.parts.items()}

    @property
    def total(self) -> float:
        """Seconds of all parts together: the median over the turns."""
        return statistics.median(sum(turn) for turn in zip(*self.parts.values(), strict=True))

    @property
    def median(self) -> float:
        """Seconds of a turn without the stopwatch."""
        return statistics.median(self.whole)

    @property
    def rate(self) -> float:
        """Images a second over all turns without the stopwatch: sizes differ, and the slow ones count, too."""
        return self.images * len(self.whole) / sum(self.whole)


@dataclass
class _Turns:
    """Collects turns.

    Attributes:
        device: where work is done.
        whole: seconds of turns without the stopwatch.
        parts: part -> seconds, of turns with it.
    """

    device: torch.device
    whole: list[float] = field(default_factory=list)
    watches: list[Stopwatch] = field(default_factory=list)

    def without(self, turn: Callable[[], object]) -> None:
        """A turn as users have it."""
        began = finished(self.device)
        turn()
        self.whole.append(finished(self.device) - began)

    def parts(self, order: Sequence[str]) -> dict[str, list[float]]:
        """Seconds in every turn, of the parts that there were."""
        there = [name for name in order if any(name in watch.seconds for watch in self.watches)]
        return {name: [watch.seconds.get(name, 0.0) for watch in self.watches] for name in there}


def measure(model: nn.Module, setting: Setting, *, training: bool = False) -> Measured:
    """Measures a model on the path that users take: `Detector.predict`, or loader and `engine.Update`.

    Each turn with the stopwatch is beside one without it on the same pictures, so a busy moment falls on both.

    Args:
        model: with its weights; training changes them.
        setting: what to measure.
        training: steps of the optimiser instead of predictions.

    Raises:
        DetrkitError: pictures that cannot be read, a device that is not there or has too little memory.
    """
    try:
        return _training(model, setting) if training else _predicting(model, setting)
    except torch.OutOfMemoryError as error:
        raise DetrkitError(
            f"batch {setting.batch}, size {setting.spec.size}: the device has too little memory; give a smaller "
            "--batch or --size"
        ) from error


def _predicting(model: nn.Module, setting: Setting) -> Measured:
    """Pictures in files to what is found in them."""
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
    found: list[int] = []
    size = model.register_forward_pre_hook(lambda _, args: inputs.append(_shape(args[0])))

    def predict(files: list[str | Path]) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
            results = detector.stream(files, threshold=threshold, batch_size=setting.batch)
            found.extend(_count(result) for result in results)

    def with_watch(files: list[str | Path]) -> None:
        watch = Stopwatch(device)
        with watched(watch, modules=modules_of(model), functions=functions), watch.part(BATCHING):
            predict(files)
        turns.watches.append(watch)

    try:
        _by_turns(turns, setting, lambda k: _round(setting.files, k, setting.batch), predict, with_watch)
    finally:
        size.remove()
    return _measured("predicting", turns, setting, inputs, found=statistics.mean(found))


def _training(model: nn.Module, setting: Setting) -> Measured:
    """Pictures in files to the next weights, as `engine.Trainer` goes about it."""
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
            cache="none",  # no real dataset is so small that it is kept in memory
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
    """Warm-up, then turns of both kinds on what `given` gives for each."""
    with meter("bench", WARM_UP + setting.repeats) as bar:
        for k in range(WARM_UP + setting.repeats):
            if k == WARM_UP:
                turns.whole.clear()
                turns.watches.clear()
                reset_peak(turns.device)
            kinds = [lambda k=k: turns.without(lambda: plain(given(k))), lambda k=k: with_watch(given(k))]
            for kind in kinds if k % 2 == 0 else reversed(kinds):  # neither always comes first
                kind()
            bar.advance()


def _beside(update: Update, loader: Loader, setting: Setting, workers: int, device: torch.device) -> float:
    """Images a second with processes that load ahead; before, so many steps that none is left of what was ready."""
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
    """A score that `FOUND` queries of a picture exceed: masks take time for each that is found."""
    batch = Batch.from_images([detector._prepared(as_rgb(file))]).to(detector.device)
    logits = detector.model(batch, defer_masks=True).logits[0].float()  # (Q, C)
    softmax = architecture(detector.spec.name).scores == "softmax"
    scores = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
    best = scores.amax(-1).sort(descending=True).values  # (Q,)
    return float(best[min(FOUND, len(best) - 1)])


def _count(result: detrkit.detector.Found) -> int:
    return len(result.segments) if hasattr(result, "segments") else len(result.scores)


def _shape(batch: Batch) -> tuple[int, int]:
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


def _round(files: Sequence[Path], turn: int, count: int) -> list[Any]:
    """The pictures of a turn: `count` of them, going round and round."""
    return [files[(turn * count + k) % len(files)] for k in range(count)]
