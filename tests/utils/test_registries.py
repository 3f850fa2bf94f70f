"""Names from this package, from others and from DETRKIT_PLUGINS."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest

from detrkit.utils import registry as registries
from detrkit.utils.errors import SettingError
from detrkit.utils.registry import VARIABLE, Registry


@pytest.fixture
def things(monkeypatch, tmp_path):
    """A registry of which other modules know as `things`, and no plugin but those that a test adds."""
    entries: Registry[int] = Registry("thing")
    entries.add("one", 1)
    monkeypatch.setattr(registries, "things", entries, raising=False)
    monkeypatch.setattr(registries, "_entry_points", list)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    registries.load_plugins.cache_clear()
    yield entries
    registries.load_plugins.cache_clear()


def plugin(folder, name: str, thing: str, value: int) -> None:
    text = f"from detrkit.utils import registry\nregistry.things.add({thing!r}, {value})\n"
    (folder / f"{name}.py").write_text(text)


def test_a_taken_name_is_refused_unless_it_is_replaced(things):
    with pytest.raises(ValueError, match="there is a thing 'one' already"):
        things.add("one", 2)
    things.add("one", 2, replace=True)
    assert dict(things) == {"one": 2}
    with pytest.raises(ValueError, match="' two' is no name of a thing"):
        things.add(" two", 2)


def test_an_unknown_name_lists_the_names_and_the_similar_one(things):
    things.add("three", 3)
    with pytest.raises(SettingError, match=r"^unknown thing 'Three_': choose one of one, three; did you mean three\?$"):
        things.find("Three_")
    things.add("timm:", 4)  # a prefix
    with pytest.raises(SettingError, match=r"choose one of one, three, timm:NAME$"):
        things.find("four")
    with pytest.raises(SettingError, match=r"^unknown logger 'four': no installed package has registered any$"):
        Registry("logger").find("four")
    with pytest.raises(KeyError):
        things["four"]
    assert things.get("four") is None and "four" not in things


def test_modules_of_other_packages_are_imported_when_a_name_is_missing(things, tmp_path, monkeypatch):
    plugin(tmp_path, "detrkit_plugin_two", "two", 2)
    plugin(tmp_path, "detrkit_plugin_three", "three", 3)
    point = SimpleNamespace(value="detrkit_plugin_two", dist=SimpleNamespace(name="some-package"))
    monkeypatch.setattr(registries, "_entry_points", lambda: [point])
    monkeypatch.setenv(VARIABLE, "detrkit_plugin_three, ")
    assert things.find("one") == 1 and things._entries.keys() == {"one"}  # nothing was imported for it
    assert things.find("two") == 2
    assert list(things) == ["one", "two", "three"] and len(things) == 3


def test_a_plugin_that_fails_is_named_and_the_others_work(things, tmp_path, monkeypatch):
    (tmp_path / "detrkit_plugin_bad.py").write_text("raise RuntimeError('no such\\nlibrary')\n")
    plugin(tmp_path, "detrkit_plugin_good", "two", 2)
    monkeypatch.setenv(VARIABLE, "detrkit_plugin_bad,detrkit_plugin_good,detrkit_plugin_missing")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert things.find("two") == 2
    assert [str(w.message) for w in said] == [
        "plugin detrkit_plugin_bad of DETRKIT_PLUGINS cannot be imported (RuntimeError: no such): it is left out",
        "plugin detrkit_plugin_missing of DETRKIT_PLUGINS cannot be imported (ModuleNotFoundError: No module named "
        "'detrkit_plugin_missing'): it is left out",
    ]
