"""`ClassList`: which label of a model is which class of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ClassList:
    """The classes a dataset annotates or a checkpoint predicts, in label order.

    Attributes:
        names: the name of label 0, 1, ...
        ids: the dataset's own category id of label 0, 1, ... (COCO's 1..90 with gaps; 0.. for YOLO).
    """

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} class names but {len(self.ids)} category ids")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("category ids must be unique")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def contiguous(cls, categories: Mapping[int, str]) -> ClassList:
        """Labels 0, 1, ... in the order of the ids of `categories` (id -> name)."""
        ids = sorted(categories)
        return cls(tuple(categories[i] for i in ids), tuple(ids))

    @classmethod
    def official(cls, categories: Mapping[int, str]) -> ClassList:
        """The published models' rule: the label IS the category id, unused ids are called "N/A" (COCO: 91 labels)."""
        count = max(categories) + 1
        return cls(tuple(categories.get(i, "N/A") for i in range(count)), tuple(range(count)))

    @property
    def label_of(self) -> dict[int, int]:
        """Category id -> label."""
        return {category: label for label, category in enumerate(self.ids)}

    def to_json(self) -> dict[str, list[int] | list[str]]:
        """Plain lists, as a checkpoint's metadata holds them."""
        return {"names": list(self.names), "ids": list(self.ids)}

    @classmethod
    def from_json(cls, value: Mapping[str, Sequence[int] | Sequence[str]]) -> ClassList:
        """The inverse of `to_json`."""
        return cls(tuple(str(n) for n in value["names"]), tuple(int(i) for i in value["ids"]))
