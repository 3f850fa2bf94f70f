"""How time and memory grow: with the size of images, the batch, the queries, and the number of processes.

    python benchmarks/growth.py --seconds 170 --json docs/measurements/growth.json          repeat until all is there
    python benchmarks/growth.py --processes --json docs/measurements/growth-processes.json
    python benchmarks/growth.py --json docs/measurements/growth.json --draw docs/images/growth.png

Each point is measured in a separate process, so that memory is that of the point alone. A point that the file already
has is not measured again: started again, the script continues where it stopped. Images are square noise, weights are
random, images have as many objects as COCO's on average. Predicting is the model's forward pass; training is a step of
detrkit's engine, with the images on the device. Memory is the peak resident size; "before" is the resident size before
the first image: weights and the program. Parts are measured by the timer of `detrkit bench`, in separate turns.

The processes share the cores: two on two cores show what their communication costs, not what more machines gain.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from detrkit import build_model
from detrkit.config import OptimConfig, RunConfig, TrainConfig
from detrkit.engine.optim import build_optimizer
from detrkit.engine.processes import StopSignals
from detrkit.engine.setup import make_fabric
from detrkit.engine.train_step import TrainStep
from detrkit.models.criterion import build_criterion
from detrkit.profiling import Timer, instrument
from detrkit.profiling.parts import BACKBONE, DECODER, ENCODER, modules_of
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from side_by_side import Cell, Report, by_turns, peak_memory

MODELS = ("detr-r50", "deformable-detr-r50")
OWN_QUERIES = {"detr-r50": 100, "deformable-detr-r50": 300}
STRIDES = {"detr-r50": (32,), "deformable-detr-r50": (8, 16, 32, 64)}  # of the maps whose cells an encoder reads
ENOUGH = 3.0  # seconds of turns for a point, if that makes FEWEST to MOST of them
FEWEST, MOST = 3, 7
TITLE = "Growth of time and memory"


@dataclass(frozen=True)
class Point:
    """What is measured in one process, or in several that share the batch."""

    model: str
    training: bool
    size: int
    batch: int = 1
    queries: int = 0
    processes: int = 1

    def row(self) -> dict[str, Cell]:
        """The first columns of its row, by which it is known."""
        return {
            "model": self.model,
            "work": "training" if self.training else "predicting",
            "size, pixels": self.size,
            "batch": self.batch,
            "queries": self.queries or OWN_QUERIES[self.model],
            "processes": self.processes,
        }


def points(what: list[str]) -> Iterator[Point]:
    """The points of the curves; where two cross there is one."""
    for model in MODELS:
        own = OWN_QUERIES[model]
        if "size" in what:
            yield from (Point(model, False, size, queries=own) for size in (320, 480, 640, 800, 1066, 1333))
            yield from (Point(model, True, size, queries=own) for size in (256, 384, 512, 640))
        if "batch" in what:
            yield from (Point(model, False, 480, batch, own) for batch in (1, 2, 4, 8))
            yield from (Point(model, True, 256, batch, own) for batch in (1, 2, 4, 8))
        if "queries" in what:
            yield from (Point(model, False, 640, 1, queries) for queries in (100, 300, 600, 900))


# in the process of a point


def work(point: Point) -> dict[str, Cell]:
    """Measures a point; of several processes each has its share of the batch."""
    torch.manual_seed(0)
    # frozen norms as published, random weights
    model = build_model(point.model, num_queries=point.queries)
    share = point.batch // point.processes
    fabric = make_fabric(TrainConfig(run=RunConfig(device="cpu"))) if point.training else None
    images = Batch.from_images(list(torch.randn(share, 3, point.size, point.size)))
    before = resident()
    turn = step(model, images, fabric) if fabric is not None else forward(model, images)
    turn()
    began = time.perf_counter()
    memory = peak_memory(turn)
    repeats = min(MOST, max(FEWEST, round(ENOUGH / (time.perf_counter() - began))))
    if fabric is not None and point.processes > 1:  # all have to take as many turns
        repeats = round(float(fabric.all_reduce(torch.tensor(float(repeats)), reduce_op="mean")))
    seconds = by_turns({"": turn}, repeats=repeats, warmup=0)[""]
    row: dict[str, Cell] = {"s": seconds, "images/s": point.batch / seconds}
    row |= {"memory, MiB": round(memory), "before, MiB": round(before)}
    if fabric is None:
        row |= parts(model, turn)
    return row


def forward(model: nn.Module, images: Batch) -> Callable[[], object]:
    """A prediction."""
    model.eval()
    return torch.inference_mode()(lambda: model(images))


def step(model: nn.Module, images: Batch, fabric: Fabric) -> Callable[[], object]:
    """A step of training as detrkit's engine does it."""
    name = "deformable-detr-r50" if "Deformable" in type(model).__name__ else "detr-r50"
    config = OptimConfig()
    random = torch.Generator().manual_seed(fabric.global_rank)
    counts = torch.randint(1, 14, (len(images),), generator=random).tolist()  # 7 on average
    targets = [
        Target(torch.randint(1, 91, (n,), generator=random), torch.rand(n, 4, generator=random) * 0.4 + 0.1)
        for n in counts
    ]
    wrapped, optimizer = fabric.setup(model.train(), build_optimizer(model, config))
    train_step = TrainStep(
        fabric,
        wrapped,
        optimizer,
        build_criterion(name),
        queries=int(model.num_queries),  # type: ignore[arg-type]
        clip_max_norm=config.clip_max_norm,
        all_reduce_mean=StopSignals(fabric.world_size).all_reduce_mean,
    )
    return lambda: train_step([(images, targets)])


def parts(model: nn.Module, turn: Callable[[], object]) -> dict[str, Cell]:
    """Milliseconds of the model's large parts: medians of turns with the timer."""
    timers = [Timer(torch.device("cpu")) for _ in range(FEWEST)]
    for timer in timers:
        with instrument(timer, modules_of(model)):
            turn()
    named = {"backbone": BACKBONE, "encoder": ENCODER, "decoder": DECODER}
    return {
        f"{name}, ms": 1000 * statistics.median(timer.seconds[part] for timer in timers) for name, part in named.items()
    }


def resident() -> float:
    """MiB that this process has now (Linux alone)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


# in the process that is started


def measured(point: Point) -> dict[str, Cell]:
    """Starts the process or processes of a point, and reads what they say.

    One is forked: what it needs is imported, which would take 8 seconds, and nothing was computed here so far.
    """
    if point.processes == 1:
        with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
            return pool.submit(work, point).result()
    threads = max(1, torch.get_num_threads() // point.processes)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(point.processes)]
    done = subprocess.run(
        [*start, __file__, "--point", json.dumps(asdict(point))],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
    if done.returncode or not said:
        raise SystemExit(f"{point}: {done.stderr.strip()[-2000:]}")
    found: dict[str, Cell] = json.loads(said[0])
    return found


def measure_processes(args: Namespace) -> None:
    """Training with one process and with two, which share images and cores."""
    report = Report("Training with several processes on the same cores, 4 images of 384 x 384 pixels a step")
    for model in args.models:
        rates: list[float] = []
        for processes in (1, 2):
            # no memory: a forked process does not count the pages of libraries that it never touched
            found = measured(Point(model, True, 384, 4, OWN_QUERIES[model], processes))
            rates.append(float(found["images/s"]))
            row: dict[str, Cell] = {"model": model, "processes": processes, "images/s": rates[-1]}
            report.add(**row, **{"times one process": rates[-1] / rates[0]})
    report.write(args.json)


def measure(args: Namespace) -> None:
    """Measures what the file lacks, and writes after every point."""
    report = Report(TITLE)
    if args.json is not None and args.json.exists():
        report.rows = json.loads(args.json.read_text(encoding="utf-8"))["rows"]
    began = time.perf_counter()
    for point in dict.fromkeys(points(args.what)):
        if point.model not in args.models or find(report.rows, point.row()) is not None:
            continue
        if time.perf_counter() - began > args.seconds:
            print("there is more to measure: start me again")
            break
        report.add(**point.row(), **measured(point))
        report.write(args.json)


def find(rows: list[dict[str, Cell]], wanted: dict[str, Cell]) -> dict[str, Cell] | None:
    """The row that has these values."""
    return next((row for row in rows if all(row[name] == value for name, value in wanted.items())), None)


def cells(model: str, size: int) -> int:
    """Cells that the encoder reads of a square image."""
    return sum((-(-size // stride)) ** 2 for stride in STRIDES[model])


def curve(rows: list[dict[str, Cell]], x: str, **fixed: Cell) -> list[dict[str, Cell]]:
    """The rows along one column, in order of it, with the others as they are fixed."""
    wanted = {name.replace("size", "size, pixels"): value for name, value in fixed.items()}
    return sorted((row for row in rows if all(row[k] == v for k, v in wanted.items())), key=lambda row: row[x])


def draw(rows: list[dict[str, Cell]], path: Path) -> None:
    """Six panels: time and memory over size and batch, time over queries, and the encoder's time for a cell."""
    from matplotlib.figure import Figure

    from detrkit.visualize.colors import LINE_COLORS
    from detrkit.visualize.curves import save_figure

    figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(2, 3)
    for model, color in zip(MODELS, LINE_COLORS, strict=False):
        own: dict[str, Any] = {"model": model, "processes": 1}
        usual = {**own, "queries": OWN_QUERIES[model]}
        for kind, style in (("predicting", "-"), ("training", "--")):
            look = {"color": color, "linestyle": style, "marker": "o", "markersize": 4, "label": f"{model}, {kind}"}
            by_size = curve(rows, "size, pixels", work=kind, batch=1, **usual)
            by_batch = curve(rows, "batch", work=kind, size=480 if kind == "predicting" else 256, **usual)
            for k, (line, x) in enumerate([(by_size, "size, pixels"), (by_batch, "batch")]):
                axes[0, k].plot([r[x] for r in line], [r["s"] / r["batch"] for r in line], **look)
                axes[1, k].plot([r[x] for r in line], [r["memory, MiB"] / 1024 for r in line], **look)
            if kind == "predicting":
                by_queries = curve(rows, "queries", work=kind, size=640, batch=1, **own)
                axes[0, 2].plot([r["queries"] for r in by_queries], [r["s"] for r in by_queries], **look)
                per_cell = [1000 * r["encoder, ms"] / cells(model, r["size, pixels"]) for r in by_size]
                axes[1, 2].plot([r["size, pixels"] for r in by_size], per_cell, **look)
    side = "side of the square image, pixels"
    titles = [
        ("Time and size", side, "seconds an image"),
        ("Time and batch", "images together (480 pixels; training 256)", "seconds an image"),
        ("Time and queries", "queries (640 pixels)", "seconds an image"),
        ("Memory and size", side, "GiB at most"),
        ("Memory and batch", "images together (480 pixels; training 256)", "GiB at most"),
        ("The encoder alone", side, "microseconds a cell"),
    ]
    for ax, (title, x, y) in zip(axes.flat, titles, strict=True):
        ax.set_title(title, loc="left", fontsize=11)
        ax.set_xlabel(x, fontsize=9)
        ax.set_ylabel(y, fontsize=9)
        ax.set_ylim(bottom=0)
        ax.tick_params(labelsize=9)
        ax.grid(color="#d9d9de", linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, fontsize=9, frameon=False)
    save_figure(figure, path)
    print(f"drew {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    curves = ["size", "batch", "queries"]
    parser.add_argument("--what", nargs="+", choices=curves, default=curves, help="(default: %(default)s)")
    parser.add_argument("--processes", action="store_true", help="training with one process and with two, instead")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no point after so long")
    parser.add_argument("--json", type=Path, help="file of the rows, for docs/performance.md; it is added to")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw the rows of --json there, and measure nothing")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point is not None:
        row = work(Point(**args.point))
        if os.environ.get("RANK", "0") == "0":
            print(f"> {json.dumps(row)}", flush=True)
    elif args.draw is not None:
        if args.json is None:
            raise SystemExit("--draw needs --json, the file to draw")
        draw(json.loads(args.json.read_text(encoding="utf-8"))["rows"], args.draw)
    elif args.processes:
        measure_processes(args)
    else:
        measure(args)


if __name__ == "__main__":
    main()
