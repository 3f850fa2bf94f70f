"""What a resumed run may learn from: the same classes and images, wherever they lie; and which folders are free."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

from detrkit.data import Dataset, open_dataset
from detrkit.engine import train
from detrkit.engine.fingerprint import class_difference, data_difference, fingerprint
from detrkit.engine.resuming import begin
from detrkit.engine.run_files import MARK, in_the_way
from detrkit.engine.run_folder import ENVIRONMENT, STARTED_BY
from detrkit.engine.splits import Splits
from detrkit.structures.classes import ClassList
from detrkit.study import load_study, run_study
from detrkit.utils.errors import DetrkitError
from detrkit.utils.launch import restarted_by
from detrkit.utils.lock import FolderLock
from helpers.tiny import losses, tiny_config


@pytest.fixture(scope="module")
def done(shapes, tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    config = tiny_config(shapes, folder, optim={"epochs": 1})
    train(config)
    return config


def edited(shapes, path, edit, split="train"):
    """A copy of the shapes with other annotations."""
    shutil.copytree(shapes, path)
    file = path / "annotations" / f"instances_{split}2017.json"
    truth = json.loads(file.read_text())
    edit(truth)
    file.unlink()
    file.write_text(json.dumps(truth))
    return path


def _swapped(truth):
    first, second = truth["categories"][:2]
    first["name"], second["name"] = second["name"], first["name"]


def _without_one(truth):
    gone = truth["images"].pop()["id"]
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] != gone]


def _moved_box(truth):
    truth["annotations"][0]["bbox"][0] += 0.5


def _contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("edit", "splits", "message"),
    [
        (_swapped, ("train", "val"), "class 0 was circle, now it is square"),
        (_without_one, ("train",), "13 images were trained on, now there are 12"),
        (_without_one, ("val",), "5 images were evaluated on, now there are 4"),
        (_moved_box, ("train",), "the 13 images that were trained on have other boxes now"),
    ],
)
def test_other_classes_or_data_are_refused_before_anything_is_written(shapes, done, tmp_path, edit, splits, message):
    data = shapes
    for k, split in enumerate(splits):
        data = edited(data, tmp_path / f"other{k}", edit, split)
    folder = tmp_path / "run"
    shutil.copytree(done.run.out, folder)
    before = _contents(folder)
    config = done.changed(data={"path": str(data)}, optim={"epochs": 2}, run={"out": str(folder)})
    with pytest.raises(DetrkitError, match=rf"{message}: a resumed run keeps its classes and its images"):
        train(config, resume=True)
    assert _contents(folder) == before


@pytest.mark.slow
def test_a_dataset_may_have_moved(shapes, done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done.run.out, folder)
    moved = shutil.copytree(shapes, tmp_path / "elsewhere")
    train(done.changed(data={"path": str(moved)}, optim={"epochs": 2}, run={"out": str(folder)}), resume=True)
    assert losses(folder)[-1][0] == 12


@pytest.mark.slow
def test_of_a_state_without_a_fingerprint_the_classes_are_compared(shapes, done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done.run.out, folder)
    state = torch.load(folder / "last.pt", weights_only=True)
    del state["data"]
    torch.save(state, folder / "last.pt")
    fewer = edited(shapes, tmp_path / "fewer", _without_one)
    config = done.changed(optim={"epochs": 2}, run={"out": str(folder)})
    other = edited(edited(shapes, tmp_path / "a", _swapped), tmp_path / "b", _swapped, "val")
    with pytest.raises(DetrkitError, match="class 0 was circle"):
        train(config.changed(data={"path": str(other)}), resume=True)
    train(config.changed(data={"path": str(fewer)}), resume=True)
    assert losses(folder)[-1][0] == 12


def test_differences_of_classes_in_words():
    classes = ClassList(("cat", "dog"), (1, 2))
    assert class_difference(classes, ClassList(("cat", "dog"), (1, 2), (True, True))) is None
    assert class_difference(classes, ClassList(("dog", "cat"), (1, 2))) == "class 0 was cat, now it is dog"
    assert class_difference(classes, ClassList(("cat", "dog", "cow"), (1, 2, 3))) == (
        "there were 2 classes, now there are 3 (cow is new)"
    )
    assert class_difference(classes, ClassList(("cat",), (1,))) == "there were 2 classes, now there are 1 (dog is gone)"
    assert class_difference(classes, ClassList(("cat", "dog"), (1, 3))) == "class 1 (dog) had the id 2, now it has 3"


def test_a_fingerprint_tells_every_part(shapes):
    train_split, val = open_dataset(shapes, split="train"), open_dataset(shapes, split="val")

    def changed(**fields) -> Splits:
        records = list(train_split.records)
        records[3] = replace(records[3], **fields)
        return Splits(
            Dataset(records, train_split.classes, name="", split="train", path=shapes, layout="coco"), val, None
        )

    before = fingerprint(Splits(train_split, val, None))
    record = train_split.records[3]
    assert data_difference(before, fingerprint(changed())) is None
    elsewhere = changed(file=shapes / "x" / record.file.name)
    assert data_difference(before, fingerprint(elsewhere)) is None
    for fields, words in (
        ({"file": record.file.with_name("y.jpg")}, "file names"),
        ({"height": record.height + 1}, "sizes of images"),
        ({"boxes": np.nextafter(record.boxes, 0)}, "boxes"),
        ({"labels": (record.labels + 1) % 3}, "labels"),
        ({"boxes": record.boxes[:0], "labels": record.labels[:0], "crowd": record.crowd[:0]}, "boxes and labels"),
    ):
        assert data_difference(before, fingerprint(changed(**fields))) == (
            f"the 13 images that were trained on have other {words} now"
        )
    assert data_difference(None, before) is None


def test_a_fingerprint_of_coco_takes_about_a_second(shapes):
    record = open_dataset(shapes, split="train").records[0]
    many = Dataset([record] * 118_000, ClassList(("a",), (0,)), name="", split="train", path=shapes, layout="coco")
    began = time.perf_counter()
    fingerprint(Splits(many, None, None))
    assert time.perf_counter() - began < 20  # 0.5 s on an idle core of 2024


def test_a_run_without_its_state_but_with_weights_is_left_alone(done, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(done.run.out, folder)
    (folder / "last.pt").unlink()
    config, before = done.changed(run={"out": str(folder)}), _contents(folder)
    with pytest.raises(DetrkitError, match="holds a run already, without its last"):
        train(config)
    with pytest.raises(DetrkitError, match=r"its last\.pt is gone"):
        train(config, resume=True)
    assert _contents(folder) == before


def test_a_folder_is_written_by_one(done, tmp_path, shapes):
    config = done.changed(run={"out": str(tmp_path / "run")})
    with FolderLock(tmp_path / "run"), pytest.raises(DetrkitError, match="is being written by this process already"):
        train(config)
    assert not (tmp_path / "run").exists()
    study = load_study("shapes-four", data=str(shapes))
    with FolderLock(tmp_path / "study"), pytest.raises(DetrkitError, match="study is being written by"):
        run_study(study, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_a_restart_of_torchrun_goes_on_with_its_own_run_alone(done, tmp_path, monkeypatch):
    """`--max-restarts` starts the same command again, which finds a run in its folder: its own, or another's."""
    variables = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    variables |= {"MASTER_PORT": "29412", "TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "run"
    shutil.copytree(done.run.out, folder)
    config = done.changed(run={"out": str(folder)})

    def beginning():
        with ExitStack() as held:
            return begin(config, resume=False, held=held)

    with pytest.raises(DetrkitError, match="holds a run already: continue it with"):
        beginning()
    with (folder / ENVIRONMENT).open("a") as file:
        file.write(f"{STARTED_BY}{restarted_by()}\n")
    found = beginning()
    assert found.place == "." and found.state["progress"]["epoch"] >= 1
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # the first attempt meets a run of its agent's: another one
    with pytest.raises(DetrkitError, match="holds a run already"):
        beginning()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    monkeypatch.setattr("os.getppid", lambda: 1)  # another agent
    with pytest.raises(DetrkitError, match="holds a run already"):
        beginning()


@pytest.mark.slow
def test_a_run_in_two_steps_that_left_no_state_starts_again(tmp_path, monkeypatch):
    """Its first step is in a folder of its own."""
    from detrkit.data.tools.shapes import write_shapes
    from detrkit.engine.trainer import Trainer

    data = write_shapes(
        tmp_path / "data", images={"train": 4, "val": 2}, sides=(48, 64), classes=2, seed=1, panoptic=True
    )
    config = tiny_config(
        data,
        tmp_path / "run",
        data={"layout": "coco-panoptic"},
        optim={"epochs": 1, "mask_epochs": 1},
        run={"threshold": 0.1},
    )

    def power_cut(self, values):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log_step", power_cut)
        for resume in (False, True, False):
            with pytest.raises(SystemExit):
                train(config, resume=resume)
    assert {p.name for p in (tmp_path / "run").iterdir() if p.is_file()} == {"config.yaml"}
    train(config, resume=True)
    assert (tmp_path / "run" / "last.pt").exists() and (tmp_path / "run" / "detector" / "report.md").exists()
    with pytest.raises(DetrkitError, match="holds a run already: continue it"):
        train(config)


@pytest.mark.parametrize("name", ["README.md", "classes.txt", "config.yaml"])
def test_a_run_is_not_written_over_the_files_of_others(name, shapes, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(DetrkitError, match=f"{name} is of no run and would be written over: choose another --out"):
        train(tiny_config(shapes, tmp_path, optim={"epochs": 1}))
    assert _contents(tmp_path) == {name: b"mine"}


def test_a_run_that_ended_before_it_saved_is_in_nobodys_way(tmp_path):
    (tmp_path / "README.md").write_text(f"# run\n\n{MARK} ...")
    (tmp_path / "config.yaml").write_text("")
    assert in_the_way(tmp_path) is None
    (tmp_path / "detector").mkdir()
    (tmp_path / "README.md").rename(tmp_path / "detector" / "README.md")  # of a run in two steps
    assert in_the_way(tmp_path) is None
