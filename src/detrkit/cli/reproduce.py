"""`detrkit reproduce`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detrkit.cli.preflight import check_folders, check_published
from detrkit.utils.console import console
from detrkit.utils.devices import DeviceName
from detrkit.utils.errors import Interrupted
from detrkit.utils.ranges import BatchSize, Count, InputSize, Workers
from detrkit.utils.signals import number_of


@dataclass(frozen=True)
class Reproduce:
    """Evaluate published checkpoints on COCO val2017 and compare the metrics with the published ones.

    The weights of DETR are downloaded at the first use and verified. Those of Deformable DETR, H-Deformable-DETR and
    DINO have no fixed address or no published hash, so their files are given with --weights. After an interruption the
    same command resumes with the remaining images. Under torchrun the processes share the images, and the metrics stay
    the same. The exit status is 1 if a metric is not within 0.2 of the published one.

    Such as:

    detrkit reproduce --coco coco --panoptic coco_panoptic

    detrkit reproduce detr-r50 detr-r50-dc5 --coco coco --batch-size 8

    detrkit reproduce deformable-detr-r50 --coco coco --weights r50_deformable_detr-checkpoint.pth
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAMES]")] = ()
    """Models, or further published files such as dino-r50-4scale-36ep (`detrkit models` lists both); by default all
    whose data is given and whose weights are available."""
    coco: Path | None = None
    """COCO: the folder with val2017/ and annotations/instances_val2017.json."""
    panoptic: Path | None = None
    """COCO panoptic: the folder with panoptic_val2017/ and annotations/panoptic_val2017.json. The images may be here or
    in the folder of --coco."""
    weights: Path | None = None
    """Folder with files of the published names, used instead of downloads; or the file of the one model named."""
    out: Path = Path("reproduction")
    """Folder of report.md and figures.json, and of a folder for each model with its own report, images, results and
    the results of the images that are done, from which an interrupted evaluation continues."""
    split: str = "val2017"
    """The split to evaluate on."""
    batch_size: BatchSize | None = None
    """Images per process and step; by default as published, or 2 where that is not known. With exact padding it does
    not change the metrics."""
    size: InputSize | None = None
    """Short side of the input in pixels; by default as published (800)."""
    max_size: InputSize | None = None
    """Longest side in pixels; by default as published (1333), in proportion to --size."""
    padding: Literal["exact", "official"] = "exact"
    """exact: an image's results do not depend on its batch; official: as published, they do."""
    device: DeviceName | None = None
    """cpu, cuda, cuda:1, mps, ... or the number of a GPU; by default a GPU if there is one."""
    workers: Workers | None = None
    """Processes that load images; by default 0 on a CPU, else CPU cores - 1, at most 4."""
    limit: Count | None = None
    """Evaluate only this many images, the first ones."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            DetrkitError: no such model, folder or file.
        """
        for name in self.names:
            check_published(name)
        check_folders([self.coco, self.panoptic, self.weights])

    def run(self) -> int:
        """Evaluate and print the table of metrics and the differences from the published evaluation."""
        from detrkit.reproduction.running import reproduce
        from detrkit.reproduction.tables import metrics_table

        try:
            results = reproduce(
                self.names,
                coco=self.coco,
                panoptic=self.panoptic,
                weights=self.weights,
                out=self.out,
                split=self.split,
                batch_size=self.batch_size,
                size=self.size,
                max_size=self.max_size,
                padding=self.padding,
                device=self.device,
                workers=self.workers,
                limit=self.limit,
                quiet=False,
            )
        except KeyboardInterrupt as stop:  # the results are stored batch by batch
            raise Interrupted(number_of(stop), str(self.out), "the same command") from stop
        console.print(metrics_table(results))
        for result in results:
            for difference in result.differences:
                console.print(f"{result.name}: {difference}")
        console.print(f"report:  {self.out / 'report.md'}")
        for result in results:
            console.print(f"         {result.folder / 'report.md'}")
        return 0 if all(result.within for result in results) else 1
