"""Validation of plain values by pydantic, with errors in one line like the other messages."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from detrkit.utils.documents import shown
from detrkit.utils.errors import SettingError
from detrkit.utils.ranges import out_of_range

_RANGES = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")  # pydantic's error types
_WORDS = (
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a valid string", "text"),
    ("a valid boolean", "true or false"),
    ("a valid tuple", "a list"),
    ("a valid list", "a list"),
    ("a valid dictionary", "an object"),
    ("a valid mapping", "an object"),
    ("a dictionary or an instance of ClassList", "an object"),
    ("a dictionary or an instance of Progress", "an object"),
)
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return the validator of a type; cached, since building it takes longer than validating."""
    return TypeAdapter(kind)


def validated_as(kind: Any, plain: Any) -> Any:
    """Convert plain values to a type.

    Args:
        kind: a dataclass, a TypedDict or another type that pydantic supports; its annotations state the ranges.
        plain: the values.

    Raises:
        SettingError: names the first field that is missing, unknown, of another type or out of its range.
    """
    try:
        return adapter(kind).validate_python(plain)
    except ValidationError as error:
        raise SettingError(first_problem(error)) from error
    except RecursionError as error:
        raise SettingError("lists or objects are nested too deep") from error


def first_problem(error: ValidationError) -> str:
    """Describe the first error: "size is 0: must be at least 1"."""
    first = error.errors(include_url=False)[0]
    name = ".".join(shown(part).strip("'\"") for part in first["loc"]) or "it"
    if first["type"] in ("missing", "missing_argument"):
        return f"{name} is missing"
    if first["type"] in _UNKNOWN:
        return f"{name} is not known"
    if first["type"] in _RANGES:
        reason = out_of_range(first["ctx"])
    else:
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        for theirs, ours in _WORDS:
            reason = reason.replace(theirs, ours)
    return f"{name} is {shown(first['input'])}: {reason}"
