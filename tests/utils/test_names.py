"""Names from files are never paths."""

import os
from pathlib import Path

import pytest

from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import below, checked_name, full_path, real_path, relative_path, why_unusable

NO_NAMES = [
    "",
    " ",
    ".",
    "..",
    "../victim",
    "/abs",
    "a/b",
    "a\\b",
    "C:x",
    "a\x00b",
    "a\nb",
    "\ud800",
    "x" * 256,
    "é" * 128,
]


@pytest.mark.parametrize("name", NO_NAMES)
def test_what_is_no_name(name):
    with pytest.raises(DetrkitError, match=r"^data\.yaml, field train: ") as caught:
        checked_name(name, "data.yaml, field train")
    assert "\n" not in str(caught.value)
    with pytest.raises(DetrkitError):
        below(Path("out"), "labels", name, where="data.yaml")


@pytest.mark.parametrize("name", ["train", "val2017", "..train", "Straße 7", "[b]x", "a..b", "x" * 255])
def test_names(name):
    assert below(Path("out"), name, where="here") == Path("out") / name


@pytest.mark.parametrize(
    "text", ["../../secret/key.conf", "a/../../b", "/etc/passwd", "C:\\x.jpg", "\\\\host\\x", "a\x00b", "", "x" * 300]
)
def test_paths_that_lead_out(text):
    with pytest.raises(DetrkitError, match=r"^a\.json: image 1: "):
        relative_path(text, "a.json: image 1")


def test_paths():
    assert str(relative_path("val\\17.jpg", "here")) == "val/17.jpg"
    assert str(relative_path("a/../b.jpg", "here")) == "a/../b.jpg"
    assert str(relative_path("../images/b.jpg", "here", up=True)) == "../images/b.jpg"


def test_full_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert full_path("~/a") == tmp_path / "a"
    with pytest.raises(DetrkitError, match=r"^~nosuchuser/a: there is no such user"):
        full_path("~nosuchuser/a")
    for path, reason in (("a\0b", "holds a null character"), ("x/" + 256 * "y", "is longer than 255 bytes")):
        with pytest.raises(DetrkitError, match=reason):
            full_path(path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert full_path("/a") == Path("/a")
    with pytest.raises(DetrkitError, match=r"^a: the working directory is gone"):
        full_path("a")
    with pytest.raises(DetrkitError, match=r"^a: the working directory is gone"):
        real_path("a")
    os.chdir(tmp_path)


def test_paths_longer_than_systems_hold():
    assert relative_path("/".join(10 * ["a" * 200]), "here").parts[9] == "a" * 200
    with pytest.raises(DetrkitError, match="is longer than 2048 bytes"):
        relative_path("/".join(11 * ["a" * 200]), "here")


def test_a_name_that_the_locale_cannot_write(monkeypatch):
    assert why_unusable("b\u00fcld\u4e2d.jpg") is None
    assert why_unusable("\ud800") == "holds half a character (a lone surrogate)"
    monkeypatch.setattr("os.fsencode", lambda name: name.encode("ascii", "surrogateescape"))
    reason = "cannot be a name in the encoding of this locale, ascii: set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    assert why_unusable("b\u00fcld.jpg") == reason
    assert why_unusable("\ud800") == "holds half a character (a lone surrogate)"
