"""Ranges of settings: every number has one, of every field the wrong values are refused, and nothing is written."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest

from detrkit.cli import main
from detrkit.cli.bench import Bench
from detrkit.cli.compare import Compare
from detrkit.cli.convert import Convert
from detrkit.cli.data import DataCommand
from detrkit.cli.evaluate import Eval
from detrkit.cli.predict import Predict
from detrkit.cli.quickstart import Quickstart
from detrkit.cli.reproduce import Reproduce
from detrkit.cli.study import Study
from detrkit.config import TrainConfig
from detrkit.data.tools.shapes import ShapesOptions
from detrkit.utils.errors import DetrkitError
from detrkit.utils.ranges import as_option, check_values, field_hints, has_range


def parts(hint):
    """The plain types in an annotation."""
    return set().union(*map(parts, get_args(hint))) if get_args(hint) else {hint} if isinstance(hint, type) else set()


DATA = [get_args(command)[0] for command in get_args(DataCommand)]
COMMANDS = [Bench, Compare, Convert, Eval, Predict, Quickstart, Reproduce, Study, *DATA]
NUMBERS = [path for path, hint in field_hints(TrainConfig) if {int, float} & parts(hint)]


@pytest.mark.parametrize("settings", [TrainConfig, ShapesOptions, *COMMANDS], ids=lambda kind: kind.__name__)
def test_every_number_says_its_range(settings):
    assert [path for path, hint in field_hints(settings) if not has_range(hint)] == []


def changed(path, value):
    section, name = path
    return TrainConfig().changed(**{section: {name: value}})


@pytest.mark.parametrize("path", NUMBERS, ids=".".join)
@pytest.mark.parametrize("value", [-1, -(10**30), 10**30, math.nan, math.inf, "many"])
def test_wrong_numbers(path, value):
    given = (value,) if path[1] == "backbone_stages" else value
    with pytest.raises(DetrkitError, match=rf"{path[0]}\.{path[1]} is .*: must be "):
        check_values(changed(path, given))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("run", "seed"), -1, "--seed -1: must be at least 0"),
        (("optim", "ema"), 1.0, "--ema 1.0: must be below 1"),
        (("optim", "lr"), 0.0, "--lr 0.0: must be above 0"),
        (("data", "size"), 31, "--size 31: must be at least 32"),
        (("run", "seed"), 2**32, "--seed 4294967296: must be at most 4,294,967,295"),
        (("model", "backbone_stages"), (3, 9), "--backbone-stages 3 9: must be at most 5"),
        (("optim", "lr"), math.nan, "--lr nan: must be a finite number"),
        (("optim", "epochs"), 1.5, "--epochs 1.5: must be a whole number"),
        (("optim", "epochs"), True, "--epochs True: must be a whole number"),
        (("run", "device"), "gpu", "--device gpu: not a device of torch: did you mean cuda"),
        (("data", "path"), "~no-such-user/x", "there is no user no-such-user"),
        (("run", "out"), "x" * 256, "longer than the 255 bytes"),
        (("run", "out"), "a\0b", "zero byte"),
    ],
)
def test_messages(path, value, message):
    with pytest.raises(DetrkitError) as caught:
        check_values(changed(path, value), format_field=as_option)
    assert message in str(caught.value) and len(str(caught.value)) < 160


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run", "seed"), 0),
        (("run", "seed"), 2**32 - 1),
        (("data", "size"), 32),
        (("optim", "lr"), 1),
        (("optim", "lr_backbone"), 0),
        (("optim", "clip_max_norm"), 0),
        (("model", "enc_layers"), 0),
        (("model", "backbone_stages"), (2, 5)),
        (("data", "val_split"), None),
        (("run", "out"), "x" * 255),
        (("data", "path"), "~/x"),
    ],
)
def test_right_values(path, value):
    check_values(changed(path, value))


def test_tuples_of_another_length():
    @dataclass
    class Sides:
        sides: tuple[int, int]

    for wrong in (5, (1, 2, 3), (1,)):
        with pytest.raises(DetrkitError, match="must be 2 values"):
            check_values(Sides(wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words",
    [
        ["quickstart", "--epochs", "0"],
        ["quickstart", "--minutes", "0"],
        ["quickstart", "--seed", "-1"],
        ["train", "data", "--workers", "-1"],
        ["train", "data", "--hidden-dim", "10000000"],
        ["eval", "run", "data", "--batch-size", "0"],
        ["eval", "run", "data", "--size", "1000000000"],
        ["predict", "run", "a.jpg", "--threshold", "nan"],
        ["reproduce", "--limit", "0"],
        ["study", "shapes-four", "--devices", "0"],
        ["data", "shapes", "here", "--seed", "-1"],
        ["data", "shapes", "here", "--sides", "1000000", "1000000"],
        ["data", "preview", "here", "--count", "0"],
        ["compare", "a", "b", "--seed", "-1"],
        ["convert", "a", "b.pth", "--nheads", "0"],
        ["bench", "--repeats", "0"],
    ],
    ids=" ".join,
)
def test_every_command_refuses_before_it_writes(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = capsys.readouterr().err
    option = next(word for word in words if word.startswith("--"))
    assert err.startswith(f"detrkit: error: {option} ") and ": must be " in err and len(err.splitlines()) == 1
    assert not list(Path(tmp_path).iterdir())


def test_fields_of_commands_are_checked_too():
    with pytest.raises(DetrkitError, match="--limit 0: must be at least 1"):
        check_values(dataclasses.replace(Eval("run", "data"), limit=0), format_field=as_option)
