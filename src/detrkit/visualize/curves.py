"""Plots: training curves, precision-recall curves, precision, recall and F1 over the score, confusion matrix.

Each function returns a matplotlib Figure made without pyplot: no window opens and no global state changes.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from detrkit.utils.atomic import write_atomic
from detrkit.visualize.colors import LINE_COLORS, color_of, text_color
from detrkit.visualize.style import GRID_COLOR as _GRID_COLOR
from detrkit.visualize.style import LABEL_COLOR as _LABEL_COLOR
from detrkit.visualize.style import TEXT_COLOR as _TEXT_COLOR
from detrkit.visualize.style import literal as _literal
from detrkit.visualize.style import new_figure as _figure
from detrkit.visualize.style import set_titles as _titled

if TYPE_CHECKING:  # evaluation/ draws with this module, so importing it here would be circular
    from detrkit.evaluation.confusion import Confusion
    from detrkit.evaluation.curves import PrecisionRecall
    from detrkit.evaluation.scores import ScoreCurves
    from detrkit.structures.thresholds import ScoreThresholds

_TERMS = {"ce": "classification", "bbox": "box L1", "giou": "box GIoU", "mask": "mask focal", "dice": "mask dice"}


def _number(value: Any) -> float:
    """Convert a cell of a log to a number; NaN for an empty or absent one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _series(rows: Sequence[Mapping[str, Any]], key: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the x and y values of the rows in which both are finite, ascending in x."""
    pairs = np.array([(_number(r.get(x)), _number(r.get(key))) for r in rows]).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs).all(1)]
    pairs = pairs[np.argsort(pairs[:, 0], kind="stable")]
    return pairs[:, 0], pairs[:, 1]


def _smoothed(y: np.ndarray, points: int) -> np.ndarray:
    """Compute a centered running mean over `points`, shorter at the ends."""
    kernel = np.ones(points)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones(len(y)), kernel, "same")


def _dot(x: np.ndarray) -> str:
    """Return the marker of a curve: a dot for a single value, which has no line, else none."""
    return "o" if len(x) == 1 else ""


def training_curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot losses, validation PQ and AP, and the learning rate of a run.

    Args:
        rows: one mapping per logged line, as from a CSV file: `epoch` and/or `step`, `train/loss`, `train/loss_ce`,
            `train/loss_bbox`, ..., `val/AP`, `val/AP50`, `val/AP75`, `val/segm_AP`, `val/PQ`, ... in [0, 1], `lr` (or
            `lr/<group>`). Empty or absent cells are skipped; losses of single decoder layers (`..._0`) are left out.

    Raises:
        ValueError: no row has anything to plot.
    """
    keys = list(dict.fromkeys(k for r in rows for k in r))
    losses = [k for k in keys if k == "train/loss" or (k.startswith("train/loss_") and not k[-1].isdigit())]
    losses = [k for k in losses if not k.endswith("_enc")]
    metrics: list[str] = [k for k in ("val/AP50", "val/AP", "val/AP75", "val/segm_AP") if k in keys]
    quality: list[str] = [k for k in ("val/PQ", "val/PQ_things", "val/PQ_stuff") if k in keys]
    rates = [k for k in keys if k == "lr" or k.startswith(("lr/", "train/lr"))]

    def axis(names: Iterable[str]) -> str:
        """Return "epoch" if these values have one row per epoch or there are no steps, else "step"."""
        having = [r for r in rows if any(np.isfinite(_number(r.get(n))) for n in names)]
        epochs = {_number(r.get("epoch")) for r in having}
        per_epoch = len(epochs) == len(having) and all(np.isfinite(list(epochs)))
        return "epoch" if per_epoch or "step" not in keys else "step"

    kinds: dict[str, list[str]] = {"loss": losses, "PQ": quality, "AP": metrics, "rate": rates}
    panels = [(kind, names) for kind, names in kinds.items() if names]
    if not any(len(_series(rows, n, axis(names))[0]) for _, names in panels for n in names):
        raise ValueError("no row has a train/loss, val/AP or lr with its epoch or step")
    figure, axes = _figure(4.6 * len(panels), 3.5, len(panels))
    for ax, (kind, names) in zip(axes, panels, strict=True):
        x_name = axis(names)
        for i, name in enumerate(names):
            x, y = _series(rows, name, x_name)
            if not len(x):
                continue
            total = name in ("train/loss", "val/PQ", "val/AP")
            style: dict[str, Any] = {"color": LINE_COLORS[i % len(LINE_COLORS)], "linewidth": 2.0 if total else 1.3}
            if kind == "loss":
                label = "total" if total else _TERMS.get(name.removeprefix("train/loss_"), name.removeprefix("train/"))
                if len(x) > 80:  # single steps scatter: draw their running mean, and the steps faintly behind it
                    ax.plot(x, y, color=style["color"], linewidth=0.6, alpha=0.25)
                    y = _smoothed(y, max(5, len(x) // 40))
                ax.plot(x, y, label=label, marker=_dot(x), **style)
            elif kind in ("PQ", "AP"):
                best = int(np.argmax(y))
                label = f"{name.removeprefix('val/')}, best {y[best] * 100:.1f} at {x_name} {x[best]:g}"
                ax.plot(x, y * 100, label=label, marker="o", markersize=3, **style)
            else:
                ax.plot(x, y, label=name.removeprefix("train/").removeprefix("lr/"), marker=_dot(x), **style)
        title = {"loss": "training loss", "rate": "learning rate"}.get(kind, f"validation {kind} (percent)")
        _titled(ax, title, x_name)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        if kind == "rate" and all((_series(rows, n, x_name)[1] > 0).all() for n in names):
            values = np.concatenate([_series(rows, name, x_name)[1] for name in names])
            if len(values) and values.max() < 1.01 * values.min():  # one rate but for rounding: no span for the axis
                ax.set_ylim(values.min() / 2, values.max() * 2)
            ax.set_yscale("log")
        elif kind != "rate":
            ax.set_ylim(0, max(ax.get_ylim()[1], 1e-3))  # all values may be zero early in training
        if kind != "rate" or len(names) > 1:
            ax.legend(fontsize=8, frameon=False, labelcolor=_TEXT_COLOR)
    return figure


def study_curves(runs: Mapping[str, Sequence[Mapping[str, Any]]], colors: Mapping[str, str]) -> Figure:
    """Plot mAP, mAP50 and training loss of several models over their epochs.

    Args:
        runs: name of a model -> rows of its epochs.csv; those of runs with several seeds one after the other. Of
            several rows of an epoch the line shows the mean, a band the range from the lowest to the highest.
        colors: name of a model -> "#rrggbb".
    """
    panels = {"val/AP": "mAP (percent)", "val/AP50": "mAP50 (percent)", "train/loss": "training loss"}
    figure, axes = _figure(13.8, 4.0, len(panels))
    for ax, (key, title) in zip(axes, panels.items(), strict=True):
        for name, rows in runs.items():
            all_x, all_y = _series(rows, key, "epoch")
            x, of_epoch = np.unique(all_x, return_inverse=True)
            values = [all_y[of_epoch == i] * (100 if key.startswith("val/") else 1) for i in range(len(x))]
            mean = np.array([v.mean() for v in values])
            marker = "o" if key.startswith("val/") else _dot(x)
            ax.plot(x, mean, label=_literal(name), color=colors[name], linewidth=1.8, marker=marker, markersize=3)
            if any(len(v) > 1 for v in values):
                lowest, highest = [v.min() for v in values], [v.max() for v in values]
                ax.fill_between(x, lowest, highest, color=colors[name], alpha=0.2, linewidth=0)
        _titled(ax, title, "epoch")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        ax.set_ylim(0, max(ax.get_ylim()[1], 1e-3))  # all values may be zero early in training
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(4, len(names)),
        fontsize=9,
        frameon=False,
        labelcolor=_TEXT_COLOR,
    )
    return figure


def precision_recall_curves(curves: PrecisionRecall, *, iou: float | None = 0.5, classes: int = 10) -> Figure:
    """Plot precision over recall: left the mean of all classes at IoU 0.5, 0.75 and over all, right single classes.

    Args:
        curves: of an evaluation (`Metrics.curves`).
        iou: of the single classes' curves; None is the mean over IoU 0.5:0.95.
        classes: number of classes with a color and a name: half of them the best, half the worst; the others are gray.
    """
    figure, (left, right) = _figure(9.6, 4.0, 2)
    for i, (threshold, name) in enumerate(((0.5, "IoU 0.5"), (0.75, "IoU 0.75"), (None, "mean of IoU 0.5 to 0.95"))):
        y = curves.mean(threshold)
        if y[0] > -1:
            color = LINE_COLORS[i]
            left.plot(curves.recall, y, color=color, linewidth=2, label=f"{name}: {y.mean() * 100:.1f}")
            left.fill_between(curves.recall, y, color=color, alpha=0.06)
    per_class = curves.per_class(iou)
    present = np.flatnonzero(per_class[0] > -1)
    ranked = present[np.argsort(-per_class[:, present].mean(0), kind="stable")]
    truncated = len(ranked) > classes
    named = (
        np.concatenate([ranked[: (classes + 1) // 2], ranked[len(ranked) - classes // 2 :]]) if truncated else ranked
    )
    for k in np.setdiff1d(ranked, named):
        right.plot(curves.recall, per_class[:, k], color=_GRID_COLOR, linewidth=0.8)
    for k in reversed(named):
        rgb = tuple(c / 255 for c in color_of(int(k)))
        label = f"{_literal(curves.names[k])}: {per_class[:, k].mean() * 100:.1f}"
        right.plot(curves.recall, per_class[:, k], color=rgb, linewidth=1.5, label=label)
    iou_text = "mean of IoU 0.5 to 0.95" if iou is None else f"IoU {iou:g}"
    rest = ": the best and the worst" if truncated else ""
    _titled(left, f"mean over {len(present)} class{'' if len(present) == 1 else 'es'}", "recall", "precision")
    _titled(right, f"classes at {iou_text}{rest}", "recall", "precision")
    for ax in (left, right):
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
        handles, labels = ax.get_legend_handles_labels()
        if handles:
            order = range(len(labels)) if ax is left else range(len(labels) - 1, -1, -1)
            ax.legend(
                [handles[i] for i in order],
                [labels[i] for i in order],
                title="AP",
                title_fontsize=8,
                fontsize=8,
                frameon=ax is left,
                framealpha=0.9,
                edgecolor="none",
                labelcolor=_TEXT_COLOR,
                **({"loc": "best"} if ax is left else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}),
            )
    return figure


def _thresholds(scores: ScoreCurves, suggested: ScoreThresholds | None) -> np.ndarray:
    """Return the thresholds at which curves are computed, ascending: an even grid would miss a narrow peak of F1.

    To the grid come the scores themselves, mostly the highest, and the suggested thresholds.
    """
    ranks = np.unique(np.geomspace(1, len(scores.scores) + 1, 400).astype(int)) - 1
    highest = np.sort(scores.scores)[::-1][ranks[ranks < len(scores.scores)]]
    marked = [] if suggested is None else [suggested.general, *suggested.classes.values()]
    return np.unique(np.concatenate([np.linspace(0, 0.995, 200), highest, marked]))


def score_curves(scores: ScoreCurves, thresholds: ScoreThresholds | None = None, *, classes: int = 10) -> Figure:
    """Plot precision, recall and F1 over the score threshold, of all classes together and of each class.

    Args:
        scores: of an evaluation (`Metrics.scores`).
        thresholds: suggested ones, which are marked on the curves of F1.
        classes: number of classes with a color and a name: half of them those with the best F1, half the worst; the
            others are gray.
    """
    figure, axes = _figure(13.8, 4.0, 3)
    x = _thresholds(scores, thresholds)
    present = np.flatnonzero(scores.objects > 0).tolist()
    curves = {k: scores.curve(x, k) for k in present}
    ranked = sorted(present, key=lambda k: -float(curves[k].f1.max()))
    truncated = len(ranked) > classes
    named = [*ranked[: (classes + 1) // 2], *ranked[len(ranked) - classes // 2 :]] if truncated else ranked
    everything = scores.curve(x)
    for ax, quantity in zip(axes, everything._fields, strict=True):
        for k in ranked:
            color = tuple(c / 255 for c in color_of(k)) if k in named else _GRID_COLOR
            label = _literal(scores.names[k]) if k in named else None
            width = 1.3 if k in named else 0.8
            ax.plot(x, getattr(curves[k], quantity), color=color, linewidth=width, label=label, zorder=2 + (k in named))
            own = None if thresholds is None else thresholds.classes.get(scores.names[k])
            if quantity == "f1" and own is not None and k in named:
                ax.plot([own], [max(0.0, scores.at(own, k).f1)], "o", color=color, markersize=4, zorder=4)
        ax.plot(x, getattr(everything, quantity), color=_TEXT_COLOR, linewidth=2.2, label="all together", zorder=5)
        if thresholds is not None:
            ax.axvline(thresholds.general, color=_LABEL_COLOR, linewidth=1, linestyle="--", zorder=1)
        _titled(ax, "F1" if quantity == "f1" else quantity, "score threshold")
        ax.set_xlim(0, 1)
        ax.set_ylim(0, 1.02)
    rest = ": the best and the worst by F1" if truncated else ""
    axes[0].set_title(f"precision at IoU 0.5{rest}", loc="left", fontsize=11, color=_TEXT_COLOR, pad=8)
    handles, names = axes[-1].get_legend_handles_labels()
    axes[-1].legend(
        [handles[-1], *handles[:-1]],
        [names[-1], *names[:-1]],
        fontsize=8,
        frameon=False,
        labelcolor=_TEXT_COLOR,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
    )
    return figure


def confusion_heatmap(confusion: Confusion, *, most: int = 30) -> Figure:
    """Plot the confusion matrix as shares of each row, with the counts where there is room.

    Args:
        confusion: from `confusion_matrix`.
        most: with more classes than this, those with the most objects are shown.
    """
    count = len(confusion.names)
    order = np.argsort(-confusion.matrix[:count].sum(1), kind="stable")[:most] if count > most else np.arange(count)
    shown = np.append(np.sort(order), count)
    counts = confusion.matrix[np.ix_(shown, shown)]
    shares = confusion.normalized()[np.ix_(shown, shown)]
    names = [_literal(confusion.names[i]) for i in shown[:-1]]
    size = len(shown)
    inches = min(max(4.2, 0.36 * size + 2.2), 14)
    figure, (ax,) = _figure(inches + 0.9, inches)
    ax.grid(False)
    heatmap = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    letters = float(np.clip(250 / size, 6, 9))
    ax.set_xticks(range(size), [*names, "missed"], rotation=45 if size < 12 else 90, fontsize=max(letters, 7))
    if size < 12:
        for label in ax.get_xticklabels():
            label.set_horizontalalignment("right")
            label.set_rotation_mode("anchor")
    ax.set_yticks(range(size), [*names, "background"], fontsize=max(letters, 7))
    for side in ax.spines.values():
        side.set_visible(False)
    # lines separate the classes from the background
    ax.axhline(size - 1.5, color=_LABEL_COLOR, linewidth=0.8)
    ax.axvline(size - 1.5, color=_LABEL_COLOR, linewidth=0.8)
    for row, column in zip(*np.nonzero(counts), strict=True):
        red, green, blue, _ = heatmap.cmap(heatmap.norm(shares[row, column]), bytes=True)
        ink = "black" if text_color((int(red), int(green), int(blue))) == (0, 0, 0) else "white"
        ax.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=letters, color=ink)
    which = f"{most} of {count} classes with the most objects; " if count > most else ""
    _titled(ax, f"{which}IoU {confusion.iou:g}, score > {confusion.score:g}", "predicted class", "true class")
    bar = figure.colorbar(heatmap, ax=ax, shrink=0.6, pad=0.02, format=PercentFormatter(1.0))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, colors=_LABEL_COLOR, length=0)
    bar.set_label("share of the row", fontsize=9, color=_LABEL_COLOR)
    return figure


def png_bytes(figure: Figure) -> bytes:
    """Encode the figure as PNG; letters that its font lacks are drawn as boxes, without a warning for each."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph ")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write the figure as a PNG file, create its folder if needed, and return its path.

    Raises:
        WriteError: the file cannot be written.
    """
    return write_atomic(path, png_bytes(figure))
