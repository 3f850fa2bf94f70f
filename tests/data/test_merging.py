"""Several datasets as one: classes by name, ids that stay unique, which splits are trained and evaluated on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detrkit.config import TrainConfig
from detrkit.data import Dataset, merge_datasets, open_dataset
from detrkit.data.memory import named_data
from detrkit.data.merging import NearName, near_names
from detrkit.data.sampling import plan_sampling
from detrkit.data.sampling_report import trap_lines
from detrkit.data.tools.convert import convert
from detrkit.engine.facts import choose_config
from detrkit.engine.fingerprint import data_difference, fingerprint
from detrkit.engine.relations import check_config
from detrkit.engine.splits import Splits, open_splits
from detrkit.evaluation import evaluate_detections
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError, SettingError
from helpers.datasets import coco, panoptic_map, picture, write_coco, write_panoptic


def image(image_id: int, name: str) -> dict:
    return {"id": image_id, "file_name": name, "height": 20, "width": 30}


def box(annotation_id: int, image_id: int, category: int, bbox: list[float]) -> dict:
    area = bbox[2] * bbox[3]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category,
        "bbox": bbox,
        "area": area,
        "iscrowd": 0,
    }


@pytest.fixture
def streets(tmp_path: Path) -> Path:
    """COCO with the classes car (id 3) and bus (id 7); images 1 and 2, of which 2 has none, and one to evaluate on."""
    categories = {3: "car", 7: "bus"}
    objects = [box(1, 1, 3, [1, 2, 10, 8]), box(2, 1, 7, [12, 4, 8, 8])]
    train = coco([image(1, "a.jpg"), image(2, "b.jpg")], objects, categories)
    write_coco(tmp_path / "streets", "train", train)
    write_coco(tmp_path / "streets", "val", coco([image(1, "v.jpg")], [box(1, 1, 7, [5, 5, 10, 10])], categories))
    return tmp_path / "streets"


@pytest.fixture
def rails(tmp_path: Path) -> Path:
    """YOLO with the classes tram (0) and car (1), one image of each split."""
    root = tmp_path / "rails"
    for split, lines in (("train", "1 0.5 0.5 0.2 0.4\n0 0.2 0.3 0.2 0.2\n"), ("val", "0 0.5 0.5 0.5 0.5\n")):
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        picture(20, 30, 5).save(root / "images" / split / "r.jpg")
        (root / "labels" / split / "r.txt").write_text(lines)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [tram, car]\n")
    return root


@pytest.fixture
def bikes(tmp_path: Path) -> Path:
    """CSV that is not divided, with the class Bus and bike."""
    root = tmp_path / "bikes"
    root.mkdir()
    rows = ["filename,xmin,ymin,xmax,ymax,class"]
    for k in range(5):
        picture(20, 30, k).save(root / f"{k}.jpg")
        rows.append(f"{k}.jpg,1,2,11,12,{'Bus' if k == 3 else 'bike'}")
    (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    return root


def objects_of(dataset: Dataset) -> dict[str, list[tuple[str, list[float]]]]:
    """File name -> (class, box) of its objects."""
    names = dataset.class_names
    return {
        record.file.name: [(names[k], b) for k, b in zip(record.labels, record.boxes.tolist(), strict=True)]
        for record in dataset.records
    }


def settings(*paths: Path, **data: object) -> TrainConfig:
    names, _ = named_data(list(paths))
    return TrainConfig().changed(data={**names, **data})


def test_classes_are_merged_by_name_and_objects_keep_theirs(streets, rails, bikes):
    opened = [open_dataset(streets, split="train"), open_dataset(rails, split="train"), open_dataset(bikes)]
    merged = merge_datasets(opened)
    assert merged.class_names == ["car", "bus", "tram", "Bus", "bike"]
    assert merged.classes.ids == (3, 7, 8, 9, 10)
    assert objects_of(merged) == {name: boxes for part in opened for name, boxes in objects_of(part).items()}
    (car, car_box), (tram, tram_box) = objects_of(merged)["r.jpg"]
    assert (car, tram) == ("car", "tram")
    assert car_box == pytest.approx([12, 6, 18, 14]) and tram_box == pytest.approx([3, 4, 9, 8])
    assert merged.name == "streets + rails + bikes" and merged.split == "train + train + all"
    assert merge_datasets(opened[:1]) is opened[0]
    with pytest.raises(DetrkitError, match="no dataset: give one or more"):
        merge_datasets([])


def test_ids_are_unique_and_perfect_detections_have_ap_1(streets, rails):
    first, second = open_dataset(streets, split="train"), open_dataset(rails, split="train")
    second.records = [replace(record, image_id=1) for record in second.records]  # as image 1 of the first one
    merged = merge_datasets([first, second, open_dataset(streets, split="val")])
    ids = [record.image_id for record in merged.records]
    assert ids[:2] == [1, 2] and len(set(ids)) == len(ids) == 4
    truth = merged.ground_truth()
    assert len({a["id"] for a in truth["annotations"]}) == len(truth["annotations"]) == 5
    perfect = [{**{k: a[k] for k in ("image_id", "category_id", "bbox")}, "score": 1.0} for a in truth["annotations"]]
    assert pytest.approx(1) == evaluate_detections(truth, perfect).AP


def test_ids_that_are_unique_stay(streets):
    first = open_dataset(streets, split="train")
    other = open_dataset(streets, split="val")
    other.records = [replace(record, image_id=77) for record in other.records]
    assert [record.image_id for record in merge_datasets([first, other]).records] == [1, 2, 77]


def test_official_labels_stay_those_of_the_first_dataset(streets, rails):
    first = open_dataset(streets, split="train", ids="official")
    merged = merge_datasets([first, open_dataset(rails, split="train", ids="official")])
    assert merged.classes.used == {"car": 3, "bus": 7, "tram": 8}
    assert merged.classes.ids == tuple(range(9))
    assert objects_of(merged)["r.jpg"][1][0] == "tram" and merged.records[0].labels.tolist() == [3, 7]


def test_panoptic_and_other_datasets_do_not_mix(streets, tmp_path):
    write_panoptic(tmp_path / "harbor", "train", {1: panoptic_map()})
    harbor = open_dataset(tmp_path / "harbor", masks=True)
    with pytest.raises(DetrkitError, match=r"harbor is panoptic and .*streets is not"):
        merge_datasets([open_dataset(streets, split="train"), harbor])
    twice = merge_datasets([harbor, replace_dataset(harbor, 40)])
    truth, id_map = twice.panoptic_ground_truth()
    assert twice.panoptic and len(truth["images"]) == 2 and (id_map(1) == id_map(40)).all()
    with pytest.raises(DetrkitError, match="open both alike"):
        merge_datasets([harbor, harbor.without_masks()])
    marks = ClassList(harbor.classes.names, harbor.classes.ids, (True,) * len(harbor.classes))
    with pytest.raises(DetrkitError, match="'sea' is a thing here and stuff in"):
        merge_datasets([harbor, Dataset(harbor.records, marks, layout=harbor.layout, with_masks=True)])


def replace_dataset(dataset: Dataset, image_id: int) -> Dataset:
    """The dataset with its one image under another id."""
    other = dataset.subset([0])
    other.records = [replace(record, image_id=image_id) for record in other.records]
    return other


def test_names_that_are_almost_the_same_are_two_classes_with_a_warning(streets, bikes):
    lists = [open_dataset(streets, split="train").classes, open_dataset(bikes).classes]
    assert near_names(lists) == [NearName("Bus", 1, "bus", 0)]
    assert near_names([lists[0], ClassList.contiguous({0: "bus", 1: "Bus"})]) == []  # which means two classes


def test_each_trap_of_several_datasets_has_a_line(streets, bikes):
    sources = [open_dataset(streets, split="train"), open_dataset(bikes)]
    merged = merge_datasets(sources)
    lines = trap_lines(plan_sampling(merged, sources=sources))
    assert lines == [
        "warning: streets does not have Bus, bike (2 of 4 classes): such objects in its 2 images count as background "
        "(28.6 % of an epoch)",
        "warning: bikes does not have car, bus (2 of 4 classes): such objects in its 5 images count as background "
        "(71.4 % of an epoch)",
        "warning: 'Bus' of bikes and 'bus' of streets are two classes: give them one name in the files if they are one",
    ]
    assert trap_lines(plan_sampling(merged, sources=sources, weights=(0, 1)))[0].startswith("warning: bikes does not")
    again = [sources[0], open_dataset(streets, split="train")]
    (line,) = trap_lines(plan_sampling(merge_datasets(again), sources=again))
    assert line.startswith("warning: 2 image files are in two of the datasets: what one of them annotates")


def test_the_splits_of_several_datasets(streets, rails, bikes):
    splits = open_splits(settings(streets, rails, bikes, weights=(2.0, 1.0, 1.0)))
    assert len(splits.train) == 2 + 1 + 5 and splits.train.split == "train + train + all"
    assert [record.file.name for record in splits.val.records] == ["v.jpg", "r.jpg"]
    assert splits.evaluated == "evaluated on streets (val, 1 image) + rails (val, 1 image); bikes has no such split"
    assert splits.rates is not None and splits.epoch_images == 8
    assert splits.rates.tolist() == [2, 2, 2, *[0.4] * 5]
    other = open_splits(settings(streets, bikes, val_data=str(bikes), val_split="all"))
    assert len(other.val) == 5 and other.evaluated == "evaluated on bikes (all, 5 images)" and other.rates is None
    assert open_splits(settings(streets, rails, val_split="none")).val is None


def test_of_datasets_without_a_split_to_evaluate_on_a_part_of_each_is_kept(bikes, tmp_path):
    convert(bikes, tmp_path / "more", to="csv")
    config = choose_config([bikes, tmp_path / "more"])
    assert (config.data.train_split, config.data.val_split) == ("train[20%:]", "train[:20%]")
    assert config.data.more_paths == (str(tmp_path / "more"),)
    splits = open_splits(config)
    assert (len(splits.train), len(splits.val)) == (8, 2)
    with pytest.raises(DetrkitError, match=r"bikes has no split 'val'; .*--val-split none"):
        open_splits(settings(bikes, tmp_path / "more", val_split="val"))


def test_the_fingerprint_covers_every_dataset(streets, rails, bikes):
    def of(*paths: Path) -> Splits:
        return open_splits(settings(*paths))

    before = fingerprint(of(streets, rails))
    assert data_difference(before, fingerprint(of(streets, rails))) is None
    assert data_difference(before, fingerprint(of(streets, bikes))) is not None
    label = rails / "labels" / "train" / "r.txt"
    label.write_text(label.read_text().replace("0.2 0.4", "0.2 0.5"))
    assert (
        data_difference(before, fingerprint(of(streets, rails)))
        == "the 3 images that were trained on have other boxes now"
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"weights": (1.0,)}, r"data\.weights is \(1\.0,\): there are 2 datasets: give one weight for each"),
        ({"weights": (1.0, 2.0, 3.0)}, "there are 2 datasets: give one weight for each"),
        ({"weights": (1.0, -1.0)}, r"data\.weights is .*: must be at least 0"),
        ({"weights": (0.0, 0.0)}, "all are 0, so that no image is left"),
        ({"empty_share": 1.0}, "must be below 1"),
        ({"repeat_rare": 0.0}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be(data, message):
    with pytest.raises(SettingError, match=message):
        check_config(TrainConfig().changed(data={"path": "a", "more_paths": ("b",), **data}))


def test_a_dataset_twice_is_refused_by_whatever_name(streets, tmp_path):
    (tmp_path / "link").symlink_to(streets)
    for other in (streets, f"{streets}/../streets", tmp_path / "link"):
        with pytest.raises(SettingError, match=r"this dataset is given twice: .* give it once, with data\.weights"):
            check_config(settings(streets, Path(other)))
    with pytest.raises(SettingError, match="there is one dataset: give one weight for each"):
        check_config(TrainConfig().changed(data={"path": "a", "weights": (1.0, 2.0)}))


def test_data_in_memory_is_mixed_with_paths(streets, rails):
    opened = {"train": open_dataset(rails, split="train")}
    names, in_memory = named_data([streets, opened])
    assert names == {"path": str(streets), "more_paths": (":memory:/rails",)}
    splits = open_splits(TrainConfig().changed(data=names), in_memory=in_memory)
    assert len(splits.train) == 3 and [record.file.name for record in splits.val.records] == ["v.jpg"]
    assert named_data([str(streets), rails]) == ({"path": str(streets), "more_paths": (str(rails),)}, None)
    with pytest.raises(DetrkitError, match="an empty list"):
        named_data([])


def test_merged_labels_are_whole_numbers_of_64_bits(streets, rails):
    merged = merge_datasets([open_dataset(streets, split="train"), open_dataset(rails, split="train")])
    assert {record.labels.dtype for record in merged.records} == {np.dtype(np.int64)}
