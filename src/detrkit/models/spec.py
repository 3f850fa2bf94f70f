"""`ModelSpec`: the description of a model in a checkpoint, with the ranges of its fields."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Padding
from detrkit.models.base import DetectionModel
from detrkit.models.registry import MAX_CLASSES, architecture, build_options
from detrkit.structures.classes import ClassList
from detrkit.structures.thresholds import ScoreThresholds
from detrkit.utils.documents import parse_json, shown
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.schema import validated_as

log = logging.getLogger(__name__)

VERSION = 1  # of the spec's JSON
SCORE_THRESHOLDS = "score_thresholds"  # key in `training`
MAX_SIDE = 1_000_000  # pixels: Hugging Face's files state this for no limit
_WRONG = "not a detrkit model description"

# A checkpoint is untrusted input: strict types, so text is no number and a number is no bool.
Classes = Annotated[int, Field(strict=True, ge=1, le=MAX_CLASSES)]
Mean = Annotated[float, Field(strict=True, ge=-1000, le=1000)]
Std = Annotated[float, Field(strict=True, ge=1e-6, le=1000)]
ShortSide = Annotated[int, Field(strict=True, ge=1, le=65_536)]
LongSide = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Squash = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to use a model as intended, except the weights.

    Attributes:
        name: of the architecture, as `build_model` takes it.
        options: overrides of `build_model`, plain JSON values.
        num_classes: labels, as `build_model` counts them.
        classes: names and dataset ids of the labels, or None when unknown.
        mean, std: of the normalization, per RGB channel, for pixels in [0, 1].
        size: short side of the input in pixels.
        max_size: longest side of the input in pixels, None for no limit.
        square: whether every image is squashed to `size` x `size` pixels, whatever its shape (RT-DETR); `max_size` does
            not matter then.
        padding: "exact" or "official" (see `build_model`).
        training: where the weights come from: detrkit version, epoch, metrics, score thresholds; plain JSON values.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    num_classes: Classes = 91
    classes: ClassList | None = None
    mean: tuple[Mean, Mean, Mean] = IMAGENET_MEAN
    std: tuple[Std, Std, Std] = IMAGENET_STD
    size: ShortSide = 800
    max_size: LongSide | None = 1333
    padding: Padding = "exact"
    training: Mapping[str, Any] = field(default_factory=dict)
    square: Squash = False

    def build(self) -> DetectionModel:
        """Build the model with random weights.

        Raises:
            ValueError, TypeError: an unknown name or option, or a model that does not fit into memory.
        """
        arch = architecture(self.name)
        options = build_options(arch, self.build_options)
        return arch.model(num_classes=self.num_classes, padding=self.padding, options=options)

    @property
    def input_words(self) -> str:
        """What is done to the input, for reports: "short side 800, longest side 1333 pixels"."""
        if self.square:
            return f"squashed to {self.size} x {self.size} pixels"
        return f"short side {self.size}, longest side {self.max_size} pixels"

    def check_max_size(self, max_size: int | None) -> None:
        """Check that a longest side is asked for of a model that has one.

        Raises:
            SettingError: the model's images are squashed to squares.
        """
        if self.square and max_size is not None:
            raise SettingError(
                f"max_size={max_size}: {self.name} squashes every image to a square: give size alone, both its sides"
            )

    @property
    def build_options(self) -> dict[str, Any]:
        """Options that define the model; the source of its initial weights is left out."""
        return {k: v for k, v in self.options.items() if k != "backbone_weights"}

    def of_queries(self, model: DetectionModel) -> ModelSpec:
        """Return the description of a model that `DetectionModel.with_num_queries` made of this one's."""
        arch = architecture(self.name)
        names = ("num_queries", "num_select", "num_queries_one2many")
        counts = {name: getattr(model, name) for name in names if arch.takes(name)}
        return dataclasses.replace(self, options={**self.options, **counts})

    @property
    def score_thresholds(self) -> ScoreThresholds | None:
        """Thresholds of the scores that the evaluation of these weights suggests; None if there is none.

        They are part of `training`, which versions without them read, too.
        """
        value = self.training.get(SCORE_THRESHOLDS)
        return None if value is None else ScoreThresholds.from_json(value)

    def check(self) -> None:
        """Check what single fields cannot: that the options fit the model, and the classes their number.

        Raises:
            ValueError, TypeError: an unknown name or option, an option out of range, names for another number of
                classes.
        """
        build_options(architecture(self.name), self.build_options)
        try:
            _ = self.score_thresholds
        except SettingError as error:
            raise ValueError(f"training.{SCORE_THRESHOLDS}: {error}") from error
        if self.classes is None:
            return
        if len(self.classes) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}, but classes names {len(self.classes)}")
        twice = [name for name, count in Counter(self.classes.used_names).items() if count > 1]
        if twice:
            log.warning(
                "%d class names are there more than once, such as %s: the last label of that name counts where classes "
                "are matched by name",
                len(twice),
                shown(twice[0]),
            )

    def to_json(self) -> str:
        """Return the spec as JSON, as a checkpoint's header holds it."""
        plain = {
            "version": VERSION,
            "name": self.name,
            "options": dict(self.options),
            "num_classes": self.num_classes,
            "classes": None if self.classes is None else self.classes.to_json(),
            "mean": list(self.mean),
            "std": list(self.std),
            "size": self.size,
            "max_size": self.max_size,
            "padding": self.padding,
            "training": dict(self.training),
            # earlier versions, which read no such field, read all other models
            **({"square": True} if self.square else {}),
        }
        return json.dumps(plain)

    @classmethod
    def from_json(cls, value: str | Mapping[str, Any]) -> ModelSpec:
        """Read the result of `to_json`, also already parsed. All is checked before anything is built or allocated.

        Raises:
            DetrkitError: not a spec, one with a field that is missing, unknown, of another type or out of range, or
                one of a later version.
        """
        plain = parse_json(value, _WRONG) if isinstance(value, str) else value
        if not isinstance(plain, Mapping):
            raise DetrkitError(f"{_WRONG} (it is {shown(plain)}: an object expected)")
        version = plain.get("version")
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise DetrkitError(f"{_WRONG} (version is {shown(version)}: must be a whole number from 1)")
        if version > VERSION:
            raise DetrkitError(f"written by a later detrkit (format {shown(version)}): upgrade detrkit to read it")
        missing = [f.name for f in dataclasses.fields(cls) if f.name not in plain and f.name != "square"]
        if missing:
            raise DetrkitError(f"{_WRONG} ({missing[0]} is missing)")
        try:
            spec: ModelSpec = validated_as(cls, {name: item for name, item in plain.items() if name != "version"})
            spec.check()
        except (ValueError, TypeError) as error:
            raise DetrkitError(f"{_WRONG} ({error})") from error
        return spec
