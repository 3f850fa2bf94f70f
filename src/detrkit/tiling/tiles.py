"""`Tiling`: how an image is cut into overlapping tiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from detrkit.utils.ranges import Count, Overlap, Range, TileSide, check_values

DEFAULT_OVERLAP = 0.2
MaskBytes = Annotated[int, Range(ge=1)]

Window = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels of the image


@dataclass(frozen=True)
class Tiling:
    """How images are cut.

    Attributes:
        tile: side of a tile in pixels of the image.
        overlap: share of the side that neighboring tiles have in common, at least.
        max_detections: of an image that is cut, the best ones; None: all.
        max_mask_bytes: that the masks of an image that is cut may take; None: as much as this machine has.

    Raises:
        SettingError: a side or an overlap out of range.
    """

    tile: TileSide
    overlap: Overlap = DEFAULT_OVERLAP
    max_detections: Count | None = None
    max_mask_bytes: MaskBytes | None = None

    def __post_init__(self) -> None:
        check_values(self)

    def __str__(self) -> str:
        return f"tiles of {self.tile} pixels, overlap {self.overlap:g}"

    def cuts(self, height: int, width: int) -> bool:
        """Return whether an image of that size in pixels is larger than a tile."""
        return max(height, width) > self.tile

    def count(self, height: int, width: int) -> int:
        """Return the number of tiles of an image of that size in pixels."""
        return self._steps(height) * self._steps(width)

    def windows(self, height: int, width: int) -> list[Window]:
        """Return the tiles of an image of that size in pixels, row by row from the top left.

        All have the full side (of an image that is narrower, its whole width): the last ones of a row and of a column
        are moved inwards. An object whose sides are at most `overlap` of a tile's is whole in one of them.
        """
        bottoms_rights = min(self.tile, height), min(self.tile, width)
        return [
            (x, y, x + bottoms_rights[1], y + bottoms_rights[0])
            for y in self._starts(height)
            for x in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        """Return where the tiles along a side of `length` pixels begin."""
        last = max(0, length - self.tile)
        return [min(i * self._step, last) for i in range(self._steps(length))]

    def _steps(self, length: int) -> int:
        """Return how many tiles a side of `length` pixels has, without a list of them: a file may state any length."""
        return math.ceil(max(0, length - self.tile) / self._step) + 1

    @property
    def _step(self) -> int:
        """Pixels from one tile to the next."""
        return self.tile - math.ceil(self.overlap * self.tile)
