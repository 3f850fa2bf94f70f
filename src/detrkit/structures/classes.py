"""`ClassList`: which label of a model is which class of a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from detrkit.utils.ranges import AnyInteger
from detrkit.utils.schema import validated_as

UNUSED = "N/A"  # the name of labels that are no class


@dataclass(frozen=True)
class ClassList:
    """The classes a dataset annotates or a checkpoint predicts, in label order.

    Attributes:
        names: the name of label 0, 1, ...
        ids: the dataset's own category id of label 0, 1, ... (COCO's 1..90 with gaps; 0.. for YOLO).
        things: whether the objects of label 0, 1, ... can be counted (a person), or are stuff (the sky), as the
            dataset states; None: not stated, and all are things.
        unused: labels that are no class: the gaps of the published models' ids. By default those called "N/A", as in
            checkpoints; a dataset may have a class of that name.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    names: tuple[str, ...]
    ids: tuple[Annotated[AnyInteger, Field(strict=True)], ...]
    things: tuple[Annotated[bool, Field(strict=True)], ...] | None = None
    unused: frozenset[Annotated[int, Field(strict=True)]] | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids):
            raise ValueError(f"{len(self.names)} class names but {len(self.ids)} category ids")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("category ids must be unique")
        if self.things is not None and len(self.things) != len(self.names):
            raise ValueError(f"{len(self.names)} class names but {len(self.things)} marks of things")
        if self.unused is not None and not self.unused <= set(range(len(self.names))):
            raise ValueError(f"unused labels must be of the {len(self.names)} that there are")
        if self.unused is None:
            object.__setattr__(self, "unused", self._called_unused())

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def contiguous(cls, categories: Mapping[int, str], things: Mapping[int, bool] | None = None) -> ClassList:
        """Build a list with labels 0, 1, ... in the order of the ids of `categories` (id -> name).

        Args:
            categories: id -> name.
            things: id -> whether it is a thing, for all of them; None: not stated.
        """
        ids = sorted(categories)
        marks = None if things is None else tuple(bool(things[i]) for i in ids)
        return cls(tuple(categories[i] for i in ids), tuple(ids), marks, frozenset())

    @classmethod
    def official(
        cls, categories: Mapping[int, str], things: Mapping[int, bool] | None = None, *, count: int = 0
    ) -> ClassList:
        """Build a list by the published models' rule: label = category id, unused ids are "N/A" (COCO: 91 labels).

        Args:
            categories: id -> name.
            things: id -> whether it is a thing; unused ids are none. None: not stated.
            count: number of labels at least.
        """
        ids = range(max(count, *(i + 1 for i in categories)))
        marks = None if things is None else tuple(bool(things.get(i, False)) for i in ids)
        names = tuple(categories.get(i, UNUSED) for i in ids)
        return cls(names, tuple(ids), marks, frozenset(ids) - categories.keys())

    @property
    def label_of(self) -> dict[int, int]:
        """Category id -> label."""
        return {category: label for label, category in enumerate(self.ids)}

    def is_thing(self, label: int) -> bool:
        """Return whether objects of this label can be counted."""
        return self.things is None or self.things[label]

    def is_unused(self, label: int) -> bool:
        """Return whether a label is no class."""
        return self.unused is not None and label in self.unused

    @property
    def used(self) -> dict[str, int]:
        """Name -> label of the labels that are classes."""
        return {name: label for label, name in enumerate(self.names) if not self.is_unused(label)}

    @property
    def used_names(self) -> list[str]:
        """Names of the labels that are classes, with repetitions."""
        return [name for label, name in enumerate(self.names) if not self.is_unused(label)]

    def _called_unused(self) -> frozenset[int]:
        return frozenset(label for label, name in enumerate(self.names) if name == UNUSED)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists, as a checkpoint's metadata holds them."""
        plain: dict[str, Any] = {"names": list(self.names), "ids": list(self.ids)}
        if self.things is not None:
            plain["things"] = list(self.things)
        if self.unused is not None and self.unused != self._called_unused():
            plain["unused"] = sorted(self.unused)
        return plain

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ClassList:
        """Build a class list from the result of `to_json`.

        Raises:
            ValueError: invalid names or ids, or different numbers of them.
        """
        classes: ClassList = validated_as(cls, dict(value))
        return classes
