"""A report of one evaluation: a Markdown page with tables and images, and the metrics as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from detrkit.evaluation.confusion import Confusion
from detrkit.evaluation.curves import PrecisionRecall
from detrkit.evaluation.metrics import Metrics, markdown_table
from detrkit.evaluation.panoptic_metrics import PanopticMetrics
from detrkit.evaluation.scores import MIN_OBJECTS, ScoreCurves
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import claimed_files
from detrkit.utils.image_files import image_bytes
from detrkit.utils.messages import names_and_more
from detrkit.utils.overwriting import has_keys
from detrkit.utils.visible import markdown

_PANOPTIC_FOOTNOTE = (
    "In percent. SQ: mean IoU of the matched segments (IoU above 0.5); RQ: TP / (TP + FP / 2 + FN / 2); PQ = SQ * RQ "
    "of a class, and means over the classes that are annotated or were predicted. n/a: no such classes."
)


_METRICS = "metrics.json"
REPORT_FILES = (
    "report.md",
    _METRICS,
    "examples.png",
    "scores.png",
    "precision_recall.png",
    "confusion.png",
    "training.png",
)


def report_folder(folder: str | Path, *more: str) -> AbstractContextManager[None]:
    """Claim a folder for a report, so that no file of other programs is overwritten; create it if needed.

    Args:
        folder: of the report.
        more: names of other files that are written with it.

    Raises:
        DetrkitError: a file of a report's name exists that detrkit did not write, or the folder cannot be written.
    """
    folder = Path(folder)
    try:
        written_before = has_keys(
            folder / _METRICS, ("title", "settings")
        )  # of a run, or of a version without manifests
    except OSError:
        written_before = False
    return claimed_files(folder, (*REPORT_FILES, *more), written_before=written_before)


def write_report(
    folder: str | Path,
    *,
    metrics: Metrics | None,
    title: str,
    settings: Mapping[str, Any],
    masks: Metrics | None = None,
    panoptic: PanopticMetrics | None = None,
    pr: PrecisionRecall | None = None,
    confusion: Confusion | None = None,
    sheet: Image.Image | None = None,
    curves: Sequence[Mapping[str, Any]] | None = None,
    timing: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write report.md, metrics.json and the images that report.md links.

    report.md is written last, so that everything it links exists.

    Args:
        folder: created if needed; files of an earlier report in it are replaced.
        metrics: of the boxes; may be None with `panoptic`.
        title: of the page.
        settings: of the evaluation, one row each: model, weights, dataset, batch size, padding, ...
        masks: metrics of the same detections' masks (iou_type "segm").
        panoptic: metrics of the panoptic results; they come first.
        pr: precision-recall curves; by default those of `metrics`.
        confusion: confusion matrix of the classes.
        sheet: an image of examples, see `visualize.comparison_sheet`.
        curves: rows of a training log, see `visualize.training_curves`.
        timing: one row each, with the unit in the name: {"images per second": 31.4}.
        notes: remarks on the metrics, a sentence each; they are printed below the title.

    Returns:
        The path of report.md.

    Raises:
        DetrkitError: the folder cannot be written.
        ValueError: neither `metrics` nor `panoptic` is given.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise DetrkitError(f"{folder} is a file; give a folder for the report")
    if metrics is None and masks is None and panoptic is None:
        raise ValueError("a report needs metrics or panoptic metrics")
    page = _Page(folder, [f"# {markdown(_plain(title))}"])
    page.record |= {"title": title, "settings": {k: _json_value(v) for k, v in settings.items()}}
    if notes:
        page.parts += [f"**Note:** {markdown(note)}" for note in notes]
        page.record["notes"] = list(notes)
    _add_metrics(page, metrics, masks, panoptic)
    if sheet is not None:
        void = "" if panoptic is None else " Pixels of no segment (void) are hatched."
        page.image("examples.png", image_bytes(sheet.convert("RGB")), "Examples", f"Small images are enlarged.{void}")
    _add_classes(page, metrics, masks, panoptic)
    if pr is None and metrics is not None:
        pr = metrics.curves
    if metrics is not None and metrics.scores is not None:
        _add_scores(page, metrics.scores)
    _add_plots(page, pr, confusion, curves)
    _add_settings(page, settings, timing or {})
    write_atomic(folder / _METRICS, json.dumps(page.record, indent=2) + "\n")
    page.parts.append("The same numbers for programs: [metrics.json](metrics.json).")
    return write_atomic(folder / "report.md", "\n\n".join(p for p in page.parts if p) + "\n")


@dataclass
class _Page:
    """The report while it is written.

    Attributes:
        folder: of the report.
        parts: paragraphs of report.md.
        record: content of metrics.json.
    """

    folder: Path
    parts: list[str]
    record: dict[str, Any] = field(default_factory=dict)

    def image(self, name: str, content: bytes, heading: str, text: str) -> None:
        """Write an image file, and add a section with it and a text."""
        write_atomic(self.folder / name, content)
        self.parts.extend([f"## {heading}", f"![{heading}]({name})", text])


def _add_metrics(page: _Page, metrics: Metrics | None, masks: Metrics | None, panoptic: PanopticMetrics | None) -> None:
    """Add the tables of the overall metrics, panoptic ones first."""
    if panoptic is not None:
        page.parts += [_panoptic_summary(panoptic), panoptic.table(), _PANOPTIC_FOOTNOTE]
        page.record["panoptic"] = panoptic.to_json()
    kinds = [m for m in (metrics, masks) if m is not None]
    page.parts += [text for kind in kinds for text in (_summary(kind), kind.table())]
    if kinds:
        page.parts.append(_footnote(kinds[0]))
    if metrics is not None:
        page.record |= metrics.to_json()
    if masks is not None:
        page.record["masks"] = masks.to_json()


def _add_classes(page: _Page, metrics: Metrics | None, masks: Metrics | None, panoptic: PanopticMetrics | None) -> None:
    """Add the tables of the metrics per class."""
    if panoptic is not None:
        page.parts += ["## Classes: segments", _panoptic_classes(panoptic)]
    if metrics is not None:
        page.parts += ["## Classes", _classes(metrics)]
    if masks is not None:
        page.parts += ["## Classes: masks", _classes(masks)]


def _add_scores(page: _Page, scores: ScoreCurves) -> None:
    """Add precision, recall and F1 over the score, with the suggested thresholds."""
    from detrkit.visualize.curves import png_bytes, score_curves

    if not scores.objects.sum():
        return
    thresholds = scores.suggest()
    if thresholds is None:
        text = (
            "No threshold is suggested: at the best one F1 is below 0.05, so that hardly any detection is right. "
            "Train longer, or look at examples.png for what is wrong."
        )
    else:
        page.record["score_thresholds"] = scores.to_json(thresholds)
        text = (
            "A detection is right if it matches an object of its class at IoU 0.5. F1 is the harmonic mean of "
            "precision and recall. The suggested threshold of a class has the best F1 on these images; a class with "
            f"fewer than {MIN_OBJECTS} objects, or without a useful threshold, has that of all classes (dashed line). "
            "The checkpoint of a run holds those of its validation images for `detrkit predict`.\n\n"
            f"{scores.table(thresholds)}"
        )
    page.image("scores.png", png_bytes(score_curves(scores, thresholds)), "Score thresholds", text)


def _add_plots(
    page: _Page,
    pr: PrecisionRecall | None,
    confusion: Confusion | None,
    curves: Sequence[Mapping[str, Any]] | None,
) -> None:
    """Add the plots: precision and recall, confusion, training."""
    from detrkit.visualize.curves import confusion_heatmap, png_bytes, precision_recall_curves, training_curves

    if pr is not None:
        text = "Left: the mean over the classes with objects. Right: single classes. The area below a curve is its AP."
        page.image("precision_recall.png", png_bytes(precision_recall_curves(pr)), "Precision and recall", text)
    if confusion is not None:
        page.image("confusion.png", png_bytes(confusion_heatmap(confusion)), "Confusion", _confusion_text(confusion))
        page.record["confusion"] = {
            "names": [*confusion.names, "background"],
            "matrix": confusion.matrix.tolist(),
            "iou": confusion.iou,
            "score": confusion.score,
        }
    if curves:
        text = (
            "The total is what is minimized: the weighted sum of the terms of all decoder layers. The terms shown are "
            "those of the last layer, without weights. Where single steps are logged, the line is their running mean."
        )
        page.image("training.png", png_bytes(training_curves(curves)), "Training", text)


def _confusion_text(confusion: Confusion) -> str:
    """Explain the confusion matrix, and list the most frequent mistakes."""
    text = (
        f"Counts of objects matched at IoU {confusion.iou:g} with detections above a score of "
        f"{confusion.score:g}. The column *missed* holds objects without a detection, the row *background* "
        "detections without an object."
    )
    mistakes = [[true, predicted, str(count)] for true, predicted, count in confusion.top()]
    if mistakes:
        text += "\n\nMost frequent mistakes:\n\n" + markdown_table(["true", "taken for", "count"], mistakes)
    return text


def _add_settings(page: _Page, settings: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    """Add the tables of settings and times."""
    for heading, values in (("Settings", settings), ("Timing", timing)):
        if values:
            rows = [[_plain(k), _value(v)] for k, v in values.items()]
            page.parts.extend([f"## {heading}", markdown_table(["", ""], rows)])
    if timing:
        page.record["timing"] = {k: _json_value(v) for k, v in timing.items()}


def _plain(text: object) -> str:
    """Join text to one line with single spaces."""
    return " ".join(str(text).split())


def _value(value: object) -> str:
    """Format a setting for the table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(v) for v in value)
    return _plain(value)


def _json_value(value: object) -> Any:
    """Convert a setting to JSON; values that JSON does not have become text."""
    if isinstance(value, Mapping):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_value(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _summary(metrics: Metrics) -> str:
    """Return the page's first sentence."""
    what = "boxes" if metrics.iou_type == "bbox" else "masks"
    number = "undefined (there are no objects)" if metrics.AP < 0 else f"{metrics.AP * 100:.1f}"
    return (
        f"**AP {number}** ({what}) on {metrics.images:,} images with {metrics.objects:,} objects, "
        f"from {metrics.detections:,} detections."
    )


def _panoptic_summary(metrics: PanopticMetrics) -> str:
    """Return the first sentence on panoptic results."""
    number = "undefined (there are no segments)" if metrics.PQ < 0 else f"{metrics.PQ * 100:.1f}"
    return f"**PQ {number}** on {metrics.images:,} images with {metrics.segments:,} segments."


def _panoptic_classes(metrics: PanopticMetrics, count: int = 10) -> str:
    """Format the table of all classes, after that of the worst if there are more classes than `count`."""
    text = (
        "TP: matched, FP: predicted and not matched, FN: annotated and not matched. A low SQ comes from rough "
        "outlines, a low RQ from segments that are missing, spurious, split, merged or of the wrong class."
    )
    parts = [text, metrics.table(per_class=True)]
    worst = metrics.worst(count)
    if len(worst) < sum(row["segments"] > 0 for row in metrics.per_class.values()):
        parts[1:1] = [f"The {count} worst annotated classes:", metrics.class_table(worst), "All:"]
    return "\n\n".join(parts)


def _footnote(metrics: Metrics) -> str:
    """Explain the columns of the first table."""
    return (
        "In percent, by COCO's rules. AP: mean over IoU 0.5 to 0.95; AP50, AP75: at one IoU; s, m, l: objects below "
        "32 x 32, up to 96 x 96, above 96 x 96 pixels; AR: recall with that many detections per image and class. "
        f"AP counts the best {metrics.max_dets[2]}. n/a: no such objects."
    )


def _classes(metrics: Metrics) -> str:
    """Format the per-class table and a line on the classes without objects."""
    absent = [name for name, row in metrics.per_class.items() if not row["objects"]]
    table = metrics.table(per_class=True)
    if not absent:
        return table
    names = names_and_more([markdown(name) for name in absent], 20)
    return f"{table}\n\nWithout objects in the ground truth: {names}."
