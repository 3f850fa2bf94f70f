"""The quickstart: generated data, a small detector from random weights, pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

from detrkit.config import load_config
from detrkit.console import console
from detrkit.data.shapes import write_shapes
from detrkit.engine.training import RunResult, train
from detrkit.errors import DetrkitError

IMAGES = {"train": 2000, "val": 200}


def quickstart(out: str | Path, *, epochs: int | None = None, seed: int = 0, force: bool = False) -> RunResult:
    """Generates shapes, trains the `quickstart` recipe on them and writes the report.

    Args:
        out: folder for `shapes/` and `run/`.
        epochs: passes over the training images; by default the recipe's.
        seed: of images, weights and order.
        force: replace an earlier quickstart there.

    Raises:
        DetrkitError: the folder is not empty.
    """
    out = Path(out)
    data, run = out / "shapes", out / "run"
    if (data.exists() or run.exists()) and not force:
        raise DetrkitError(f"{out} holds an earlier quickstart: look at {run}, use --force to replace it, or --out")
    for old in (data, run):
        if old.exists():
            shutil.rmtree(old)
    console.print(f"generating {IMAGES['train']} images to train on and {IMAGES['val']} to test on in {data}")
    write_shapes(data, images=IMAGES, seed=seed)
    config = load_config("quickstart", data=str(data)).changed(run={"out": str(run), "seed": seed})
    if epochs is not None:
        config = config.changed(optim={"epochs": epochs})
    return train(config)
