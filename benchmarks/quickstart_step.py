"""Times a training step of the quickstart's recipe beside that of an earlier version, each with its own images.

    git worktree add ../before 8b6dd0f && python benchmarks/quickstart_step.py --before ../before/src --avx2

Forward, losses, backward and AdamW of a batch, as the engine does them, without loading. The images are noise of the
sizes that the recipe makes of its generated ones. Each version runs in a process of its own; they take turns of twenty
steps.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric

from detrkit.config import OptimConfig, load_config
from detrkit.data.tools.shapes import ShapesOptions
from detrkit.engine import quickstart
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.train_step import TrainStep
from detrkit.models.criterion import build_criterion
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model

BATCHES, ROUNDS, OBJECTS, CLASSES = 4, 5, 4, 6


def steps() -> Callable[[], None]:
    """Steps of the version of detrkit that is imported."""
    from detrkit.config import DataConfig

    config, random = load_config("quickstart"), torch.Generator().manual_seed(0)
    data: DataConfig = config.data
    low, high = getattr(quickstart, "SIDES", None) or ShapesOptions().sides

    def image() -> torch.Tensor:
        height, width = torch.randint(low, high + 1, (2,), generator=random).tolist()
        scale = min(data.size / min(height, width), data.max_size / max(height, width))
        return torch.randn(3, round(height * scale), round(width * scale), generator=random)

    def target() -> Target:
        return Target(torch.arange(OBJECTS), torch.rand(OBJECTS, 4, generator=random) * 0.4 + 0.2)

    parts = [
        (Batch.from_images([image() for _ in range(data.batch_size)]), [target() for _ in range(data.batch_size)])
        for _ in range(BATCHES)
    ]
    torch.manual_seed(0)
    model = build_model(config.model.name, num_classes=CLASSES, **config.model.overrides()).train()
    optim = OptimConfig(lr=1e-3, lr_backbone=1e-3)
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, optim))
    step = TrainStep(
        fabric,
        wrapped,
        optimizer,
        build_criterion(config.model.name, num_classes=CLASSES),
        queries=model.num_queries,
        clip_max_norm=optim.clip_max_norm,
        all_reduce_mean=StopSignals(world=1).all_reduce_mean,
    )

    def run() -> None:
        for part in parts * ROUNDS:
            step([part])

    return run


def main() -> None:
    from side_by_side import Report, Worker, add_options, by_turns, serve

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="SRC", help="folder src of the earlier version")
    add_options(parser, repeats=7)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return serve(steps())
    here = Path(__file__).parents[1] / "src"
    paths = {"before": args.before.resolve(), "now": here}
    contenders = {
        name: Worker("--worker", environment={"PYTHONPATH": os.pathsep.join([str(path), *sys.path[:1]])})
        for name, path in paths.items()
    }
    report = Report("A training step of the quickstart, 8 images")
    seconds = by_turns(contenders, repeats=args.repeats, warmup=2)
    for name, worker in contenders.items():
        report.add(
            **{
                "version": name,
                "a step, ms": 1000 * seconds[name] / (BATCHES * ROUNDS),
                "times before": seconds["before"] / seconds[name],
                "peak memory, MiB": round(worker.memory),
            }
        )
        worker.close()
    report.write(args.json)


if __name__ == "__main__":
    main()
