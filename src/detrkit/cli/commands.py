"""The commands by name, with what is known of each before its module is imported.

This module imports little but the standard library: `detrkit --help`, `detrkit --version` and a mistyped command need
no more.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from detrkit.utils.errors import UsageError
from detrkit.utils.messages import shortened
from detrkit.utils.visible import one_line


class Command(NamedTuple):
    """A command.

    Attributes:
        name: as typed, such as "data check".
        target: module and class, "detrkit.cli.data:DataCheck"; a dataclass with `run()`.
        summary: what it does, in a line.
        example: arguments that make a whole command.
        first: names of the options that `--help` shows, under their headings; empty: all of them.
        processes: whether it works under torchrun and srun in all processes ("several"), in the first one alone
            ("one"), or refuses several ("alone").
        in_files: whether its results are files: a closed pipe does not stop it.
    """

    name: str
    target: str
    summary: str
    example: str
    first: Mapping[str, Sequence[str]] = {}
    processes: Literal["several", "one", "alone"] = "one"
    in_files: bool = False

    def load(self) -> Any:
        """Import and return the command's dataclass."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)


_TRAIN = {
    "Data": ("datasets", "train-split", "val-split", "size", "batch-size"),
    "Model": ("recipe", "model", "init-from", "masks"),
    "Schedule": ("epochs", "minutes", "lr", "patience"),
    "Run": ("out", "device", "resume", "overfit"),
}
_EVAL = {
    "Model and data": ("model", "data", "split", "size", "masks"),
    "Run": ("out", "device", "batch-size", "limit", "per-class"),
}
_PREDICT = {
    "Model and images": ("checkpoint", "inputs", "threshold", "size", "tile", "overlap"),
    "Video": ("every", "track"),
    "Run": ("out", "pictures", "device", "batch-size"),
    "Many images": ("shards", "merge"),
}
_EXPLAIN = {
    "Model and images": ("checkpoint", "inputs", "threshold", "points", "size"),
    "Queries over a dataset": ("queries", "split", "limit"),
    "Run": ("out", "objects", "page", "device"),
}
_SERVE = {
    "Model": ("checkpoint", "size", "device"),
    "Address": ("host", "port", "token-file"),
    "Limits": ("max-batch", "max-queue", "max-megabytes", "max-megapixels"),
}
_EXPORT = {
    "Model and file": ("checkpoint", "out", "format", "fixed", "postprocess"),
    "Checks": ("data", "split", "images", "max-drop"),
}
_REPRODUCE = {
    "Models and data": ("names", "coco", "panoptic", "weights"),
    "Run": ("out", "batch-size", "device", "limit"),
}
_STUDY = {
    "Models and data": ("recipe", "dataset", "only"),
    "Run": ("out", "epochs", "batch-size", "device", "seed"),
}

GROUPS: Mapping[str, Sequence[Command]] = {
    "Start": (
        Command(
            "quickstart",
            "detrkit.cli.quickstart:Quickstart",
            "train a small detector on images it generates: 3 to 6 minutes",
            "",
            processes="alone",
            in_files=True,
        ),
    ),
    "Your data": (
        Command(
            "data check", "detrkit.cli.data:DataCheck", "find the faults of a dataset, count its objects", "my_data"
        ),
        Command("data preview", "detrkit.cli.data:DataPreview", "draw images as the model will see them", "my_data"),
        Command("data mix", "detrkit.cli.data_mix:DataMix", "show how often each class and dataset is seen", "my_data"),
        Command(
            "data convert",
            "detrkit.cli.data:DataConvert",
            "to COCO, Pascal VOC, YOLO, parquet or CSV",
            "my_data converted --to coco",
        ),
        Command("data download", "detrkit.cli.data_download:DataDownload", "fetch COCO or CPPE-5", "cppe5"),
        Command("data shapes", "detrkit.cli.data:DataShapes", "generate a dataset of shapes", "shapes"),
    ),
    "Train": (
        Command(
            "train",
            "detrkit.cli.train:Train",
            "train a model on a dataset, or resume a run",
            "my_data",
            _TRAIN,
            processes="several",
            in_files=True,
        ),
        Command(
            "study",
            "detrkit.cli.study:Study",
            "train several models under one budget, in one table",
            "shapes-four",
            _STUDY,
            processes="several",
            in_files=True,
        ),
    ),
    "Use": (
        Command(
            "predict",
            "detrkit.cli.predict:Predict",
            "find the objects in images",
            "runs/first photos",
            _PREDICT,
            processes="several",
            in_files=True,
        ),
        Command(
            "explain",
            "detrkit.cli.explain:Explain",
            "show what the model attends to in images",
            "runs/first street.jpg",
            _EXPLAIN,
            in_files=True,
        ),
        Command(
            "serve",
            "detrkit.cli.serve:Serve",
            "answer requests over HTTP, with a page to try it",
            "runs/first",
            _SERVE,
            processes="alone",
        ),
        Command(
            "eval",
            "detrkit.cli.evaluate:Eval",
            "measure a model on a dataset: average precision, report",
            "runs/first my_data",
            _EVAL,
            processes="several",
            in_files=True,
        ),
        Command(
            "convert",
            "detrkit.cli.convert:Convert",
            "weights to and from the official code and Hugging Face",
            "runs/first detr.safetensors",
        ),
        Command(
            "export",
            "detrkit.cli.export:Export",
            "to ONNX, OpenVINO or torch.export, checked against PyTorch",
            "runs/first --out detr.onnx",
            _EXPORT,
            processes="alone",
        ),
    ),
    "Compare and reproduce": (
        Command(
            "reproduce",
            "detrkit.cli.reproduce:Reproduce",
            "measure the published checkpoints again",
            "detr-r50 --coco coco",
            _REPRODUCE,
            processes="several",
            in_files=True,
        ),
        Command(
            "compare",
            "detrkit.cli.compare:Compare",
            "find the stage at which two models differ",
            "official.pth mine.safetensors",
        ),
    ),
    "Tools": (
        Command("models", "detrkit.cli.models:Models", "list the models and their published weights", ""),
        Command("bench", "detrkit.cli.bench:Bench", "measure where the time goes", "detr-r50", processes="alone"),
    ),
}
COMMANDS: Mapping[str, Command] = {command.name: command for group in GROUPS.values() for command in group}
_FAMILIES = {name.split()[0] for name in COMMANDS if " " in name}

# what other programs, or other habits, call a command
_ELSEWHERE = {
    **dict.fromkeys(("val", "validate", "test", "evaluate"), "eval"),
    **dict.fromkeys(("detect", "infer", "inference", "segment", "demo"), "predict"),
    **dict.fromkeys(("fit", "finetune", "fine-tune", "run"), "train"),
    **dict.fromkeys(("attention", "visualize", "visualise", "attn", "why"), "explain"),
    **dict.fromkeys(("server", "api", "http", "deploy", "host"), "serve"),
    **dict.fromkeys(("benchmark", "profile", "speed"), "bench"),
    **{name: f"data {name}" for name in ("check", "download", "preview", "shapes")},
    **dict.fromkeys(("list", "zoo", "weights"), "models"),
}


def command_of(instance: Any) -> Command:
    """Return the entry of an instance of a command's dataclass."""
    target = f"{type(instance).__module__}:{type(instance).__qualname__}"
    return next(command for command in COMMANDS.values() if command.target == target)


def overview(version: str) -> str:
    """Return the text of `detrkit --help`: one screen."""
    lines = [f"detrkit {version}: train, evaluate and use detection transformers on any data", ""]
    for heading, group in GROUPS.items():
        lines += [heading, *(f"  {command.name:14} {command.summary}" for command in group)]
    lines += [
        "",
        "Such as",
        "  detrkit quickstart",
        "  detrkit train my_data --out runs/first",
        "  detrkit predict runs/first photos",
        "",
        "`detrkit COMMAND --help` shows the options that people use, `--help-all` all of them.",
        "Guides: docs/index.md; questions: docs/faq.md, in the source of detrkit",
    ]
    return "\n".join(lines)


def family_help(family: str) -> str:
    """Return the help of commands that share their first word, such as `detrkit data`."""
    members = [command for command in COMMANDS.values() if command.name.startswith(f"{family} ")]
    lines = [f"usage: detrkit {family} COMMAND", ""]
    lines += [f"  {command.name:14} {command.summary}" for command in members]
    return "\n".join([*lines, "", f"`detrkit {family} COMMAND --help` shows the options."])


def find_command(words: Sequence[str]) -> tuple[Command | str, list[str]]:
    """Find the command that words begin with.

    Returns:
        The command, or the first word of a family ("data") that stands alone or with --help; and the other words.

    Raises:
        UsageError: no such command; names the nearest one.
    """
    first, rest = words[0], list(words[1:])
    if first in COMMANDS:
        return COMMANDS[first], rest
    if first in _FAMILIES:
        if not rest or rest[0] in ("-h", "--help", "--help-all"):
            return first, rest
        name = f"{first} {rest[0]}"
        if name in COMMANDS:
            return COMMANDS[name], rest[1:]
        members = [known.partition(" ")[2] for known in COMMANDS if known.startswith(f"{first} ")]
        near = difflib.get_close_matches(rest[0], members, n=1)
        meant = f"did you mean `detrkit {first} {near[0]}`?" if near else f"choose one of {', '.join(members)}"
        raise UsageError(f"unknown command {first} {_shown(rest[0])}: {meant}")
    raise UsageError(_unknown(first, rest))


def _unknown(word: str, rest: Sequence[str]) -> str:
    """Say what was probably meant by a word that is no command."""
    lower = word.lower()
    if word.startswith("-"):
        return f"{_shown(word)}: the command comes first, as in `detrkit train my_data`; `detrkit --help` lists them"
    if lower == "resume":
        return "unknown command resume: write `detrkit train --resume runs/first`"
    if lower in _ELSEWHERE:
        return f"unknown command {_shown(word)}: did you mean `detrkit {_ELSEWHERE[lower]}`?"
    if "=" in word:
        return (
            f"{_shown(word)}: the command comes first, as in `detrkit train my_data --epochs 50`; see `detrkit --help`"
        )
    singles = [name for name in COMMANDS if " " not in name]
    near = difflib.get_close_matches(lower, [*singles, *_FAMILIES], n=1)
    if near:
        return f"unknown command {_shown(word)}: did you mean `detrkit {near[0]}`?"
    if _exists(word):
        return (
            f"{_shown(word)} is a file or folder, no command: such as `detrkit train` or `detrkit data check` before it"
        )
    return f"unknown command {_shown(word)}: `detrkit --help` lists the commands"


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):
        return False


def _shown(word: str) -> str:
    return one_line(shortened(word))
