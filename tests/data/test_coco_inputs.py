"""What COCO files may get wrong: found when they are opened, in one line with file and id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from detrkit.data import open_dataset
from detrkit.data.readers import READERS
from detrkit.data.readers.common import corners_of, finite, size_fault, whole
from detrkit.data.tools.check import check
from detrkit.utils.errors import DetrkitError
from helpers.datasets import coco, picture, write_coco

BIG = 10**400  # no float holds it
POLYGON = [[1, 1, 9, 1, 9, 9]]


def image(id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "file_name": f"{id}.png", "height": 20, "width": 30} | more


def object_(id: Any = 1, **more: Any) -> dict[str, Any]:
    return {"id": id, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8]} | more


def write(root: Path, *annotations: Any, images: Any = None, categories: Any = None, split: str = "train") -> Path:
    """annotations/instances_{split}.json, and the 30 x 20 picture {split}/1.png."""
    value = coco([image()] if images is None else images, list(annotations), {1: "cat"})
    if categories is not None:
        value["categories"] = categories
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    (root / split).mkdir(exist_ok=True)
    picture(20, 30).save(root / split / "1.png")
    return file


def faults(root: Path, severity: str = "error") -> list[tuple[str, str]]:
    return [(fault.id, fault.reason) for fault in check(root).of(severity)]


def test_numbers_from_files() -> None:
    assert [finite(v) for v in (3, 2.5, True, "3", None, BIG, float("nan"), float("inf"), [1])] == [3, 2.5] + [None] * 7
    assert [whole(v) for v in (40, 40.0, 40.5, True, "40", 2**63, 1e300, float("nan"))] == [40, 40] + [None] * 6
    assert corners_of([1, 2, 3, 4.5]) == (1, 2, 4, 6.5)
    for bbox in ([1, 2, 3], [1, 2, 3, BIG], [1, 2, 3, True], [1, 2, 3, "4"], "abcd", 7, None, {1: 2}):
        assert corners_of(bbox) is None
    assert size_fault(20, 30.0) is None
    assert "200000x200000 pixels (width x height) are more than an image may have" in str(size_fault(200_000, 200_000))
    for side in (0, -1, 40.5, "40", True, None, BIG):
        assert "must be positive whole numbers" in str(size_fault(20, side))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [1, 1, BIG, 8]}, r"annotation 1: bbox \[1, 1, 1000.*\.\.\. is not \[x, y, width, height\]"),
        ({"bbox": [[[]]] * 4}, "annotation 1: bbox .* is not"),
        ({"id": 2**63}, "annotation 9223372036854775808: annotation id must be an integer"),
        ({"iscrowd": "0"}, "annotation 1: iscrowd '0' is neither 0 nor 1"),
        ({"category_id": True}, "annotation 1: category True is not in the list"),
        ({"category_id": [1]}, r"annotation 1: category \[1\] is not in the list"),
    ],
)
def test_annotations(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write(tmp_path, object_(**change), object_(2))
    with pytest.raises(DetrkitError, match=rf"^\S*instances_train\.json: {message}"):
        open_dataset(tmp_path)
    assert len(faults(tmp_path)) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 200_000, "height": 200_000}, "200000x200000 pixels"),
        ({"width": BIG}, "must be positive whole numbers"),
        ({"file_name": "a\0b.png"}, "holds a control character"),
        ({"file_name": "\ud800.png"}, "half a character"),
        ({"file_name": 300 * "a" + ".png"}, "longer than 255 bytes"),
        ({"file_name": "../../secret/key.conf"}, "leads out of the dataset's folder .*; no image in .* has that name"),
        ({"file_name": "/etc/passwd"}, "is an absolute path"),
        ({"file_name": "C:\\pictures\\x.png"}, "is an absolute path"),
        ({"file_name": "train/../../../x.png"}, "leads out of the dataset's folder"),
    ],
)
def test_an_image_that_is_refused_makes_no_further_faults(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    root = tmp_path / "data"
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.conf").write_text("password")
    write(root, object_(), object_(2, image_id=2), images=[image(), image(2, **change)])
    with pytest.raises(DetrkitError, match=rf"instances_train\.json: image 2: .*{message}"):
        open_dataset(root)
    report = check(root)
    ((where, reason),) = [(f.id, f.reason) for f in report.faults if f.severity != "info"]
    assert where == "image 2" and len(reason) < 400


def test_ids_and_nesting(tmp_path: Path) -> None:
    write(tmp_path, object_(), images=[image(), image(2**64)])
    with pytest.raises(DetrkitError, match=r"images\[1\]: needs an integer id"):
        open_dataset(tmp_path)
    write(tmp_path, object_(), categories=[{"id": 2**70, "name": "cat"}])
    with pytest.raises(DetrkitError, match=r"categories\[0\]: needs an integer id"):
        open_dataset(tmp_path)
    file = write(tmp_path, object_())
    file.write_text(file.read_text().replace("[1, 1, 8, 8]", "[" * 50_000 + "]" * 50_000))
    with pytest.raises(DetrkitError, match=r"instances_train\.json: lists or objects are nested too deep"):
        open_dataset(tmp_path)


@pytest.mark.parametrize("name", ["instances_...json", "instances_.json", "instances_a\\b.json"])
def test_splits_are_names(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, object_())
    file.rename(file.with_name(name))
    for path in (tmp_path, file.with_name(name)):
        with pytest.raises(DetrkitError, match="the split: "):
            open_dataset(path)


def test_two_files_of_one_folder_are_two_splits(tmp_path: Path) -> None:
    file = write(tmp_path, object_())
    for name in ("old_train.json", "new_train.json"):
        file.with_name(name).write_text(file.read_text())
    file.unlink()
    assert READERS["coco"].splits(tmp_path) == ["new_train", "old_train"]


@pytest.mark.parametrize(
    "file_name",
    [
        "1.png",
        "../train/1.png",  # relative to annotations/, within the dataset
        "train\\1.png",
        "..\\..\\label-studio\\media\\upload\\4\\1.png",
        "/home/somebody/data/train/1.png",
        "https://somewhere/1.png",
        "images/1.png",  # a folder too many
        "1.PNG",
        "%31.png",
    ],
)
def test_file_names_that_lead_to_an_image(tmp_path: Path, file_name: str) -> None:
    write(tmp_path, object_(), images=[image(file_name=file_name)])
    dataset = open_dataset(tmp_path)
    assert dataset.records[0].file.resolve() == (tmp_path / "train" / "1.png").resolve()
    assert dataset[0].image.shape == (3, 20, 30)
    looked_up = file_name not in ("1.png", "../train/1.png", "train\\1.png")
    assert [("taken by their last part" in note) for note in dataset.notes] == [True] * looked_up


def test_a_name_that_fits_several_images_is_refused(tmp_path: Path) -> None:
    write(tmp_path, object_(), images=[image(file_name="/x/a/1.png"), image(2, file_name="/x/b/1.png")])
    (id1, reason), (id2, _) = faults(tmp_path)
    assert (id1, id2) == ("image 1", "image 2") and "which another image has" in reason
    for folder in ("p", "q"):
        (tmp_path / folder).mkdir()
        picture(20, 30).save(tmp_path / folder / "2.png")
    write(tmp_path, object_(), images=[image(file_name="/x/2.png")])
    ((_, reason),) = faults(tmp_path)
    assert f"fits {tmp_path / 'p' / '2.png'} and {tmp_path / 'q' / '2.png'}" in reason


def test_linked_folders_are_the_users_affair(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write(root, object_())
    (root / "train").rename(tmp_path / "elsewhere")
    (root / "train").symlink_to(tmp_path / "elsewhere")
    assert open_dataset(root)[0].image.shape == (3, 20, 30)


def test_missing_images_do_not_hide_faults_of_annotations(tmp_path: Path) -> None:
    write(tmp_path, object_(), object_(2, bbox="x"))
    (tmp_path / "train" / "1.png").unlink()
    first, second = faults(tmp_path)
    assert "images such as 1.png were found in none of" in first[1] and second[0] == "annotation 2"


def test_image_ids_of_another_type(tmp_path: Path) -> None:
    file = write(tmp_path, object_(image_id="1"), object_(2, image_id="1"))
    message = r"none of the 2 annotations belongs to an image: they have image_id '1' \(str\), .* such as 1 \(int\)"
    with pytest.raises(DetrkitError, match=rf"{file.name}: annotations: {message}"):
        open_dataset(tmp_path)
    assert [where for where, _ in faults(tmp_path)] == ["annotations"]
    write(tmp_path, object_(), object_(2, image_id="1"))
    dataset = open_dataset(tmp_path)
    assert len(dataset[0].boxes) == 1 and "1 annotations belong to no image of the list" in dataset.notes[0]


def test_nothing_left_is_said(tmp_path: Path) -> None:
    write(tmp_path, object_(iscrowd=1), object_(2, bbox=[1, 1, 0, 0]))
    reason = "no object is left: 1 crowd regions, 1 boxes without area; every image is background"
    assert open_dataset(tmp_path).notes[0] == f"{tmp_path}: split train: {reason}"
    assert ("split train", reason) in faults(tmp_path)


def test_boxes_left_out_are_said(tmp_path: Path) -> None:
    write(tmp_path, object_(), object_(2, bbox=[50, 5, 10, 10]))
    (note,) = open_dataset(tmp_path).evaluation_notes
    assert note.startswith(f"{tmp_path}: split train: 1 boxes have no area in their image and are left out")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[5, 5, 25, 25]], r"polygon \[5, 5, 25, 25\] has fewer than 3 points"),
        ([*POLYGON, [5, 5]], r"polygon \[5, 5\] has fewer than 3 points"),
        ([[1, 1, 9, 1, 9, 9, 4]], r"odd number of values \(7\)"),
        ([[1, 1, 9, 1, 9, "9"]], "holds something other than numbers"),
        ([[1, 1, 9, 1, 9, float("nan")]], "has values that are not finite"),
        ([[1, 1, 9, 1, 9, BIG]], "holds something other than numbers"),
        ([1, 1, 9, 1, 9, 9], "segmentation has 1 in place of a polygon"),
        ("mask.png", "is neither polygons nor an RLE"),
        ({"size": [30, 20], "counts": [600]}, r"size \[30, 20\], the image \[20, 30\] \(height, width\)"),
        ({"size": [20, 30], "counts": [5, 10]}, "do not add up to the 600 pixels"),
        ({"size": [20, 30], "counts": "\0"}, "RLE cannot be decoded"),
    ],
)
def test_segmentations(tmp_path: Path, segmentation: Any, message: str) -> None:
    write(tmp_path, object_(segmentation=POLYGON), object_(2, segmentation=segmentation))
    with pytest.raises(DetrkitError, match=rf"instances_train\.json: annotation 2: .*{message}"):
        open_dataset(tmp_path, masks=True)
    ((where, reason),) = faults(tmp_path)
    assert where == "annotation 2" and reason
    assert len(open_dataset(tmp_path)[0].boxes) == 2  # boxes need no masks


def test_missing_segmentations_are_listed(tmp_path: Path) -> None:
    write(tmp_path, object_(segmentation=[]), object_(2, segmentation=POLYGON))
    assert [where for where, _ in faults(tmp_path, "warning") if "has no segmentation" in _] == ["annotation 1"]
    with pytest.raises(DetrkitError, match=r"annotation 1: has no segmentation: .*leave out --masks"):
        open_dataset(tmp_path, masks=True)
    write(tmp_path, object_(segmentation=[]))
    assert check(tmp_path).ok and "no object has a segmentation" in faults(tmp_path, "info")[0][1]


def test_areas_that_do_not_fit(tmp_path: Path) -> None:
    areas = [0, -5, "64", BIG, True, 900, 0.0004, 64, 30.5, None]
    boxes = [[k, 1, 8, 8] for k in range(len(areas))]
    write(tmp_path, *(object_(k, bbox=b, area=a) for k, (a, b) in enumerate(zip(areas, boxes, strict=True), 1)))
    found = dict(faults(tmp_path, "warning"))
    assert list(found) == [f"annotation {k}" for k in range(1, 8)]
    assert found["annotation 2"] == "area -5 is not a positive number of square pixels: taken from the box"
    assert found["annotation 6"].startswith("area 900 does not fit the box of 64 square pixels")
    assert open_dataset(tmp_path).records[0].areas.tolist() == [64] * 5 + [900, 0.0004, 64, 30.5, 64]


def named(*entries: tuple[int, str, str]) -> list[dict[str, Any]]:
    return [{"id": i, "name": name, "supercategory": parent} for i, name, parent in entries]


def test_grouping_categories_are_no_classes(tmp_path: Path) -> None:
    write(tmp_path, object_(), categories=named((0, "hole", "none"), (1, "hole", "hole")))
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ["hole"] and dataset.classes.ids == (1,)
    assert "category 0: 'hole' is the supercategory of all others and no object has it" in dataset.notes[0]
    write(tmp_path, object_(), categories=named((0, "animals", "none"), (1, "cat", "animals"), (2, "dog", "animals")))
    assert open_dataset(tmp_path).class_names == ["cat", "dog"]
    # a class of its own: it has objects, or is the parent of some only (COCO's "person")
    write(tmp_path, object_(category_id=0), categories=named((0, "animals", "none"), (1, "cat", "animals")))
    assert open_dataset(tmp_path).class_names == ["animals", "cat"]
    write(tmp_path, object_(), categories=named((0, "person", "person"), (1, "cat", "animal")))
    assert open_dataset(tmp_path).class_names == ["person", "cat"]


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    categories = named((1, "cat", "x"), (2, "dog", "x"), (5, "cat", "y"))
    write(tmp_path, object_(), object_(2, category_id=5), categories=categories)
    with pytest.raises(DetrkitError, match=r"category 5: 'cat' is also the name of category 1"):
        open_dataset(tmp_path)
    assert faults(tmp_path)[0][0] == "category 5"
    write(tmp_path, object_(2, category_id=5), categories=categories)
    assert open_dataset(tmp_path).classes.ids == (2, 5)
    write(tmp_path, object_(), categories=named((1, "a\nb", "x")))
    with pytest.raises(DetrkitError, match=r"category 1: 'a\\nb' holds a control character"):
        open_dataset(tmp_path)


def test_classes_of_two_splits(tmp_path: Path) -> None:
    write(tmp_path, object_(), categories=named((1, "cat", "x"), (2, "dog", "x")))
    write(tmp_path, object_(), categories=named((1, "dog", "x"), (2, "cow", "x")), split="val")
    assert [r for i, r in faults(tmp_path) if i == "split val"] == [
        "has classes that train has not: cow: training with both refuses them"
    ]
    assert ("split val", "category 1 is 'dog' here and 'cat' in train: matched by name") in faults(tmp_path, "warning")


def test_ground_truth_keeps_every_id(tmp_path: Path) -> None:
    images = [image(2**40, file_name="1.png"), image(7, file_name="2.png", width=30.0)]
    annotations = [object_(2**62, image_id=2**40, category_id=-3), object_(5, image_id=7, category_id=-3)]
    write(tmp_path, *annotations, images=images, categories=named((-3, "cat", "x")))
    picture(20, 30).save(tmp_path / "train" / "2.png")
    truth = open_dataset(tmp_path).ground_truth()
    assert [i["id"] for i in truth["images"]] == [7, 2**40]
    assert {(a["id"], a["image_id"], a["category_id"]) for a in truth["annotations"]} == {
        (2**62, 2**40, -3),
        (5, 7, -3),
    }
    write_coco(tmp_path / "again", "train", truth)
    assert open_dataset(tmp_path / "again").ground_truth() == truth


def test_orientation_that_sizes_do_not_show(tmp_path: Path) -> None:
    write(tmp_path, object_(), images=[image(k, file_name=f"{k}.png") for k in (1, 2, 3)])
    for k, orientation, side in ((1, 3, 30), (2, 1, 30), (3, 6, 20)):
        exif = picture(1, 1).getexif()
        exif[0x0112] = orientation
        picture(20, side).save(tmp_path / "train" / f"{k}.png", exif=exif)
    value = json.loads((tmp_path / "annotations" / "instances_train.json").read_text())
    value["images"][2]["width"] = 20
    (tmp_path / "annotations" / "instances_train.json").write_text(json.dumps(value))
    (text,) = [reason for _, reason in faults(tmp_path, "info") if "EXIF" in reason]
    assert text.startswith("2 images have an EXIF orientation that their size does not show (1.png, 3.png)")


def test_a_mask_that_cannot_be_decoded_names_its_annotation(tmp_path: Path) -> None:
    from detrkit.data.segmentations import segmentation_masks

    masks = segmentation_masks([[[0, 0, 2, 0, 2, 2, 0, 2]]], (4, 5), Path("a.png"), ["annotation 12"])
    assert np.argwhere(masks[0].numpy()).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    with pytest.raises(DetrkitError, match=r"^a\.png: annotation 12: polygon \[1\] has fewer than 3 points: expected"):
        segmentation_masks([[[1]]], (4, 5), Path("a.png"), ["annotation 12"])


def test_how_deep_images_are_scaled_is_said(tmp_path: Path) -> None:
    names = ["1.png", "2.tif", "3.png", "4.png"]
    write(tmp_path, object_(), images=[image(k, file_name=name) for k, name in enumerate(names, 1)])
    ramp = np.linspace(0, 1, 600).reshape(20, 30)
    # 12 of 16 bits, 8 of 32 bits, 16 bits, and 16 bits of a dark scene
    for name, top, kind in zip(
        names, (4095, 250, 60000, 6000), (np.uint16, np.int32, np.uint16, np.uint16), strict=True
    ):
        Image.fromarray((ramp * top).astype(kind)).save(tmp_path / "train" / name)
    report = check(tmp_path, decode=True)
    assert [f.reason for f in report.of("info") if "8 bits" in f.reason] == [
        "1 images of more than 8 bits are scaled from 0..255 to 0..255: 2.tif",
        "1 images of more than 8 bits are scaled from 0..4095 to 0..255: 1.png",
        "1 images of more than 8 bits are scaled from 0..65535 to 0..255: 3.png",
    ]
    (dark,) = report.of("warning")
    assert dark.file.name == "4.png" and dark.reason.startswith("is nearly black: no value above 32 of 255")
    assert not any("8 bits" in f.reason for f in check(tmp_path).faults)
