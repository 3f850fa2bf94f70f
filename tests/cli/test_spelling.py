"""What was typed wrongly gets one line that says how it is written here."""

from __future__ import annotations

import pytest

from detrkit.cli import _parse, main
from detrkit.cli.commands import COMMANDS
from detrkit.cli.options import options_of
from detrkit.cli.spelling import check_words
from detrkit.utils.errors import UsageError


def _refusal(*words: str) -> str:
    with pytest.raises(UsageError) as refused:
        _parse(words)
    return str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train x --epoch 5", "unknown option --epoch: did you mean --epochs? (`detrkit train --help`)"),
        ("train x --imgsz 640", "unknown option --imgsz: did you mean --size? (`detrkit train --help`)"),
        ("train x --img-size=640", "unknown option --img-size: did you mean --size? (`detrkit train --help`)"),
        ("train x --batch 4", "unknown option --batch: did you mean --batch-size? (`detrkit train --help`)"),
        ("train x --lr0 1e-3", "unknown option --lr0: did you mean --lr? (`detrkit train --help`)"),
        ("train x --project runs", "unknown option --project: did you mean --out? (`detrkit train --help`)"),
        (
            "train x --weights a.pt",
            "--weights a.pt: one number for each dataset; trained weights are --init-from (`detrkit train --help`)",
        ),
        ("train --data my_data", "unknown option --data: DATASET stands alone: `detrkit train my_data`"),
        ("train x -e 5", "unknown option -e: did you mean --epochs?"),
        ("train x --EPOCHS 5", "unknown option --EPOCHS: did you mean --epochs?"),
        ("train x --optimizer SGD", "unknown option --optimizer: detrkit trains with AdamW: leave it out"),
        ("train x --no-such-thing", "unknown option --no-such-thing: detrkit train has none of that name"),
        ("predict a b --conf 0.3", "unknown option --conf: did you mean --threshold? (`detrkit predict --help`)"),
        (
            "predict a --source b",
            "unknown option --source: IMAGE|FOLDER|GLOB stands alone: `detrkit predict runs/first",
        ),
        ("predict a b --iou 0.5", "unknown option --iou: DETR models need no NMS: leave it out"),
        ("eval a b --weights c", "unknown option --weights: MODEL stands alone: `detrkit eval runs/first my_data`"),
        ("train data=x epochs=5", "data=x: DATASET stands alone: `detrkit train my_data`"),
        ("train x epochs=5", "epochs=5: write --epochs 5 (`detrkit train --help`)"),
        ("train x imgsz=640", "imgsz=640: write --size 640"),
        ("train x resume=True", "resume=True: write --resume runs/first"),
        ("train x masks=False", "masks=False: write --no-masks"),
        ("data check x y", "y: one word too many: detrkit data check takes PATH, and options with their names"),
        ("train x --epochs ten", "--epochs ten: must be a whole number (`detrkit train --help`)"),
        ("train x --lr fast", "--lr fast: must be a number"),
        ("train x --epochs", "--epochs: needs a whole number"),
        ("train x --epochs --lr 1", "--epochs: needs a whole number"),
        ("train x --augment flop", "--augment flop: choose one of detr, flip, none, lsj (did you mean flip?)"),
        ("train x --draft=3", "--draft=3: it takes no value: write --draft or --no-draft"),
        ("train x --masks=3", "--masks=3: write --masks or --no-masks"),
        ("train x --options depth", "--options depth: depth is no name=value"),
        ("bench --size 640", "--size 640: needs 2 values: SHORT LONG"),
        ("eval", "detrkit eval needs MODEL and DATASET: such as `detrkit eval runs/first my_data`"),
        ("eval x", "detrkit eval needs DATASET: such as `detrkit eval runs/first my_data`"),
        (
            "data convert a b",
            "detrkit data convert needs --to coco|voc|yolo|parquet|csv: such as `detrkit data convert",
        ),
        ("val a b", "unknown command val: did you mean `detrkit eval`?"),
        ("detect a b", "unknown command detect: did you mean `detrkit predict`?"),
        ("trian x", "unknown command trian: did you mean `detrkit train`?"),
        ("exprot x", "unknown command exprot: did you mean `detrkit export`?"),
        ("resume runs/first", "unknown command resume: write `detrkit train --resume runs/first`"),
        ("check x", "unknown command check: did you mean `detrkit data check`?"),
        ("data chek x", "unknown command data chek: did you mean `detrkit data check`?"),
        ("data turn x", "unknown command data turn: choose one of check, preview, mix, convert, download, shapes"),
        ("task=detect mode=train", "task=detect: the command comes first, as in `detrkit train my_data --epochs 50`"),
        ("--epochs 5 train x", "--epochs: the command comes first"),
        ("\x1b[2Jx", "unknown command \\x1b[2Jx: `detrkit --help` lists the commands"),
    ],
)
def test_what_was_meant(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = _refusal(*words.split(" "))
    assert said.startswith(message), said
    assert "\n" not in said


def test_a_typo_is_one_line_and_status_2(capsys):
    assert main(["train", "x", "--epoch", "5"]) == 2
    said = capsys.readouterr()
    assert said.err == "detrkit: error: unknown option --epoch: did you mean --epochs? (`detrkit train --help`)\n"
    assert said.out == ""


def test_a_file_with_an_equals_sign_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "size=3").mkdir()
    assert _parse(["data", "check", "size=3"]).path.name == "size=3"


@pytest.mark.parametrize(
    ("words", "masks"),
    [
        ("train d --masks", True),
        ("train --masks d", True),
        ("train d --masks False", False),
        ("train d --masks=False", False),
        ("train d --no-masks", False),
        ("train d", None),
    ],
)
def test_a_switch_of_the_model_has_three_values(words, masks):
    command = _parse(words.split())
    assert command.config.model.masks is masks and command.datasets == ("d",)


def test_values_in_every_form():
    line = "train d --backbone-stages 3 4 5 --lr=1e-3 --batch_size 4 --no-tensorboard --options a=1 b=x"
    command = _parse(line.split())
    config = command.config
    assert config.model.backbone_stages == (3, 4, 5) and config.optim.lr == 1e-3 and config.data.batch_size == 4
    assert config.run.tensorboard is False and config.model.options == {"a": 1, "b": "x"}
    assert _parse(["bench", "--size", "640", "853"]).size == (640, 853)
    assert _parse(["predict", "a", "b", "--no-images", "--", "-c"]).inputs == ("b", "-c")
    assert _parse(["compare", "a", "b", "--image-id", "-5"]).image_id == -5


_FILES = (("train", "recipe"), ("train", "resume"))  # are read while the command line is


def test_what_the_check_passes_tyro_reads():
    """The check and tyro agree on every option: each with a value of its kind."""
    words = {int: "3", float: "0.5", str: "word"}
    for name, command in COMMANDS.items():
        options = options_of(command.load())
        line = [word for option in options if option.positional for word in [_value(option, words)]]
        for option in options:
            if not option.positional and (name, option.name) not in _FILES:
                count = 2 if option.count == "*" else option.count
                line += [option.flags[0], *[_value(option, words, number) for number in range(count)]]
        check_words(command, options, line)
        assert _parse([*name.split(), *line]), name


def _value(option, words, number=0):
    kind = option.value_kind(number)
    choices = [c for c in getattr(kind, "__args__", ()) if isinstance(c, str | float)]
    if option.read is not None:
        return f"a{number}=1"
    if option.name in ("size", "max-size", "sides", "width", "tile"):
        return "64"
    if option.metavar.startswith("X"):
        return "0.5"
    return choices[-1] if choices else words.get(kind, "word")
