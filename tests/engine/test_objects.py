"""What a run says that it will learn from, and that it stops when that is nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detrkit.data import Dataset
from detrkit.data.sample import Record
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import train
from detrkit.engine.objects import check_objects, count_objects
from detrkit.engine.splits import open_splits
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from helpers.tiny import losses, tiny_config


def dataset(labels: list[list[int]], names: list[str], *, crowd: bool = False, **counts) -> Dataset:
    """Images with objects of these labels."""
    records = [
        Record(
            image_id=i,
            file=Path(f"{i}.jpg"),
            height=10,
            width=10,
            boxes=np.tile([1.0, 2, 5, 6], (len(own), 1)),
            labels=np.array(own, np.int64),
            crowd=np.full(len(own), crowd),
            areas=np.full(len(own), 16.0),
        )
        for i, own in enumerate(labels)
    ]
    classes = ClassList(tuple(names), tuple(range(len(names))))
    return Dataset(records, classes, path=Path("somewhere"), split="train", **{"layout": "coco", **counts})


def test_counts():
    counts = count_objects(dataset([[0, 0, 2], [], [2]], ["cat", "dog", "cow", "N/A"], dropped=3, clamped=1))
    assert (counts.images, counts.with_objects, counts.objects) == (3, 2, 4)
    assert counts.per_class == {"cat": 2, "dog": 0, "cow": 2}
    assert counts.lines() == [
        "4 objects in 2 images, 1 image without any: cat 2, cow 2",
        "3 box(es) without area left out, 1 box(es) cut at the border of their image: `detrkit data check` lists them",
        "warning: no object of 1 of 3 classes: dog",
    ]
    assert counts.rows() == {
        "training images": "3, 1 without objects",
        "training objects": "4: cat 2, cow 2",
        "left out": "3 box(es) without area left out, 1 box(es) cut at the border of their image",
        "classes without objects": "1 of 3",
    }


def test_many_classes_are_told_by_their_ends():
    labels = [[k] * (12 - k) for k in range(12)]
    counts = count_objects(dataset(labels, [f"c{k}" for k in range(12)]))
    assert counts.classes_in_words() == "most of c0 12, c1 11, c2 10; fewest of c9 3, c10 2, c11 1"
    assert len(counts.lines()) == 1


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (dataset([[0], [0]], ["a"], crowd=True), r"all 2 annotations are crowd regions"),
        (dataset([[], []], ["a"], dropped=5), r"all 5 boxes are without area"),
        (dataset([[], []], ["a"]), r"image_id is that of none of the images"),
        (dataset([[], []], ["a"], layout="yolo"), r"no label file \(\.txt\) belongs to any image"),
    ],
    ids=["crowd", "dropped", "coco", "yolo"],
)
def test_nothing_to_learn(given, cause):
    with pytest.raises(DetrkitError, match=rf"none of the 2 images of train has an object.*{cause}.*data check"):
        check_objects(given)


def test_a_run_without_objects_stops_before_anything_is_written(tmp_path):
    empty = write_shapes(tmp_path / "set", images={"train": 3, "val": 2}, sides=(48, 64), classes=3, objects=(0, 0))
    config = tiny_config(empty, tmp_path / "run")
    for settings in (config, config.changed(run={"overfit": 2})):
        with pytest.raises(DetrkitError, match=r"none of the 3 images"):
            train(settings)
    assert not list(tmp_path.glob("run/*.csv"))


@pytest.fixture(scope="module")
def two_images(tmp_path_factory) -> Path:
    return write_shapes(
        tmp_path_factory.mktemp("two") / "set", images={"train": 2, "val": 2}, sides=(48, 64), classes=3, seed=1
    )


def read(report: Path) -> str:
    """A page without the blanks that align its tables."""
    return " ".join(report.read_text().split())


def test_overfit_says_on_how_many_images(two_images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("detrkit.engine.splits.OVERFIT_STEPS", 2)
    config = tiny_config(two_images, tmp_path / "run", optim={"epochs": 1}, run={"overfit": 50})
    splits = open_splits(config)
    assert splits.learned is splits.val and len(splits.learned) == 2 < len(splits.train)
    result = train(config)
    assert result.overfitted == 2
    out = capsys.readouterr().out
    counts = count_objects(splits.learned)
    assert "2 images to train on" in out and f"{counts.objects} objects in 2 images" in out
    assert f"| training objects | {counts.objects}: {counts.classes_in_words()} |" in read(result.report)


@pytest.fixture(scope="module")
def nothing_to_find(tmp_path_factory) -> Path:
    return write_shapes(
        tmp_path_factory.mktemp("none") / "set", images={"val": 2}, sides=(48, 64), classes=3, objects=(0, 0)
    )


def test_evaluations_without_truth_do_not_count_for_patience(two_images, nothing_to_find, tmp_path, capsys):
    config = tiny_config(
        two_images,
        tmp_path / "run",
        data={"val_data": str(nothing_to_find)},
        optim={"epochs": 4},
        run={"patience": 1},
    )
    result = train(config)
    out = capsys.readouterr().out
    assert "epoch 4/4" in out and "stopping early" not in out
    assert out.count("no image of val2017 has an object") == 1 and "--patience has nothing to count" in out
    assert "| best epoch | 4 of 4, the last evaluated: AP is n/a |" in read(result.report)


def test_patience_without_a_split_to_evaluate_on(two_images, tmp_path, capsys):
    config = tiny_config(
        two_images, tmp_path / "run", data={"val_split": "none"}, optim={"epochs": 2}, run={"patience": 1}
    )
    train(config)
    out = capsys.readouterr().out
    assert "epoch 2/2" in out and "there is no split to evaluate on, so that --patience has nothing to count" in out


@pytest.mark.slow
def test_a_step_of_more_images_than_there_are_is_filled(two_images, tmp_path, capsys):
    """Two images, steps of 8: the same in one batch of 8 as in 4 of 2, and called what they are."""
    one = tiny_config(two_images, tmp_path / "one", data={"batch_size": 8, "augment": "flip"}, optim={"epochs": 3})
    split = one.changed(data={"batch_size": 2}, optim={"accumulate": 4}, run={"out": str(tmp_path / "split")})
    train(one)
    report = read(train(split).report)
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "split")
    assert [s for s, _ in expected] == [s for s, _ in found] == [1, 2, 3]
    assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5)
    assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=2e-3)
    said = capsys.readouterr().out
    assert "1 step of 8 images" in said and "the warm-up takes" not in said
    assert "| images per step | 8 |" in report
    long = {"optim": {"warmup_steps": 2}, "run": {"out": str(tmp_path / "long")}}  # of three
    train(one.changed(**long))
    assert "warning: the warm-up takes 2 steps, and the run 3" in " ".join(capsys.readouterr().out.split())


def test_the_only_split_is_named_with_its_options(tmp_path):
    """A json by itself, as Label Studio exports it."""
    write_shapes(tmp_path / "data", images={"train": 2}, sides=(32, 32))
    (file,) = (tmp_path / "data" / "annotations").glob("*.json")
    alone = file.rename(tmp_path / "data" / "result.json")
    config = tiny_config(alone, tmp_path / "run")
    parts = r"pass --train-split 'result\[20%:\]' --val-split 'result\[:20%\]'; --val-split none: no evaluation$"
    with pytest.raises(DetrkitError, match=f"it has result; .* {parts}"):
        open_splits(config)
    config = config.changed(data={"train_split": "result"})
    with pytest.raises(DetrkitError, match=parts):
        open_splits(config)
    splits = open_splits(config.changed(data={"val_split": "none"}))
    assert len(splits.train) == 2 and splits.val is None
