"""`IdPositions`: where the images and categories of a ground truth stand in it."""

from __future__ import annotations

from functools import cached_property


class IdPositions:
    """Base of the ground truths: positions by the ids of their files.

    Attributes:
        image_ids: of the images, in the order of the ground truth.
        category_ids: of the categories, likewise.
    """

    image_ids: tuple[int | str, ...]
    category_ids: tuple[int, ...]

    @cached_property
    def image_position(self) -> dict[int | str, int]:
        """Dict of image id -> position."""
        return {value: i for i, value in enumerate(self.image_ids)}

    @cached_property
    def category_position(self) -> dict[int, int]:
        """Dict of category id -> position."""
        return {value: i for i, value in enumerate(self.category_ids)}
