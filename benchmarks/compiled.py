"""What `--compile` gains and costs: passes compiled by `torch.compile` beside plain ones, predicting and training.

    python benchmarks/compiled.py                       all cases, one after the other
    python benchmarks/compiled.py --only quickstart

Each case runs through `detrkit.models.compiled.CompiledForward`, as predict, serve and train do, until it has chosen. A
training case is forward, losses, backward and step. "compile, s" is the first compiled pass with an empty cache, and
"again, s" that of the next process, which finds the graphs on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning_fabric import Fabric

from detrkit.config import OptimConfig, load_config
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.train_step import TrainStep
from detrkit.models.compiled import CACHE, PASSES, SEEN, CompiledForward
from detrkit.models.criterion import build_criterion
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from side_by_side import DEVICE, Report, add_options

# name: model, or recipe of training; images, height, width
CASES: dict[str, tuple[str, int, int, int]] = {
    "rtdetrv2-r18": ("rtdetrv2-r18", 1, 640, 640),
    "rtdetrv2-r18, batch": ("rtdetrv2-r18", 8, 640, 640),
    "detr-r50": ("detr-r50", 1, 800, 1199),
    "deformable-detr-r50": ("deformable-detr-r50", 1, 800, 1199),
    "quickstart": ("quickstart", 8, 96, 96),
    "quickstart, predicting": ("quickstart", 8, 96, 96),
}
TRAINED = {"quickstart"}
OBJECTS, CLASSES = 4, 6


def batch_of(count: int, height: int, width: int) -> tuple[Batch, list[Target]]:
    """Random images and objects."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(3, height, width, generator=generator) for _ in range(count)]
    boxes = [torch.rand(OBJECTS, 4, generator=generator) * 0.4 + 0.2 for _ in range(count)]
    return Batch.from_images(images).to(DEVICE), [Target(torch.arange(OBJECTS), b).to(DEVICE) for b in boxes]


def model_of(name: str) -> Any:
    """The model, or that of a recipe."""
    torch.manual_seed(0)
    if name != "quickstart":
        return build_model(name).to(DEVICE)
    config = load_config(name).model
    return build_model(config.name, num_classes=CLASSES, **config.overrides()).to(DEVICE)


def run_of(name: str) -> tuple[CompiledForward, Callable[[], Any]]:
    """A case: the forward pass that chooses, and a turn of it."""
    kind, *sizes = CASES[name]
    model = model_of(kind)
    batch, targets = batch_of(*sizes)
    forward = CompiledForward(model, training=name in TRAINED)
    if name not in TRAINED:
        model.eval()
        return forward, torch.inference_mode()(lambda: forward(batch, defer_masks=True))
    model.train().forward = forward
    fabric, config = Fabric(accelerator=DEVICE.type, devices=1), OptimConfig(lr=1e-3, lr_backbone=1e-3)
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, config))
    step = TrainStep(
        fabric,
        wrapped,
        optimizer,
        build_criterion("deformable-detr-r50-two-stage", num_classes=CLASSES).to(DEVICE),
        queries=model.num_queries,
        clip_max_norm=config.clip_max_norm,
        all_reduce_mean=StopSignals(world=1).all_reduce_mean,
        compiled=forward,
    )
    return forward, lambda: step([(batch, targets)])


def measure(name: str) -> dict[str, float]:
    """Run a case until a way is chosen: the seconds of the first compiled pass, and the medians."""
    forward, run = run_of(name)
    first = 0.0
    for number in range(PASSES):
        began = time.perf_counter()
        run()
        if number == SEEN:
            first = time.perf_counter() - began
    (trial,) = forward.trials.values()
    if trial.gain is None:
        raise SystemExit("; ".join(forward.report()))
    seconds = {way: sorted(times)[len(times) // 2] for way, times in trial.seconds.items()}
    return {"first": first, "gain": trial.gain, **seconds}


def measured(name: str, cache: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, *sys.argv, "--case", name]
    environment = os.environ | {CACHE: cache}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="these cases")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    add_options(parser, repeats=1)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.case)))
        return
    report = Report("torch.compile, passes in turns")
    for name in args.only:
        _, count, height, width = CASES[name]
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = measured(name, cache), measured(name, cache)
        report.add(
            **{
                "model": name.split(",")[0],
                "pass": "training step" if name in TRAINED else "prediction",
                "input": f"{count} x {height} x {width}",
                "plain, ms": 1000 * warm["plain"],
                "compiled, ms": 1000 * warm["compiled"],
                "times as fast": warm["gain"],
                "compile, s": cold["first"],
                "again, s": warm["first"],
            }
        )
    report.write(args.json)


if __name__ == "__main__":
    main()
