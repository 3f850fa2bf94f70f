"""What each recipe by case learns: on generated images of its case, and `small` on the same ones for the same time.

    OMP_NUM_THREADS=1 python benchmarks/recipes.py --minutes 10 --out docs/measurements/recipes.json
    python benchmarks/recipes.py --minutes 60 --data bccd=$DETRKIT_DATA/bccd --recipes own-data

Every run starts from random weights: nothing is downloaded. A budget of minutes covers measuring, training and
evaluation. The AP is that of the best epoch on 100 images that were never trained on, of one seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detrkit.config import TrainConfig, load_config
from detrkit.data import open_dataset
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import train
from detrkit.utils.atomic import write_atomic
from detrkit.utils.machine import machine

BASELINE = "small"
# recipe -> the images of its case: their number, and options of `write_shapes`
CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "own-data": (600, {"sides": (128, 192)}),
    "few-images": (24, {"sides": (128, 192)}),
    "dense": (300, {"sides": (192, 256), "objects": (70, 90), "object_size": (0.04, 0.08)}),
    "small-objects": (300, {"sides": (480, 512), "objects": (3, 12), "object_size": (0.02, 0.05)}),
    "from-scratch": (2000, {"sides": (128, 192)}),
}
# short sides in pixels, for the recipe and the one beside it: as large as the generated images are. Of small objects,
# where the recipe's images are twice as large as the other's, half of what the recipes say: a step takes a core a
# minute otherwise
SIZES = {"dense": (192, 192), "small-objects": (256, 128)}


def settings(recipe: str, data: Path, out: Path, *, minutes: float, case: str, seed: int) -> TrainConfig:
    """Return the settings of one run.

    Args:
        recipe: its name.
        data: the dataset.
        out: folder of the run.
        minutes: budget of the run.
        case: whose images these are.
        seed: of the run.
    """
    config = load_config(recipe, data=str(data))
    run = {"out": str(out), "minutes": minutes, "seed": seed, "pictures": False, "tensorboard": False}
    changed: dict[str, dict[str, Any]] = {"run": run, "data": {}}
    if case in CASES:
        changed["data"]["size"] = SIZES.get(case, (128, 128))[recipe == BASELINE]
    if case == "dense":
        run["max_dets"] = 300  # the same count for both
    return config.changed(**changed)


def measure(recipe: str, data: Path, folder: Path, *, minutes: float, case: str, seed: int) -> dict[str, Any]:
    """Train a recipe and return its row.

    Args:
        recipe: its name.
        data: the dataset.
        folder: for the run.
        minutes: budget of the run.
        case: whose images these are.
        seed: of the run.
    """
    config = settings(recipe, data, folder / f"{case}-{recipe}", minutes=minutes, case=case, seed=seed)
    result = train(config)
    assert result.metrics is not None
    made = load_config(result.folder / "config.yaml")
    rows = (result.folder / "epochs.csv").read_text(encoding="utf-8").splitlines()
    column = rows[0].split(",").index("step")
    return {
        "case": case,
        "recipe": recipe,
        "minutes": minutes,
        "images": len(open_dataset(data, split="train")),
        "images a step": made.data.batch_size * made.optim.accumulate,
        "size": made.data.size,
        "steps": int(rows[-1].split(",")[column]),
        "AP": round(100 * result.metrics.AP, 1),
        "AP50": round(100 * result.metrics.AP50, 1),
    }


def main(words: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Measure the recipes that are asked for; print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of every run")
    parser.add_argument("--recipes", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument(
        "--data", default=None, help="NAME=PATH: this dataset for all of them, instead of generated ones"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-baseline", action="store_true", help=f"without {BASELINE} beside each")
    parser.add_argument("--folder", type=Path, default=None, help="for data and runs; by default removed afterwards")
    parser.add_argument("--out", type=Path, default=None, help="json to write")
    args = parser.parse_args(words)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for recipe in args.recipes:
            case, _, path = (args.data or recipe).partition("=")
            data = Path(path) if args.data else folder / f"data-{recipe}"
            if not data.exists():
                count, options = CASES[recipe]
                write_shapes(data, images={"train": count, "val": 100}, seed=args.seed, **options)
            for name in [recipe] if args.no_baseline else [recipe, BASELINE]:
                rows.append(measure(name, data, folder, minutes=args.minutes, case=case, seed=args.seed))
                print(json.dumps(rows[-1]), flush=True)
                if args.out is not None:
                    written = {"machine": machine(torch.device("cpu")), "rows": rows}
                    write_atomic(args.out, json.dumps(written, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
