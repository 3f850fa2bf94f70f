"""`detrkit bench`."""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.table import Table

from detrkit.cli.preflight import check_weights
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import DetrkitError
from detrkit.utils.overwriting import check_json
from detrkit.utils.ranges import BatchSize, Count, InputSize

if TYPE_CHECKING:
    from detrkit.models.base import DetectionModel
    from detrkit.profiling import ProfileConfig, ProfileResult
    from detrkit.profiling.floor import Floor
    from detrkit.weights.checkpoint import ModelSpec

COCO_TRAIN_IMAGES = 118_287  # of train2017
GENERATED_IMAGES = 8  # or as many as a batch has
GENERATED_SIZE = (
    427,
    640,
)  # of generated images, in pixels, unless --size is given; 800 x 1199 as input of a published model


@dataclass(frozen=True)
class Bench:
    """Measure where the time of prediction or training goes on this machine. Nothing is downloaded.

    Runs what `detrkit predict` or, with --train, `detrkit train` runs on a batch, with a timer on its parts and
    without. Prints a table of the parts, images per second and peak memory. The time of a part is the median over the
    repeats; rate and memory are measured without the timer.

    Such as:

    detrkit bench

    detrkit bench deformable-detr-r50 --size 640 853 --batch 4

    detrkit bench detr-r50 --train --batch 2 --precision bf16

    detrkit bench runs/first --images photos --json bench.json
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = "detr-r50"
    """One of `detrkit models`, with random weights; or a checkpoint or a run's folder."""
    published: bool = False
    """Use the published weights of the model, which are downloaded once."""
    size: Annotated[tuple[InputSize, InputSize] | None, tyro.conf.arg(metavar="SHORT LONG")] = None
    """Short side of the input and its longest side at most, in pixels; generated images fill it. By default the
    model's own: 800 1333 as published, which a generated image of 640 x 427 pixels fills to 800 x 1199. Training draws
    from 0.6 to 1 times it, as published."""
    batch: BatchSize = 1
    """Images per batch."""
    device: DeviceName | None = None
    """cpu, cuda, cuda:1, mps, ... or the number of a GPU; by default a GPU if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights in bfloat16, with --train autocast; float32 where the device has no instructions for it."""
    train: bool = False
    """Measure training steps: random objects on the images, published augmentation, losses and optimizer."""
    images: Path | None = None
    """Folder of images; by default generated ones, as large as COCO's."""
    repeats: Count = 7
    """Repeats with the timer, and as many without."""
    json: Path | None = None
    """Also write all figures to this file; it replaces an earlier one, no other file."""

    def run(self) -> int:
        """Measure and print."""
        from detrkit.data.images import image_files
        from detrkit.detector import as_device
        from detrkit.profiling import ProfileConfig, machine, profile_model

        device = None if self.device is None else as_device(self.device)
        model, spec = self._model()
        with tempfile.TemporaryDirectory(prefix="detrkit-bench-") as folder:
            if self.images is None:
                from detrkit.profiling.generated_images import write_images

                files = write_images(Path(folder), max(GENERATED_IMAGES, self.batch), self.size or GENERATED_SIZE)
            else:
                files = image_files(self.images)
            config = ProfileConfig(
                spec=spec,
                files=files,
                batch_size=self.batch,
                device=device,
                precision=self.precision,
                repeats=self.repeats,
                random_weights=self._random,
            )
            images = f"{len(files)} {'generated' if self.images is None else 'given'} images"
            size = statistics.mean(file.stat().st_size for file in files) / 1000
            result = profile_model(model, config, training=self.train)
        where = machine(result.device)
        weights = "random weights" if self._random else "its weights"
        console.print(f"{spec.name}, {weights}; {images} of {size:.0f} kB on average")
        console.print(", ".join(f"{name} {value}" for name, value in where.items()) + f", {result.precision}")
        console.print(_table(result))
        for line in _lines(result):
            console.print(line)
        if self.json is not None:
            write_atomic(self.json, json.dumps(self._record(result, config, where), indent=1) + "\n")
            console.print(f"figures: {self.json}")
        return 0

    @property
    def _random(self) -> bool:
        from detrkit.models.registry import ARCHITECTURES

        return self.model in ARCHITECTURES and not self.published

    def check(self) -> None:
        """Check the options before anything takes time.

        Raises:
            DetrkitError: sides in the wrong order, or a missing path.
        """
        check_weights(self.model)
        if self.size is not None and self.size[0] > self.size[1]:
            raise DetrkitError(f"--size {self.size[0]} {self.size[1]}: first the short side")
        if self.images is not None and not self.images.is_dir():
            raise DetrkitError(f"--images {self.images}: no such folder")
        if self.json is not None and not self.json.parent.is_dir():
            raise DetrkitError(f"--json {self.json}: there is no folder {self.json.parent}")
        if self.json is not None:
            check_json(self.json, ("work", "machine", "parts, s"))

    def _model(self) -> tuple[DetectionModel, ModelSpec]:
        """Return the model and its spec, with the size that was asked for.

        Raises:
            DetrkitError: weights that are missing, damaged or unknown; a model without published weights.
        """
        import torch

        from detrkit.weights.build import build_model
        from detrkit.weights.checkpoint import load_any, published_spec

        if self._random:
            torch.manual_seed(0)
            model, spec = build_model(self.model), published_spec(self.model)
        else:
            model, spec = load_any(self.model)
        if self.size is not None:
            spec = replace(spec, size=self.size[0], max_size=None if spec.square else self.size[1])
        return model, spec

    def _record(self, result: ProfileResult, config: ProfileConfig, where: dict[str, str | int]) -> dict[str, Any]:
        """Return all figures as plain values; seconds, MiB, pixels."""
        return {
            "model": config.spec.name,
            "weights": "random" if self._random else "trained",
            "work": result.work,
            "machine": where,
            "precision": result.precision,
            "batch": self.batch,
            "smallest input": result.input_sizes[0],
            "largest input": result.input_sizes[1],
            "turns": len(result.totals),
            "parts, s": result.medians,
            "parts together, s": result.parts_together,
            "whole without the stopwatch, s": result.total,
            "images a second": result.rate,
            "images a second beside loading processes": result.rate_with_workers,
            "loading processes": result.workers,
            "peak memory, MiB": result.memory,
            "found in a picture": result.objects_per_image,
            **_floor_record(result.floor),
        }


def _floor_record(floor: Floor | None) -> dict[str, float]:
    if floor is None:
        return {}
    return {
        "operations": floor.operations,
        "operations a second of the best matrix product": floor.rate,
        "floor, s": floor.seconds,
        "the model, s": floor.model_seconds,
        "share of the floor": floor.share,
    }


def _table(result: ProfileResult) -> Table:
    """Make the table of the parts, in the order in which they happen, and of all together."""
    smallest, largest = (f"{h} x {w}" for h, w in result.input_sizes)
    inputs = largest if smallest == largest else f"{smallest} to {largest}"
    plural = "s" if result.batch_size > 1 else ""
    title = f"{result.work} {result.batch_size} image{plural} of {inputs} pixels"
    table = Table(title=title, title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("median, ms", justify="right")
    table.add_column("share, %", justify="right")
    for name, seconds in result.medians.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{100 * seconds / result.parts_together:.1f}")
    table.add_section()
    table.add_row("parts together", f"{1000 * result.parts_together:.1f}", "100.0")
    table.add_row("iteration without timer", f"{1000 * result.total:.1f}", "")
    return table


def _lines(result: ProfileResult) -> list[str]:
    """Return the lines below the table."""
    share = 100 * result.parts_together / result.total
    kind = "allocated" if result.device.type == "cuda" else "resident"
    lines = [
        f"the parts are {share:.1f} % of an iteration without the timer, which waits for each of them",
        f"images a second: {result.rate:.2f}; most memory: {result.memory:.0f} MiB {kind}",
    ]
    if result.floor is not None:
        lines += _floor_lines(result.floor)
    if result.objects_per_image is not None:
        lines.append(f"found in an image: {result.objects_per_image:.1f}, on average")
        return lines
    rate = result.rate
    if result.rate_with_workers is not None:
        rate = result.rate_with_workers
        lines.append(f"with {result.workers} processes that load, as `detrkit train` has: {rate:.2f} images a second")
    return [*lines, f"an epoch of {COCO_TRAIN_IMAGES:,} images would take {_duration(COCO_TRAIN_IMAGES / rate)}"]


def _floor_lines(floor: Floor) -> list[str]:
    """Say how near the model comes to the best that this device does."""
    product = f"the best matrix product here does {floor.rate / 1e9:,.0f} billion operations a second"
    least = f"the model's {floor.operations / 1e9:,.1f} billion take {1000 * floor.seconds:,.1f} ms at least"
    return [
        f"{product}: {least}",
        f"it took {1000 * floor.model_seconds:,.1f} ms, so it reaches {100 * floor.share:.0f} % of that rate",
    ]


def _duration(seconds: float) -> str:
    """Format a duration, such as 17 h 3 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
