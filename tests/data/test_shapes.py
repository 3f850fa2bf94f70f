from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.data import open_dataset
from detrkit.data.tools.check import check
from detrkit.data.tools.outlines import SHAPES, coverage
from detrkit.data.tools.shapes import ShapesOptions, shapes_image, write_shapes
from detrkit.evaluation import PanopticEvaluator, evaluate_panoptic
from detrkit.utils.errors import DetrkitError
from detrkit.visualize.preview import segments_of


def digest(root: Path) -> dict[str, str]:
    files = sorted(f for f in root.rglob("*") if f.is_file() and f.name != "detrkit-files.json")  # times
    return {str(f.relative_to(root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "shapes"
    return write_shapes(root, images={"train": 12, "val": 4}, panoptic=True, classes=10, sides=(64, 90), objects=(2, 8))


def test_layout_is_that_of_coco(shapes: Path) -> None:
    assert sorted(p.name for p in shapes.iterdir()) == [
        "annotations",
        "detrkit-files.json",
        "panoptic_train2017",
        "panoptic_val2017",
        "train2017",
        "val2017",
    ]
    assert (
        len(list((shapes / "train2017").glob("*.jpg")))
        == 12
        == len(list((shapes / "panoptic_train2017").glob("*.png")))
    )
    instances = json.loads((shapes / "annotations/instances_train2017.json").read_text())
    assert [c["id"] for c in instances["categories"]] == list(range(1, 11))
    assert len({a["id"] for a in instances["annotations"]}) == len(instances["annotations"]) > 12


def test_the_same_seed_gives_the_same_bytes(shapes: Path, tmp_path: Path) -> None:
    options = {"panoptic": True, "classes": 10, "sides": (64, 90), "objects": (2, 8)}
    again = write_shapes(tmp_path / "a", images={"train": 12, "val": 4}, **options)
    assert digest(again) == digest(shapes)
    # An image does not depend on how many there are, nor on the other splits.
    fewer = write_shapes(tmp_path / "b", images={"train": 5}, **options)
    whole = digest(shapes)
    assert all(whole[name] == value for name, value in digest(fewer).items() if "annotations" not in name)
    other = write_shapes(tmp_path / "c", images={"train": 5}, seed=1, **options)
    assert not set(digest(other).values()) & set(whole.values())
    train, val = (sorted((shapes / s).glob("*.jpg"))[0].read_bytes() for s in ("train2017", "val2017"))
    assert train != val
    # Panoptic truth is of the same pictures, beside the same instances.
    without = write_shapes(tmp_path / "d", images={"train": 12, "val": 4}, **options | {"panoptic": False})
    assert digest(without) == {name: value for name, value in whole.items() if "panoptic" not in name}


def test_instances_are_the_visible_parts(shapes: Path) -> None:
    codec = pytest.importorskip("pycocotools.mask")
    value = json.loads((shapes / "annotations/instances_train2017.json").read_text())
    taken: dict[int, np.ndarray] = {}
    for a in value["annotations"]:
        mask = codec.decode(a["segmentation"]).astype(bool)
        rows, columns = np.nonzero(mask)
        assert a["area"] == mask.sum() > 0
        assert a["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        before = taken.get(a["image_id"], np.zeros_like(mask))
        assert not (mask & before).any()
        taken[a["image_id"]] = mask | before


def test_panoptic_png_and_json_agree(shapes: Path) -> None:
    value = json.loads((shapes / "annotations/panoptic_train2017.json").read_text())
    instances = json.loads((shapes / "annotations/instances_train2017.json").read_text())
    things = {c["id"] for c in value["categories"] if c["isthing"]}
    assert {c["id"] for c in value["categories"] if not c["isthing"]} == {91, 92, 93}
    stuff_seen = set()
    for image, entry in zip(value["images"], value["annotations"], strict=True):
        rgb = np.asarray(Image.open(shapes / "panoptic_train2017" / entry["file_name"])).astype(np.int64)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        assert ids.shape == (image["height"], image["width"]) and image["id"] == entry["image_id"]
        found = dict(zip(*(v.tolist() for v in np.unique(ids, return_counts=True)), strict=True))
        assert found == {s["id"]: s["area"] for s in entry["segments_info"]} and 0 not in found
        for s in entry["segments_info"]:
            rows, columns = np.nonzero(ids == s["id"])
            assert s["bbox"] == [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        key = lambda s: (s["category_id"], s["area"], s["bbox"])  # noqa: E731
        of_image = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        assert sorted(map(key, of_image)) == sorted(
            key(s) for s in entry["segments_info"] if s["category_id"] in things
        )
        stuff_seen |= {s["category_id"] for s in entry["segments_info"]} - things
    assert stuff_seen == {91, 92, 93}


def test_hidden_objects_are_left_out_of_picture_and_truth() -> None:
    crowded = ShapesOptions(objects=(30, 30), object_size=(0.3, 0.6), hidden=0.6)
    all_kept = ShapesOptions(objects=(30, 30), object_size=(0.3, 0.6), hidden=0.99)
    counts = [[len(shapes_image(0, "train", i, o).things) for i in range(5)] for o in (crowded, all_kept)]
    assert all(1 <= few < many <= 30 for few, many in zip(*counts, strict=True))
    # With nothing hidden allowed, no object touches another one's pixels: each has its whole area.
    free = shapes_image(0, "train", 0, ShapesOptions(objects=(30, 30), object_size=(0.3, 0.3), classes=1, hidden=0.0))
    areas = [int(m.sum()) for _, m in free.things]
    assert len(areas) >= 2 and max(areas) - min(areas) <= 0.08 * max(areas)


def test_things_and_stuff_partition_the_image() -> None:
    for index in range(10):
        image = shapes_image(3, "val", index, ShapesOptions())
        masks = [m for _, m in image.things + image.stuff]
        assert (np.sum(masks, axis=0) == 1).all()
        assert image.pixels.dtype == np.uint8 and image.pixels.shape == (*masks[0].shape, 3)


def test_options_hold() -> None:
    options = ShapesOptions(sides=(40, 50), classes=3, objects=(2, 2), object_size=(0.3, 0.4), hidden=0.9)
    images = [shapes_image(0, "train", i, options) for i in range(40)]
    shapes = {i.pixels.shape[:2] for i in images}
    assert min(min(s) for s in shapes) == 40 and max(max(s) for s in shapes) == 50
    assert {c for i in images for c, _ in i.things} == {1, 2, 3}
    assert {len(i.things) for i in images} == {2}
    extents = [max(np.ptp(m.nonzero()[0]), np.ptp(m.nonzero()[1])) + 1 for i in images for _, m in i.things]
    assert max(extents) <= 0.4 * 50 + 2
    assert shapes_image(0, "train", 0, ShapesOptions(objects=(0, 0))).things == []


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ("circle", np.pi),
        ("square", 2.0),
        ("triangle", 3 * np.sqrt(3) / 4),
        ("ring", np.pi * (1 - 0.55**2)),
        ("hexagon", 3 * np.sqrt(3) / 2),
        ("star", 5 * 0.42 * np.sin(np.pi / 5)),
        ("cross", 4 * 0.32 * (2 * np.sqrt(1 - 0.32**2) - 0.32)),
    ],
)
def test_areas_of_the_shapes(shape: str, share: float) -> None:
    """Closed forms of the areas within the unit circle."""
    assert coverage(shape, 100, (50, 50), 40, 0.3).sum() == pytest.approx(share * 1600, rel=0.02)


def test_every_shape_fits_its_circle() -> None:
    rows, columns = np.mgrid[:60, :60] + 0.5
    outside = np.hypot(rows - 30, columns - 30) > 26
    for shape in SHAPES:
        alpha = coverage(shape, 60, (30, 30), 25, 1.0)
        assert alpha[outside].max() == 0 and 300 < alpha.sum() < 2000, shape


def test_class_colours() -> None:
    """With colours="class" the hue tells the class, with "random" it does not."""
    import colorsys

    def hues(colours: str) -> list[list[float]]:
        found: list[list[float]] = [[], []]
        options = ShapesOptions(classes=2, objects=(1, 1), object_size=(0.5, 0.5), colours=colours)
        for index in range(40):
            image = shapes_image(0, "train", index, options)
            ((category, mask),) = image.things
            rgb = np.median(image.pixels[mask], 0) / 255
            found[category - 1].append(colorsys.rgb_to_hsv(*rgb)[0])
        return found

    first, second = hues("class")
    assert max(min(h, 1 - h) for h in first) < 0.2 and all(0.3 < h < 0.7 for h in second)
    first, second = hues("random")
    assert np.ptp(first) > 0.6 and np.ptp(second) > 0.6


def test_it_opens(shapes: Path) -> None:
    instances = open_dataset(shapes, split="train", layout="coco", masks=True)
    panoptic = open_dataset(shapes, split="train", masks=True)
    assert (instances.layout, panoptic.layout) == ("coco", "coco-panoptic")
    for dataset in (instances, panoptic):
        assert len(dataset) == 12 and dataset.class_names[:3] == ["circle", "square", "triangle"]
        for index in range(12):
            sample = dataset[index]
            assert sample.masks is not None
            assert sample.masks.flatten(1).sum(1).tolist() == dataset.records[index].areas.tolist()
    assert panoptic.class_names[10:] == ["sky", "grass", "sand"]
    assert panoptic.classes.things == (True,) * 10 + (False,) * 3
    for record, other in zip(panoptic.things().records, instances.records, strict=True):
        assert sorted(map(tuple, record.boxes.tolist())) == sorted(map(tuple, other.boxes.tolist()))
    report = check(shapes, layout="coco-panoptic")
    assert report.ok and not report.of("warning")
    assert sum(f.reason == "no pixel is void" for f in report.faults) == 2


def test_panoptic_quality_of_the_truth_is_one(shapes: Path) -> None:
    """From the files, and from the segments that a training sees; of a shifted truth it is less."""
    dataset = open_dataset(shapes, split="train", masks=True)
    file = shapes / "annotations" / "panoptic_train2017.json"
    metrics = evaluate_panoptic(file, shapes / "panoptic_train2017", file, shapes / "panoptic_train2017")
    evaluator, shifted = (PanopticEvaluator(*dataset.panoptic_ground_truth()) for _ in range(2))
    for sample in dataset:
        result = segments_of(sample, dataset.classes)
        evaluator.add(sample.image_id, result)
        shifted.add(sample.image_id, replace(result, id_map=result.id_map.roll(4, 0)))
    for found in (metrics, evaluator.compute()):
        assert found.PQ == found.PQ_th == found.PQ_st == 1 and found.images == 12
    assert 0.2 < shifted.compute().PQ < 0.9


def test_existing_folders_are_safe(tmp_path: Path) -> None:
    small = {"images": {"train": 1}, "sides": (16, 16)}
    root = write_shapes(tmp_path / "s", **small)
    with pytest.raises(DetrkitError, match=r"exists already; .*--force"):
        write_shapes(root, **small)
    write_shapes(root, force=True, **small | {"images": {"val": 1}})
    assert (root / "val2017").is_dir() and not (root / "train2017").exists()
    (root / "classes.txt").write_text("mine")
    with pytest.raises(DetrkitError, match=r"holds classes\.txt, which detrkit did not write, so it is not replaced"):
        write_shapes(root, force=True, **small)
    assert (root / "classes.txt").read_text() == "mine" and (root / "val2017").is_dir()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(DetrkitError, match="files that detrkit did not write, so it is not replaced"):
        write_shapes(mine, force=True, **small)
    assert (mine / "thesis.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "s"]  # no temporary folder is left


@pytest.mark.parametrize(
    "options",
    [
        {"sides": (8, 20)},
        {"sides": (50, 40)},
        {"classes": 11},
        {"objects": (3, 2)},
        {"object_size": (0, 0.5)},
        {"hidden": 1.0},
        {"colours": "grey"},
        {"quality": 100},
        {"images": {"train": -1}},
        {"images": {"a": 1, "b": 1}},
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises(DetrkitError, match=next(iter(options))):
        write_shapes(tmp_path / "s", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_splits_are_no_paths(tmp_path: Path) -> None:
    with pytest.raises(DetrkitError, match=r"shapes: name of a split: '\.\./x' is a path"):
        write_shapes(tmp_path / "s", images={"../x": 1})
    assert list(tmp_path.iterdir()) == []


def test_rare_classes_are_rare_in_training_images_alone(tmp_path: Path) -> None:
    options = {"classes": 4, "sides": (16, 20), "objects": (0, 6), "hidden": 0.95}
    root = write_shapes(
        tmp_path / "rare", images={"train": 120, "val": 80}, class_shares=(60, 30, 10, 0), empty=0.4, **options
    )
    shares = {}
    for split, size in (("train", 120), ("val", 80)):
        dataset = open_dataset(root, split=split)
        labels = np.concatenate([record.labels for record in dataset.records])
        shares[split] = np.bincount(labels, minlength=4) / len(labels)
        empty = np.mean([not len(record.labels) for record in dataset.records])
        assert abs(empty - (0.4 + 0.6 / 7)) < 4 * (0.25 / size) ** 0.5  # 1/7 of the others are drawn without, too
    assert shares["train"][3] == 0
    assert np.abs(shares["train"] - [0.6, 0.3, 0.1, 0]).max() < 0.13  # 210 objects: four deviations of 0.033
    assert np.abs(shares["val"] - 0.25).max() < 0.15
    # nothing else about images without these options has changed
    plain = [shapes_image(3, "val", k, ShapesOptions(**options)).pixels for k in range(3)]
    with_shares = [
        shapes_image(3, "val", k, ShapesOptions(class_shares=(1, 2, 3, 4), **options)).pixels for k in range(3)
    ]
    assert all((a == b).all() for a, b in zip(plain, with_shares, strict=True))


def test_shares_of_another_number_of_classes() -> None:
    with pytest.raises(DetrkitError, match="class_shares 1 2: give one number for each of the 5 classes"):
        ShapesOptions(class_shares=(1, 2))
    with pytest.raises(DetrkitError, match=r"class_shares 0 0: .* not all 0"):
        ShapesOptions(classes=2, class_shares=(0, 0))
