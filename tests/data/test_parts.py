"""Parts of a split: the same images wherever they lie, each in one part."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from detrkit import choose_config, evaluate, open_dataset
from detrkit.config import TrainConfig
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.splits import open_splits
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec
from helpers.tiny import MODEL


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A json by itself, as labeling programs export it: one split, "result"."""
    folder = write_shapes(tmp_path_factory.mktemp("data") / "set", images={"train": 23}, sides=(32, 32), classes=2)
    (file,) = (folder / "annotations").glob("*.json")
    return file.rename(folder / "result.json")


def names(dataset) -> list[str]:
    return [record.file.name for record in dataset.records]


def test_each_image_is_in_one_part_and_order_stays(undivided):
    whole = names(open_dataset(undivided))
    first, rest = (open_dataset(undivided, split=split) for split in ("result[:20%]", "[20%:]"))
    assert (first.split, rest.split) == ("result[:20%]", "result[20%:]")
    assert len(first) == round(23 * 0.2) and len(rest) == 23 - round(23 * 0.2)
    assert sorted(names(first) + names(rest)) == sorted(whole)
    for part in (first, rest):
        assert names(part) == [name for name in whole if name in set(names(part))]
    assert names(first) != whole[: len(first)]  # neighbors, such as frames of a video, are not kept together
    middle = names(open_dataset(undivided, split="[20%:60%]"))
    assert set(middle) < set(names(rest)) and len(middle) == round(23 * 0.6) - round(23 * 0.2)
    assert first.classes == rest.classes


def test_a_part_does_not_depend_on_the_place_or_the_order_of_the_files(undivided, tmp_path):
    shutil.copytree(undivided.parent, tmp_path / "other place")
    other = open_dataset(tmp_path / "other place" / undivided.name, split="[:20%]")
    part = names(open_dataset(undivided, split="[:20%]"))
    assert names(other) == part
    whole = open_dataset(undivided)
    backward = whole.subset(range(len(whole) - 1, -1, -1))
    assert names(open_dataset(backward, split="result[:20%]")) == part[::-1]
    # one image more moves the borders by one image at most
    more = whole.subset(range(len(whole)))
    more.records.append(replace(whole.records[0], image_id=99, file=Path("zz.jpg")))
    assert len(set(names(open_dataset(more, split="[:20%]"))) ^ set(part)) <= 2


@pytest.mark.parametrize("part", ["[50%:20%]", "[20%:20%]", "[:120%]"])
def test_a_part_that_is_none_is_refused(undivided, part):
    with pytest.raises(DetrkitError, match="goes from a smaller to a larger percentage"):
        open_dataset(undivided, split=f"result{part}")


def test_an_unknown_split_with_a_part_is_named(undivided):
    with pytest.raises(DetrkitError, match="has no split 'train'; it has result"):
        open_dataset(undivided, split="train[:20%]")


def test_a_training_keeps_a_fifth_to_evaluate_on(undivided, tmp_path):
    data = choose_config(undivided).data
    assert (data.train_split, data.val_split) == ("result[20%:]", "result[:20%]")
    splits = open_splits(choose_config(undivided))
    assert splits.val is not None and (len(splits.train), len(splits.val)) == (18, 5)
    # what is asked for stays
    none = TrainConfig().changed(data={"train_split": "result", "val_split": "none"})
    kept = choose_config(undivided, none, fixed=["data.train_split", "data.val_split"]).data
    assert (kept.train_split, kept.val_split) == ("result", "none")
    # a test split is left for the end, a validation split is used
    both = write_shapes(tmp_path / "both", images={"train": 10, "test": 2}, sides=(32, 32), classes=2)
    assert choose_config(both).data.val_split == "train2017[:20%]"
    divided = write_shapes(tmp_path / "divided", images={"train": 6, "val": 2}, sides=(32, 32), classes=2)
    assert choose_config(divided).data.val_split == "val"


def test_an_evaluation_names_the_part_that_a_training_keeps(undivided):
    spec = ModelSpec("detr-r50", {**MODEL.overrides(), "backbone_norm": "group"}, num_classes=2, size=32)
    with pytest.raises(DetrkitError, match=r"no split 'val'; it has result; .* is --split 'result\[:20%\]'$"):
        evaluate((spec.build(), spec), undivided, device="cpu")
