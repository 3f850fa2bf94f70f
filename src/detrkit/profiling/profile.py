"""Iterations of prediction or training with and without a timer: time of the parts, and of all together."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from detrkit.config import OptimConfig, RunConfig, TrainConfig
from detrkit.data import make_loader, train_transform
from detrkit.data.loader import Loader, default_workers
from detrkit.detector import Detector, has_masks
from detrkit.engine.memory import peak_mib, reset_peak
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.setup import make_fabric
from detrkit.engine.train_step import TrainStep
from detrkit.models.base import DetectionModel
from detrkit.models.criterion import build_criterion
from detrkit.models.matcher import HungarianMatcher, Matches, NonFiniteError
from detrkit.models.precision import usable_precision
from detrkit.profiling.floor import Floor, RateMeter, count_operations
from detrkit.profiling.generated_images import generated_dataset
from detrkit.profiling.parts import BATCHING, LOADING, MATCHING, MODEL_PARTS, ORDER, REST, modules_of
from detrkit.profiling.result import ProfileConfig, ProfileResult
from detrkit.profiling.timer import Timer, finished, instrument
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.console import progress_bar
from detrkit.utils.devices import default_device
from detrkit.utils.errors import DetrkitError
from detrkit.utils.timing import NoTimer, PartTimer

WARM_UP = 2  # iterations of either kind that are not counted: the first ones compile, allocate and fold
OBJECTS_PER_IMAGE = 7  # as in COCO, for which a model with random weights computes masks


@dataclass
class _Iterations:
    """Measurements of iterations.

    Attributes:
        device: where the model runs.
        totals: seconds of iterations without the timer.
        timers: timers of the other iterations.
        input_sizes: (height, width) in pixels of the batches.
        operations: of the model in the iterations with the timer, counted in iterations of their own.
        meter: of the rate of matrix products, between the iterations.
    """

    device: torch.device
    totals: list[float] = field(default_factory=list)
    timers: list[Timer] = field(default_factory=list)
    input_sizes: list[tuple[int, int]] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    meter: RateMeter | None = None

    def measure_total(self, iteration: Callable[[], object]) -> None:
        """Time an iteration without the timer, as users run it."""
        began = finished(self.device)
        iteration()
        self.totals.append(finished(self.device) - began)

    def result(
        self, work: Literal["predicting", "training"], config: ProfileConfig, *, objects: float | None = None
    ) -> ProfileResult:
        """Return what was measured, with the mean number of objects of an image."""
        names = [name for name in ORDER[work] if any(name in timer.seconds for timer in self.timers)]
        by_area = sorted(self.input_sizes, key=lambda size: size[0] * size[1])
        return ProfileResult(
            work=work,
            parts={name: [timer.seconds.get(name, 0.0) for timer in self.timers] for name in names},
            totals=self.totals,
            batch_size=config.batch_size,
            memory=peak_mib(self.device),
            device=self.device,
            input_sizes=(by_area[0], by_area[-1]),
            objects_per_image=objects,
            floor=self._floor(),
            precision=config.precision,
        )

    def _floor(self) -> Floor | None:
        """Return the floor of the median iteration with the timer, or None where nothing was counted."""
        if not self.operations or self.meter is None:
            return None
        seconds = [sum(timer.seconds.get(part, 0.0) for part in MODEL_PARTS) for timer in self.timers]
        return Floor(statistics.mean(self.operations), self.meter.rate, statistics.median(seconds))


class _TimedMatcher(HungarianMatcher):
    """The matcher of a criterion, whose time is a part of its own: the criterion itself has no timer."""

    def __init__(self, matcher: HungarianMatcher, timer: Timer) -> None:
        self.matcher, self.timer = matcher, timer

    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target], *, warn: bool = True) -> Matches:
        """Match as the matcher does."""
        with self.timer.part(MATCHING):
            return self.matcher.match(logits, boxes, targets, warn=warn)


@contextmanager
def _timing(target: Detector | TrainStep, timer: PartTimer) -> Iterator[None]:
    """Set the timer of a detector or a training step, and take it off at the end."""
    target.timer = timer
    try:
        yield
    finally:
        target.timer = NoTimer()


def profile_model(model: DetectionModel, config: ProfileConfig, *, training: bool = False) -> ProfileResult:
    """Measure a model on the code path of users: `Detector.predict`, or loader and `engine.TrainStep`.

    Iterations with and without the timer alternate on the same images, so other load on the machine affects both.

    Args:
        model: with its weights; training changes them.
        config: of the measurement.
        training: measure optimizer steps instead of predictions.

    Raises:
        DetrkitError: images that cannot be read, or a device that is not available or has too little memory.
    """
    device = default_device() if config.device is None else config.device
    config = replace(config, precision=usable_precision(config.precision, device))
    try:
        return _profile_training(model, config) if training else _profile_prediction(model, config)
    except torch.OutOfMemoryError as error:
        raise DetrkitError(
            f"batch {config.batch_size}, size {config.spec.size}: the device has too little memory; give a smaller "
            "--batch or --size"
        ) from error


def _profile_prediction(model: DetectionModel, config: ProfileConfig) -> ProfileResult:
    """Profile prediction, from image files to results."""
    detector = Detector(model, config.spec, device=config.device).in_precision(config.precision)
    model = detector.model
    device, iterations = detector.device, _Iterations(detector.device)
    threshold = None
    if config.random_weights and has_masks(model):
        threshold = _threshold(detector, config.files[0])
    counts: list[int] = []
    hook = model.register_forward_pre_hook(lambda _, args: iterations.input_sizes.append(_input_size(args[0])))

    def predict(files: list[Path]) -> None:
        results = detector.stream(files, threshold=threshold, batch_size=config.batch_size)
        counts.extend(len(result) for result in results)

    files_of: dict[tuple[int, int], list[Path]] = {}  # by input size, of which the operations follow
    sizes: list[tuple[int, int]] = []  # of the iterations with the timer

    def predict_timed(files: list[Path]) -> None:
        timer = Timer(device)
        with _timing(detector, timer), instrument(timer, modules_of(model)), timer.part(BATCHING):
            predict(files)
        iterations.timers.append(timer)
        sizes.append(iterations.input_sizes[-1])
        files_of.setdefault(sizes[-1], files)

    try:
        _alternate(iterations, config, lambda k: _cycled(config.files, k, config.batch_size), predict, predict_timed)
        found = list(counts)
        counted = {size: count_operations(partial(predict, files)) for size, files in files_of.items()}
        iterations.operations = [counted[size] for size in sizes[WARM_UP:]]
    finally:
        hook.remove()
    return iterations.result("predicting", config, objects=statistics.mean(found))


def _profile_training(model: DetectionModel, config: ProfileConfig) -> ProfileResult:
    """Profile a full training step, including data loading, as `engine.Trainer` runs it."""
    train_step = _train_step(model, config)
    device = train_step.fabric.device
    iterations, workers = _Iterations(device), default_workers()
    # the same batches
    batches, timed_batches = (iter(_loader(model, config, 0, device)) for _ in range(2))

    def step(_: object) -> None:
        train_step([next(batches)])

    def step_timed(_: object) -> None:
        timer = Timer(device)
        with timer.part(LOADING):
            batch, targets = next(timed_batches)
        iterations.input_sizes.append(_input_size(batch))
        criterion = train_step.criterion
        matcher = criterion.matcher
        criterion.matcher = _TimedMatcher(matcher, timer)
        try:
            with _timing(train_step, timer), instrument(timer, modules_of(model)), timer.part(REST):
                train_step([(batch, targets)])
        finally:
            criterion.matcher = matcher
        iterations.timers.append(timer)

    try:
        _alternate(iterations, config, lambda k: k, step, step_timed)
        again = islice(_loader(model, config, 0, device), WARM_UP, WARM_UP + config.repeats)
        iterations.operations = [count_operations(partial(train_step, [batch])) for batch in again]
        result = iterations.result("training", config)
        if workers == 0:
            return result
        rate = _rate_with_workers(train_step, _loader(model, config, workers, device), config, workers)
        return replace(result, workers=workers, rate_with_workers=rate)
    except NonFiniteError as error:
        raise DetrkitError(f"{error.what} is not finite: give --precision fp32, or other weights") from error


def _train_step(model: DetectionModel, config: ProfileConfig) -> TrainStep:
    """Make the training step of a model with its criterion and optimizer.

    Raises:
        DetrkitError: a device that training does not take, or that is not available.
    """
    kind = "auto" if config.device is None else str(config.device)
    fabric = make_fabric(TrainConfig(run=RunConfig(device=kind, precision=config.precision)))
    optim, spec = OptimConfig(), config.spec
    criterion = build_criterion(spec.name, num_classes=spec.num_classes).to(fabric.device)
    wrapped, optimizer = fabric.setup(model.train(), build_optimizer(model, optim))
    return TrainStep(
        fabric,
        wrapped,
        optimizer,
        criterion,
        queries=model.num_queries,
        clip_max_norm=optim.clip_max_norm,
        all_reduce_mean=StopSignals(world=1).all_reduce_mean,
    )


def _loader(model: DetectionModel, config: ProfileConfig, workers: int, device: torch.device) -> Loader:
    """Make a loader of enough batches for the warm-up and all repeats, with so many processes that load."""
    spec = config.spec
    steps = config.repeats + max(WARM_UP, 2 * default_workers() + 1)
    files = _cycled(config.files, 0, config.batch_size * steps)
    return make_loader(
        generated_dataset(files, num_classes=spec.num_classes, masks=has_masks(model)),
        transform=train_transform(spec.size, spec.max_size, square=spec.square),
        batch_size=config.batch_size,
        training=True,
        workers=workers,
        cache="none",  # real datasets are too large to be cached in memory
        mean=spec.mean,
        std=spec.std,
        device=device,
    )


def _alternate(
    iterations: _Iterations,
    config: ProfileConfig,
    data_of: Callable[[int], Any],
    plain: Callable[[Any], object],
    timed: Callable[[Any], object],
) -> None:
    """Run the warm-up, then iterations of both kinds, each on what `data_of` returns for its number."""
    with progress_bar("bench", WARM_UP + config.repeats) as bar:
        for k in range(WARM_UP + config.repeats):
            if k == WARM_UP:
                iterations.totals.clear()
                iterations.timers.clear()
                reset_peak(iterations.device)
                precision = torch.bfloat16 if config.precision == "bf16" else torch.float32
                iterations.meter = RateMeter(iterations.device, precision)
            kinds = [lambda k=k: iterations.measure_total(lambda: plain(data_of(k))), lambda k=k: timed(data_of(k))]
            for kind in kinds if k % 2 == 0 else reversed(kinds):  # each kind is first in every other iteration
                kind()
            if iterations.meter is not None:
                iterations.meter.measure()
            bar.advance()


def _rate_with_workers(train_step: TrainStep, loader: Loader, config: ProfileConfig, workers: int) -> float:
    """Measure images per second with processes that load ahead, after enough steps to use up the batches in advance."""
    batches, device = iter(loader), train_step.fabric.device
    for _ in range(2 * workers + 1):
        train_step([next(batches)])
    began = finished(device)
    for _ in range(config.repeats):
        train_step([next(batches)])
    return config.batch_size * config.repeats / (finished(device) - began)


def _threshold(detector: Detector, file: Path) -> float:
    """Return a score that `OBJECTS_PER_IMAGE` queries of an image exceed: the time of masks depends on their number."""
    logits = detector.outputs([file]).outputs.logits[0].float()  # (Q, C)
    softmax = detector.postprocessor.activation == "softmax"
    scores = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
    best = scores.amax(-1).sort(descending=True).values  # (Q,)
    return float(best[min(OBJECTS_PER_IMAGE, len(best) - 1)])


def _input_size(batch: Batch) -> tuple[int, int]:
    """Return the (height, width) in pixels of a padded batch."""
    return int(batch.images.shape[-2]), int(batch.images.shape[-1])


def _cycled(files: Sequence[Path], iteration: int, count: int) -> list[Path]:
    """Return the `count` images of an iteration, cycling through the files."""
    return [files[(iteration * count + k) % len(files)] for k in range(count)]
