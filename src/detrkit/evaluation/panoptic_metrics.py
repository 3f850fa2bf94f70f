"""`PanopticMetrics`: panoptic quality, over all classes, things and stuff, and per class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from detrkit.evaluation.metrics import markdown_table, percent

NAMES = ("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st")
_GROUPS = {"all": "", "things": "_th", "stuff": "_st"}


@dataclass(frozen=True)
class PanopticMetrics(Mapping[str, Any]):
    """Panoptic quality as Kirillov et al. (2019) define it, in [0, 1], -1 where no segment defines it.

    For one class, SQ (segmentation quality) is the mean IoU of the matched segments, RQ (recognition quality) is
    TP / (TP + FP / 2 + FN / 2), and PQ = SQ * RQ. The overall metrics are means over the classes that are
    annotated or were predicted; so PQ is not SQ * RQ there.

    `metrics.PQ` and `metrics["PQ"]` are the same; as a mapping it holds the 9 metrics and `per_class`.

    Attributes:
        PQ: panoptic quality of all classes.
        SQ: segmentation quality.
        RQ: recognition quality.
        PQ_th: of the things (countable objects).
        SQ_th: of the things.
        RQ_th: of the things.
        PQ_st: of the stuff (sky, grass, ...).
        SQ_st: of the stuff.
        RQ_st: of the stuff.
        per_class: name -> PQ, SQ, RQ, `thing`, and the counts `segments` (annotated, crowd left out), `TP` (matched),
            `FP` (predicted and not matched) and `FN` (annotated and not matched).
        images: number of images that were evaluated.
    """

    PQ: float
    SQ: float
    RQ: float
    PQ_th: float
    SQ_th: float
    RQ_th: float
    PQ_st: float
    SQ_st: float
    RQ_st: float
    per_class: dict[str, dict[str, Any]]
    images: int = 0

    @classmethod
    def from_counts(
        cls,
        names: tuple[str, ...],
        things: tuple[bool, ...],
        *,
        iou: np.ndarray,
        matched: np.ndarray,
        false_positives: np.ndarray,
        false_negatives: np.ndarray,
        images: int,
    ) -> PanopticMetrics:
        """Compute the metrics from sums over images, one row per class.

        Args:
            names: of the K classes.
            things: (K,) whether each is a thing.
            iou: (K,) sum of the matched segments' IoU.
            matched: (K,) true positives.
            false_positives: (K,) false positives.
            false_negatives: (K,) false negatives.
            images: number of images.
        """
        denominator = matched + false_positives / 2 + false_negatives / 2  # Kirillov et al. 2019, Eq. 1
        present = denominator > 0
        divisor = np.maximum(denominator, 0.5)  # no division by 0; of a class that is present it is 0.5 or more
        rows = np.where(present, [iou / divisor, iou / np.maximum(matched, 1), matched / divisor], -1.0)  # PQ, SQ, RQ
        thing = np.array(things, bool)
        numbers = {
            name + suffix: float(row[class_mask].mean()) if class_mask.any() else -1.0
            for suffix, class_mask in (("", present), ("_th", present & thing), ("_st", present & ~thing))
            for name, row in zip(("PQ", "SQ", "RQ"), rows, strict=True)
        }
        per_class = {
            name: {
                **dict(zip(("PQ", "SQ", "RQ"), rows[:, k].tolist(), strict=True)),
                "thing": things[k],
                "segments": int(matched[k] + false_negatives[k]),
                "TP": int(matched[k]),
                "FP": int(false_positives[k]),
                "FN": int(false_negatives[k]),
            }
            for k, name in enumerate(names)
        }
        return cls(**numbers, per_class=per_class, images=images)

    def __getitem__(self, key: str) -> Any:
        if key not in (*NAMES, "per_class"):
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter((*NAMES, "per_class"))

    def __len__(self) -> int:
        return len(NAMES) + 1

    @property
    def segments(self) -> int:
        """Number of annotated segments, crowd left out."""
        return sum(row["segments"] for row in self.per_class.values())

    def to_json(self) -> dict[str, Any]:
        """Convert metrics and counts to plain JSON values."""
        return {**{n: self[n] for n in NAMES}, "images": self.images, "segments": self.segments} | {
            "per_class": self.per_class
        }

    def worst(self, count: int = 10) -> list[str]:
        """Return the annotated classes with the lowest PQ, lowest first; ties by the number of segments, most first."""
        annotated = [name for name, row in self.per_class.items() if row["segments"]]
        return sorted(annotated, key=lambda n: (self.per_class[n]["PQ"], -self.per_class[n]["segments"], n))[:count]

    def ranked(self) -> list[str]:
        """Return the classes with a PQ, best first."""
        counted = {n: row for n, row in self.per_class.items() if row["PQ"] >= 0}
        return sorted(counted, key=lambda n: (-counted[n]["PQ"], n))

    def table(self, *, per_class: bool = False) -> str:
        """Format a Markdown table in percent: all, things and stuff, or one row per class with a PQ, best PQ first."""
        if per_class:
            return self.class_table(self.ranked())
        rows = []
        for group, suffix in _GROUPS.items():
            group_rows = [r for r in self.per_class.values() if group == "all" or r["thing"] == (group == "things")]
            count = sum(row["PQ"] >= 0 for row in group_rows)
            rows.append([group, *(percent(self[name + suffix]) for name in ("PQ", "SQ", "RQ")), str(count)])
        return markdown_table(["", "PQ", "SQ", "RQ", "classes"], rows)

    def class_table(self, names: list[str]) -> str:
        """Format a Markdown table in percent with a row for each of these classes, in this order."""
        rows = []
        for name in names:
            row = self.per_class[name]
            kind = "thing" if row["thing"] else "stuff"
            numbers = [percent(row[k]) for k in ("PQ", "SQ", "RQ")]
            rows.append([name, kind, *numbers, *(str(row[k]) for k in ("segments", "TP", "FP", "FN"))])
        return markdown_table(["class", "", "PQ", "SQ", "RQ", "segments", "TP", "FP", "FN"], rows)

    def __str__(self) -> str:
        return self.table()
