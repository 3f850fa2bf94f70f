"""`detrkit data mix`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table

from detrkit.cli.preflight import check_folders
from detrkit.utils.console import table_console
from detrkit.utils.layouts import Layout
from detrkit.utils.ranges import CountOrNone, Decay, Range, Weight, as_option
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from detrkit.data.sampling_report import ClassRow, SourceRow


@dataclass(frozen=True)
class DataMix:
    """Show how often a training would see each class and each dataset.

    The options are those of `detrkit train`. The table of the classes begins with the rarest; its share is what
    --repeat-rare compares. No image is decoded.

    Such as:

    detrkit data mix my_data --repeat-rare 0.1

    detrkit data mix my_data more_data --weights 3 1
    """

    datasets: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DATASET")]
    """The datasets; the layouts are recognized."""
    weights: tuple[Weight, ...] = ()
    """How many of an epoch's images each dataset has. By default every image comes once."""
    repeat_rare: Annotated[float, Range(gt=0, le=1)] | None = None
    """Share of the images below which a class is rare, so that images with it come more often."""
    empty_share: Decay | None = None
    """Share of an epoch that images without objects have. By default each comes once."""
    split: str = "train"
    """The split to train on."""
    layout: Layout | None = None
    """The kind of files to read. By default it is recognized."""
    limit: CountOrNone = 20
    """Classes in the table, the rarest ones; 0 for all."""

    def check(self) -> None:
        """Check that the datasets are there."""
        check_folders(self.datasets)

    def run(self) -> int:
        """Compute the mix and print its tables."""
        from detrkit.config import TrainConfig
        from detrkit.data.merging import merge_datasets
        from detrkit.data.sampling import plan_sampling
        from detrkit.data.sampling_report import class_rows, sampling_lines, source_rows
        from detrkit.engine.relations import check_config
        from detrkit.engine.splits import open_sources

        paths = [str(path) for path in self.datasets]
        config = TrainConfig().changed(
            data={
                "path": paths[0],
                "more_paths": tuple(paths[1:]),
                "weights": self.weights,
                "train_split": self.split,
                "layout": self.layout,
            }
        )
        check_config(config, format_field=as_option)
        sources = open_sources(config, "train", masks=False)
        sampling = plan_sampling(
            merge_datasets(sources),
            sources=sources,
            weights=self.weights,
            repeat_rare=self.repeat_rare,
            empty_share=self.empty_share,
        )
        console = table_console()
        console.print(_source_table(source_rows(sampling)))
        rows = sorted(class_rows(sampling), key=lambda row: (row.share, row.name))
        shown = rows if self.limit == 0 else rows[: self.limit]
        console.print(_class_table(shown, [row.name for row in source_rows(sampling)]))
        if len(shown) < len(rows):
            console.print(f"... and {len(rows) - len(shown)} more frequent classes (--limit 0 shows all)")
        _print_lines(console, sampling_lines(sampling))
        console.print(f"next: {self._next()}", soft_wrap=True, markup=False)
        return 0

    def _next(self) -> str:
        """Return the command that trains on this mix."""
        words = ["detrkit", "train", *map(str, self.datasets)]
        if self.weights:
            words += ["--weights", *(f"{weight:g}" for weight in self.weights)]
        for name, value in (("repeat-rare", self.repeat_rare), ("empty-share", self.empty_share)):
            words += [] if value is None else [f"--{name}", f"{value:g}"]
        words += [] if self.split == "train" else ["--train-split", self.split]
        words += [] if self.layout is None else ["--layout", self.layout]
        return shlex.join(words)


def _source_table(rows: Sequence[SourceRow]) -> Table:
    """Make the table of the datasets."""
    table = Table(title="Datasets", title_justify="left")
    for name in ("dataset", "split"):
        table.add_column(name)
    for name in ("images", "without objects", "objects", "weight", "images per epoch", "share", "times each"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            one_line(row.name),
            one_line(row.split),
            *map(str, (row.images, row.empty, row.objects)),
            "" if row.weight is None else f"{row.weight:g}",
            f"{row.per_epoch:.0f}",
            f"{100 * row.share:.1f} %",
            f"{row.times:.2f}",
        )
    return table


def _class_table(rows: Sequence[ClassRow], sources: Sequence[str]) -> Table:
    """Make the table of the classes; with several datasets, the objects in each."""
    table = Table(title="Classes, rarest first", title_justify="left")
    table.add_column("class")
    several = sources if len(sources) > 1 else ()
    for name in ("images", "share", "factor", "objects", "objects per epoch", *(f"in {name}" for name in several)):
        table.add_column(one_line(name), justify="right")
    for row in rows:
        table.add_row(
            one_line(row.name),
            str(row.images),
            f"{100 * row.share:.2f} %",
            f"{row.factor:.2f}",
            str(row.objects),
            f"{row.objects_per_epoch:.0f}",
            *("-" if count is None else str(count) for count in (row.objects_by_source if several else ())),
        )
    return table


def _print_lines(console: Console, lines: Sequence[str]) -> None:
    """Print the lines that a run prints, but those that the tables hold."""
    for line in lines:
        if line.startswith(("warning", "empty_share", "an epoch")) or "nothing is repeated" in line:
            console.print(one_line(line), soft_wrap=True, markup=False)
