"""Folders that no reader recognizes: the message says what they hold, and what would make a dataset of it."""

from __future__ import annotations

import pytest
from PIL import Image

from detrkit.data.readers import find_layout
from detrkit.utils.errors import DetrkitError

VOC = "<annotation><filename>0.png</filename></annotation>"
YOLO = "0 0.5 0.5 0.25 0.25\n"


def folder(path, files):
    for name, text in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".png"):
            Image.new("RGB", (8, 8)).save(file)
        else:
            file.write_text(text)
    return path


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"0.png": "", ".hidden.png": "", "notes.txt": "12 cells here, 1 there\n"},
            r": it holds 1 image, but no annotations: .* \(`detrkit predict` needs none\); expected COCO",
        ),
        (
            {"0.png": "", "1.png": "", "0.xml": VOC},
            r": it holds 2 images and 1 XML file of Pascal VOC: put the images into JPEGImages/ and the XML files into "
            r"Annotations/; expected COCO",
        ),
        ({"images/0.png": "", "xml/0.xml": VOC, "xml/1.xml": VOC}, ": it holds 1 image and 2 XML files of Pascal VOC"),
        ({"0.png": "", "0.xml": "<svg/>"}, "it holds 1 image, but no annotations"),
        (
            {"images/train/0.png": "", "labels/train/0.txt": YOLO, "labels/train/1.txt": ""},
            ": it holds 1 image and 1 text file of YOLO: write a data.yaml with the names of the classes",
        ),
        (
            {"pictures/0.png": "", "boxes/0.txt": YOLO, "boxes/notes.txt": "four cells\n"},
            r": it holds 1 image and 1 text file of YOLO: put the images into images/, .*classes.txt; expected",
        ),
        (
            {"0.png": "", "boxes.csv": "Bild;Klasse;links;oben\n0.png;Zelle;1;2\n"},
            r": it holds 1 image and boxes.csv, whose columns \(Bild;Klasse;links;oben\) are not known as an image and "
            "its boxes: name them filename, class, xmin, ymin, xmax, ymax; expected",
        ),
        ({"notes.txt": YOLO}, "no layout recognized; expected COCO"),
    ],
)
def test_the_message_says_what_is_there_and_what_to_do(tmp_path, files, words):
    with pytest.raises(DetrkitError, match="no layout recognized.*" + words.removeprefix("no layout recognized")):
        find_layout(folder(tmp_path, files))


def test_what_the_message_says_makes_a_dataset(tmp_path):
    voc = folder(tmp_path / "voc", {"JPEGImages/0.png": "", "Annotations/0.xml": VOC})
    yolo = folder(tmp_path / "yolo", {"images/train/0.png": "", "labels/train/0.txt": YOLO, "classes.txt": "cell\n"})
    named = folder(tmp_path / "named", {"images/0.png": "", "labels/0.txt": YOLO, "data.yaml": "names: [cell]\n"})
    assert [find_layout(path) for path in (voc, yolo, named)] == ["voc", "yolo", "yolo"]
