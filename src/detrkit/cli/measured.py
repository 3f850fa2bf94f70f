"""What `eval`, `train` and `quickstart` print of an evaluation: totals first, then the best and the worst classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from detrkit.utils.console import console
from detrkit.utils.messages import names_and_more

if TYPE_CHECKING:
    from detrkit.evaluation import Metrics, PanopticMetrics

MAX_CLASSES = 10  # rows of the table without --per-class: the best and the worst
_MAX_THRESHOLDS = 5  # in the line of suggested thresholds


def print_measured(parts: Sequence[Metrics | PanopticMetrics], *, per_class: bool = False) -> None:
    """Print the tables of an evaluation.

    Args:
        parts: segments, boxes, masks, as far as they were evaluated.
        per_class: print every class; else at most ten of each part.
    """
    from detrkit.engine.metrics import part_name

    for part in parts:
        console.print(f"{part_name(part)}:\n{part.table()}")
        console.print(classes_text(part, None if per_class else max(2, MAX_CLASSES // len(parts))))
    for part in parts:
        line = thresholds_line(part, per_class=per_class)
        if line:
            console.print(line)


def classes_text(part: Metrics | PanopticMetrics, count: int | None) -> str:
    """Format the table of classes: all, or of many the best and the worst, `count` in all."""
    names = part.ranked()
    if count is None or len(names) <= count:
        return part.class_table(names)
    best = (count + 1) // 2
    table = part.class_table([*names[:best], *names[len(names) - (count - best) :]]).splitlines()
    left_out = f"... {len(names) - count} more classes in between: report.md, or --per-class"
    return "\n".join([*table[: 2 + best], left_out, *table[2 + best :]])


def thresholds_line(part: Metrics | PanopticMetrics, *, per_class: bool = False) -> str:
    """Return a line on the suggested score thresholds; "" if none were computed."""
    scores = getattr(part, "scores", None)
    if scores is None or not scores.objects.sum():
        return ""
    thresholds = scores.suggest()
    if thresholds is None:
        return "no score threshold is suggested: F1 is below 0.05 at every one"
    point, both = scores.at(thresholds.general), scores.at(thresholds)
    text = (
        f"suggested score threshold {thresholds.general:g} (F1 {point.f1 * 100:.1f}, precision "
        f"{point.precision * 100:.1f}, recall {point.recall * 100:.1f})"
    )
    if len(thresholds.classes) > 1:
        named = [name for name in scores.points(thresholds) if name in thresholds.classes]
        own = names_and_more([f"{n} {thresholds.classes[n]:g}" for n in named], None if per_class else _MAX_THRESHOLDS)
        text += f"; each class its own (F1 {both.f1 * 100:.1f}): {own}"
    return text
