"""Plots of a dataset's annotations: objects of each class, and the sizes, shapes and places of their boxes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from detrkit.data.dataset import Dataset
from detrkit.visualize.colors import color_of
from detrkit.visualize.style import GRID_COLOR, LABEL_COLOR, TEXT_COLOR, literal, new_figure, set_titles, style_axes
from detrkit.visualize.tags import font_for, shortened

MOST_CLASSES = 24  # bars that can be read in the figure's height; of more classes the extremes are shown
_BINS = 40
_CELLS = 48  # of the map of box centers, per side
_SMALL, _MEDIUM = 32, 96  # COCO's limits of small and medium objects, pixels of a square's side
_BAR_COLOR = "#4a7fb5"
_NAME_PIXELS = 150  # of a class name beside its bar


def label_plots(dataset: Dataset) -> Figure:
    """Plot the annotations of a dataset; crowd regions are left out, no image is opened.

    Five panels: objects of each class (of many, the most and the least frequent); the side sqrt(width * height) of the
    boxes in pixels of the image, with COCO's limits of small and medium objects; their centers over the image, from its
    upper left corner; their aspect ratios, width by height; the number of objects of an image.

    Args:
        dataset: 100,000 images take about a second.
    """
    records = dataset.records
    keep = [~record.crowd for record in records]
    boxes = np.concatenate([np.zeros((0, 4)), *(r.boxes[k] for r, k in zip(records, keep, strict=True))])  # (N, 4) xyxy
    labels = np.concatenate([np.zeros(0, np.int64), *(r.labels[k] for r, k in zip(records, keep, strict=True))])
    per_image = np.array([int(k.sum()) for k in keep])
    extent = np.repeat(
        np.array([(r.width, r.height) for r in records], float).reshape(-1, 2), per_image, axis=0
    )  # (N, 2)
    sides = boxes[:, 2:] - boxes[:, :2]  # (N, 2) width, height
    figure, _ = new_figure(13.8, 7.0, 0)
    cells = figure.add_gridspec(2, 3, width_ratios=(1.15, 1, 1))
    classes, sizes, centers, ratios, objects = (
        style_axes(figure.add_subplot(cell))
        for cell in (cells[:, 0], cells[0, 1], cells[0, 2], cells[1, 1], cells[1, 2])
    )
    names = dataset.classes.names
    counts = np.bincount(labels, minlength=len(names))
    used = [label for label in range(len(names)) if counts[label] or not dataset.classes.is_unused(label)]
    _class_bars(classes, names, counts, used)
    _box_sizes(sizes, np.sqrt(sides.prod(1)))
    _box_centers(centers, (boxes[:, :2] + boxes[:, 2:]) / 2 / np.maximum(extent, 1))
    _aspect_ratios(ratios, sides[:, 0] / np.maximum(sides[:, 1], 1e-9))
    _objects_per_image(objects, per_image)
    return figure


def _class_bars(ax: Axes, names: Sequence[str], counts: np.ndarray, used: Sequence[int]) -> None:
    """Draw a bar for each class, most objects first; of many classes only the extremes."""
    ranked = sorted(used, key=lambda label: -counts[label])
    hidden = len(ranked) - MOST_CLASSES + 1
    first = ranked if hidden <= 1 else ranked[: MOST_CLASSES // 2]
    last = [] if hidden <= 1 else ranked[len(ranked) - (MOST_CLASSES - len(first) - 1) :]
    rows: list[int | None] = [*first, *([None] if last else []), *last]
    most = max(int(counts[ranked].max(initial=0)), 1)
    for y, label in enumerate(rows):
        if label is None:
            ax.text(0, y, f" ... {hidden} more classes", va="center", fontsize=8, color=LABEL_COLOR)
            continue
        red, green, blue = color_of(label)
        ax.barh(y, counts[label], height=0.72, color=(red / 255, green / 255, blue / 255))
        ax.text(counts[label], y, f" {counts[label]:,}", va="center", fontsize=8, color=TEXT_COLOR)
    shown = ["" if label is None else _short(names[label]) for label in rows]
    ax.set_yticks(range(len(rows)), shown, fontsize=8 if len(rows) > 12 else 9)
    ax.set_ylim(max(len(rows), 6) - 0.4, -0.6)  # few bars keep the height of a bar
    ax.set_xlim(0, most * 1.16)
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    total = int(counts.sum())
    classes = f"{len(used)} class{'' if len(used) == 1 else 'es'}"
    set_titles(ax, f"{total:,} object{'' if total == 1 else 's'} of {classes}", "objects")


def _short(name: str) -> str:
    """Shorten a class name to the room beside its bar."""
    return literal(shortened(name, font_for(name, 12), _NAME_PIXELS))


def _box_sizes(ax: Axes, sides: np.ndarray) -> None:
    """Draw a histogram of the boxes' sides (N,) in pixels, over a logarithmic axis."""
    sides = np.maximum(sides, 0.5)
    low, high = (float(sides.min()), float(sides.max())) if len(sides) else (8.0, 256.0)
    low, high = min(low, 16.0), max(high, 192.0)
    ax.hist(sides, bins=np.geomspace(low * 0.9, high * 1.1, _BINS).tolist(), color=_BAR_COLOR)
    ax.set_xscale("log", base=2)
    ticks = [tick for tick in (2**power for power in range(16)) if low * 0.9 <= tick <= high * 1.1]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(MaxNLocator(1))
    ax.minorticks_off()
    for limit in (_SMALL, _MEDIUM):
        ax.axvline(limit, color=LABEL_COLOR, linewidth=0.9, linestyle=(0, (4, 3)))
    shares = [(sides < _SMALL), (sides >= _SMALL) & (sides < _MEDIUM), sides >= _MEDIUM]
    places = [(low * 0.9 * _SMALL) ** 0.5, (_SMALL * _MEDIUM) ** 0.5, (_MEDIUM * high * 1.1) ** 0.5]
    top = ax.get_ylim()[1]
    ax.set_ylim(0, top * 1.22)  # room for the words above the bars
    for name, share, place in zip(("small", "medium", "large"), shares, places, strict=True):
        percent = 100 * share.mean() if len(sides) else 0.0
        ax.text(place, top * 1.19, f"{name}\n{percent:.0f} %", ha="center", va="top", fontsize=8, color=LABEL_COLOR)
    _integers(ax)
    set_titles(ax, "box size", "side of the box, sqrt(width * height), pixels", "objects")


def _box_centers(ax: Axes, centers: np.ndarray) -> None:
    """Draw a map of the boxes' centers (N, 2) xy, relative to the image."""
    cells = min(_CELLS, max(12, round(len(centers) ** 0.5 / 2)))  # a cell of a small dataset holds some, too
    density, _, _ = np.histogram2d(centers[:, 1], centers[:, 0], bins=cells, range=((0, 1), (0, 1)))
    ax.grid(False)
    shown = np.ma.masked_equal(density, 0)
    ax.imshow(shown, cmap="viridis_r", extent=(0, 1, 1, 0), aspect="auto", interpolation="nearest", vmin=0)
    ax.set_xticks((0, 0.5, 1), ("left", "center", "right"))
    ax.set_yticks((0, 0.5, 1), ("top", "center", "bottom"))
    for side in ax.spines.values():
        side.set_visible(True)
        side.set_color(GRID_COLOR)
    set_titles(ax, "centers of the boxes (dark: many)", "")


def _aspect_ratios(ax: Axes, ratios: np.ndarray) -> None:
    """Draw a histogram of aspect ratios (N,), width by height, over a logarithmic axis."""
    powers = np.clip(np.log2(np.maximum(ratios, 1e-9)), -4, 4)
    reach = min(4, max(2, int(np.ceil(np.abs(powers).max(initial=0)))))
    ax.hist(powers, bins=np.linspace(-reach, reach, _BINS + 2).tolist(), color=_BAR_COLOR)
    ticks = range(-reach, reach + 1)
    ax.set_xticks(list(ticks), [f"{2 ** max(t, 0)}:{2 ** max(-t, 0)}" for t in ticks])
    ax.axvline(0, color=LABEL_COLOR, linewidth=0.9, linestyle=(0, (4, 3)))
    _integers(ax)
    set_titles(ax, "aspect ratio", "width : height of the box (left: upright, right: wide)", "objects")


def _objects_per_image(ax: Axes, per_image: np.ndarray) -> None:
    """Draw a histogram of the number of objects of each image (I,)."""
    most = int(per_image.max(initial=1))
    step = max(1, -(-(most + 1) // _BINS))
    ax.hist(per_image, bins=(np.arange(0, most + step + 1, step) - 0.5).tolist(), color=_BAR_COLOR, rwidth=0.9)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    _integers(ax)
    empty = int((per_image == 0).sum())
    mean = f"mean {per_image.mean():.1f}, most {most:,}" if len(per_image) else "no image"
    without = f"; {empty:,} image{'' if empty == 1 else 's'} without" if empty else ""
    set_titles(ax, "objects of an image", f"objects ({mean}{without})", "images")


def _integers(ax: Axes) -> None:
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
