"""`detrkit study`."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from detrkit.cli.preflight import check_dataset, check_recipe
from detrkit.utils.console import console
from detrkit.utils.devices import DeviceName
from detrkit.utils.ranges import BatchSize, Count, Devices, ParallelRuns, Seed, StudySeeds, Workers


@dataclass(frozen=True)
class Study:
    """Train several models under one budget: one table, one plot of their curves, their detections side by side.

    The same command again resumes where it stopped. Metrics are those of the last epoch. Recipes:

    shapes-four: DETR, Deformable DETR, + refinement, ++ two-stage, small, on shapes it generates (for a CPU)

    shapes-six: these, + hybrid matching, DINO; three seeds for the last ones: with --parallel 2 for two CPU cores

    bccd-four: the four of medium size on blood cells (BCCD) from random weights (for a GPU)

    bccd-six: those of shapes-six of medium size on blood cells (for a GPU)

    bccd-six-small: those of shapes-six on blood cells (for a CPU)

    cppe5-four: the four as published on CPPE-5, with their published metrics beside (for a GPU)

    Such as:

    detrkit study shapes-four

    detrkit study cppe5-four cppe5 --only detr two-stage --epochs 10

    detrkit study mine.yaml my_data --out runs/mine
    """

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A recipe that comes with detrkit (shapes-four, shapes-six, bccd-four, bccd-six, bccd-six-small, cppe5-four), or a
    YAML file."""
    dataset: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")] = None
    """The dataset; the layout is recognized. shapes-four and shapes-six make their own."""
    out: Path | None = None
    """The study's folder; by default runs/RECIPE."""
    epochs: Count | None = None
    """Passes over the training split, for all members; the drop of the learning rate moves in proportion."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MEMBER ...")] = ()
    """Train only these members; the tables show all that have results."""
    parallel: ParallelRuns = 1
    """Runs to train side by side, each in a process of its own with its share of the CPU cores."""
    device: DeviceName | None = None
    """Device to train on: auto, cpu, cuda, cuda:1, mps, or the number of a GPU."""
    devices: Devices | None = None
    """Processes on this machine; under torchrun or Slurm their number counts."""
    precision: Literal["fp32", "bf16"] | None = None
    """bf16: autocast; weights and losses stay in fp32."""
    batch_size: BatchSize | None = None
    """Images per process and step."""
    accumulate: BatchSize | None = None
    """Batches per step: the gradient equals that of one batch of all their images."""
    workers: Workers | None = None
    """Processes that load images."""
    train_split: str | None = None
    """The split to train on."""
    val_split: str | None = None
    """The split to evaluate on, each epoch."""
    test_split: str | None = None
    """The split of the tables, by default that of the recipe; "none" for the split that is evaluated each epoch."""
    seed: Seed | None = None
    """Seed of weights, order and augmentation, for all members; the first one where a member has several."""
    seeds: StudySeeds | None = None
    """Seeds to train each member with, one after the other; by default as the recipe says, mostly 1."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such recipe or dataset.
        """
        check_recipe(self.recipe, "recipes/studies")
        check_dataset(self.dataset)

    def run(self) -> int:
        """Train what is not trained yet and print the tables; return 1 if a member failed."""
        from detrkit.study import load_study, run_study
        from detrkit.study.seeds import failures
        from detrkit.study.tables import print_tables

        shared: dict[str, dict[str, Any]] = {
            "data": self._given("batch_size", "workers", "train_split", "val_split", "test_split"),
            "optim": self._given("epochs", "accumulate"),
            "run": self._given("device", "devices", "precision", "seed"),
        }
        study = load_study(self.recipe, data=self.dataset, seeds=self.seeds, shared=shared)
        out = self.out or Path("runs") / Path(self.recipe).stem
        command = shlex.join(["detrkit", *sys.argv[1:]])
        result = run_study(study, out, only=self.only, parallel=self.parallel, command=command)
        if result.report is None:
            return 0
        console.print()
        print_tables(console, study, result.results)
        for heading, reason in failures(study, result.results):
            console.print(f"{heading} failed: {reason}")
        for name, what in (("study.md", "page"), ("curves.png", "curves"), ("examples.png", "examples")):
            if (out / name).exists():
                console.print(f"{what + ':':9} {out / name}")
        return 1 if result.failed else 0

    def _given(self, *names: str) -> dict[str, Any]:
        """Return the options that were set."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}
