"""COCO panoptic folders: what is read, from where, and what is said about bad ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detrkit.data import Dataset, open_dataset
from detrkit.data.panoptic import write_id_map
from detrkit.data.tools.check import check
from detrkit.data.tools.convert import convert
from detrkit.utils.errors import DetrkitError
from helpers.datasets import coco, panoptic_json, panoptic_map, picture, segments_info, write_coco, write_panoptic

MAPS = {9: panoptic_map(seed=0), 4: panoptic_map(seed=1, height=20, width=30), 6: panoptic_map(seed=2)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_panoptic(tmp_path, "val2017", MAPS)
    return tmp_path


def test_samples_have_masks_of_things_and_stuff(root: Path) -> None:
    dataset = open_dataset(root, split="val", masks=True)
    assert dataset.panoptic and dataset.layout == "coco-panoptic" and dataset.split == "val2017"
    assert dataset.class_names == ["sea", "sky", "bird", "boat"] and dataset.classes.ids == (3, 7, 40, 200)
    assert dataset.classes.things == (False, False, True, True)
    assert [r.image_id for r in dataset.records] == [4, 6, 9]  # paired by id: the json has 9, 4, 6 and 6, 4, 9
    for index, image_id in enumerate((4, 6, 9)):
        sample, ids = dataset[index], MAPS[image_id]
        assert sample.image_id == image_id and sample.file is not None and sample.file.name == f"{image_id}.jpg"
        assert sample.masks is not None and sample.masks.shape == (5, *ids.shape)
        names = [dataset.class_names[k] for k in sample.labels.tolist()]
        assert names == ["boat", "bird", "bird", "sea", "sky"]  # in the order of segments_info, here of the ids
        for segment, mask, box in zip((5, 9, 12, 300, 70001), sample.masks, sample.boxes.tolist(), strict=True):
            rows, columns = np.nonzero(ids == segment)
            assert np.array_equal(mask.numpy(), ids == segment)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_without_masks_there_are_boxes_and_no_png_is_read(root: Path) -> None:
    for png in (root / "panoptic_val2017").glob("*.png"):
        png.write_bytes(b"")
    dataset = open_dataset(root)
    assert dataset.panoptic and not dataset.with_masks
    assert dataset[0].masks is None and len(dataset[0].boxes) == 5 and dataset[0].labels.tolist() == [3, 2, 2, 0, 1]


def test_official_ids(root: Path) -> None:
    dataset = open_dataset(root, masks=True, ids="official")
    assert len(dataset.classes) == 201 and dataset[0].labels.tolist() == [200, 40, 40, 3, 7]
    assert dataset.classes.things is not None
    assert [k for k in range(201) if dataset.classes.is_thing(k)] == [40, 200]


def test_crowd_is_kept_for_evaluation_only(tmp_path: Path) -> None:
    write_panoptic(tmp_path, "val", MAPS, crowd=True)
    dataset = open_dataset(tmp_path, masks=True)
    sample = dataset[0]
    assert sample.labels.tolist() == [2, 2, 0, 1] and sample.masks is not None and len(sample.masks) == 4
    truth, id_map = dataset.panoptic_ground_truth()
    crowd = [s["id"] for s in truth["annotations"][0]["segments_info"] if s["iscrowd"]]
    assert crowd == [5] and (id_map(4) == 5).any()
    assert sum(a["iscrowd"] for a in dataset.ground_truth()["annotations"]) == 3


def test_panoptic_ground_truth_is_the_file(root: Path) -> None:
    dataset = open_dataset(root, masks=True)
    truth, id_map = dataset.panoptic_ground_truth()
    original = panoptic_json(MAPS)
    assert truth["categories"] == original["categories"]
    assert truth["images"] == sorted(original["images"], key=lambda image: image["id"])
    assert truth["annotations"] == sorted(original["annotations"], key=lambda a: a["image_id"])
    for image_id, ids in MAPS.items():
        assert id_map(image_id).dtype == np.int32 and np.array_equal(id_map(image_id), ids)
    part, of_part = dataset.subset([1]).panoptic_ground_truth()
    assert [a["image_id"] for a in part["annotations"]] == [6] and np.array_equal(of_part(6), MAPS[6])
    write_coco(root / "other", "val", coco([{"id": 1, "file_name": "1.jpg", "height": 5, "width": 5}], [], {1: "a"}))
    with pytest.raises(DetrkitError, match=r"has no panoptic annotations: open a folder with panoptic_\*\.json"):
        open_dataset(root / "other").panoptic_ground_truth()


def test_ids_of_no_segment_are_void(root: Path) -> None:
    ids = MAPS[4].copy()
    ids[5, 5:9] = 123456
    write_id_map(root / "panoptic_val2017" / "4.png", ids)
    _, id_map = open_dataset(root).panoptic_ground_truth()
    assert np.array_equal(id_map(4), np.where(ids == 123456, 0, ids))


def test_ground_truth_for_ap(root: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    dataset = open_dataset(root, masks=True)
    truth = dataset.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == list(range(1, 16))
    for annotation in truth["annotations"]:
        mask = codec.decode(annotation["segmentation"]).astype(bool)
        assert (
            annotation["area"] == mask.sum() and codec.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]
        )
    assert "segmentation" not in open_dataset(root).ground_truth()["annotations"][0]
    things = dataset.things()
    assert things.class_names == ["bird", "boat"] and things.classes.ids == (40, 200)
    assert things[0].labels.tolist() == [1, 0, 0]
    masks = things[0].masks
    assert masks is not None and len(masks) == 3
    kept = [a for a in truth["annotations"] if a["category_id"] in (40, 200)]
    assert things.ground_truth()["annotations"] == kept and len(kept) == 9
    assert things.panoptic_ground_truth()[1](4).max() == 12  # the pixels of sky and sea are void


def test_where_there_are_instances_too_masks_mean_panoptic(root: Path) -> None:
    image = {"id": 4, "file_name": "4.jpg", "height": 20, "width": 30}
    annotation = {"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [[1, 1, 5, 1, 5, 5]]}
    write_coco(root, "val2017", coco([image], [annotation], {1: "a"}))

    def layouts(**options: Any) -> tuple[str, int]:
        dataset = open_dataset(root, **options)
        return dataset.layout, len(dataset)

    assert layouts() == ("coco", 1) == layouts(masks=True, layout="coco")
    assert layouts(masks=True) == ("coco-panoptic", 3) == layouts(layout="coco-panoptic")
    assert open_dataset(root / "annotations" / "instances_val2017.json", masks=True).layout == "coco"
    assert open_dataset(root / "annotations" / "panoptic_val2017.json").layout == "coco-panoptic"
    report = check(root)
    assert report.layout == "coco" and "--layout coco-panoptic" in report.faults[-1].reason
    assert check(root, layout="coco-panoptic").layout == "coco-panoptic"
    assert not any("--layout" in f.reason for f in check(root, layout="coco").faults)


@pytest.mark.parametrize(
    "places",
    [
        ("annotations/panoptic_val2017.json", "panoptic_val2017", "val2017"),  # as the published code wants it
        ("annotations/panoptic_val2017.json", "annotations/panoptic_val2017", "val2017"),  # as COCO's archives unpack
        ("annotations/panoptic_val2017.json", "panoptic_val2017", "../coco/val2017"),  # images with the other task
        ("annotations/panoptic_val2017.json", "panoptic_val2017", "../val2017"),
        ("panoptic_val2017.json", "panoptic_val2017", "input_images"),  # panopticapi's sample data
        ("panoptic_val2017.json", "coco_panoptic", "."),  # transformers' fixtures
        ("annotations/panoptic_all.json", "panoptic_all", "images"),
    ],
)
def test_places(tmp_path: Path, places: tuple[str, str, str]) -> None:
    file, pngs, images = (tmp_path / "coco_panoptic" / place for place in places)
    for folder in (file.parent, pngs, images):
        folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(panoptic_json({3: MAPS[4]})))
    write_id_map(pngs / "3.png", MAPS[4])
    picture(20, 30).save(images / "3.jpg")
    sample = open_dataset(tmp_path / "coco_panoptic", masks=True)[0]
    assert sample.image.shape == (3, 20, 30) and sample.masks is not None
    assert torch.equal(sample.masks[0], torch.from_numpy(MAPS[4] == 5))
    assert len(open_dataset(file, masks=True)) == 1


def test_missing_folders_are_named(root: Path) -> None:
    (root / "val2017").rename(root / "pictures")
    assert len(open_dataset(root)) == 3  # any folder beside that of the PNGs
    (root / "pictures").rename(root.parent / "gone")
    with pytest.raises(DetrkitError, match=r"images such as 6\.jpg were found in none of .*val2017"):
        open_dataset(root)
    (root.parent / "gone").rename(root / "val2017")
    (root / "panoptic_val2017").rename(root / "segments")
    with pytest.raises(DetrkitError, match=r"panoptic PNGs such as 6\.png were not found: put them in .*panoptic_val"):
        open_dataset(root)
    (root / "annotations" / "panoptic_val2017.zip").touch()
    with pytest.raises(DetrkitError, match=r"panoptic_val2017\.zip is an archive: unpack it there"):
        open_dataset(root)


def _edit(root: Path, edit: Any) -> None:
    file = root / "annotations" / "panoptic_val2017.json"
    value = json.loads(file.read_text())
    edit(value)
    file.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda v: v["categories"][0].pop("isthing"), "category 3: needs isthing: 1 for a thing, 0 for stuff"),
        (lambda v: v["annotations"][0].pop("file_name"), r"annotations\[0\]: needs a file_name .* segments_info"),
        (lambda v: v["annotations"].append(v["annotations"][0]), r"annotations\[3\]: a second annotation of image 6"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(id=0), r"segments_info\[1\]: .* id of 1 to 16777215"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(id=5), "image 6, segment 5: id is used twice"),
        (lambda v: v["annotations"][0]["segments_info"][1].update(category_id=1), "segment 9: category 1 is not in"),
        (lambda v: v["annotations"][0]["segments_info"][1].pop("bbox"), "segment 9: bbox None is not"),
        (
            lambda v: v["annotations"][0]["segments_info"][1].pop("area"),
            "segment 9: area None is not a positive number",
        ),
        (
            lambda v: v["annotations"][0]["segments_info"][1].update(area=float("nan")),
            "segment 9: area nan is not a positive",
        ),
        (
            lambda v: v["annotations"][0]["segments_info"][1].update(category_id=[3]),
            r"segment 9: category \[3\] is not in",
        ),
        (lambda v: v["annotations"].__setitem__(0, 5), None),
        (lambda v: v["annotations"][0].update(image_id={}), None),
        (lambda v: v["annotations"].pop(), None),
    ],
)
def test_bad_annotations_are_named(root: Path, edit: Any, message: str | None) -> None:
    """Errors end the opening with one line; what can be left out is left out, and `check` says so."""
    _edit(root, edit)
    report = check(root)
    if message is None:
        assert len(open_dataset(root)) == 2 and report.ok
        assert any("has no annotation: left out" in f.reason for f in report.of("warning"))
        return
    with pytest.raises(DetrkitError, match=message) as caught:
        open_dataset(root)
    assert "\n" not in str(caught.value) and "panoptic_val2017.json: " in str(caught.value)
    assert not report.ok


def test_a_segment_without_pixels_ends_the_sample(root: Path) -> None:
    write_id_map(root / "panoptic_val2017" / "4.png", np.where(MAPS[4] == 9, 0, MAPS[4]))
    dataset = open_dataset(root, masks=True)
    with pytest.raises(DetrkitError, match=r"4\.png: no pixel has the id 9 of segments_info"):
        dataset[0]
    assert len(dataset[1].boxes) == 5


def test_files_of_the_other_task_are_explained(root: Path) -> None:
    (root / "annotations" / "panoptic_val2017.json").rename(root / "annotations" / "mine.json")
    with pytest.raises(DetrkitError, match=r'panoptic file: name it panoptic_\S+\.json, or .*layout="coco-panoptic"'):
        open_dataset(root / "annotations" / "mine.json")
    assert len(open_dataset(root / "annotations" / "mine.json", layout="coco-panoptic")) == 3
    image = {"id": 4, "file_name": "4.jpg", "height": 20, "width": 30}
    annotation = {"id": 1, "image_id": 4, "category_id": 1, "bbox": [1, 1, 4, 4]}
    file = write_coco(root, "val2017", coco([image], [annotation], {1: "a"}))
    with pytest.raises(
        DetrkitError, match=r'is no COCO panoptic file but one of instances: open it with layout="coco"'
    ):
        open_dataset(file, layout="coco-panoptic")


def test_check_finds_every_planted_fault(root: Path) -> None:
    clean = check(root)
    assert clean.ok and not clean.of("warning")
    assert [f.reason for f in clean.of("info")] == [
        "images and annotations are in different orders: paired by image_id",
        "6.3% of the pixels are void, at most 8.3% of an image (6.jpg)",
    ]
    (summary,) = clean.splits
    assert [(c.name, c.thing, c.objects) for c in summary.classes] == [
        ("sea", False, 3),
        ("sky", False, 3),
        ("bird", True, 6),
        ("boat", True, 3),
    ]

    pngs = root / "panoptic_val2017"
    ids = MAPS[4].copy()
    ids[ids == 9] = 11  # 9 has no pixel, 11 is not known
    ids[10, 20:24] = 5  # the boat grows by 4 pixels: area, box; the sea loses them
    write_id_map(pngs / "4.png", ids)
    write_id_map(pngs / "6.png", MAPS[6][:-1])
    (pngs / "9.png").unlink()
    write_id_map(pngs / "left_over.png", ids)
    report = check(root)
    faults = {(f.severity, f.file.name, f.id): f.reason for f in report.faults}
    assert faults["error", "4.png", "image 4, segment 9"] == "is in segments_info, but no pixel has its id"
    assert faults["warning", "4.png", "image 4"] == "6 pixels have ids that segments_info has not (11): taken as void"
    assert faults["error", "4.png", "image 4, segment 300"].startswith("area 260 in segments_info, but 256 pixels")
    assert faults["warning", "4.png", "image 4, segment 5"] == (
        "bbox [2, 8, 5, 4] is not the bounds of its pixels [2, 8, 22, 4] (xywh): taken as it stands"
    )
    assert "panoptic PNG is 16x11 pixels but its image 16x12" in faults["error", "6.png", "image 6"]
    assert faults["error", "9.png", "image 9"] == "panoptic PNG is missing"
    assert faults["info", "panoptic_val2017", ""] == "1 panoptic PNGs belong to no image: left_over.png"
    # the area of the boat is wrong as well, under the same id as its box
    assert [f.severity for f in report.faults if f.id == "image 4, segment 5"] == ["error", "warning"]
    assert len(report.of("error")) == 5 and len(report.of("warning")) == 2


def test_convert_to_instances(root: Path, tmp_path: Path) -> None:
    (done,) = convert(root, tmp_path / "all", to="coco")
    assert (done.images, done.objects) == (3, 15)
    panoptic, instances = open_dataset(root, masks=True), open_dataset(tmp_path / "all", masks=True)
    assert instances.layout == "coco" and instances.class_names == panoptic.class_names
    for a, b in zip(panoptic, instances, strict=True):
        assert a.masks is not None and b.masks is not None and torch.equal(a.masks, b.masks)
        assert torch.equal(a.boxes, b.boxes) and torch.equal(a.labels, b.labels)
    convert(root, tmp_path / "things", to="yolo", things_only=True)
    yolo = open_dataset(tmp_path / "things")
    assert yolo.class_names == ["bird", "boat"] and [len(r.labels) for r in yolo.records] == [3, 3, 3]


def test_segments_of_no_area_are_left_out_everywhere(root: Path) -> None:
    _edit(root, lambda v: v["annotations"][0]["segments_info"][0].update(bbox=[3, 3, 0, 4]))
    dataset: Dataset = open_dataset(root, masks=True)
    assert dataset.dropped == 1 and [len(s.labels) for s in dataset] == [5, 4, 5]
    truth, id_map = dataset.panoptic_ground_truth()
    known = {s["id"] for s in truth["annotations"][1]["segments_info"]}
    assert known == {9, 12, 300, 70001} == set(id_map(6).ravel().tolist()) - {0}
    assert segments_info(MAPS[6])[0]["id"] == 5
