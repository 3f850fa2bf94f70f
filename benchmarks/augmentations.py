"""Measures what mosaic, mixup, colors and scale jitter gain on few images: AP after the same number of epochs.

    python benchmarks/augmentations.py --runs augmentations.json                      shapes: 15 runs of some minutes
    python benchmarks/augmentations.py --data bccd --runs augmentations.json          needs $DETRKIT_DATA/bccd
    python benchmarks/augmentations.py --data bccd --size 480 --epochs 150 --model medium --device cuda --runs ...
    python benchmarks/augmentations.py --runs augmentations.json --seconds 600        those that fit; repeat
    python benchmarks/augmentations.py --runs augmentations.json --table              the table of what is there

Each arm is a training from random weights, alike but for its augmentation; "shapes" are 150 generated images of three
classes, and 200 to evaluate on. A seed is that of weights, order and augmentation. The figures are those of the last
epoch, the only one that is evaluated: the best of several would be the luckiest. A run that the file already has is not
made again: started again, the script goes on where it stopped. One thread, unless --threads says otherwise: several
runs may share a machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from detrkit.config import TrainConfig, load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import train
from detrkit.utils.atomic import write_atomic
from side_by_side import Report

# the augmentation without which the others are compared: mirroring and random scales and crops
ARMS: dict[str, dict[str, Any]] = {
    "none": {"augment": "none"},
    "plain": {},
    "mosaic": {"mosaic": 0.5},
    "mosaic+mixup": {"mosaic": 0.5, "mixup": 0.5},
    "color": {"color": 0.5},
    "lsj": {"augment": "lsj"},
}
SIZES = {"shapes": 64, "bccd": 160}  # short side, pixels
EPOCHS = {"shapes": 24, "bccd": 12}  # of shapes, 12 took 100 s of one core of a busy machine
MEDIUM = {  # that of recipes/studies/bccd-four.yaml
    "backbone": "resnet18",
    "backbone_width": None,
    "backbone_stages": None,
    "num_feature_levels": None,
    "hidden_dim": 256,
    "nheads": 8,
    "dim_feedforward": 1024,
    "enc_layers": 3,
    "dec_layers": 3,
}


def dataset(args: Namespace, folder: Path) -> Path:
    """The folder of the images."""
    if args.data == "shapes":
        root = folder / "shapes"
        return write_shapes(root, images={"train": args.images, "val": 200}, classes=3, sides=(80, 112), seed=7)
    return Path(os.environ["DETRKIT_DATA"]) / args.data


def settings(args: Namespace, arm: str, seed: int, data: Path, out: Path) -> TrainConfig:
    """Settings of a run: the small model of the quickstart, or a medium one."""
    config = load_config("quickstart", data=str(data))
    size = args.size or SIZES[args.data]
    layout = {} if args.data == "shapes" else {"layout": "voc"}
    config = config.changed(
        data={"size": size, "max_size": None, "batch_size": 4, "augment": "detr", **layout, **ARMS[arm]},
        # a mosaic has more objects; blood has up to 30
        model={"num_queries": 100 if args.data == "bccd" else 40, **(MEDIUM if args.model == "medium" else {})},
        optim={"epochs": args.epochs or EPOCHS[args.data], "ema": 0.99},
        run={"out": str(out), "seed": seed, "device": args.device, "eval_every": 10**6, "pictures": False},
    )
    if args.model == "medium":
        config = config.changed(optim={"lr": 4e-4, "lr_backbone": 4e-4, "warmup_steps": 200, "ema": 0.999})
    return config


def measure(args: Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Train once; return the figures of the last epoch."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = settings(args, arm, seed, dataset(args, folder), folder / "run")
        began = time.perf_counter()
        result = train(config)
        assert result.metrics is not None
        return {
            **key(args, arm, seed),
            **{name: result.metrics[name] for name in ("AP", "AP50", "APs")},
            "seconds": round(time.perf_counter() - began, 1),
        }


def key(args: Namespace, arm: str, seed: int) -> dict[str, Any]:
    """What sets a run apart from the others in the file."""
    size, epochs = args.size or SIZES[args.data], args.epochs or EPOCHS[args.data]
    images = args.images if args.data == "shapes" else None
    return {
        "data": args.data,
        "images": images,
        "model": args.model,
        "size": size,
        "epochs": epochs,
        "arm": arm,
        "seed": seed,
    }


def missing(args: Namespace, runs: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """Arms and seeds that the file has not; a seed of every arm before the next seed."""
    for seed in range(args.seeds):
        for arm in args.arms:
            wanted = key(args, arm, seed)
            if not any(wanted.items() <= run.items() for run in runs):
                yield arm, seed


def rows(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Mean and standard deviation of each arm, and the difference from the plain one with the same seeds."""
    lines = []
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["data"], run["model"], run["size"], run["epochs"]), []).append(run)
    for (data, _, size, epochs), group in groups.items():
        for arm in ARMS:
            of_arm = {run["seed"]: run for run in group if run["arm"] == arm}
            if not of_arm:
                continue
            plain = {run["seed"]: run["AP"] for run in group if run["arm"] == "plain"}
            gains = [100 * (run["AP"] - plain[seed]) for seed, run in of_arm.items() if seed in plain]
            ap, ap50 = (spread([100 * run[name] for run in of_arm.values()]) for name in ("AP", "AP50"))
            gain = spread(gains, sign=True) if arm != "plain" and gains else ""
            line = {"data": f"{data}, {size} pixels", "epochs": str(epochs), "arm": arm, "runs": str(len(of_arm))}
            lines.append({**line, "AP": ap, "AP50": ap50, "AP against plain": gain})
    return lines


def spread(values: list[float], *, sign: bool = False) -> str:
    """Mean, and the standard deviation if there are several."""
    mean = f"{statistics.mean(values):+.1f}" if sign else f"{statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.1f}"


def main() -> None:
    """Make the runs that the file has not, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(SIZES), default="shapes")
    parser.add_argument("--images", type=int, default=150, help="training images of shapes")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=["plain", *list(ARMS)[2:]])
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--epochs", type=int, help="by default some minutes on a core")
    parser.add_argument("--size", type=int, help="short side, pixels")
    parser.add_argument("--model", choices=["small", "medium"], default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no run after so many")
    parser.add_argument("--runs", type=Path, required=True, help="the file of the runs, which is added to")
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--json", type=Path, help="also write the table's rows, for docs/measured_tables.py")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs: list[dict[str, Any]] = json.loads(args.runs.read_text())["runs"] if args.runs.exists() else []
    began = time.perf_counter()
    for arm, seed in [] if args.table else list(missing(args, runs)):
        if time.perf_counter() - began > args.seconds:
            break
        runs.append({**measure(args, arm, seed), "threads": args.threads, "torch": torch.__version__})
        write_atomic(args.runs, json.dumps({"runs": runs}, indent=1).encode() + b"\n")
    report = Report("Augmentations on few images")
    for row in rows(runs):
        report.add(**row)
    report.write(args.json)


if __name__ == "__main__":
    main()
