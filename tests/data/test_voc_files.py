"""VOC as other tools write it: encodings, many objects, lists that lie."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from detrkit.data import open_dataset
from detrkit.data.tools.check import check
from detrkit.utils.errors import DetrkitError
from helpers.datasets import picture

BOX = "<bndbox><xmin>5</xmin><ymin>6</ymin><xmax>20</xmax><ymax>16</ymax></bndbox>"


def write(root: Path, content: str | bytes, stem: str = "a") -> Path:
    """A dataset of one image of 30x40 pixels."""
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    (root / "Annotations" / f"{stem}.xml").write_bytes(data)
    picture(30, 40).save(root / "JPEGImages" / f"{stem}.png")
    return root


def annotation(*names: str, declaration: str = "") -> str:
    objects = "".join(f"<object><name>{name}</name>{BOX}</object>" for name in names)
    size = "<size><width>40</width><height>30</height></size>"
    return f"{declaration}<annotation>{size}{objects}</annotation>"


def errors(root: Path) -> list[tuple[str, str, str]]:
    return [(fault.file.name, fault.id, fault.reason) for fault in check(root).of("error")]


@pytest.mark.parametrize("encoding", ["gbk", "gb2312", "ISO-8859-1", "utf-16", "utf-8", "Shift_JIS", "koi8-r"])
def test_every_encoding_that_is_declared(tmp_path: Path, encoding: str) -> None:
    name = {"ISO-8859-1": "Größe", "Shift_JIS": "ネコ", "koi8-r": "кот"}.get(encoding, "二")
    text = annotation(name, "R&amp;D", declaration=f'<?xml version="1.0" encoding="{encoding}"?>')
    dataset = open_dataset(write(tmp_path, text.replace("><", ">\r\n<").encode(encoding)))
    assert sorted(dataset.class_names) == sorted([name, "R&D"])
    assert dataset.records[0].boxes.tolist() == [[5, 6, 20, 16]] * 2


def test_encodings_that_are_not_what_they_say(tmp_path: Path) -> None:
    resaved = annotation("cat", declaration='<?xml version="1.0" encoding="utf-16"?>')
    assert open_dataset(write(tmp_path, resaved)).class_names == ["cat"]
    assert open_dataset(write(tmp_path, b"\xef\xbb\xbf" + annotation("cat").encode())).class_names == ["cat"]
    assert open_dataset(write(tmp_path, annotation("cat").encode("utf-16-le"))).class_names == ["cat"]
    for encoding, reason in (
        ("utf-8", "not utf-8 text (byte 115); save it as UTF-8"),
        ("hex", "encoding 'hex' is not one of text; save it as UTF-8"),
        ("punycode", "encoding 'punycode' is not known; save it as UTF-8"),
        ("klingon", "encoding 'klingon' is not known; save it as UTF-8"),
    ):
        text = annotation("Größe", declaration=f'<?xml version="1.0" encoding="{encoding}"?>')
        write(tmp_path, text.encode("latin-1"))
        assert errors(tmp_path)[0] == ("a.xml", "", reason)


def test_entities_never_multiply(tmp_path: Path) -> None:
    entities = '<!ENTITY e0 "ha">' + "".join(f'<!ENTITY e{k + 1} "{f"&e{k};" * 10}">' for k in range(9))
    bomb = f"<!DOCTYPE annotation [{entities}]>" + annotation("&e9;")
    for content in (bomb.encode(), f'<?xml version="1.0" encoding="utf-16"?>{bomb}'.encode("utf-16")):
        write(tmp_path, content)
        with pytest.raises(DetrkitError, match=r"a\.xml: declares entities"):
            open_dataset(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "<annotation>" + "<object><name>" * 20_000,  # minutes for a pattern
        annotation("cat" + " " * 400_000),
        annotation(*["cat"] * 10_000),
        "<a>" * 300_000 + "</a>" * 300_000,
    ],
)
def test_reading_takes_linear_time(tmp_path: Path, content: str) -> None:
    write(tmp_path, content)
    start = time.process_time()
    check(tmp_path)
    assert time.process_time() - start < 10


def test_names_of_classes(tmp_path: Path) -> None:
    write(tmp_path, annotation("", "cat"))
    assert errors(tmp_path) == [("a.xml", "object 1", "has no name of a class")]
    write(tmp_path, annotation("", " "))
    assert errors(tmp_path) == [
        (tmp_path.name, "", "no object in Annotations/ and no classes.txt: there is no class to learn")
    ]
    write(tmp_path, annotation("n" * 300))
    with pytest.raises(DetrkitError, match=r"Annotations: name of an object: 'nnn.*' is longer than 255 bytes"):
        open_dataset(tmp_path)
    write(tmp_path, annotation("cat"))
    (tmp_path / "classes.txt").write_text("\n \n")
    with pytest.raises(DetrkitError, match=r"classes\.txt: lists no class"):
        open_dataset(tmp_path)
    (tmp_path / "classes.txt").write_bytes("cat\r\nd\0g\r\ncat\r\n".encode("utf-16"))
    assert errors(tmp_path)[:2] == [
        ("classes.txt", "line 2", "'d\\x00g' holds a control character"),
        ("classes.txt", "line 3", "'cat' is also the name of line 1: give each class its own"),
    ]


def test_objects_with_two_boxes(tmp_path: Path) -> None:
    write(tmp_path, annotation("cat").replace(BOX, BOX + BOX.replace(">5<", ">7<")))
    assert open_dataset(tmp_path).records[0].boxes.tolist() == [[5, 6, 20, 16]]
    (fault,) = check(tmp_path).of("warning")
    assert (fault.id, fault.reason) == ("object 1", "has 2 bndbox: only the first is read")


def test_lists_name_images_and_are_no_paths(tmp_path: Path) -> None:
    write(tmp_path / "set", annotation("cat"))
    write(tmp_path / "outside", annotation("secret"), "b")
    lists = tmp_path / "set/ImageSets/Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text(f"a.png\n../../outside/Annotations/b\n/etc/passwd\n{'n' * 300}\nmissing\nbad\n")
    (lists / "._train.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "set/Annotations/._a.xml").write_bytes(b"\0\5\26\7")
    write(tmp_path / "set", "<annotation>\n<object>", "bad")
    found = errors(tmp_path / "set")
    assert [(name, where) for name, where, _ in found] == [
        ("train.txt", "line 2"),
        ("train.txt", "line 3"),
        ("train.txt", "line 4"),
        ("missing.xml", ""),
        ("bad.xml", "line 2"),
        ("missing.xml", "image missing"),
    ]
    assert "leads out of the dataset's folder" in found[0][2] and "absolute path" in found[1][2]
    (lists / "train.txt").rename(lists / "a\nb.txt")
    with pytest.raises(DetrkitError, match=r"Main: name of a list: 'a\\nb' holds a control character"):
        open_dataset(tmp_path / "set")


def test_images_of_the_same_name(tmp_path: Path) -> None:
    write(tmp_path, annotation("cat"))
    picture(30, 40).save(tmp_path / "JPEGImages/a.jpg")
    (fault,) = check(tmp_path).of("warning")
    assert (fault.id, fault.reason) == ("a.png", "a.jpg has the same name: only a.png is used")


def test_sizes_that_cannot_be_meant_come_from_the_image(tmp_path: Path) -> None:
    write(tmp_path, annotation("cat").replace("<width>40<", "<width>1e300<"))
    record = open_dataset(tmp_path).records[0]
    assert (record.height, record.width) == (30, 40)
