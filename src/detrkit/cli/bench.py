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

from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.own_files import check_json
from detrkit.utils.ranges import BatchSize, Count, InputSize

if TYPE_CHECKING:
    from torch import nn

    from detrkit.profiling import Measured, Setting
    from detrkit.weights.checkpoint import ModelSpec

EPOCH = 118_287  # images of COCO's train2017
GENERATED = 8  # images, or as many as a batch has
SHAPE = (427, 640)  # of generated images, in pixels, unless --size is given; 800 x 1199 as input of a published model


@dataclass(frozen=True)
class Bench:
    """Measure where the time of prediction or training goes on this machine. Nothing is downloaded.

    Runs what `detrkit predict` or, with --train, `detrkit train` runs on a batch, with a stopwatch on its parts and
    without. Prints a table of the parts, images per second and peak memory. The time of a part is the median over the
    repeats; rate and memory are measured without the stopwatch.

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
    device: str | None = None
    """Such as cpu, cuda or cuda:1 (with --train: cpu or cuda); by default an accelerator if there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast."""
    train: bool = False
    """Measure training steps: random objects on the images, published augmentation, losses and optimizer."""
    images: Path | None = None
    """Folder of images; by default generated ones, as large as COCO's."""
    repeats: Count = 7
    """Repeats with the stopwatch, and as many without."""
    json: Path | None = None
    """Also write all figures to this file; it replaces an earlier one, no other file."""

    def run(self) -> int:
        """Measure and print."""
        self._check()
        from detrkit.detector import as_device, image_files
        from detrkit.profiling import Setting, machine, measure

        device = None if self.device is None else as_device(self.device)
        model, spec = self._model()
        with tempfile.TemporaryDirectory(prefix="detrkit-bench-") as folder:
            if self.images is None:
                from detrkit.profiling.pictures import write_pictures

                files = write_pictures(Path(folder), max(GENERATED, self.batch), self.size or SHAPE)
            else:
                files = image_files(self.images)
            setting = Setting(spec, files, self.batch, device, self.precision, self.repeats, self._random)
            pictures = f"{len(files)} {'generated' if self.images is None else 'given'} pictures"
            size = statistics.mean(file.stat().st_size for file in files) / 1000
            measured = measure(model, setting, training=self.train)
        where = machine(measured.device)
        weights = "random weights" if self._random else "its weights"
        console.print(f"{spec.name}, {weights}; {pictures} of {size:.0f} kB on average")
        console.print(", ".join(f"{name} {value}" for name, value in where.items()) + f", {self.precision}")
        console.print(_table(measured))
        for line in _lines(measured):
            console.print(line)
        if self.json is not None:
            write_atomic(self.json, json.dumps(self._record(measured, setting, where), indent=1) + "\n")
            console.print(f"figures: {self.json}")
        return 0

    @property
    def _random(self) -> bool:
        from detrkit.models.registry import ARCHITECTURES

        return self.model in ARCHITECTURES and not self.published

    def _check(self) -> None:
        """Check the options before anything takes time.

        Raises:
            DetrkitError: sides in the wrong order, or a missing path.
        """
        if self.size is not None and self.size[0] > self.size[1]:
            raise DetrkitError(f"--size {self.size[0]} {self.size[1]}: first the short side")
        if self.images is not None and not self.images.is_dir():
            raise DetrkitError(f"--images {self.images}: no such folder")
        if self.json is not None and not self.json.parent.is_dir():
            raise DetrkitError(f"--json {self.json}: there is no folder {self.json.parent}")
        if self.json is not None:
            check_json(self.json, ("work", "machine", "parts, s"))

    def _model(self) -> tuple[nn.Module, ModelSpec]:
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
            spec = replace(spec, size=self.size[0], max_size=self.size[1])
        return model, spec

    def _record(self, measured: Measured, setting: Setting, where: dict[str, str | int]) -> dict[str, Any]:
        """Return all figures as plain values; seconds, MiB, pixels."""
        return {
            "model": setting.spec.name,
            "weights": "random" if self._random else "trained",
            "work": measured.work,
            "machine": where,
            "precision": self.precision,
            "batch": self.batch,
            "smallest input": measured.inputs[0],
            "largest input": measured.inputs[1],
            "turns": len(measured.whole),
            "parts, s": measured.medians,
            "parts together, s": measured.total,
            "whole without the stopwatch, s": measured.median,
            "images a second": measured.rate,
            "images a second beside loading processes": measured.beside,
            "loading processes": measured.workers,
            "peak memory, MiB": measured.memory,
            "found in a picture": measured.found,
        }


def _table(measured: Measured) -> Table:
    """Make the table of the parts, in the order in which they happen, and the whole."""
    smallest, largest = (f"{h} x {w}" for h, w in measured.inputs)
    inputs = largest if smallest == largest else f"{smallest} to {largest}"
    plural = "s" if measured.images > 1 else ""
    title = f"{measured.work} {measured.images} picture{plural} of {inputs} pixels"
    table = Table(title=title, title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("median, ms", justify="right")
    table.add_column("share, %", justify="right")
    for name, seconds in measured.medians.items():
        table.add_row(name, f"{1000 * seconds:.1f}", f"{100 * seconds / measured.total:.1f}")
    table.add_section()
    table.add_row("parts together", f"{1000 * measured.total:.1f}", "100.0")
    table.add_row("whole, without stopwatch", f"{1000 * measured.median:.1f}", "")
    return table


def _lines(measured: Measured) -> list[str]:
    """Return the lines below the table."""
    share = 100 * measured.total / measured.median
    kind = "allocated" if measured.device.type == "cuda" else "resident"
    lines = [
        f"the parts are {share:.1f} % of the whole; the stopwatch waits for each of them",
        f"images a second: {measured.rate:.2f}; most memory: {measured.memory:.0f} MiB {kind}",
    ]
    if measured.found is not None:
        lines.append(f"found in a picture: {measured.found:.1f}, on average")
        return lines
    rate = measured.rate
    if measured.beside is not None:
        rate = measured.beside
        lines.append(f"with {measured.workers} processes that load, as `detrkit train` has: {rate:.2f} images a second")
    return [*lines, f"an epoch of {EPOCH:,} images would take {_duration(EPOCH / rate)}"]


def _duration(seconds: float) -> str:
    """Format a duration, such as 17 h 3 min."""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
