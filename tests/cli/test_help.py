"""Help fits a screen, says what people use first, and shows every setting when it is asked to."""

from __future__ import annotations

import pytest

from detrkit.cli import _parse
from detrkit.cli.commands import COMMANDS, GROUPS
from detrkit.cli.help import command_help, first_sentence
from detrkit.cli.options import options_of
from detrkit.cli.train import Train
from detrkit.config import load_config, recipes


def _help(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as leave:
        _parse(words)
    assert leave.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["--help-all"], ["help"]])
def test_the_overview_is_one_screen(capsys, words):
    text = _help(capsys, *words)
    lines = text.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 88
    for heading, group in GROUPS.items():
        assert heading in lines
        assert all(f"  {command.name} " in text for command in group)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_help_of_each_command(name, everything, width):
    command = COMMANDS[name]
    text = command_help(command, command.load(), everything=everything, width=width)
    words = " ".join(text.split())
    assert "None" not in words.replace("None means", "") and "(default: )" not in text and "config." not in text
    options = options_of(command.load())
    shown = options if everything or not command.first else [o for o in options if _is_first(o, command)]
    for option in shown:
        assert option.metavar in words if option.positional else f"--{option.name}" in words, option.name
    too_long = [line for line in text.splitlines() if len(line) > width and len(line.split()) > 2]
    assert not too_long  # a single word may be longer


def _is_first(option, command) -> bool:
    names = {name for group in command.first.values() for name in group}
    return (option.path[-1].replace("_", "-") if option.positional else option.name) in names


def test_train_shows_first_what_people_use(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = _help(capsys, "train", "--help")
    assert len(text.splitlines()) <= 66
    assert "\n  --epochs N " in text and "--dim-feedforward" not in text
    assert "more options: `detrkit train --help-all`" in text
    whole = _help(capsys, "train", "--help-all")
    assert all(f"--{option.name}" in whole for option in options_of(Train) if not option.positional)
    for heading in ("Data", "Model", "Optimization", "Losses", "Run"):
        assert f"\n{heading}\n" in whole


def test_the_recipes_are_those_of_the_folder(capsys):
    text = " ".join(_help(capsys, "train", "--help-all").split())
    names = text.split("all: ")[1].split(".")[0].split(", ")
    assert names == recipes() and {"dino-12", "h-deformable-12", "own-data"} <= set(names)


def test_defaults_are_those_of_the_recipe(capsys):
    text = " ".join(_help(capsys, "train", "--recipe", "small", "--help-all").split())
    small = load_config("small")
    assert small.optim.epochs == 100
    assert "--epochs N Passes over the training split. (default: 100)" in text


def test_defaults_without_a_recipe_are_chosen(capsys):
    text = " ".join(_help(capsys, "train", "--help").split())
    assert "--epochs N Passes over the training split (default: chosen)" in text and "300)" not in text
    assert "(default: runs/detrkit)" in text and "(default: 0.0001)" not in text


def test_first_sentence():
    assert first_sentence("Keep them. Others go.") == "Keep them"
    assert (
        first_sentence("detrkit[timm], 0.5 or e.g. this; by default 3.")
        == "detrkit[timm], 0.5 or e.g. this; by default 3"
    )


def test_the_help_of_a_family(capsys):
    text = _help(capsys, "data")
    assert text == _help(capsys, "data", "--help") == _help(capsys, "help", "data")
    assert "data check" in text and "data download" in text and "train" not in text
