"""The common style of all plots: figures without pyplot, so that no window opens and no global state changes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detrkit.utils.visible import one_line

TEXT_COLOR, LABEL_COLOR, GRID_COLOR = "#1c1c1e", "#5f5f66", "#d9d9de"


def new_figure(width: float, height: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Create a figure (size in inches) with panels side by side; with 0 panels the caller adds them."""
    figure = Figure(figsize=(width, height), dpi=144, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, panels, squeeze=False)[0]) if panels else []
    return figure, [style_axes(ax) for ax in axes]


def style_axes(ax: Axes) -> Axes:
    """Style a panel: axes at the left and the bottom, a light grid behind the data."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(GRID_COLOR)
    ax.tick_params(which="both", colors=LABEL_COLOR, labelsize=9, length=3, color=GRID_COLOR)
    ax.grid(color=GRID_COLOR, linewidth=0.6, alpha=0.7)
    ax.set_axisbelow(True)
    return ax


def set_titles(ax: Axes, title: str, x: str, y: str = "") -> None:
    """Set the title of a panel and the names of its axes."""
    ax.set_title(title, loc="left", fontsize=11, color=TEXT_COLOR, pad=8)
    ax.set_xlabel(x, fontsize=9, color=LABEL_COLOR)
    if y:
        ax.set_ylabel(y, fontsize=9, color=LABEL_COLOR)


def literal(name: str) -> str:
    """Escape a name so that matplotlib draws it as it is: $ is no mathematics, a leading _ is not hidden in legends."""
    name = one_line(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
