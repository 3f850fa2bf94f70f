"""Every layout to every other: objects in, objects out, over a dataset of everything that is odd."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from detrkit.data import Dataset, open_dataset
from detrkit.data.images import decode
from detrkit.data.readers import READERS
from detrkit.data.tools.convert import convert
from detrkit.data.tools.targets import upright_boxes
from detrkit.utils.errors import DetrkitError
from helpers.datasets import picture
from helpers.odd_dataset import NAMES, oriented, write_odd

LAYOUTS = ("coco", "voc", "yolo", "parquet", "csv")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The odd dataset in each layout."""
    root = tmp_path_factory.mktemp("round")
    odd = write_odd(root / "odd")
    for to in LAYOUTS:
        convert(odd, root / to, to=to)  # type: ignore[arg-type]
    return {"odd": odd, **{to: root / to for to in LAYOUTS}}


def contents(dataset: Dataset, *, crowd: bool) -> Counter[tuple[Any, ...]]:
    """For every image its objects: class, crowd, area, and the mean colour below the box, however the image lies."""
    found: Counter[tuple[Any, ...]] = Counter()
    for record in dataset.records:
        pixels = decode(record.file, (record.height, record.width)).double().numpy()  # (3, H, W)
        objects = []
        for box, label, is_crowd in zip(record.boxes, record.labels, record.crowd, strict=True):
            x0, y0, x1, y1 = (int(v) for v in np.rint(box))
            colour = pixels[:, y0:y1, x0:x1].mean((1, 2)).round(3).tolist()
            if crowd or not is_crowd:
                area = round(float((box[2] - box[0]) * (box[3] - box[1])), 4)
                objects.append((dataset.class_names[label], bool(is_crowd), area, *colour))
        found[(*pixels.mean((1, 2)).round(3).tolist(), *sorted(objects))] += 1
    return found


@pytest.mark.slow
@pytest.mark.parametrize("to", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_pairs(
    sources: dict[str, Path], layout: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    (done,) = convert(sources[layout], tmp_path / "out", to=to)  # type: ignore[arg-type]
    odd, back = open_dataset(sources["odd"]), open_dataset(tmp_path / "out")
    crowd = "yolo" not in (layout, to)
    assert back.layout == to and back.class_names == list(NAMES.values())
    assert contents(back, crowd=crowd) == contents(odd, crowd=crowd)
    assert (done.images, done.objects) == (
        len(odd),
        sum(len(r.labels) - sum(r.crowd) * (not crowd) for r in odd.records),
    )
    assert done.lost_crowd == (2 if to == "yolo" and layout != "yolo" else 0)


def test_what_is_said(sources: dict[str, Path], tmp_path: Path) -> None:
    (yolo,) = convert(sources["odd"], tmp_path / "yolo", to="yolo")
    assert (yolo.images, yolo.dropped, yolo.lost_crowd, yolo.clamped) == (32, 1, 2, 1)
    assert (yolo.turned, yolo.reencoded) == (8, 1)  # stored 5 to 8 twice; scan.tga
    (coco,) = convert(sources["odd"], tmp_path / "coco", to="coco")
    assert (coco.images, coco.dropped, coco.lost_crowd) == (32, 1, 0)
    assert (coco.clamped, coco.turned, coco.reencoded) == (0, 0, 0)


def test_ids_and_annotated_boxes_are_kept(sources: dict[str, Path]) -> None:
    """By COCO and parquet, of boxes that leave their image too."""
    odd, coco, parquet = (open_dataset(sources[name]).ground_truth() for name in ("odd", "coco", "parquet"))
    key = ("id", "image_id", "bbox", "area", "iscrowd")
    for other in (coco, parquet):
        assert [[a[k] for k in key] for a in other["annotations"]] == [[a[k] for k in key] for a in odd["annotations"]]
        assert [i["id"] for i in other["images"]] == [i["id"] for i in odd["images"]]


def test_names(sources: dict[str, Path]) -> None:
    names = {f.name for f in (sources["voc"] / "JPEGImages").iterdir()}
    assert {"A.png", "a_2.png", "t.jpg", "t_2.png", "t_2_2.jpg", "k_jpg.png", "_hidden.png"} <= names
    assert {"Straße 日本.png", "camera.jpg", "none.png", "IMG.2020.png", "scan.png", "notes.txt.bmp"} <= names
    assert {"twice.png", "twice_2.png", "-1 1.jpg"} <= names and len(names) == 32
    coco = {f.name for f in (sources["coco"] / "train").iterdir()}
    assert {"t.jpg", "t.png", "t_2.jpg", "camera.jfif", "scan.tga", ".hidden.png", "k.jpg.png"} <= coco
    assert {"twice.png", "twice_2.png", "notes.txt.bmp"} <= coco


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_pixels(orientation: int) -> None:
    """Against Pillow, which turns the pixels: what is white before is white after."""
    pixels = np.zeros((16, 24), np.uint8)
    pixels[3:7, 5:18] = 255
    image = Image.fromarray(pixels)
    image.info["exif"] = oriented(image, orientation).tobytes()
    upright = np.asarray(ImageOps.exif_transpose(image))
    rows, columns = np.flatnonzero(upright.any(1)), np.flatnonzero(upright.any(0))
    expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    box = np.array([[5.0, 3.0, 18.0, 7.0]])
    assert upright_boxes(box, (16, 24), orientation).tolist() == [expected]


def test_one_image_in_two_splits_of_voc(tmp_path: Path) -> None:
    """Written once if its objects are the same, as train and trainval have it, else twice."""
    voc = convert_shared(tmp_path, [["a", "b"], ["a"]])
    assert sorted(f.name for f in (voc / "JPEGImages").iterdir()) == ["a.png", "b.png"]
    other = tmp_path / "source/annotations/instances_val.json"
    value = json.loads(other.read_text())
    value["annotations"][0]["bbox"] = [1, 1, 2, 2]
    other.write_text(json.dumps(value))
    convert(tmp_path / "source", tmp_path / "twice", to="voc")
    assert sorted(f.name for f in (tmp_path / "twice/JPEGImages").iterdir()) == ["a.png", "a_2.png", "b.png"]
    assert open_dataset(tmp_path / "twice", split="val").records[0].boxes.tolist() == [[1, 1, 3, 3]]


def convert_shared(root: Path, splits: list[list[str]]) -> Path:
    """Two splits with images of one folder, as VOC."""
    (root / "source/images").mkdir(parents=True)
    (root / "source/annotations").mkdir()
    for split, names in zip(("train", "val"), splits, strict=True):
        images = [{"id": k, "file_name": f"{n}.png", "width": 9, "height": 8} for k, n in enumerate(names)]
        boxes = [{"id": k + 1, "image_id": k, "bbox": [0, 0, 4, 5], "category_id": 1} for k in range(len(names))]
        value = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "x"}]}
        (root / f"source/annotations/instances_{split}.json").write_text(json.dumps(value))
        for name in names:
            picture(8, 9).save(root / f"source/images/{name}.png")
    convert(root / "source", root / "voc", to="voc")
    return root / "voc"


def test_parquet_in_several_files(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("detrkit.data.tools.parquet_target.FILE_BYTES", 5000)
    monkeypatch.setattr("detrkit.data.tools.parquet_target._GROUP_BYTES", 2000)
    convert(sources["odd"], tmp_path / "out", to="parquet")
    files = sorted(f.name for f in (tmp_path / "out/data").iterdir())
    assert len(files) > 2 and files[-1] == f"train-{len(files) - 1:05}-of-{len(files):05}.parquet"
    assert contents(open_dataset(tmp_path / "out"), crowd=True) == contents(open_dataset(sources["odd"]), crowd=True)


def test_a_split_without_images(tmp_path: Path) -> None:
    """YOLO's reader opens none; it is left out, and said to have no image."""
    source = write_odd(tmp_path / "source")
    value = json.loads((source / "annotations/instances_train.json").read_text())
    empty = {**value, "images": [], "annotations": []}
    (source / "annotations/instances_val.json").write_text(json.dumps(empty))
    for to in LAYOUTS:
        done = convert(source, tmp_path / to, to=to)  # type: ignore[arg-type]
        assert [(s.name, s.images) for s in done] == [("train", 32), ("val", 0)]
        assert READERS[to].splits(tmp_path / to) == (["train"] if to == "yolo" else ["train", "val"])
    (source / "annotations/instances_train.json").write_text(json.dumps(empty))
    with pytest.raises(DetrkitError, match="there is no image in it"):
        convert(source, tmp_path / "none", to="coco")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "has no name"),
        ("a\nb", "holds a control character"),
        ("traffic light", "is also the name of"),
        (" a", "begins or ends with a blank, which only COCO and parquet can hold"),
        ("a\u2028b", "holds a line break or a character that XML does not allow"),
        ("a\uffff", "holds a line break or a character that XML does not allow"),
    ],
)
def test_classes_that_voc_cannot_hold(tmp_path: Path, name: str, reason: str) -> None:
    """The reader of the source refuses what none can hold; other layouts hold the rest."""
    source = write_odd(tmp_path / "source")
    file = source / "annotations/instances_train.json"
    value = json.loads(file.read_text())
    value["categories"][0]["name"] = name
    file.write_text(json.dumps(value))
    with pytest.raises(DetrkitError, match=reason):
        convert(source, tmp_path / "out", to="voc")
    assert not (tmp_path / "out").exists()
    for to in ("parquet",) if "parquet" in reason else ("parquet", "yolo") if "XML" in reason else ():
        convert(source, tmp_path / to, to=to)  # type: ignore[arg-type]
        assert open_dataset(tmp_path / to).class_names[0] == name


def test_images_that_have_to_be_written_anew_cannot_be_linked(tmp_path: Path) -> None:
    source = write_odd(tmp_path / "source")
    with pytest.raises(DetrkitError, match=r"scan\.tga: a TGA image, which has to be written as PNG, cannot be linked"):
        convert(source, tmp_path / "out", to="voc", images="symlink")
    with pytest.raises(DetrkitError, match="parquet holds the images themselves"):
        convert(source, tmp_path / "out", to="parquet", images="symlink")
    shutil.rmtree(source)
    assert list(tmp_path.iterdir()) == []
