"""`convert` writes nowhere but in its folder, copies nothing but images, and leaves all of it or nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detrkit.data import open_dataset
from detrkit.data.sources import ParquetImage
from detrkit.data.tools import placing as _placing
from detrkit.data.tools.convert import convert
from detrkit.data.tools.placing import ImagePlacer
from detrkit.data.tools.targets import TARGETS
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import checked_name
from helpers.datasets import coco, picture, write_coco
from helpers.disk import full_disk

LAYOUTS = ("coco", "voc", "yolo", "parquet", "csv")


def write_source(root: Path, *, names: tuple[str, ...] = ("1.png", "2.png")) -> Path:
    images = [{"id": k + 1, "file_name": name, "height": 8, "width": 12} for k, name in enumerate(names)]
    boxes = [{"id": k + 1, "image_id": k + 1, "category_id": 1, "bbox": [k, 1, 5, 6]} for k in range(len(names))]
    return write_coco(root, "train", coco(images, boxes, {1: "a"})).parent.parent


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file below a folder, with its content."""
    return {
        str(f.relative_to(root)): os.readlink(f) if f.is_symlink() else f.read_bytes()
        for f in sorted(root.rglob("*"))
        if f.is_symlink() or f.is_file()
    }


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("split", ["../victim", "ABSOLUTE", "..", "a\\b", "images/../../../victim"])
def test_splits_are_no_paths(tmp_path: Path, split: str, to: str) -> None:
    """Of a data.yaml."""
    source = tmp_path / "source"
    (source / "images/train").mkdir(parents=True)
    picture(8, 12).save(source / "images/train/1.png")
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/1.txt").write_text("mine")
    name = str(tmp_path / "victim") if split == "ABSOLUTE" else split
    (source / "data.yaml").write_text(json.dumps({name: "images/train", "names": ["a"]}))
    before = tree(tmp_path)
    with pytest.raises(DetrkitError, match="name of a split") as error:
        convert(source, tmp_path / "new/out", to=to)  # type: ignore[arg-type]
    assert "\n" not in str(error.value) and tree(tmp_path) == before


@pytest.mark.parametrize("to", LAYOUTS)
def test_file_of_annotations_that_is_called_like_a_folder_above(tmp_path: Path, to: str) -> None:
    source = write_source(tmp_path / "source")
    (source / "annotations/instances_train.json").rename(source / "annotations/instances_...json")
    before = tree(tmp_path)
    with pytest.raises(DetrkitError, match="means a folder"):
        convert(source, tmp_path / "out", to=to)  # type: ignore[arg-type]
    assert tree(tmp_path) == before


@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("name", ["../../secret/key.conf", "key.conf"])
def test_only_images_are_copied(tmp_path: Path, name: str, to: str) -> None:
    source = write_source(tmp_path / "source")
    (tmp_path / "secret").mkdir()
    for key in (tmp_path / "secret/key.conf", source / "train/key.conf"):
        key.write_text("password = swordfish\n")
    file = source / "annotations/instances_train.json"
    value = json.loads(file.read_text())
    value["images"][1]["file_name"] = name
    file.write_text(json.dumps(value))
    before = tree(tmp_path)
    for images in ("copy", "symlink"):
        with pytest.raises(DetrkitError, match=r"key\.conf|parquet holds"):
            convert(source, tmp_path / "out", to=to, images=images)  # type: ignore[arg-type]
    assert tree(tmp_path) == before


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    (source / "train/2.png").unlink()
    os.mkfifo(source / "train/2.png")
    with pytest.raises(DetrkitError, match=r"2\.png: not a regular file"):
        convert(source, tmp_path / "out", to="coco")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 8\n%%EndComments\nrun\n", r"a drawing \(EPS\)"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "damaged or truncated"),  # Pillow opens it, and cannot decode it
    ],
)
def test_what_pillow_opens_without_pixels_is_not_copied(tmp_path: Path, content: bytes, reason: str) -> None:
    source = write_source(tmp_path / "source")
    (source / "train/2.png").write_bytes(content)
    with pytest.raises(DetrkitError, match=rf"2\.png: .*{reason}"):
        convert(source, tmp_path / "out", to="coco")


def test_a_damaged_image_is_not_copied(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    content = (source / "train/2.png").read_bytes()
    (source / "train/2.png").write_bytes(content[:-20])
    with pytest.raises(DetrkitError, match=r"2\.png: .*truncated"):
        convert(source, tmp_path / "out", to="coco")


@pytest.mark.slow
@given(st.lists(st.text(max_size=300), min_size=1, max_size=8), st.booleans(), st.sampled_from(["PNG", "JPEG", "TGA"]))
def test_every_name_is_free_and_a_name(names: list[str], listed: bool, form: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_placing, "checked_format", lambda file: form)
        placer = ImagePlacer("copy", listed=listed)
        given_names = []
        for row, name in enumerate(names):
            try:
                given_names.append(placer.name(ParquetImage(Path("a.parquet"), row, name), Path("out"))[0])
            except DetrkitError as error:
                assert len(str(error).splitlines()) == 1
    for name in given_names:
        assert checked_name(name, "") == name and len(f"{Path(name).stem}.txt".encode()) <= 255
        if listed:
            assert [Path(name).stem] == [line.strip() for line in Path(name).stem.splitlines()]
    keys = [(Path(name).stem if listed else name).casefold() for name in given_names]
    assert len(set(keys)) == len(keys)


def test_a_thousand_images_of_one_name() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_placing, "checked_format", lambda file: "PNG")
        placer = ImagePlacer("copy", listed=True)
        names = [placer.name(ParquetImage(Path("a.parquet"), k, "image.png"), Path("out"))[0] for k in range(1000)]
    assert names[0] == "image.png" and names[-1] == "image_1000.png" and len(set(names)) == 1000


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("Annotations/2.xml", "annotation file is missing"),
        ("object", "image 2.png is read back with 0 objects instead of 1"),
        ("<xmin>1</xmin>", "a box of image 2.png is read back as [2.0, 1.0, 6.0, 7.0] instead of [1.0, 1.0, 6.0, 7.0]"),
        ("ImageSets/Main/train.txt", "its reader does not find split train again"),
    ],
)
def test_what_its_reader_finds_otherwise_is_not_left(
    tmp_path: Path, damage: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a fault of ours in writing would make it."""

    def write(root: Path, *arguments: Any) -> Any:
        written = TARGETS_VOC.write(root, *arguments)
        xml = root / "Annotations/2.xml"
        if (root / damage).is_file():
            (root / damage).unlink()
        elif damage == "object":
            xml.write_text(re.sub("<object>.*</object>", "", xml.read_text(), flags=re.DOTALL))
        else:
            xml.write_text(xml.read_text().replace(damage, "<xmin>2</xmin>"))
        return written

    TARGETS_VOC = TARGETS["voc"]
    monkeypatch.setitem(TARGETS, "voc", replace(TARGETS_VOC, write=write))
    source = write_source(tmp_path / "source")
    with pytest.raises(DetrkitError, match="voc cannot hold split train, nothing is written: ") as error:
        convert(source, tmp_path / "out", to="voc")
    assert reason in str(error.value) and ".tmp" not in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("to", LAYOUTS)
def test_full_disk(tmp_path: Path, to: str) -> None:
    source = write_source(tmp_path / "source")
    with full_disk(), pytest.raises(DetrkitError, match=rf"cannot write {tmp_path}/out: File too large"):
        convert(source, tmp_path / "out", to=to)  # type: ignore[arg-type]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_killed(tmp_path: Path) -> None:
    """Nothing has the final name, and the next conversion removes what is left."""
    source = write_source(tmp_path / "source")
    pid = os.fork()
    if pid == 0:
        TARGETS["voc"] = replace(TARGETS["voc"], finish=lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        convert(source, tmp_path / "out", to="voc")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    (left,) = (p for p in tmp_path.iterdir() if p != source)
    assert left.name.startswith(".out.") and (left / "JPEGImages/2.png").is_file()
    convert(source, tmp_path / "out", to="voc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("force", [False, True])
def test_two_at_once(tmp_path: Path, force: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two into one folder the first that is ready has it; with force the last, whole either way."""
    source = write_source(tmp_path / "source")
    yolo = TARGETS["yolo"]

    def write(*arguments: Any) -> Any:
        convert(source, tmp_path / "out", to="voc")
        return yolo.write(*arguments)

    monkeypatch.setitem(TARGETS, "yolo", replace(yolo, write=write))
    if force:
        convert(source, tmp_path / "out", to="yolo", force=True)
    else:
        with pytest.raises(DetrkitError, match="out exists already"):
            convert(source, tmp_path / "out", to="yolo")
    assert open_dataset(tmp_path / "out").layout == ("yolo" if force else "voc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "source"]


def test_force(tmp_path: Path) -> None:
    """Replaces what detrkit wrote, and nothing in which somebody put something."""
    source = write_source(tmp_path / "source")
    for to in LAYOUTS:
        convert(source, tmp_path / "out", to=to, force=True)  # type: ignore[arg-type]
        assert open_dataset(tmp_path / "out").layout == to
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(DetrkitError, match=r"holds notes\.txt, which detrkit did not write"):
        convert(source, tmp_path / "out", to="voc", force=True)
    assert (tmp_path / "out/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("splits", "to", "reason"),
    [
        (("annotations",), "coco", "cannot be called annotations"),
        (("names",), "yolo", "cannot be called names"),
        (("images",), "yolo", "cannot be called images"),
        (("train", "train2017"), "yolo", "are the same to YOLO"),
        (("A", "a"), "voc", "differ in case only"),
    ],
)
def test_splits_that_a_layout_cannot_hold(tmp_path: Path, splits: tuple[str, ...], to: str, reason: str) -> None:
    image = {"id": 1, "file_name": "1.png", "height": 8, "width": 12}
    for split in splits:
        write_coco(tmp_path / "source", split, coco([image], [], {1: "a"}))
    with pytest.raises(DetrkitError, match=reason):
        convert(tmp_path / "source", tmp_path / "out", to=to)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
