"""The published checkpoints and their metrics: the rows of published.yaml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal

import yaml

# of segments, of boxes, of instance masks
FIGURES = (
    *("PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st"),
    *("AP", "AP50", "AP75", "APs", "APm", "APl", "AP_segm"),
)


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Settings of the evaluation behind published metrics.

    Attributes:
        data: "coco": boxes on COCO val2017; "panoptic": boxes, masks and segments on the panoptic val2017.
        images: how many.
        size: short side of the input in pixels.
        max_size: longest side of the input in pixels; None: images are squashed to `size` x `size`.
        batch_size: images per GPU; None where the source does not say.
        padding: "exact" or "official" (see `build_model`).
        threshold: score above which a query becomes a segment, for panoptic quality.
        detections: the best of an image that count, over all classes.
    """

    data: Literal["coco", "panoptic"]
    images: int
    size: int
    max_size: int | None
    batch_size: int | None
    padding: Literal["exact", "official"]
    threshold: float | None = None
    detections: int = 100


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published checkpoint.

    Attributes:
        name: of the row: the model's name for the file that stands for it, another one for its further files.
        model: name in `list_models()`.
        file: name of the file.
        url: its address; None where it has no fixed one.
        page: a web page that leads to it then.
        sha256: the first hex digits of the file's SHA-256; None where none was published.
        evaluation: settings behind the metrics.
        source: of the published metrics.
        published: metrics in [0, 1] by name, see FIGURES.
        reproduced: likewise, as others measured it with the official code and files.
        speed: as published.
        epochs: of the training, where one model was published after several; None otherwise.
        approximate: whether the published metrics are rounded.
        note: further remarks.
    """

    name: str
    model: str
    file: str
    evaluation: EvaluationSettings
    source: str
    published: Mapping[str, float]
    url: str | None = None
    page: str | None = None
    sha256: str | None = None
    reproduced: Mapping[str, float] = field(default_factory=dict)
    speed: str | None = None
    epochs: int | None = None
    approximate: bool = False
    note: str | None = None

    @property
    def downloadable(self) -> bool:
        """Whether the file is downloaded by name: it has an address, and a hash to verify it."""
        return self.url is not None and self.sha256 is not None

    @property
    def where(self) -> str | None:
        """Where a person finds the file: its address, or the page that leads to it."""
        return self.url or self.page

    @property
    def figures(self) -> dict[str, float]:
        """Metrics to measure: the published ones, and others that the report states; in the order of FIGURES."""
        metrics = {**self.reproduced, **self.published}
        return {name: metrics[name] for name in FIGURES if name in metrics}


def read_published() -> dict[str, Published]:
    """Return the rows of published.yaml by name, in its order."""
    content = yaml.safe_load(files("detrkit").joinpath("models", "published.yaml").read_text(encoding="utf-8"))
    rows = [_row(row, content["sources"]) for row in content["checkpoints"]]
    return {row.name: row for row in rows}


def _row(row: Mapping[str, Any], sources: Mapping[str, str]) -> Published:
    """Convert a row of the file: metrics in [0, 1], the source in words."""
    fields = {"name": row["model"], **row}
    for name in ("published", "reproduced"):
        fields[name] = {figure: round(value / 100, 4) for figure, value in row.get(name, {}).items()}
    return Published(
        **fields | {"evaluation": EvaluationSettings(**row["evaluation"]), "source": sources[row["source"]]}
    )


PUBLISHED = read_published()
