"""`detrkit eval`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detrkit.console import console


@dataclass(frozen=True)
class Eval:
    """Average precision of a checkpoint on a dataset, with a report.

    The batch size does not change the result. Under torchrun the processes share the images.

    Such as:

    detrkit eval runs/first my_data --split test

    detrkit eval detr-r50 coco --split val2017 --batch-size 8
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """A checkpoint, a run's folder, or a model name for its published weights."""
    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """The dataset: a COCO, Pascal VOC, YOLO or parquet folder, a COCO json or a data.yaml. Classes are matched by
    name."""
    split: str | None = "val"
    """The split to evaluate on."""
    out: Path | None = None
    """Folder of report.md, metrics.json, results.json (COCO format) and pictures; by default eval-SPLIT in a run's
    folder, else eval-MODEL-SPLIT here."""
    batch_size: int = 2
    """Images per process and step."""
    size: int | None = None
    """Short side of the input in pixels; by default the checkpoint's."""
    max_size: int | None = None
    """Longest side in pixels; by default the checkpoint's."""
    max_dets: int = 100
    """Detections counted per image."""
    device: str | None = None
    """cpu, cuda, cuda:1, ...; by default CUDA where there is one."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: autocast."""
    workers: int | None = None
    """Processes that load images; by default 0 on a CPU, else processors - 1, at most 4."""
    limit: int | None = None
    """Only the first so many images."""
    per_class: bool = True
    """Also print the table of classes."""

    def run(self) -> int:
        """Evaluates, prints tables and paths."""
        from detrkit.engine import evaluate

        folder = self.out
        if folder is None:
            source = Path(self.model)
            name = f"eval-{self.split or 'all'}"
            folder = source / name if source.is_dir() else Path(f"eval-{source.stem}-{self.split or 'all'}")
        metrics = evaluate(
            self.model,
            self.data,
            split=self.split,
            batch_size=self.batch_size,
            size=self.size,
            max_size=self.max_size,
            max_dets=self.max_dets,
            device=self.device,
            precision=self.precision,
            workers=self.workers,
            limit=self.limit,
            out=folder,
            quiet=False,
        )
        console.print(metrics.table())
        if self.per_class:
            console.print(metrics.table(per_class=True))
        console.print(f"report:  {folder / 'report.md'}\nresults: {folder / 'results.json'}")
        return 0
