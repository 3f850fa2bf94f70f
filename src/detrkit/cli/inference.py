"""Options of the commands that use a model: tiles and the number of queries for large images, the precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from detrkit.utils.errors import UsageError
from detrkit.utils.ranges import Count, Overlap, TileSide

if TYPE_CHECKING:
    from detrkit.detector import Detector


@dataclass(frozen=True)
class Inference:
    """How a model is used: on large images and dense scenes, and in which precision."""

    tile: TileSide | None = None
    """Side in pixels of the tiles that larger images are cut into; each is predicted as an image of its own, and what
    is found is merged with the prediction of the whole image. By default images are not cut."""
    overlap: Overlap | None = None
    """With --tile: the share of its side that a tile has in common with its neighbor; by default 0.2. Objects up to
    that size are whole in a tile."""
    num_queries: Count | None = None
    """Queries, for models that choose tokens of the image as queries (two-stage Deformable DETR, DINO, RT-DETR): more
    of them find more objects. By default as many as the model was trained with."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: weights and arithmetic in bfloat16, which is faster; float32 where the device has none of its own."""

    def check(self) -> None:
        """Check what needs no torch.

        Raises:
            UsageError: an overlap of no tiles.
        """
        if self.overlap is not None and self.tile is None:
            raise UsageError(f"--overlap {self.overlap:g} is that of tiles: give --tile, too, such as --tile 640")

    @property
    def arguments(self) -> dict[str, float]:
        """Tile and overlap, where they are given, as arguments of `Detector.tiled` and `evaluate`."""
        given = {"tile": self.tile, "overlap": self.overlap}
        return {name: value for name, value in given.items() if value is not None}

    def applied(self, detector: Detector) -> Detector:
        """Return the detector as these options say.

        Raises:
            SettingError: it is of a model that has no tiles, not that number of queries, or a precision of its own.
        """
        detector = detector.in_precision(self.precision)
        if self.num_queries is not None:
            detector = detector.with_num_queries(self.num_queries)
        return detector if self.tile is None else detector.tiled(**self.arguments)  # type: ignore[arg-type]


@dataclass(frozen=True)
class CompiledInference(Inference):
    """How a model is used, where the same sizes of input come again and again."""

    compile: bool = False
    """Compute by torch.compile the sizes of input for which that is measured to be faster; the first passes take
    longer, by half a minute to minutes a size. It may pay for many images of one size: videos, or RT-DETR's input."""

    def applied(self, detector: Detector) -> Detector:
        """Return the detector as these options say.

        Raises:
            SettingError: as of `Inference.applied`, or it is an exported model.
        """
        detector = super().applied(detector)
        return detector.compiled() if self.compile else detector


def compiled_lines(detector: Detector) -> list[str]:
    """Return what to print of the sizes that were compiled; nothing of a detector that is not."""
    from detrkit.models.compiled import compiled_forward

    forward = compiled_forward(detector.model)
    return [] if forward is None else forward.report()
