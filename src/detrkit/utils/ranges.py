"""Ranges of the numbers in settings, stated beside their fields, and the functions that check them.

A field states its range as `Annotated[int, Range(ge=1)]`, mostly by one of the names below. pydantic reads it in files,
`check_values` on the command line and in Python, before anything is written or generated. A number above
its upper bound can only be a mistake: the bounds are far above what the largest machine holds today.

`Range` is annotated_types' `Interval`, which pydantic reads as its own `Field`: importing pydantic took a quarter of
the time that a command needs to refuse a mistyped path.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import GroupedMetadata, Interval

from detrkit.utils.errors import SettingError
from detrkit.utils.messages import shortened
from detrkit.utils.names import NAME_BYTES

Range = Interval

Count = Annotated[int, Range(ge=1, le=10**9)]
CountOrNone = Annotated[int, Range(ge=0, le=10**9)]  # 0: none, never or all, as the field states
Pixels = Annotated[int, Range(ge=1, le=65_536)]  # pixels of a side of an image
Coordinate = Annotated[float, Range(ge=0, le=65_536)]  # pixels from the left edge or the top of an image
InputSize = Annotated[int, Range(ge=32, le=65_536)]  # short side of a model's input: a cell of its coarsest map or more
TileSide = Annotated[int, Range(ge=32, le=65_536)]  # pixels of a tile: a model's input has no shorter side
Overlap = Annotated[float, Range(ge=0, le=0.9)]  # of neighboring tiles, as a share of their side
BatchSize = Annotated[int, Range(ge=1, le=65_536)]  # images at once
Workers = Annotated[int, Range(ge=0, le=1024)]  # processes
LARGEST_SEED = 2**32 - 1  # of numpy
Seed = Annotated[int, Range(ge=0, le=LARGEST_SEED)]
ParallelRuns = Annotated[int, Range(ge=1, le=1024)]  # of a study, at the same time
StudySeeds = Annotated[int, Range(ge=1, le=100)]  # of one model of a study
WideSeed = Annotated[int, Range(ge=0, le=2**63 - 1)]  # seeds of a separate generator
Share = Annotated[float, Range(ge=0, le=1)]  # a score or a share
Points = Annotated[float, Range(ge=0, le=100)]  # hundredths of AP
Scale = Annotated[float, Range(gt=0, le=8)]  # of an image's sides
ScoreThreshold = Share | Literal["auto"]  # auto: as the checkpoint suggests
Decay = Annotated[float, Range(ge=0, lt=1)]
Weight = Annotated[float, Range(ge=0, le=1e6)]  # a factor of a loss, a cost or a rate
Width = Annotated[int, Range(ge=1, le=65_536)]  # channels
Tolerance = Annotated[float, Range(ge=0, le=1e12)]
AnyInteger = Annotated[int, Range(ge=-(2**63), le=2**63 - 1)]  # an id
Few = Annotated[int, Range(ge=1, le=1000)]  # rows or columns of a sheet of images
Devices = Annotated[int, Range(ge=1, le=1024)]
ShapesImages = Annotated[int, Range(ge=0, le=1_000_000)]  # the ids of a split stay below those of the next
ShapesSide = Annotated[int, Range(ge=16, le=16_384)]
ShapesClasses = Annotated[int, Range(ge=1, le=10)]
ShapesObjects = Annotated[int, Range(ge=0, le=90)]
ShapesSize = Annotated[float, Range(gt=0, le=1)]
Layers = Annotated[int, Range(ge=1, le=1000)]


@dataclasses.dataclass(frozen=True)
class Checked:
    """Check of a text, beside a field's type: `Annotated[str, Checked(reason)]`.

    Attributes:
        reason: returns why a text does not fit; None if it fits.
    """

    reason: Callable[[str], str | None]


FieldFormat = Callable[[tuple[str, ...], Any], str]  # formats a field's path and its value

_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_FITS: dict[str, Callable[[Any, Any], bool]] = {
    "ge": lambda value, bound: value >= bound,
    "gt": lambda value, bound: value > bound,
    "le": lambda value, bound: value <= bound,
    "lt": lambda value, bound: value < bound,
}


def multiples_near(number: int, divisor: int) -> str:
    """Return the multiples of a number next to another: "such as 30 or 33"."""
    below = number // divisor * divisor
    return f"such as {below} or {below + divisor}" if below else f"such as {divisor}"


def as_field(path: tuple[str, ...], value: Any) -> str:
    """Format a field as YAML and Python name it: "run.seed is -1"."""
    return f"{'.'.join(path)} is {shortened(repr(value))}"


def as_option(path: tuple[str, ...], value: Any) -> str:
    """Format a field as it is typed: "--seed -1"; for a path the path alone, which may stand without an option."""
    if isinstance(value, (str, os.PathLike)) and path[-1] != "device":
        return shortened(os.fspath(value))
    name = "model" if path[-2:] == ("model", "name") else path[-1]
    if isinstance(value, Mapping):
        value = [f"{key}={item}" for key, item in value.items()]
    values = value if isinstance(value, (tuple, list)) else (value,)
    return " ".join([f"--{name.replace('_', '-')}", *map(str, values)])


def check_values(settings: Any, *, format_field: FieldFormat = as_field) -> None:
    """Check every number, choice and path of a dataclass, and of the dataclasses in it.

    Args:
        settings: the dataclass.
        format_field: formats a field for messages.

    Raises:
        SettingError: a number that is out of its field's range or not finite, a word that is none of the field's, or a
            path that no file system can hold.
    """
    for path, hint, value in _fields(settings):
        reason = _reason(value, hint)
        if reason is not None:
            raise SettingError(f"{format_field(path, value)}: {reason}")


def check_arguments(function: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check the arguments of a function whose parameters state their ranges.

    Args:
        function: with annotated parameters.
        values: by name; those that are no parameters, or have no range, are not checked.

    Raises:
        SettingError: as `check_values`.
    """
    hints = _hints(function)
    for name, value in values.items():
        reason = _reason(value, hints[name]) if name in hints else None
        if reason is not None:
            raise SettingError(f"{as_field((name,), value)}: {reason}")


def out_of_range(bounds: Mapping[str, Any]) -> str:
    """Describe what a number must be: of {"ge": 1} "must be at least 1"."""
    return "must be " + " and ".join(f"{_WORDS[kind]} {_plain(bounds[kind])}" for kind in _WORDS if kind in bounds)


def reason_against(value: Any, hint: Any) -> str | None:
    """Return why a value does not fit an annotation with ranges, such as "must be at least 1"; None if it fits."""
    return _reason(value, hint)


def has_range(hint: Any) -> bool:
    """Return whether an annotation has no numbers, or states the range of each number in it, above and below."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = _bounds(arguments[1:])
        return (bool({"ge", "gt"} & set(bounds)) and bool({"le", "lt"} & set(bounds))) or has_range(arguments[0])
    if origin is Literal:
        return True
    if origin is not None:
        return all(has_range(argument) for argument in arguments if argument is not Ellipsis)
    return hint not in (int, float)


def field_hints(kind: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield path and annotation of every field of a dataclass, and of the dataclasses in it."""
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if dataclasses.is_dataclass(hint):
            yield from (((field.name, *path), part) for path, part in field_hints(hint))
        else:
            yield (field.name,), hint


def _fields(settings: Any) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    for path, hint in field_hints(type(settings)):
        value = settings
        for name in path:
            value = getattr(value, name)
        yield path, hint, value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _bounds(metadata: tuple[Any, ...]) -> dict[str, Any]:
    """Return the bounds of a `Range(...)`, or of pydantic's `Field(...)`, in an annotation's metadata, by name."""
    parts = [
        part
        for item in metadata
        for part in (item if isinstance(item, GroupedMetadata) else getattr(item, "metadata", ()))
    ]
    return {kind: getattr(part, kind) for part in parts for kind in _WORDS if hasattr(part, kind)}


def _reason(value: Any, hint: Any, bounds: Mapping[str, Any] | None = None) -> str | None:
    """Return why a value does not fit a field with this annotation; None if it fits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        checks = [item.reason for item in arguments[1:] if isinstance(item, Checked)]
        if checks and isinstance(value, str):
            return next((reason for check in checks if (reason := check(value)) is not None), None)
        return _reason(value, arguments[0], {**(bounds or {}), **_bounds(arguments[1:])})
    if origin in (Union, UnionType):
        if value is None and NoneType in arguments:
            return None
        reasons = [_reason(value, part, bounds) for part in arguments if part is not NoneType]
        return None if None in reasons else reasons[0]
    if origin is Literal:
        return None if value in arguments else f"choose one of {', '.join(map(str, arguments))}"
    if origin is dict:
        if not isinstance(value, Mapping):
            return "must be names with values"
        checked = ((name, _reason(item, arguments[1], bounds)) for name, item in value.items())
        return next((f"{name} {part}" for name, part in checked if part is not None), None)
    if origin is tuple:
        parts = list(arguments)
        if arguments[1:] == (Ellipsis,):
            parts = [arguments[0]] * len(value) if isinstance(value, (tuple, list)) else []
        if not isinstance(value, (tuple, list)) or len(value) != len(parts):
            return f"must be {len(parts) or 'several'} values"
        return next((r for item, part in zip(value, parts, strict=False) if (r := _reason(item, part, bounds))), None)
    if hint in (int, float):
        return _number_reason(value, hint, bounds or {})
    if isinstance(value, (str, os.PathLike)) and hint is not Any:
        return _path_reason(os.fspath(value))
    return None


def _number_reason(value: Any, hint: type, bounds: Mapping[str, Any]) -> str | None:
    kind, what = (Integral, "a whole number") if hint is int else (Real, "a number")
    if isinstance(value, bool) or not isinstance(value, kind):
        return f"must be {what}"
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    broken = {name: bound for name, bound in bounds.items() if not _FITS[name](value, bound)}
    return out_of_range(broken) if broken else None


def _path_reason(text: str) -> str | None:
    """Return why a text cannot name a file.

    Most texts of settings name files, and the others are shorter than any limit.
    """
    if "\0" in text:
        return "holds a zero byte"
    if text.startswith("~"):
        user = text.replace(os.sep, "/").partition("/")[0]
        if os.path.expanduser(user) == user:
            return f"there is no user {user[1:] or '(without a home folder)'}; give the whole path"
    parts = text.replace(os.sep, "/").split("/")
    if any(len(part.encode("utf-8", "surrogatepass")) > NAME_BYTES for part in parts):
        return f"a name in it is longer than the {NAME_BYTES} bytes that file systems allow"
    return None


def _plain(number: float) -> str:
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
