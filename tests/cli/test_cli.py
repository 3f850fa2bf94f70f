"""The command line as a whole: help, exit states, one clear line for bad input."""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder

import pytest
from PIL import Image

from detrkit.__main__ import main as program
from detrkit.cli import _parse, main
from detrkit.cli.models import Models

COMMANDS = (
    "quickstart",
    "train",
    "study",
    "eval",
    "predict",
    "models",
    "convert",
    "compare",
    "bench",
    "data check",
    "data convert",
    "data shapes",
)


def _run(capsys, *words) -> tuple[int, str, str]:
    try:
        status = main(words)
    except SystemExit as leave:  # argument errors and --help
        status = int(leave.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(capsys, command):
    status, out, _ = _run(capsys, *command.split(), "--help")
    assert status == 0
    assert out.startswith(f"usage: detrkit {command}")


def test_no_words_are_help(capsys):
    status, out, _ = _run(capsys)
    assert status == 0 and "quickstart" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "no dataset"),
        (["train", "nowhere"], "nowhere"),
        (["train", "nowhere", "--recipe", "none-such"], "no recipe of that name"),
        (["train", "--resume", "nowhere"], "is no run to resume"),
        (["train", "--resume", "a", "--recipe", "small"], "give one of them"),
        (["eval", "nowhere.safetensors", "here"], "nowhere.safetensors"),
        (["predict", "nowhere.pth", "here.jpg"], "here.jpg"),
        (["data", "check", "nowhere"], "nowhere"),
        (["convert", "nowhere.pth", "out.safetensors"], "nowhere.pth"),
        (["compare", "nowhere.pth", "other.pth"], "nowhere.pth"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = _run(capsys, *words)
    assert status == 2
    assert err.startswith("detrkit: error: ") and message in err
    assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())  # nothing half written


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("--batch-size", "0", "--batch-size 0: must be at least 1"),
        ("--lr", "-1", "--lr -1: must be above 0"),
        ("--ema", "1", "--ema 1: must be below 1"),
    ],
)
def test_numbers_out_of_range(capsys, tmp_path, field, value, message):
    status, _, err = _run(
        capsys, "train", str(tmp_path), "--recipe", "small", field, value, "--out", str(tmp_path / "run")
    )
    assert status == 2 and message in err
    assert not list(tmp_path.iterdir())


def test_foreign_files_as_checkpoints(capsys, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    for name, content in {"text.safetensors": b"hello", "empty.pth": b"", "text.pth": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        status, _, err = _run(capsys, "predict", str(tmp_path / name), str(tmp_path / "picture.png"))
        assert status == 2 and name in err and len(err.strip().splitlines()) == 1


def test_models_lists_published_figures(capsys):
    status, out, _ = _run(capsys, "models")
    assert status == 0
    row = next(line for line in out.splitlines() if "detr-r101-dc5" in line)
    assert "44.9" in row and "detr-r101-dc5-a2e86def.pth" in row


@pytest.mark.slow
def test_train_evaluate_predict(capsys, tmp_path, monkeypatch):
    """The way of a user, from generated data to drawn pictures, with a model that is far too small."""
    monkeypatch.chdir(tmp_path)
    assert _run(capsys, "data", "shapes", "set", "--train", "8", "--val", "3", "--classes", "3")[0] == 0
    small = {"backbone-width": 8, "hidden-dim": 32, "nheads": 2, "dim-feedforward": 32, "dec-layers": 1}
    tiny = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    words = ["train", "set", "--recipe", "quickstart", "--out", "run", "--epochs", "1", "--size", "64", *tiny]
    status, out, err = _run(capsys, *words)
    assert status == 0, err
    assert "report:  run/report.md" in out and "next: detrkit predict run IMAGES_OR_FOLDER\n" in out
    assert "labels.png and first_batch.png now, training.png and examples.png while it trains" in out
    assert _run(capsys, *words)[0] == 2  # the run is there already
    status, out, err = _run(capsys, "eval", "run", "set", "--workers", "0")
    assert status == 0, err
    results = json.loads((tmp_path / "run" / "eval-val" / "results.json").read_text())
    assert {r["image_id"] for r in results} == {1_000_001, 1_000_002, 1_000_003}
    status, out, err = _run(capsys, "predict", "run", "set/val2017", "--threshold", "0")
    assert status == 0, err
    assert (
        len(list((tmp_path / "predictions").glob("*.jpg"))) + len(list((tmp_path / "predictions").glob("*.png"))) == 3
    )


@pytest.mark.parametrize(
    ("words", "masks"),
    [
        (["train", "data", "--masks", "--freeze-detector", "run"], True),
        (["train", "--masks", "data"], True),
        (["train", "data", "--masks"], True),
        (["train", "data", "--masks", "False"], False),
        (["train", "data"], None),
    ],
)
def test_a_switch_of_the_model_may_stand_alone(words, masks):
    command = _parse(words)
    assert command.config.model.masks is masks and command.datasets == ("data",)


def test_what_the_system_refuses_is_one_line(monkeypatch, capsys):
    """Such as a path in a folder that may not be entered, wherever it is first looked at."""

    def refused(_):
        raise PermissionError(13, "Permission denied", "/locked/run")

    monkeypatch.setattr("detrkit.cli.models.Models.run", refused)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == "detrkit: error: /locked/run: Permission denied\n"

    def broken(_):
        raise OSError("a fault of our own")

    monkeypatch.setattr("detrkit.cli.models.Models.run", broken)
    with pytest.raises(OSError, match="of our own"):
        main(["models"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            ImportError("libtorch.so: failed to map segment from shared object"),
            "cannot load a library: libtorch.so: failed to map segment from shared object: there is no memory for it "
            "(ulimit -v), or its file system forbids it (noexec)",
        ),
        (
            ImportError("READ THIS\nOriginal error was: libblas.so.3: cannot open shared object file"),
            "cannot load a library: Original error was: libblas.so.3: cannot open shared object file",
        ),
        (
            RuntimeError("can't start new thread"),
            "out of memory: can't start new thread; smaller images, a smaller batch or a smaller model need less",
        ),
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to. Error code 12\nmore"
            ),
            "out of memory: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to; smaller images, a "
            "smaller batch or a smaller model need less",
        ),
        (
            RuntimeError("Failed to initialize cpuinfo!"),
            "Failed to initialize cpuinfo! torch reads the CPU's features from /proc and /sys: mount them",
        ),
        (
            FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"),
            "no folder for temporary files can be written: set TMPDIR to one",
        ),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (PermissionError(13, "Permission denied", "/a/b\x1b"), "/a/b\\x1b: Permission denied"),
        (FileNotFoundError(2, "No such file or directory", "/a/b.so"), "/a/b.so: No such file or directory"),
        (
            UnicodeEncodeError("ascii", "b\u00fc.jpg", 1, 2, "ordinal not in range"),
            "b\u00fc.jpg: the encoding of this locale, ascii, cannot name it: set LC_ALL=C.UTF-8 or PYTHONUTF8=1",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_line(capsys, monkeypatch, error, said):
    def run(_: Models) -> int:
        raise error

    monkeypatch.setattr(Models, "run", run)
    assert main(["models"]) == 2
    assert capsys.readouterr().err == f"detrkit: error: {said}\n"


@pytest.mark.parametrize(
    "error", [RuntimeError("a mistake"), ImportError("no name x in y"), OSError("of its own kind")]
)
def test_a_mistake_of_the_program_is_not_hidden(monkeypatch, error):
    def run(_: Models) -> int:
        raise error

    monkeypatch.setattr(Models, "run", run)
    with pytest.raises(type(error), match=str(error)):
        main(["models"])


def test_a_working_directory_that_is_gone(capsys, monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["models"]) == 2
    said = "the working directory cannot be entered (No such file or directory): cd to another one"
    assert capsys.readouterr().err == f"detrkit: error: {said}\n"


def test_ctrl_c_while_the_command_line_is_imported(monkeypatch, capsys):
    """Python's own traceback would be sixty lines of tyro and pydantic."""

    class Interrupted(MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "detrkit.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "detrkit.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert program() == 130
    assert capsys.readouterr().err == "detrkit: stopped by SIGINT\n"
