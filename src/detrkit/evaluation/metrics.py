"""`Metrics`: the COCO metrics of one evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from detrkit.evaluation.curves import PrecisionRecall
from detrkit.utils.visible import markdown

if TYPE_CHECKING:
    from detrkit.evaluation.panoptic_metrics import PanopticMetrics
    from detrkit.evaluation.scores import ScoreCurves

# The order of pycocotools' `stats`.
NAMES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
PER_CLASS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR")


def percent(value: float) -> str:
    """Format a metric as papers print it: 0.4203 -> "42.0", undefined (-1) -> "n/a"."""
    return "n/a" if value < 0 else f"{value * 100:.1f}"


@dataclass(frozen=True)
class Metrics(Mapping[str, Any]):
    """The 12 COCO metrics in [0, 1], -1 where no object defines them, and metrics per class.

    `metrics.AP` and `metrics["AP"]` are the same; as a mapping it holds the 12 metrics and `per_class`.

    Attributes:
        AP: mean over IoU 0.5:0.05:0.95 and classes, at the largest number of detections per image.
        AP50: at IoU 0.5.
        AP75: at IoU 0.75.
        APs: objects below 32 x 32 pixels.
        APm: from 32 x 32 to 96 x 96 pixels.
        APl: above 96 x 96 pixels.
        AR1: recall with one detection per image (the first of `max_dets`).
        AR10: with ten (the second).
        AR100: with a hundred (the last).
        ARs: small objects, as APs.
        ARm: medium objects.
        ARl: large objects.
        per_class: name -> AP, AP50, AP75, APs, APm, APl, AR (at the last of `max_dets`) and `objects` (a count,
            crowd left out).
        max_dets: the numbers of detections per image that count.
        iou_type: "bbox" or "segm".
        images: number of images that were evaluated.
        objects: number of objects in these images, crowd left out.
        detections: number of detections that were given.
        curves: precision-recall curves.
        scores: precision, recall and F1 over the score, if they were asked for.
        masks: metrics of the objects' masks, if they were evaluated beside the boxes.
        panoptic: panoptic quality, if it was evaluated beside the boxes; then the boxes are those of things.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    per_class: dict[str, dict[str, float]]
    max_dets: tuple[int, int, int] = (1, 10, 100)
    iou_type: str = "bbox"
    images: int = 0
    objects: int = 0
    detections: int = 0
    curves: PrecisionRecall | None = field(default=None, repr=False, compare=False)
    scores: ScoreCurves | None = field(default=None, repr=False, compare=False)
    masks: Metrics | None = None
    panoptic: PanopticMetrics | None = None

    def __getitem__(self, key: str) -> Any:
        if key not in (*NAMES, "per_class"):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter((*NAMES, "per_class"))

    def __len__(self) -> int:
        return len(NAMES) + 1

    @property
    def stats(self) -> tuple[float, ...]:
        """The 12 metrics in pycocotools' order."""
        return tuple(getattr(self, name) for name in NAMES)

    def to_json(self) -> dict[str, Any]:
        """Convert metrics and counts to plain JSON values, without the curves."""
        return {
            **dict(zip(NAMES, self.stats, strict=True)),
            "max_dets": list(self.max_dets),
            "iou_type": self.iou_type,
            "images": self.images,
            "objects": self.objects,
            "detections": self.detections,
            "per_class": self.per_class,
        }

    def table(self, *, per_class: bool = False) -> str:
        """Format a Markdown table in percent: the 12 metrics, or one row per class with objects, best AP first."""
        if not per_class:
            headings = [n if n != "AR100" else f"AR{self.max_dets[2]}" for n in NAMES]
            if self.max_dets[:2] != (1, 10):
                headings[6:8] = f"AR{self.max_dets[0]}", f"AR{self.max_dets[1]}"
            return markdown_table(headings, [[percent(v) for v in self.stats]])
        return self.class_table(self.ranked())

    def ranked(self) -> list[str]:
        """Return the classes with objects, best AP first."""
        present = [name for name, row in self.per_class.items() if row["objects"]]
        return sorted(present, key=lambda name: (-self.per_class[name]["AP"], name))

    def class_table(self, names: list[str]) -> str:
        """Format a Markdown table in percent with a row for each of these classes, in this order."""
        rows = [
            [name, str(int(self.per_class[name]["objects"])), *(percent(self.per_class[name][k]) for k in PER_CLASS)]
            for name in names
        ]
        return markdown_table(["class", "objects", *PER_CLASS], rows)

    def __str__(self) -> str:
        return self.table()


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table, aligned for terminals, too: text to the left, numbers to the right."""

    def numeric(column: int) -> bool:
        return all(re.fullmatch(r"[+-]?\d+(\.\d+)?|n/a|-", row[column]) for row in rows)

    headings, rows = [markdown(heading) for heading in headings], [[markdown(cell) for cell in row] for row in rows]
    right = [bool(rows) and numeric(i) for i in range(len(headings))]
    widths = [max(3, *(len(row[i]) for row in [headings, *rows])) for i in range(len(headings))]

    def line(cells: list[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    return "\n".join([line(headings), rule, *map(line, rows)])
