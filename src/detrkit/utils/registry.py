"""`Registry`: named models, backbones or readers, open to other packages."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from detrkit.utils.errors import SettingError
from detrkit.utils.messages import shortened
from detrkit.utils.similar import nearest_names

T = TypeVar("T")

GROUP = "detrkit.plugins"  # entry points of other packages: modules that register something when they are imported
VARIABLE = "DETRKIT_PLUGINS"  # the same without a package: names of importable modules, separated by commas


class Registry(Mapping[str, T], Generic[T]):
    """Named entries, in the order in which they were registered.

    Entries of other packages count too: their modules are imported when a name is not among the package's own, or when
    all names are listed. `import detrkit` and a lookup of a built-in name import none of them.

    Args:
        kind: what the entries are, for messages: "model".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def add(self, name: str, entry: T, *, replace: bool = False) -> None:
        """Register an entry.

        Args:
            name: by which it is looked up.
            entry: the model, backbone or reader.
            replace: replace an entry of that name, as when a notebook's cell runs again.

        Raises:
            ValueError: an empty name, or one that is taken.
        """
        if not name or name != name.strip():
            raise ValueError(f"{name!r} is no name of a {self.kind}: give one without spaces around it")
        if not replace:
            self.check_free(name)
        self._entries[name] = entry

    def check_free(self, name: str) -> None:
        """Check that no entry has this name.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._entries:
            raise ValueError(f"there is a {self.kind} {name!r} already: choose another name, or give replace=True")

    def registered(self) -> list[T]:
        """Return the entries registered so far; no other package is imported."""
        return list(self._entries.values())

    def find(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            SettingError: none of that name; the message lists the names.
        """
        if name not in self:
            similar = nearest_names([name], self._entries).get(name)
            hint = f"; did you mean {similar}?" if similar else ""
            names = ", ".join(f"{entry}NAME" if entry.endswith(":") else entry for entry in self._entries)
            choices = f"choose one of {names}" if names else "no installed package has registered any"
            raise SettingError(f"unknown {self.kind} {shortened(name)!r}: {choices}{hint}")
        return self._entries[name]

    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise KeyError(name)
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        if name not in self._entries:
            load_plugins()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        load_plugins()
        return iter(list(self._entries))

    def __len__(self) -> int:
        load_plugins()
        return len(self._entries)


@cache
def load_plugins() -> None:
    """Import the modules that other packages name as entry points (`GROUP`), and those of `VARIABLE`; once a process.

    A module that fails is named in a warning; the others and the package's own entries stay usable.
    """
    sources = [(point.value, f"of the package {point.dist.name}" if point.dist else "") for point in _entry_points()]
    sources += [(name.strip(), f"of {VARIABLE}") for name in os.environ.get(VARIABLE, "").split(",") if name.strip()]
    for module, source in dict(sources).items():
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever other people's code raises must not end this program
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            warnings.warn(f"plugin {module} {source} cannot be imported ({reason}): it is left out", stacklevel=2)


def _entry_points() -> Iterable[EntryPoint]:
    return entry_points(group=GROUP)
