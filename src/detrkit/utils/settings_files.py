"""Settings in YAML files, a user's or one that comes with detrkit: read, and turned into a dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import os
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.ranges import out_of_range

T = TypeVar("T")
_OUT_OF_RANGE = ("greater_than_equal", "greater_than", "less_than_equal", "less_than")  # pydantic's names

# what pydantic puts into the place of an error in a field that takes one of several types
_UNION_PARTS = ("dict[", "literal[", "constrained-")


def check_changes(config: Any, sections: dict[str, Any]) -> None:
    """Check the names of `config.changed(section={"field": value})`.

    Args:
        config: a dataclass whose fields are sections, which are dataclasses.
        sections: what is to be changed.

    Raises:
        SettingError: no such section or field; names the nearest one, and the section that has a field of that name.
    """
    known = {
        part.name: [f.name for f in dataclasses.fields(getattr(config, part.name))]
        for part in dataclasses.fields(config)
    }
    for section, values in sections.items():
        if section not in known:
            owner = next((part for part, names in known.items() if section in names), None)
            near = difflib.get_close_matches(section, known, n=1)
            raise SettingError(
                f"no section {section!r}: "
                + (f"write {owner}={{{section!r}: ...}}" if owner else f"there are {', '.join(known)}")
                + (f"; did you mean {near[0]}?" if near and not owner else "")
            )
        if not isinstance(values, dict):
            raise SettingError(f"{section} is {type(values).__name__}: must be a dict, as in {section}={{...}}")
        for name in values:
            if name in known[section]:
                continue
            owner = next((part for part, names in known.items() if name in names), None)
            near = difflib.get_close_matches(str(name), known[section], n=1)
            hint = f"did you mean {owner}.{name}?" if owner else f"did you mean {near[0]}?" if near else ""
            raise SettingError(f"{section}.{name} is not known" + (f": {hint}" if hint else ""))


def shipped(folder: str = "recipes") -> list[str]:
    """Return the names of the YAML files that come with detrkit in a folder of the package."""
    files = resources.files("detrkit").joinpath(folder).iterdir()
    return sorted(p.name.removesuffix(".yaml") for p in files if p.name.endswith(".yaml"))


def read_yaml(source: str | Path, *, expected: str, folder: str = "recipes") -> dict[str, Any]:
    """Read the content of a YAML file, given by its path or by the name of one that comes with detrkit.

    Args:
        source: the path or name.
        expected: what the file should hold, for the message when it is something else.
        folder: of the package, where the named ones are.

    Raises:
        DetrkitError: no such file, not YAML, or not a mapping.
    """
    from detrkit.utils.documents import decoded, parse_yaml, read_text  # imports yaml, which few commands need

    path = Path(source)
    if str(source) in shipped(folder):
        text = decoded(resources.files("detrkit").joinpath(folder, f"{source}.yaml").read_bytes(), str(source))
    elif os.path.exists(path):  # False for an impossible path, for which Path.exists raises an error
        text = read_text(path)
    else:
        names = ", ".join(shipped(folder))
        raise DetrkitError(f"{source}: no such file, and no recipe of that name (there are {names})")
    plain = parse_yaml(text, str(source))
    plain = {} if plain is None else plain
    if not isinstance(plain, dict):
        raise DetrkitError(f"{source}: expected {expected}; found {type(plain).__name__}")
    return plain


def validated(kind: type[T], plain: Any, where: str, *, hint: str) -> T:
    """Convert plain YAML values to a dataclass.

    Args:
        kind: the dataclass.
        plain: its fields.
        where: file, and field in it, of the values.
        hint: where the fields are explained.

    Raises:
        DetrkitError: a field that is unknown, missing, of the wrong type or out of range; names `where` and the field.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        field_name = ".".join(part for part in map(str, first["loc"]) if not part.startswith(_UNION_PARTS))
        if first["type"] in (*_OUT_OF_RANGE, "finite_number"):
            reason = out_of_range(first["ctx"]) if first["type"] in _OUT_OF_RANGE else "must be a finite number"
            raise DetrkitError(f"{where}: {field_name} is {first['input']}: {reason}") from error
        reason = "unknown field" if first["type"] == "unexpected_keyword_argument" else first["msg"]
        raise DetrkitError(f"{where}: {field_name}: {reason} ({hint})") from error
