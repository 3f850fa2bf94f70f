"""Only what detrkit wrote, and nobody changed, is ever replaced."""

import os

import pytest

from detrkit.utils.errors import DetrkitError
from detrkit.utils.folders import MANIFEST, new_directory


def make(folder, *, force=False):
    with new_directory(folder, force=force) as root:
        (root / "sub").mkdir()
        (root / "sub" / "a.txt").write_text("a")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(KeyError), new_directory(tmp_path / "new") as root:
        (root / "half").write_text("")
        raise KeyError
    assert os.listdir(tmp_path) == []
    make(tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == [MANIFEST, "sub"]
    assert os.listdir(tmp_path) == ["new"]


def test_its_own_work_is_replaced_when_asked_for(tmp_path):
    make(tmp_path / "new")
    with pytest.raises(DetrkitError, match="exists already"):
        make(tmp_path / "new")
    make(tmp_path / "new", force=True)
    assert os.listdir(tmp_path) == ["new"]


def test_a_link_to_another_disk_stays_one(tmp_path):
    (tmp_path / "disk" / "big").mkdir(parents=True)
    (tmp_path / "new").symlink_to("disk/big")
    make(tmp_path / "new")
    make(tmp_path / "new", force=True)
    assert (tmp_path / "new").is_symlink()
    assert os.listdir(tmp_path / "disk") == ["big"]
    assert sorted(os.listdir(tmp_path / "disk" / "big")) == [MANIFEST, "sub"]


def added(folder):
    (folder / "sub" / "notes.txt").write_text("mine")


def changed(folder):
    (folder / "sub" / "a.txt").write_text("b")


def no_manifest(folder):
    (folder / MANIFEST).unlink()


def damaged(folder):
    (folder / MANIFEST).write_text("[1]")


def linked(folder):
    (folder / "link").symlink_to("sub")


@pytest.mark.parametrize("change", [added, changed, no_manifest, damaged, linked])
def test_what_others_wrote_is_not_replaced(change, tmp_path):
    make(tmp_path / "new")
    change(tmp_path / "new")
    before = sorted(p for p in (tmp_path / "new").rglob("*"))
    with pytest.raises(DetrkitError, match="so it is not replaced"):
        make(tmp_path / "new", force=True)
    assert sorted(p for p in (tmp_path / "new").rglob("*")) == before
    assert os.listdir(tmp_path) == ["new"]


def test_an_empty_folder_may_be_used_and_a_file_may_not(tmp_path):
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DetrkitError, match="is a file"):
        make(tmp_path / "file", force=True)
    assert (tmp_path / "file").read_text() == "mine"
