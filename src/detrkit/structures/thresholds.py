"""`ScoreThresholds`: the score above which a detection of each class counts, as an evaluation suggests it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from detrkit.structures.classes import ClassList
from detrkit.utils.schema import validated_as

Score = Annotated[float, Field(strict=True, ge=0, le=1)]


@dataclass(frozen=True)
class ScoreThresholds:
    """Score thresholds with the best F1 on annotated images; see `detrkit.evaluation.ScoreCurves.suggest`.

    Attributes:
        general: of all classes together, for those that have none of their own.
        f1: F1 in [0, 1] of all classes at `general`.
        classes: name of a class -> its own threshold.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    general: Score
    f1: Score
    classes: Mapping[str, Score] = field(default_factory=dict)

    def of(self, name: str) -> float:
        """Return the threshold of a class: its own, or the general one."""
        return self.classes.get(name, self.general)

    def per_label(self, classes: ClassList | None, count: int) -> tuple[float, ...]:
        """Return the thresholds of labels 0 .. count - 1, which `classes` names."""
        if classes is None:
            return (self.general,) * count
        return tuple(self.of(name) for name in classes.names)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"general": self.general, "f1": self.f1, "classes": dict(self.classes)}

    @classmethod
    def from_json(cls, value: Any) -> ScoreThresholds:
        """Read the result of `to_json`.

        Raises:
            SettingError: another value; names the field.
        """
        thresholds: ScoreThresholds = validated_as(cls, value)
        return thresholds
