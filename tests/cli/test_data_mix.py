"""`detrkit data mix`: the tables before a training, and the command that trains on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.cli import main
from helpers.datasets import coco, write_coco


@pytest.fixture
def streets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten images: nine with a car, one with a bus as well, one without anything; and one image of lamps beside it."""
    images = [{"id": k, "file_name": f"{k}.jpg", "height": 16, "width": 16} for k in range(1, 11)]

    def box(number: int, image: int, category: int) -> dict:
        place = {"id": number, "image_id": image, "category_id": category, "bbox": [1, 1, 8, 8]}
        return {**place, "area": 64, "iscrowd": 0}

    objects = [box(k, k, 1) for k in range(1, 10)] + [box(20, 9, 2)]
    write_coco(tmp_path / "streets", "train", coco(images, objects, {1: "car", 2: "bus"}))
    write_coco(tmp_path / "lamps", "train", coco(images[:1], [box(1, 1, 1)], {1: "lamp"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")
    return Path("streets")


def rows(text: str, name: str) -> list[str]:
    """Cells of the row that begins with a name."""
    (line,) = [line for line in text.splitlines() if line.strip("│| ").startswith(f"{name} ")]
    return [cell.strip() for cell in line.replace("│", "|").strip("|").split("|")]


def test_one_dataset(streets, capsys):
    assert main(["data", "mix", "streets", "--repeat-rare", "0.4", "--empty-share", "0.5"]) == 0
    text = capsys.readouterr().out
    # f(bus) = 0.1, so sqrt(0.4 / 0.1) = 2: an epoch has 8 + 2 images with objects, and as many without
    assert rows(text, "bus") == ["bus", "1", "10.00 %", "2.00", "1", "2"]
    assert rows(text, "car") == ["car", "9", "90.00 %", "1.00", "9", "10"]
    assert rows(text, "streets") == ["streets", "train", "10", "1", "10", "", "20", "100.0 %", "2.00"]
    assert text.index("bus") < text.index("car")
    assert "empty_share 0.5: 10 of an epoch's 20 images are without objects (of the files 1 of 10)" in text
    assert text.endswith("next: detrkit train streets --repeat-rare 0.4 --empty-share 0.5\n")


def test_two_datasets_and_a_limit(streets, capsys):
    assert main(["data", "mix", "streets", "lamps", "--weights", "1", "1", "--limit", "2"]) == 0
    text = capsys.readouterr().out
    assert rows(text, "lamps") == ["lamps", "train", "1", "0", "1", "1", "6", "50.0 %", "5.50"]
    assert rows(text, "bus")[-2:] == ["1", "-"] and rows(text, "car")[-2:] == ["9", "-"]
    assert "... and 1 more frequent classes (--limit 0 shows all)" in text
    assert "warning: lamps does not have car, bus (2 of 3 classes): such objects in its 1 image count" in text
    assert text.endswith("next: detrkit train streets lamps --weights 1 1\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("streets lamps --weights 1", "--weights 1.0: there are 2 datasets: give one weight for each"),
        ("streets streets", "streets: this dataset is given twice: to see it more often"),
        ("streets --repeat-rare 2", "--repeat-rare 2: must be at most 1"),
        ("streets lampe", "lampe: no such file or folder"),
        ("lamps --empty-share 0.2", "empty_share is 0.2, but every image has an object: leave it out"),
        ("streets --split val", "streets has no split 'val'; it has train"),
    ],
)
def test_what_cannot_be_is_one_line(streets, capsys, words, message):
    assert main(["data", "mix", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("detrkit: error: ") and message in said and said.count("\n") == 1
