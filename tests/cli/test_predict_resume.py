"""A prediction that was stopped goes on where it was, and several processes give the files of one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli import main, predict_files, predict_share
from detrkit.cli.predict_files import Results
from detrkit.cli.predict_journal import FOLDER, Journal
from detrkit.cli.predict_share import Plan, Share
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, save_model
from helpers.tiny import SMALLEST

SPEC = ModelSpec("detr-r50", SMALLEST, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=32, max_size=64)
NAMES = ["a.jpg", "b.jpg", "c.png", "d.jpg", "e.jpg"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        save_model(folder / f"{name}.safetensors", SPEC.build(), SPEC)
    return folder / "a.safetensors"


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(NAMES):
        photo(folder / name, seed)
    return folder


def photo(file: Path, seed: int) -> None:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(file)


def command(weights, out, *more) -> list[str]:
    return ["predict", str(weights), "photos", "--out", out, "--device", "cpu", "--threshold", "0.1", *more]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def listed(folder: str) -> list[str]:
    return [Path(name).name for name in json.loads(Path(folder, "predictions.json").read_text())]


class Stop:
    """Raises a signal while the picture of the `at`-th image is drawn; `drawn` counts the pictures."""

    def __init__(self, monkeypatch, at=None, number=signal.SIGTERM):
        self.drawn = 0
        draw = Detections.draw

        def counted(detections, *args, **kwargs):
            self.drawn += 1
            if self.drawn == at:
                signal.raise_signal(number)
            return draw(detections, *args, **kwargs)

        monkeypatch.setattr(Detections, "draw", counted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_command_goes_on_and_gives_the_same_files(weights, photos, monkeypatch, capsys, number):
    (photos / "b.jpg").write_text("no picture")
    assert main(command(weights, "whole")) == 1
    with monkeypatch.context() as patch:
        Stop(patch, at=3, number=number)
        assert main(command(weights, "out", "--batch-size", "1")) == 128 + number
    assert (
        "2 of 5 images are done: out/predictions.json; run the same command again to go on" in capsys.readouterr().err
    )
    assert listed("out") == ["a.jpg", "c.png"]
    count = Stop(monkeypatch)
    assert main(command(weights, "out")) == 1  # one image cannot be read
    printed = capsys.readouterr()
    assert "2 of 5 images were done before: going on" in printed.err and "b.jpg: not an image" in printed.err
    assert "4 images in out" in printed.out
    assert count.drawn == 2
    whole, out = contents(Path("whole")), contents(Path("out"))
    assert out.keys() == whole.keys() and not Path("out", FOLDER).exists()
    assert {name: out[name] for name in out if name != "detrkit-files.json"} == {
        name: whole[name] for name in whole if name != "detrkit-files.json"
    }
    assert main(command(weights, "out")) == 1  # what is finished is not gone on with
    assert count.drawn == 6


@pytest.mark.parametrize(
    ("change", "drawn", "message"),
    [
        (
            lambda words: ["predict", words[1].replace("a.safe", "b.safe"), *words[2:]],
            5,
            "of other weights or settings",
        ),
        (lambda words: [*words[:-1], "0.2"], 5, "of other weights or settings"),
        (lambda words: [*words, "--size", "40"], 5, "of other weights or settings"),
        (lambda words: [*words, "--batch-size", "2"], 3, "2 of 5 images were done before"),
    ],
)
def test_what_changes_the_results_begins_anew(weights, photos, monkeypatch, capsys, change, drawn, message):
    with monkeypatch.context() as patch:
        Stop(patch, at=3)
        assert main(command(weights, "out", "--batch-size", "1")) == 143
    count = Stop(monkeypatch)
    words = command(weights, "out")
    assert main(change(words)) == 0
    assert message in capsys.readouterr().err
    assert count.drawn == drawn and listed("out") == NAMES


def test_images_that_changed_and_pictures_that_are_gone_are_done_again(weights, photos, monkeypatch):
    with monkeypatch.context() as patch:
        Stop(patch, at=5)
        assert main(command(weights, "out", "--batch-size", "1")) == 143
    photo(photos / "a.jpg", seed=99)
    Path("out", "b.jpg").unlink()
    (photos / "c.png").unlink()
    count = Stop(monkeypatch)
    assert main(command(weights, "out")) == 0
    assert count.drawn == 3  # a, b, e: d was done
    assert listed("out") == ["a.jpg", "b.jpg", "d.jpg", "e.jpg"]
    boxes = json.loads(Path("out", "predictions.json").read_text())["photos/a.jpg"]
    assert main(command(weights, "anew")) == 0
    assert boxes == json.loads(Path("anew", "predictions.json").read_text())["photos/a.jpg"]


def test_half_a_record_is_no_record(weights, photos, monkeypatch):
    with monkeypatch.context() as patch:
        Stop(patch, at=3)
        assert main(command(weights, "out", "--batch-size", "1")) == 143
    (records,) = Path("out", FOLDER).glob("*.records")
    records.write_bytes(records.read_bytes()[:-20])
    count = Stop(monkeypatch)
    assert main(command(weights, "out")) == 0
    assert count.drawn == 4 and listed("out") == NAMES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("length", lambda head, line: -len(line)),  # which would be read forever
        ("length", lambda head, line: 0.5),
        ("length", lambda head, line: 10**30),
        ("names", lambda head, line: 3),
        ("objects", lambda head, line: [["a"]]),
        ("near_miss", lambda head, line: ["cat", 0.1]),
        ("stem", lambda head, line: None),
    ],
)
def test_a_record_with_impossible_values_is_no_record(tmp_path, name, value):
    """A file may hold anything, and each turn of the loop that reads it must read further."""
    journal = Journal(tmp_path)
    journal.begin({})
    journal.open(1, 0)
    fields = {"stem": "a", "names": ["a.jpg"], "identity": [1, 2], "objects": [], "near_miss": None}
    journal.add("a.jpg", b'"a.jpg": []', fields)
    journal.close()
    (file,) = journal.folder.glob("*.records")
    assert list(journal.records()) == ["a.jpg"]
    line, rest = file.read_bytes().split(b"\n", 1)
    head = json.loads(line)
    head[name] = value(head, json.dumps(head) + "   \n")
    file.write_bytes(json.dumps(head).encode() + b"\n" + rest)
    assert journal.records() == {}


def test_a_folder_of_that_name_that_is_not_detrkits_is_refused(weights, photos, capsys):
    Path("out", FOLDER).mkdir(parents=True)
    Path("out", FOLDER, "mine.txt").write_text("mine")
    assert main(command(weights, "out")) == 2
    assert f"{FOLDER} is there and was not written by detrkit: rename it" in capsys.readouterr().err
    assert contents(Path("out")) == {f"{FOLDER}/mine.txt": b"mine"}


def test_nothing_done_leaves_nothing(weights, photos, monkeypatch):
    Stop(monkeypatch, at=1)
    assert main(command(weights, "out", "--batch-size", "1")) == 143
    assert not Path("out").exists() or contents(Path("out")) == {}


def test_a_killed_process_leaves_what_is_done(weights, photos, monkeypatch):
    """As kill -9 leaves it: the process is not asked."""

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("detrkit.cli.predict_files.Results.save", killed)
        patch.setattr("detrkit.cli.predict_files.Results.save_sometimes", lambda self: None)
        with pytest.raises(Killed):
            main(command(weights, "out"))
    count = Stop(monkeypatch)
    assert main(command(weights, "out")) == 0
    assert count.drawn == 0 and listed("out") == NAMES


class Store(dict):
    def set(self, key, value):
        self[key] = value

    get = dict.__getitem__

    def check(self, keys):
        return all(key in self for key in keys)


def test_processes_agree_on_the_images(monkeypatch):
    store = Store()
    monkeypatch.setattr(predict_share, "_store", lambda: store)
    files = [Path(name) for name in NAMES]
    Share(0, 2).send(Plan(3, [0, 2, 3]), files)
    assert Share(1, 2).receive(files) == Plan(3, [0, 2, 3])
    assert [file.name for file in Share(1, 2).of(files)] == ["b.jpg", "d.jpg"]
    with pytest.raises(DetrkitError, match="process 1 of 2 finds other images than the first one"):
        Share(1, 2).receive(files[1:])
    Share(1, 2).finish()
    Share(0, 2).wait()


_SCRIPT = """
import os, signal, sys
from detrkit.cli import main, predict_files, predict_share
from detrkit.structures.detections import Detections

predict_share.LOST_SECONDS = 3
kill, words = int(sys.argv[1]), sys.argv[2:]
draw, drawn = Detections.draw, []

def counted(self, *args, **kwargs):
    drawn.append(1)
    if kill and os.environ["RANK"] == "1":
        os.kill(os.getpid(), kill)
    return draw(self, *args, **kwargs)

Detections.draw = counted
sys.argv[1:] = words
status = main()  # as the program: only then the processes watch each other
print("rank", os.environ["RANK"], "drew", len(drawn), flush=True)
os._exit(status)
"""


@pytest.mark.slow
def test_two_processes_give_the_files_of_one(weights, photos):
    """Also when one is killed in the middle: the others end, and the same command goes on."""
    (photos / "b.jpg").write_text("no picture")
    assert main(command(weights, "one")) == 1
    Path("script.py").write_text(_SCRIPT)

    def run(kill: int) -> tuple[list[int], str, str]:
        """Statuses, output and errors of both processes, started by hand: torchrun would cost a third one."""
        words = [sys.executable, "script.py", str(kill), *command(weights, "two", "--batch-size", "1")]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        common |= {"LOCAL_WORLD_SIZE": "2"}
        processes = [
            subprocess.Popen(
                words,
                env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        said = [process.communicate(timeout=120) for process in processes]
        return [p.returncode for p in processes], "".join(out for out, _ in said), "".join(err for _, err in said)

    statuses, _, errors = run(signal.SIGKILL)
    assert statuses[0] > 0 and statuses[1] == -signal.SIGKILL, errors
    assert Path("two", FOLDER).is_dir(), errors
    records = b"".join(file.read_bytes() for file in Path("two", FOLDER).glob("*.records"))
    assert b"photos/d.jpg" not in records  # which the killed process was drawing
    statuses, printed, errors = run(0)
    assert statuses == [1, 0], printed + errors  # the image that cannot be read; the first process says so
    assert errors.count("b.jpg: not an image") == 1
    assert ("done before: going on" in errors) == (b"photos/" in records)
    assert printed.count("4 images in two") == 1
    one, two = contents(Path("one")), contents(Path("two"))
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == ["detrkit-files.json"]


@pytest.mark.parametrize("step", ["note", "rename", "rmtree"])
def test_a_kill_while_results_are_saved_leaves_nothing_that_the_next_command_refuses(photos, monkeypatch, step):
    """Between predictions.json and the manifest; before the records are removed; in the middle of their removal."""
    files = sorted(photos.iterdir())

    def killed(*_, **__):
        raise KeyboardInterrupt

    results = Results(photos.parent / "out", files, images=False)
    results.check()
    results.begin({"threshold": 0.5})
    results.add(files[0], [])
    results.save(finished=False)
    results.add(files[1], [])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        if step == "note":
            patch.setattr(predict_files, "note_files", killed)
        elif step == "rename":
            patch.setattr(Path, "rename", killed)
        else:
            patch.setattr("detrkit.utils.atomic.shutil.rmtree", killed)
        results.save(finished=step != "note")
    results.close()
    again = Results(photos.parent / "out", files, images=False)
    again.check()
    assert len(again.begin({"threshold": 0.5})) == (len(files) if step == "rmtree" else len(files) - 2)
    again.close()
