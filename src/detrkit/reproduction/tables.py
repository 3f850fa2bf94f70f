"""Measured beside published: figures, settings, tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detrkit.evaluation import Metrics
from detrkit.evaluation.metrics import markdown_table
from detrkit.models.pretrained import FIGURES, Published
from detrkit.utils.atomic import write_atomic
from detrkit.utils.folders import claimed_files

TOLERANCE = 0.2  # points, between a measured figure and a published one
_NAMES = {"AP_segm": "mask AP"}


@dataclass(frozen=True)
class Figure:
    """A figure in percent.

    Attributes:
        name: see `detrkit.models.pretrained.FIGURES`.
        measured: here; None where nothing defines it (no objects of that kind).
        published: by the source of the checkpoint; None where it does not say.
        reproduced: with the official code, by the report that this project starts from; None likewise.
        approximate: whether what was published is a round figure.
    """

    name: str
    measured: float | None
    published: float | None = None
    reproduced: float | None = None
    approximate: bool = False

    @property
    def difference(self) -> float | None:
        """Measured less published, or less reproduced where nothing was published; in points."""
        known = self.published if self.published is not None else self.reproduced
        return None if known is None or self.measured is None else self.measured - known

    @property
    def within(self) -> bool | None:
        """Whether the difference is at most TOLERANCE; None where there is no exact figure to compare with."""
        if self.difference is None or self.approximate:
            return None
        return abs(self.difference) <= TOLERANCE + 1e-9


@dataclass(frozen=True)
class Difference:
    """A setting that is not as in the published evaluation.

    Attributes:
        setting: its name.
        here: its value.
        published: that of the published evaluation.
        remark: what it does, or "".
    """

    setting: str
    here: str
    published: str
    remark: str = ""

    def __str__(self) -> str:
        remark = f": {self.remark}" if self.remark else ""
        return f"{self.setting} {self.here} (published: {self.published}){remark}"


@dataclass(frozen=True)
class Reproduced:
    """What came out of one checkpoint.

    Attributes:
        name: of the model.
        metrics: boxes, with masks and segments of panoptic models.
        row: what was published; None of a checkpoint that is none of the published ones.
        differences: settings that are not as in the published evaluation.
        seconds: per image and process, with loading and post-processing.
        folder: of the report.
    """

    name: str
    metrics: Metrics
    row: Published | None = None
    differences: Sequence[Difference] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path = Path()

    @property
    def figures(self) -> list[Figure]:
        """The figures that something was published of; of an unpublished checkpoint all that were measured."""
        measured = measured_figures(self.metrics)
        if self.row is None:
            return [Figure(name, value) for name, value in measured.items()]
        published, reproduced = self.row.published, self.row.reproduced
        return [
            Figure(
                name,
                measured.get(name),
                _percent(published.get(name)),
                _percent(reproduced.get(name)),
                self.row.approximate,
            )
            for name in self.row.figures
        ]

    @property
    def within(self) -> bool:
        """Whether every figure that can be compared is within TOLERANCE."""
        return all(figure.within is not False for figure in self.figures)

    def to_json(self) -> dict[str, Any]:
        """Figures and settings as plain JSON values."""
        return {
            "model": self.name,
            "figures": [asdict(f) | {"difference": f.difference, "within": f.within} for f in self.figures],
            "differences": [asdict(d) for d in self.differences],
            "images": self.metrics.images,
            "seconds per image and process": round(self.seconds, 4),
        }


def measured_figures(metrics: Metrics) -> dict[str, float]:
    """Figures in percent by name, in the order of FIGURES, without those that nothing defines."""
    values: dict[str, Any] = {name: metrics[name] for name in FIGURES if name in metrics}
    if metrics.masks is not None:
        values["AP_segm"] = metrics.masks.AP
    if metrics.panoptic is not None:
        values |= {name: metrics.panoptic[name] for name in FIGURES if name in metrics.panoptic}
    return {name: 100 * values[name] for name in FIGURES if values.get(name, -1) >= 0}


def settings_that_differ(row: Published, here: Mapping[str, Any]) -> list[Difference]:
    """The settings that are not as in the published evaluation, and what that does.

    Args:
        row: what was published.
        here: images, size, max_size, batch_size, padding, threshold and precision of this evaluation.
    """
    there = asdict(row.evaluation) | {"precision": "fp32"}
    remarks = {
        "padding": "exact: the results do not depend on the batch, and are those of single images",
        "batch_size": "does not change the result with exact padding",
    }
    if here["padding"] != "exact":
        remarks = {"batch_size": "changes the result: the padding of a batch is seen"}
    names = ("images", "size", "max_size", "batch_size", "padding", "threshold", "precision")
    return [
        Difference(name.replace("_", " "), str(here[name]), str(there[name]), remarks.get(name, ""))
        for name in names
        if name in here and there[name] is not None and here[name] != there[name]
    ]


def figure_table(results: Sequence[Reproduced]) -> str:
    """Measured beside published, in percent, as a Markdown table."""
    rows = []
    for result in results:
        for k, figure in enumerate(result.figures):
            within = {True: "yes", False: "no", None: "-"}[figure.within]
            rows.append(
                [
                    result.name if k == 0 else "",
                    _NAMES.get(figure.name, figure.name),
                    _shown(figure.published, "about " if figure.approximate else ""),
                    _shown(figure.reproduced),
                    _shown(figure.measured, empty="n/a"),
                    "-" if figure.difference is None else f"{figure.difference:+.2f}",
                    within,
                ]
            )
    headings = ["model", "figure", "published", "by the report", "measured", "difference", f"within {TOLERANCE}"]
    return markdown_table(headings, rows)


def summary_folder(out: Path) -> AbstractContextManager[None]:
    """The folder of `write_summary`, made if need be, in which it writes over no file of others.

    Raises:
        DetrkitError: a report.md or figures.json that detrkit did not write; or the folder cannot be written.
    """
    # figures.json is of no other program; that of detrkit 0.1 came without a manifest
    return claimed_files(out, ("report.md", "figures.json"), ours=(out / "figures.json").is_file())


def write_summary(out: Path, results: Sequence[Reproduced]) -> Path:
    """Writes report.md, with the figures of all checkpoints and what differs, and figures.json.

    Returns:
        The path of report.md.
    """
    parts = ["# Measured beside published", figure_table(results)]
    parts.append(
        "In percent; the difference is in points, to the published figure or, where there is none, to the report's. "
        "AP50, AP75: at one IoU; APs, APm, APl: small, medium and large objects; PQ, SQ, RQ: panoptic, recognition and "
        "segmentation quality, of things (th) and stuff (st)."
    )
    parts.append("## Settings that differ from the published evaluation")
    for result in results:
        rows = [f"- {difference}" for difference in result.differences] or ["none"]
        parts += [f"[{result.name}]({result.name}/report.md):", "\n".join(rows)]
    write_atomic(out / "figures.json", json.dumps([result.to_json() for result in results], indent=2) + "\n")
    return write_atomic(out / "report.md", "\n\n".join(parts) + "\n")


def _shown(value: float | None, before: str = "", *, empty: str = "-") -> str:
    return empty if value is None else f"{before}{value:.1f}"


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)
