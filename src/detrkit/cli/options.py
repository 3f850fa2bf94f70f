"""The options of a command, read from its dataclass: for help, for the check of what was typed and for tables."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import Positional, Suppress

from detrkit.utils.ranges import field_hints
from detrkit.utils.settings_files import shipped

MISSING = dataclasses.MISSING
CHOSEN = object()  # a default that is chosen when the command runs
_MANY = "*"


@dataclass(frozen=True)
class Option:
    """An option, or a positional argument, of a command.

    Attributes:
        path: of the field, such as ("config", "optim", "epochs").
        name: as typed, without dashes: "batch-size".
        hint: annotation of the field, with the ranges of its numbers.
        kind: type of a value, without None and without markers: int, a `Literal`, a tuple, ...
        optional: whether None is a value.
        default: of the field; MISSING if one must be given.
        positional: whether it stands without a name.
        metavar: what help shows in the place of a value.
        aliases: further names, with dashes.
        read: reads all values at once, for options whose values have a form of their own; raises ValueError.
    """

    path: tuple[str, ...]
    name: str
    hint: Any
    kind: Any
    optional: bool
    default: Any
    positional: bool
    metavar: str
    aliases: tuple[str, ...] = ()
    read: Callable[[list[str]], Any] | None = None

    @property
    def switch(self) -> bool:
        """Whether it takes no value: --name or --no-name."""
        return self.kind is bool and not self.optional

    @property
    def switch_or_unset(self) -> bool:
        """Whether it is a switch with a third value, None: --name, --no-name, or --name False."""
        return self.kind is bool and self.optional

    @property
    def flags(self) -> tuple[str, ...]:
        """All names, with dashes."""
        names = ("--" + self.name, *self.aliases)
        return (*names, *("--no-" + n.removeprefix("--") for n in names)) if self.kind is bool else names

    @property
    def count(self) -> int | Literal["*"]:
        """How many values it takes; "*" for any number."""
        if self.kind is bool:
            return 0
        if self.read is not None:
            return _MANY  # type: ignore[return-value]
        if get_origin(self.kind) is tuple:
            parts = get_args(self.kind)
            return _MANY if parts[-1] is Ellipsis else len(parts)  # type: ignore[return-value]
        return 1

    def value_kind(self, number: int) -> Any:
        """Return the type of the value at a position, from 0."""
        if get_origin(self.kind) is not tuple:
            return self.kind
        parts = get_args(self.kind)
        return parts[0] if parts[-1] is Ellipsis else parts[number]

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING


def options_of(kind: type, default: Any = None) -> list[Option]:
    """Return the options of a command in the order of its fields, positional arguments first.

    Args:
        kind: the command's dataclass.
        default: an instance with the defaults, where they are not those of the class.
    """
    found = []
    for path, hint in field_hints(kind):
        markers = _markers(hint)
        if Suppress in markers:
            continue
        own = next((marker for marker in markers if hasattr(marker, "instance_from_str")), None)  # a constructor
        marks = [marker for marker in markers if hasattr(marker, "aliases")]  # of tyro.conf.arg
        name = next((m.name for m in marks if m.name), path[-1]).replace("_", "-")
        core, optional = core_type(hint) if own is None else (str, True)
        metavar = next((m.metavar for m in marks if m.metavar), None if own is None else f"{own.metavar} ...")
        found.append(
            Option(
                path=path,
                name=name,
                hint=hint,
                kind=core,
                optional=optional,
                default=_default(kind, path, default),
                positional=Positional in markers,
                metavar=metavar
                or ("/".join(path[-1:]).upper() if Positional in markers else value_name(core, path[-1])),
                read=None if own is None else own.instance_from_str,
                aliases=tuple(alias for m in marks for alias in m.aliases or ()),
            )
        )
    return sorted(found, key=lambda option: not option.positional)


def core_type(hint: Any) -> tuple[Any, bool]:
    """Return an annotation without markers, ranges and None, and whether it had None."""
    optional = False
    while True:
        if get_origin(hint) is Annotated:
            hint = get_args(hint)[0]
        elif get_origin(hint) in (Union, UnionType):
            parts = [part for part in get_args(hint) if part is not NoneType]
            optional = optional or len(parts) < len(get_args(hint))
            if len(parts) > 1:
                kinds = [core_type(part)[0] for part in parts]
                return (str if str in kinds else Union.__getitem__(tuple(kinds))), optional
            hint = parts[0]
        elif get_origin(hint) is tuple:
            parts = [part if part is Ellipsis else core_type(part)[0] for part in get_args(hint)]
            return tuple.__class_getitem__(tuple(parts)), optional
        else:
            return hint, optional


def value_name(kind: Any, name: str) -> str:
    """Return what help shows in the place of a value: "N", "PATH", "a|b"; "" for a switch."""
    origin = get_origin(kind)
    if kind is bool:
        return ""
    if origin is Literal:
        return "|".join(map(str, get_args(kind)))
    if origin is Union:
        return "|".join(value_name(part, name) for part in get_args(kind))
    if origin is tuple:
        parts = get_args(kind)
        if parts[-1] is Ellipsis:
            return f"{value_name(parts[0], name)} ..."
        return " ".join(value_name(part, name) for part in parts)
    if kind in (int, float):
        return {int: "N", float: "X"}[kind]
    return "PATH" if kind is Path or name in ("out", "resume", "init_from", "path", "val_data") else "NAME"


@cache
def field_texts(kind: type) -> Mapping[str, str]:
    """Return the docstring below each field of a dataclass, in one line."""
    tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__)
    texts = {}
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            texts[field.target.id] = " ".join(str(text.value.value).split())
    return texts


def text_of(kind: type, path: tuple[str, ...]) -> str:
    """Return the docstring of a field of a dataclass, or of a dataclass in it, with the names for {recipes}."""
    for name in path[:-1]:
        kind = dict(_sections(kind))[name]
    return field_texts(kind).get(path[-1], "").replace("{recipes}", ", ".join(shipped()))


@cache
def _sections(kind: type) -> tuple[tuple[str, type], ...]:
    """Return the fields of a dataclass that are dataclasses themselves, with their types."""
    defaults = ((f.name, f.default_factory) for f in dataclasses.fields(kind))
    return tuple((name, factory) for name, factory in defaults if dataclasses.is_dataclass(factory))  # type: ignore[misc]


def _markers(hint: Any) -> list[Any]:
    """Return the metadata of an annotation, outer first."""
    found = []
    while get_origin(hint) is Annotated:
        hint, *markers = get_args(hint)
        found += markers
    return found


def _default(kind: type, path: tuple[str, ...], instance: Any) -> Any:
    if instance is not None:
        for name in path:
            instance = getattr(instance, name)
        return instance
    for name in path[:-1]:
        kind = dict(_sections(kind))[name]
    field = next(f for f in dataclasses.fields(kind) if f.name == path[-1])
    return field.default_factory() if field.default_factory is not MISSING else field.default
