"""`detrkit quickstart`."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from detrkit.utils.console import console
from detrkit.utils.ranges import Count, Range, Seed


@dataclass(frozen=True)
class Quickstart:
    """Generate a dataset, train a detector on it from random weights, evaluate it and draw what it finds.

    Needs no download and no GPU. Measures the machine first and takes five minutes at most: a slow machine trains less.
    """

    out: Path = Path("detrkit-quickstart")
    """Folder for the dataset and the run."""
    minutes: Annotated[float | None, Range(gt=0, le=1e6)] = None
    """Minutes for everything: as many epochs as fit. More give a better detector. By default the recipe's epochs, or as
    many of them as fit into five minutes."""
    epochs: Count | None = None
    """Passes over the 2,000 generated images, however long they take."""
    seed: Seed = 0
    """Seed of the images, the weights and the order."""
    force: bool = False
    """Replace an earlier quickstart in that folder, unless it holds other files too."""

    def run(self) -> int:
        """Run the quickstart and print its results."""
        began = time.monotonic() - time.process_time()  # what the interpreter took to start, at least
        from detrkit.cli.measured import print_measured
        from detrkit.engine.quickstart import quickstart

        gone = time.monotonic() - began  # the imports: two seconds, or ten on a slow disk
        result = quickstart(
            self.out, minutes=self.minutes, epochs=self.epochs, seed=self.seed, force=self.force, gone=gone
        )
        assert result.metrics is not None
        print_measured([result.metrics])
        console.print(f"examples (image | ground truth | prediction): {result.folder / 'examples.png'}")
        console.print(f"report with curves and tables:                {result.report}")
        console.print(f"weights:                                      {result.best}")
        console.print("\nNext:")
        data = self.out / "shapes"
        run, shapes, val = (shlex.quote(str(place)) for place in (result.folder, data, data / "val2017"))
        console.print(f"  detrkit predict {run} {val}", soft_wrap=True)
        console.print(f"  detrkit train {shapes} --recipe quickstart --epochs 40 --out runs/longer", soft_wrap=True)
        console.print("  detrkit data check YOUR_DATA         (COCO, Pascal VOC, YOLO, parquet or CSV)")
        console.print("  detrkit train YOUR_DATA --recipe small --overfit 8")
        return 0
