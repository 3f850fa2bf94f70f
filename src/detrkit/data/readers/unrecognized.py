"""`describe`: what a folder of no known layout holds, and what would make a dataset of it."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from detrkit.data.images import SUFFIXES
from detrkit.utils.messages import counted, shortened

_MOST_FILES = 20_000  # looked at: on a network disk a second or two
_HEAD_BYTES = 4096  # of the annotation file that is opened
_XML, _TXT, _CSV = ".xml", ".txt", ".csv"


class _Contents(NamedTuple):
    """Files below a folder: number of images, and the XML, text and CSV files, in the order of the walk."""

    images: int
    xml: list[Path]
    txt: list[Path]
    csv: list[Path]


def describe(path: Path) -> str:
    """Describe the images and annotations in a folder that no reader recognizes, and say how one would.

    Args:
        path: a folder or file.

    Returns:
        Words that continue "no layout recognized", or "" where there are no images to speak of.
    """
    if not path.is_dir():
        return ""
    contents = _contents(path)
    if not contents.images:
        return ""
    images = counted(contents.images, "image")
    if contents.xml and b"<annotation" in _head(contents.xml[0]):
        return (
            f": it holds {images} and {counted(len(contents.xml), 'XML file')} of Pascal VOC: put the images "
            "into JPEGImages/ and the XML files into Annotations/"
        )
    labels = [file for file in contents.txt if _is_yolo(file)]
    if labels:
        if (path / "images").is_dir() and (path / "labels").is_dir():
            missing = "write a data.yaml with the names of the classes, `names: [first, second]`, or a classes.txt"
        else:
            missing = (
                "put the images into images/, the text files into labels/, and the names of the classes, one a line, "
                "into classes.txt"
            )
        return f": it holds {images} and {counted(len(labels), 'text file')} of YOLO: {missing}"
    if contents.csv:
        columns = shortened(_head(contents.csv[0]).partition(b"\n")[0].decode(errors="replace").strip())
        return (
            f": it holds {images} and {contents.csv[0].name}, whose columns ({columns}) are not known as an image and "
            "its boxes: name them filename, class, xmin, ymin, xmax, ymax"
        )
    return (
        f": it holds {images}, but no annotations: training needs the boxes and classes of the objects, drawn with a "
        "program such as CVAT, Label Studio or LabelImg (`detrkit predict` needs none)"
    )


def _contents(folder: Path) -> _Contents:
    """List the files below a folder, hidden ones left out, without following links."""
    images, found = 0, dict[str, list[Path]]({_XML: [], _TXT: [], _CSV: []})
    walk = (Path(place, name) for place, _, names in os.walk(folder) for name in sorted(names) if name[0] != ".")
    for file in islice(walk, _MOST_FILES):
        suffix = file.suffix.lower()
        images += suffix in SUFFIXES
        if suffix in found:
            found[suffix].append(file)
    return _Contents(images, *found.values())


def _head(file: Path) -> bytes:
    """Return the first bytes of a file; b"" if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return stream.read(_HEAD_BYTES)
    except OSError:
        return b""


def _is_yolo(file: Path) -> bool:
    """Return whether the first line of a text file is a class and at least four numbers."""
    words = _head(file).partition(b"\n")[0].split()
    try:
        return len(words) >= 5 and words[0].isdigit() and all(float(word) is not None for word in words)
    except ValueError:
        return False
