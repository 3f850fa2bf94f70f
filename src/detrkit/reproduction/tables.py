"""Comparison of measured and published metrics: values, settings, tables."""

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

TOLERANCE = 0.2  # percentage points between a measured and a published metric
_NAMES = {"AP_segm": "mask AP"}


@dataclass(frozen=True)
class MetricComparison:
    """A metric in percent, as measured and as published.

    Attributes:
        name: see `detrkit.models.pretrained.FIGURES`.
        measured: by detrkit; None if nothing defines it (no objects of that kind).
        published: by the source of the checkpoint; None if it does not report this metric.
        reproduced: measured by others with the official code and files; None if it was not.
        approximate: whether the published value is rounded.
    """

    name: str
    measured: float | None
    published: float | None = None
    reproduced: float | None = None
    approximate: bool = False

    @property
    def difference(self) -> float | None:
        """Measured minus published value, or if none was published, minus the reproduced one; in percentage points."""
        reference = self.published if self.published is not None else self.reproduced
        return None if reference is None or self.measured is None else self.measured - reference

    @property
    def within(self) -> bool | None:
        """True if the difference is at most TOLERANCE; None if there is no exact value to compare with."""
        if self.difference is None or self.approximate:
            return None
        return abs(self.difference) <= TOLERANCE + 1e-9


@dataclass(frozen=True)
class SettingDifference:
    """A setting that differs from the published evaluation.

    Attributes:
        setting: its name.
        here: its value in this evaluation.
        published: its value in the published evaluation.
        remark: its effect, or "".
    """

    setting: str
    here: str
    published: str
    remark: str = ""

    def __str__(self) -> str:
        remark = f": {self.remark}" if self.remark else ""
        return f"{self.setting} {self.here} (published: {self.published}){remark}"


@dataclass(frozen=True)
class ReproductionResult:
    """Results of one checkpoint.

    Attributes:
        name: of the published row, or of the model.
        metrics: of boxes; for panoptic models also of masks and segments.
        row: the published checkpoint; None for other checkpoints.
        differences: settings that differ from the published evaluation.
        seconds: per image and process, with loading and post-processing.
        folder: of the report.
    """

    name: str
    metrics: Metrics
    row: Published | None = None
    differences: Sequence[SettingDifference] = field(default_factory=list)
    seconds: float = 0.0
    folder: Path = Path()

    @property
    def comparisons(self) -> list[MetricComparison]:
        """The metrics for which there are published or reproduced values; all metrics for an unpublished checkpoint."""
        measured = measured_percent(self.metrics)
        if self.row is None:
            return [MetricComparison(name, value) for name, value in measured.items()]
        published, reproduced = self.row.published, self.row.reproduced
        return [
            MetricComparison(
                name,
                measured.get(name),
                _percent(published.get(name)),
                _percent(reproduced.get(name)),
                self.row.approximate,
            )
            for name in self.row.figures
        ]

    @property
    def figures(self) -> list[MetricComparison]:
        """The `comparisons`, by their name in earlier versions."""
        return self.comparisons

    @property
    def within(self) -> bool:
        """True if every metric that can be compared is within TOLERANCE."""
        return all(metric.within is not False for metric in self.comparisons)

    def to_json(self) -> dict[str, Any]:
        """Convert metrics and settings to plain JSON values."""
        return {
            "model": self.name,
            "figures": [asdict(f) | {"difference": f.difference, "within": f.within} for f in self.comparisons],
            "differences": [asdict(d) for d in self.differences],
            "images": self.metrics.images,
            "seconds per image and process": round(self.seconds, 4),
        }


# names in earlier versions
Reproduced, Figure, Difference = ReproductionResult, MetricComparison, SettingDifference


def measured_percent(metrics: Metrics) -> dict[str, float]:
    """Return metrics in percent by name, in the order of FIGURES, without undefined ones."""
    values: dict[str, Any] = {name: metrics[name] for name in FIGURES if name in metrics}
    if metrics.masks is not None:
        values["AP_segm"] = metrics.masks.AP
    if metrics.panoptic is not None:
        values |= {name: metrics.panoptic[name] for name in FIGURES if name in metrics.panoptic}
    return {name: 100 * values[name] for name in FIGURES if values.get(name, -1) >= 0}


def settings_that_differ(row: Published, here: Mapping[str, Any]) -> list[SettingDifference]:
    """Find the settings that differ from the published evaluation, with their effect.

    Args:
        row: the published checkpoint.
        here: images, size, max_size, batch_size, padding, threshold and precision of this evaluation.
    """
    published = asdict(row.evaluation) | {"precision": "fp32"}
    remarks = {
        "padding": "exact: the results do not depend on the batch, and are those of single images",
        "batch_size": "does not change the result with exact padding",
    }
    if here["padding"] != "exact":
        remarks = {"batch_size": "changes the result: the padding of a batch is seen"}
    names = ("images", "size", "max_size", "batch_size", "padding", "threshold", "precision")
    return [
        SettingDifference(name.replace("_", " "), str(here[name]), str(published[name]), remarks.get(name, ""))
        for name in names
        if name in here and published[name] is not None and here[name] != published[name]
    ]


def metrics_table(results: Sequence[ReproductionResult]) -> str:
    """Format a Markdown table of published and measured metrics in percent."""
    rows = []
    for result in results:
        for k, metric in enumerate(result.comparisons):
            within = {True: "yes", False: "no", None: "-"}[metric.within]
            rows.append(
                [
                    result.name if k == 0 else "",
                    _NAMES.get(metric.name, metric.name),
                    _shown(metric.published, "about " if metric.approximate else ""),
                    _shown(metric.reproduced),
                    _shown(metric.measured, empty="n/a"),
                    "-" if metric.difference is None else f"{metric.difference:+.2f}",
                    within,
                ]
            )
    headings = ["model", "metric", "published", "official code", "measured", "difference", f"within {TOLERANCE}"]
    return markdown_table(headings, rows)


def summary_folder(out: Path) -> AbstractContextManager[None]:
    """Claim the folder of `write_summary`, so that no file of other programs is overwritten; create it if needed.

    Raises:
        DetrkitError: a report.md or figures.json exists that detrkit did not write, or the folder cannot be written.
    """
    # no other program writes figures.json; detrkit 0.1 wrote it without a manifest
    return claimed_files(out, ("report.md", "figures.json"), written_before=(out / "figures.json").is_file())


def write_summary(out: Path, results: Sequence[ReproductionResult]) -> Path:
    """Write report.md, with the metrics of all checkpoints and the differing settings, and figures.json.

    Returns:
        The path of report.md.
    """
    parts = ["# Measured and published metrics", metrics_table(results)]
    parts.append(
        "In percent. Official code: measured by others with the official code and files. The difference is in points, "
        "to the published metric or, where there is none, to that of the official code. "
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
