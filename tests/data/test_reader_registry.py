"""Dataset formats of other packages: registered by a class, found by their files, named by `--layout`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import detrkit
from detrkit.cli import main
from detrkit.data import open_dataset
from detrkit.data.images import image_size
from detrkit.data.readers import READERS, Findings, Reader, Reading, find_layout
from detrkit.data.readers.common import Objects, make_record
from detrkit.data.tools.check import check
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.utils.layouts import BuiltinLayout
from helpers.corpus import PICTURES, write


class NotesReader(Reader):
    """A format for this test: notes.boxes with a line `image xmin ymin xmax ymax` for each box."""

    name = "notes"
    expects = "notes (notes.boxes)"

    def recognize(self, path: Path) -> bool:
        return (path / "notes.boxes").is_file()

    def splits(self, path: Path) -> list[str]:
        return ["all"]

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        findings = findings if findings is not None else Findings()
        source = path / "notes.boxes"
        records = []
        for number, line in enumerate(source.read_text().splitlines(), 1):
            name, *box = line.split()
            objects = Objects(
                boxes=[[float(v) for v in box]], labels=[0], annotation_ids=[number], names=[f"line {number}"]
            )
            size = image_size(path / name)
            records.append(make_record(number, path / name, size, objects, source, findings))
        return Reading(ClassList(("thing",), (1,)), records, findings)

    def find_unused(self, path: Path, images: list[Path], findings: Findings) -> None:  # type: ignore[override]
        findings.add("info", path, "", f"{len(images)} noted")


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """A dataset of a format that is registered during the test."""
    write(tmp_path, {**PICTURES, "notes.boxes": b"a.png 1 2 5 6\nb.png 0 0 8 20\n"})
    assert detrkit.register_reader(NotesReader) is NotesReader
    yield tmp_path
    del READERS._entries["notes"]


def test_builtin_names_are_those_of_the_settings() -> None:
    assert tuple(READERS._entries) == get_args(BuiltinLayout)
    assert all(reader.name == name for name, reader in READERS._entries.items())


def test_registered_format_is_recognized_read_and_checked(notes: Path) -> None:
    dataset = open_dataset(notes)
    assert (dataset.layout, dataset.split, dataset.clamped) == ("notes", "all", 1)
    assert dataset[1].boxes.tolist() == [[0, 0, 8, 16]]
    report = check(notes)
    assert report.layout == "notes"
    assert [fault.reason for fault in report.faults] == [
        "box [0, 0, 8, 20] (xyxy) leaves image b.png of 8x16 pixels: clamped",
        "2 noted",
    ]


def test_registered_format_is_a_layout_of_the_command_line(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(notes), "--layout", "notes"]) == 0
    assert f"{notes} (notes): 0 errors, 1 warnings, 1 infos" in capsys.readouterr().out
    assert main(["data", "check", str(notes), "--layout", "note"]) == 2
    expected = f"unknown layout 'note': choose one of {', '.join(READERS)}; did you mean notes?"
    assert expected in capsys.readouterr().err


def test_unknown_layout_of_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layouts are names that any package may add, so the registry refuses them, not the parser of the options."""
    write(tmp_path, PICTURES)
    out = tmp_path / "run"
    assert main(["train", str(tmp_path), "--layout", "kitti", "--out", str(out)]) == 2
    assert "unknown layout 'kitti': choose one of coco, coco-panoptic, voc" in capsys.readouterr().err
    assert not out.exists()


def test_message_names_what_every_format_expects(notes: Path) -> None:
    (notes / "notes.boxes").unlink()
    with pytest.raises(
        DetrkitError, match=r"no layout recognized.*; expected COCO \(.*, parquet \(.*\) or notes \(.*\)"
    ):
        find_layout(notes)


def test_name_that_is_taken(notes: Path) -> None:
    with pytest.raises(ValueError, match="there is a layout 'notes' already"):
        detrkit.register_reader(NotesReader)
    detrkit.register_reader(NotesReader, replace=True)
    assert isinstance(READERS["notes"], NotesReader)


def test_object_causes(notes: Path) -> None:
    assert READERS["notes"].no_objects_cause == "the files hold none"
    assert READERS["coco-panoptic"].no_objects_cause == READERS["coco"].no_objects_cause
