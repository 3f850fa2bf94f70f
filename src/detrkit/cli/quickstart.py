"""`detrkit quickstart`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from detrkit.utils.console import console
from detrkit.utils.ranges import Count, Seed


@dataclass(frozen=True)
class Quickstart:
    """Generate a dataset, train a detector on it from random weights, evaluate it and draw what it finds.

    Needs no download and no GPU: three to six minutes on two CPU cores.
    """

    out: Path = Path("detrkit-quickstart")
    """Folder for the dataset and the run."""
    epochs: Count | None = None
    """Passes over the 2,000 generated images; by default the recipe's. More give a better detector."""
    seed: Seed = 0
    """Seed of the images, the weights and the order."""
    force: bool = False
    """Replace an earlier quickstart in that folder, unless it holds other files too."""

    def run(self) -> int:
        """Run the quickstart and print its results."""
        from detrkit.cli.measured import print_measured
        from detrkit.engine.quickstart import quickstart

        result = quickstart(self.out, epochs=self.epochs, seed=self.seed, force=self.force)
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
