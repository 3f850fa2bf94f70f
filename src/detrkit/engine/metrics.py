"""The metrics that a run shows of an evaluation, and the metric that selects the best epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detrkit.evaluation import Metrics, PanopticMetrics
from detrkit.evaluation.metrics import percent
from detrkit.models.spec import SCORE_THRESHOLDS

_BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_MASKS = ("AP", "AP50", "AP75")
_PANOPTIC = {"PQ": "PQ", "PQ_th": "PQ_things", "PQ_st": "PQ_stuff", "SQ": "SQ", "RQ": "RQ"}
# epochs.csv -> the epoch's line on the terminal
_LINE = {"val/PQ": "PQ", "val/PQ_things": "things", "val/PQ_stuff": "stuff", "val/segm_AP": "mask AP"}
_LINE |= {"val/AP": "AP", "val/AP50": "AP50"}


def selection_metric(metrics: Metrics) -> tuple[str, float]:
    """Return name and value in [0, 1] of the metric that selects the best epoch: PQ, else mask AP, else box AP."""
    if metrics.panoptic is not None:
        return "PQ", metrics.panoptic.PQ
    if metrics.masks is not None:
        return "mask AP", metrics.masks.AP
    return "AP", metrics.AP


def overfit_metric(metrics: Metrics) -> tuple[str, float]:
    """Return name and value in [0, 1] of the metric that `--overfit` monitors: PQ, else mask AP50, else box AP50."""
    if metrics.panoptic is not None:
        return "PQ", metrics.panoptic.PQ
    if metrics.masks is not None:
        return "mask AP50", metrics.masks.AP50
    return "AP50", metrics.AP50


def checkpoint_metrics(metrics: Metrics) -> dict[str, float]:
    """Return the metrics that a checkpoint stores, in [0, 1]."""
    figures = {name: metrics[name] for name in ("AP", "AP50", "AP75")}
    if metrics.masks is not None:
        figures |= {f"segm_{name}": metrics.masks[name] for name in _MASKS}
    if metrics.panoptic is not None:
        figures |= {_PANOPTIC[name]: metrics.panoptic[name] for name in _PANOPTIC}
    return figures


def stored_thresholds(metrics: Metrics | None) -> dict[str, Any]:
    """Return the entry of a checkpoint's `training` with the score thresholds that an evaluation suggests, if any."""
    scores = None if metrics is None else metrics.scores
    thresholds = None if scores is None else scores.suggest()
    return {} if thresholds is None else {SCORE_THRESHOLDS: thresholds.to_json()}


def to_row(metrics: Metrics) -> dict[str, float]:
    """Return the metrics of a row of epochs.csv, in [0, 1]; -1 where a metric is undefined."""
    return {
        f"val/{name}": value for name, value in ({n: metrics[n] for n in _BOXES} | checkpoint_metrics(metrics)).items()
    }


def format_row(values: Mapping[str, Any]) -> str:
    """Format the metrics of a row for the epoch's line on the terminal, in percent."""
    return "".join(f"  {name} {percent(values[key])}" for key, name in _LINE.items() if key in values)


def epoch_line(row: Mapping[str, Any], epochs: int, improved: bool) -> str:
    """Format a row of epochs.csv for the terminal."""
    line = f"epoch {row['epoch']}/{epochs}  loss {row.get('train/loss', math.nan):.3f}{format_row(row)}"
    return line + f"{'  best' if improved else ''}  {row['images_per_second']:.1f} images/s  {row['seconds']:.0f} s"


def format_metrics(metrics: Metrics) -> str:
    """Format the metrics of a split in one line, in percent."""
    return format_row(to_row(metrics)).strip().replace("  ", ", ")


def evaluated_parts(metrics: Metrics) -> list[Metrics | PanopticMetrics]:
    """Return the evaluated parts, each with its own tables: segments, boxes, masks."""
    return [part for part in (metrics.panoptic, metrics, metrics.masks) if part is not None]


def part_name(part: Metrics | PanopticMetrics) -> str:
    """Return what the metrics are of: segments, boxes or masks."""
    if isinstance(part, PanopticMetrics):
        return "segments"
    return "boxes" if part.iou_type == "bbox" else "masks"
