"""The check of what was typed, before tyro parses it: one line that names the option and how it is written here.

tyro reports unknown options and bad values in boxes, with options of other commands; its hook for errors is private.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

from detrkit.cli.commands import Command
from detrkit.cli.options import Option
from detrkit.utils.errors import DetrkitError, UsageError
from detrkit.utils.messages import shortened
from detrkit.utils.ranges import reason_against
from detrkit.utils.visible import first_line, one_line

_MOST_CHOICES = 12  # of a message

# names of options elsewhere (Ultralytics, the official code, others) -> names here; the first that a command has counts
_ELSEWHERE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("imgsz", "img-size", "image-size", "img", "resolution", "input-size", "resize"), ("size",)),
    **dict.fromkeys(("batch", "bs", "batchsize", "b", "batch-size"), ("batch-size", "batch")),
    **dict.fromkeys(("lr0", "learning-rate", "lrate"), ("lr",)),
    **dict.fromkeys(("epoch", "num-epochs", "max-epochs", "n-epochs", "e"), ("epochs",)),
    **dict.fromkeys(
        ("name", "project", "output", "output-dir", "save-dir", "outdir", "exp", "run", "o", "to"),
        ("out", "to", "save"),
    ),
    **dict.fromkeys(
        ("conf", "conf-thres", "confidence", "score", "score-threshold", "conf-threshold", "thresh"), ("threshold",)
    ),
    **dict.fromkeys(
        ("weights", "pretrained", "checkpoint", "ckpt", "finetune", "model-path", "weight", "load-from"),
        ("init-from", "CHECKPOINT", "MODEL", "SOURCE", "model"),
    ),
    **dict.fromkeys(("model",), ("CHECKPOINT", "MODEL")),
    **dict.fromkeys(
        ("data", "dataset", "data-path", "data-dir", "dataset-path", "coco-path", "coco", "root"),
        ("DATASET", "PATH", "SOURCE", "data", "coco", "queries"),
    ),
    **dict.fromkeys(
        ("source", "input", "inputs", "image", "images", "img-path", "photos"),
        ("IMAGE|FOLDER|GLOB", "images", "SOURCE"),
    ),
    **dict.fromkeys(("gpu", "gpus", "gpu-id", "cuda", "accelerator"), ("device",)),
    **dict.fromkeys(("nproc", "num-gpus", "world-size"), ("devices",)),
    **dict.fromkeys(("num-workers", "worker", "j"), ("workers",)),
    **dict.fromkeys(("amp", "half", "fp16", "bf16", "mixed-precision"), ("precision",)),
    **dict.fromkeys(("early-stopping", "early-stop"), ("patience",)),
    **dict.fromkeys(("warmup", "warmup-epochs", "warmup-iters"), ("warmup-steps",)),
    **dict.fromkeys(("augmentation", "augmentations", "aug"), ("augment",)),
    **dict.fromkeys(("close-mosaic", "no-aug-epochs"), ("plain-epochs",)),
    **dict.fromkeys(("hsv", "hsv-h", "hsv-s", "hsv-v", "color-jitter"), ("color",)),
    **dict.fromkeys(("wd", "decay"), ("weight-decay",)),
    **dict.fromkeys(("split-name", "set", "subset"), ("split",)),
    **dict.fromkeys(("save-period", "val-interval", "eval-interval", "eval-freq"), ("eval-every",)),
    **dict.fromkeys(("exist-ok", "overwrite", "f", "yes"), ("force",)),
    **dict.fromkeys(("cfg", "config", "cfg-path", "config-file", "hyp"), ("recipe",)),
    **dict.fromkeys(("random-seed",), ("seed",)),
    **dict.fromkeys(("max-det", "maxdets"), ("max-dets",)),
    **dict.fromkeys(("format",), ("to", "layout")),
}
_NONE_NEEDED = {
    **dict.fromkeys(("iou", "iou-thres", "nms", "agnostic-nms"), "DETR models need no NMS: leave it out"),
    **dict.fromkeys(("optimizer", "optim"), "detrkit trains with AdamW: leave it out"),
    **dict.fromkeys(("save", "save-txt", "show"), "images and predictions.json are always written: leave it out"),
    **dict.fromkeys(("verbose", "v", "quiet", "q"), "detrkit has no levels of output: leave it out"),
}

# options of numbers under whose name other programs take something else -> what is written here for that
_NUMBERS_HERE = {"weights": "one number for each dataset; trained weights are --init-from"}


@dataclass
class Typed:
    """What was typed after a command.

    Attributes:
        options: words of the options as tyro takes them: a switch that may be unset has its value.
        positionals: words that stand alone, in their order.
        values: name of an option -> its values; of a switch "True" or "False".
    """

    options: list[str] = field(default_factory=list)
    positionals: list[str] = field(default_factory=list)
    values: dict[str, list[str]] = field(default_factory=dict)

    @property
    def words(self) -> list[str]:
        """All words as tyro takes them, with those that stand alone together."""
        if any(word.startswith("-") for word in self.positionals):
            return [*self.options, "--", *self.positionals]
        return [*self.positionals, *self.options]

    def last(self, name: str) -> str | None:
        """Return the value of an option that takes one, or None where it was not given."""
        values = self.values.get(name)
        return values[0] if values else None


def check_words(command: Command, options: Sequence[Option], words: Sequence[str]) -> Typed:
    """Check the words after a command.

    Args:
        command: the command.
        options: its options.
        words: what was typed after it.

    Returns:
        The words in their parts.

    Raises:
        UsageError: an option that the command does not have, a value that an option does not take, or a word too many
            or too few.
    """
    reader = _Reader(command, options, list(words))
    reader.read()
    reader.check_positionals()
    for option in options:
        if option.required and not option.positional and option.name not in reader.typed.values:
            kind = option.metavar if get_origin(option.kind) is Literal else ""
            raise UsageError(
                f"detrkit {command.name} needs --{option.name}{' ' + kind if kind else ''}: such as {_whole(command)}"
            )
    return reader.typed


class _Reader:
    """Goes through the words of a command once."""

    def __init__(self, command: Command, options: Sequence[Option], words: list[str]) -> None:
        self.command, self.options, self.words = command, options, words
        self.named = {flag: option for option in options if not option.positional for flag in option.flags}
        self.typed = Typed()

    def read(self) -> None:
        """Take word after word."""
        position = 0
        while position < len(self.words):
            word = self.words[position]
            position += 1
            if word == "--":
                self.typed.positionals += self.words[position:]
                return
            if not _is_flag(word):
                self.typed.positionals.append(word)
                continue
            flag, equals, value = word.partition("=")
            flag = "--" + flag[2:].replace("_", "-") if flag.startswith("--") else flag
            if flag not in self.named:
                raise UsageError(self._unknown(flag, word, position))
            position = self._take(flag, [value] if equals else None, position)

    def _take(self, flag: str, attached: list[str] | None, position: int) -> int:
        """Take an option and its values; return the position of the next word."""
        option = self.named[flag]
        off = option.kind is bool and flag.startswith("--no-")
        if option.kind is bool:
            following = self.words[position : position + 1] if attached is None else attached
            if option.switch_or_unset and not off and following and following[0] in ("True", "False", "None"):
                values, position = following, position + (attached is None)
            elif attached is not None:
                raise UsageError(f"{flag}={attached[0]}: {_switch_words(option)}{self._help}")
            else:
                values = ["False" if off else "True"]
            self.typed.options += ["--" + option.name, *values] if option.switch_or_unset else [flag]
            self.typed.values[option.name] = values
            return position
        values = list(attached or ())
        count = option.count
        while position < len(self.words) and (count == "*" or len(values) < count):
            if _is_flag(self.words[position]) or self.words[position] == "--":
                break
            values.append(self.words[position])
            position += 1
        if count != "*" and len(values) < count:
            given = f" {' '.join(values)}" if values else ""
            raise UsageError(f"{flag}{given}: needs {_needs(option)}{self._help}")
        for number, value in enumerate(values):
            reason = value_reason(option, number, value)
            if reason is not None:
                reason = _NUMBERS_HERE.get(option.name, reason)
                raise UsageError(f"{flag} {_shown(value)}: {reason}{self._help}")
        reason = _range_reason(option, values) if option.read is None else _own_reason(option, values)
        if reason is not None:
            raise UsageError(f"{flag} {' '.join(map(_shown, values))}: {reason}{self._help}")
        self.typed.options += [flag, *values] if attached is None else [f"{flag}={values[0]}", *values[1:]]
        self.typed.values[option.name] = values
        return position

    def check_positionals(self) -> None:
        """Check the words that stand alone."""
        wanted = [option for option in self.options if option.positional]
        words, position = self.typed.positionals, 0
        for option in wanted:
            count = len(words) - position if option.count == "*" else option.count
            for word in words[position : position + count]:
                self._check_positional(option, word)
            if option.required and position >= len(words):
                missing = " and ".join([o.metavar for o in wanted if o.required][position:])
                example = _whole(self.command)
                raise UsageError(f"detrkit {self.command.name} needs {missing}: such as {example}{self._help}")
            position += count
        if position < len(words):
            word = words[position]
            hint = self._as_here(word)
            if hint is None:
                takes = " ".join(option.metavar for option in wanted) or "no word alone"
                hint = f"one word too many: detrkit {self.command.name} takes {takes}, and options with their names"
            raise UsageError(f"{_shown(word)}: {hint}{self._help}")

    def _check_positional(self, option: Option, word: str) -> None:
        """Check one word that stands alone: its kind, and that it is not of another program's syntax."""
        reason = value_reason(option, 0, word)
        if reason is not None:
            raise UsageError(f"{_shown(word)}: {reason}{self._help}")
        hint = self._as_here(word)
        if hint is not None:
            raise UsageError(f"{_shown(word)}: {hint}{self._help}")

    def _as_here(self, word: str) -> str | None:
        """Say how `imgsz=640` is written here; None for a word that is none of these, or the name of a file."""
        name, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z][\w-]*", name) or os.path.exists(word):
            return None
        name = name.lower().replace("_", "-")
        if name in _NONE_NEEDED:
            return _NONE_NEEDED[name]
        if "--" + name in self.named:
            option = self.named["--" + name]
        else:
            found = self._elsewhere(name)
            if isinstance(found, str):
                return f"{found} stands alone: {_whole(self.command)}"
            if found is None:
                return f"options are written --name value, and detrkit {self.command.name} has no {name}"
            option = found
        if option.kind is bool:
            return f"write --{'no-' if value.lower() in ('false', '0', 'no') else ''}{option.name}"
        takes_path = option.name == "resume" and value.lower() in ("true", "1")
        return f"write --{option.name} {'runs/first' if takes_path else _shown(value) or option.metavar}"

    def _unknown(self, flag: str, word: str, position: int) -> str:
        """Say what was probably meant by an option that the command does not have."""
        unknown = f"unknown option {_shown(flag)}"
        name = flag.lstrip("-").replace("_", "-")
        bare = name.lower().removeprefix("no-")
        if bare in _NONE_NEEDED:
            return f"{unknown}: {_NONE_NEEDED[bare]}{self._help}"
        found = self._elsewhere(bare)
        if isinstance(found, str):
            return f"{unknown}: {found} stands alone: {_whole(self.command)}{self._help}"
        names = sorted({flag for flag in self.named if flag.startswith("--")})
        starts = [known for known in names if known.startswith("--" + name)] if len(name) > 2 else []
        near = difflib.get_close_matches("--" + name.lower(), names, n=1, cutoff=0.75)
        if found is None and (near or starts):
            found = self.named[(near or starts)[0]]
            meant = (near or starts)[0]
        elif found is not None:
            meant = "--" + found.name
        else:
            return f"{unknown}: detrkit {self.command.name} has none of that name{self._help}"
        if flag.lower() != flag and flag.lower() in self.named:
            meant = flag.lower()
        return f"{unknown}: did you mean {meant}?{self._help}"

    def _elsewhere(self, name: str) -> Option | str | None:
        """Return the option, or the name of the positional argument, that other programs call `name`."""
        for candidate in _ELSEWHERE.get(name, ()):
            for option in self.options:
                if option.positional and option.metavar.strip("[]") == candidate:
                    return option.metavar
                if not option.positional and option.name == candidate:
                    return option
        return None

    @property
    def _help(self) -> str:
        return f" (`detrkit {self.command.name} --help`)"


def value_reason(option: Option, number: int, word: str) -> str | None:
    """Return why an option does not take a word as its value; None if it does."""
    return None if option.optional and word == "None" else _kind_reason(option.value_kind(number), word)


def _kind_reason(kind: Any, word: str) -> str | None:
    if get_origin(kind) is Union:
        reasons = [_kind_reason(part, word) for part in get_args(kind)]
        return None if None in reasons else " or ".join(map(str, reasons)).replace("or choose ", "or ")
    if get_origin(kind) is Literal:
        choices = [str(choice) for choice in get_args(kind)]
        if word in choices:
            return None
        near = difflib.get_close_matches(word.lower(), choices, n=1)
        shown = ", ".join(choices[:_MOST_CHOICES]) + (", ..." if len(choices) > _MOST_CHOICES else "")
        return f"choose {'one of ' if len(choices) > 1 else ''}{shown}" + (
            f" (did you mean {near[0]}?)" if near else ""
        )
    if kind in (int, float):
        try:
            kind(word)
        except ValueError:
            return "must be a whole number" if kind is int else "must be a number"
    return None


def _own_reason(option: Option, words: Sequence[str]) -> str | None:
    """Return why the values of an option with a form of their own cannot be read; None if they can."""
    assert option.read is not None
    try:
        option.read(list(words))
    except (ValueError, DetrkitError) as error:
        return first_line(error)
    return None


def _range_reason(option: Option, words: Sequence[str]) -> str | None:
    """Return why numbers are out of an option's range, or a device cannot be one; None for values of another kind."""
    kinds = [option.value_kind(number) for number in range(len(words))]
    if kinds == [str] and option.name == "device":
        return reason_against(words[0], option.hint)
    if not all(kind in (int, float) for kind in kinds) or "None" in words:
        return None
    values = [kind(word) for kind, word in zip(kinds, words, strict=True)]
    return reason_against(tuple(values) if get_origin(option.kind) is tuple else values[0], option.hint)


def _is_flag(word: str) -> bool:
    """Return whether a word is an option: dashes and a letter. Negative numbers, -inf and -nan are values."""
    bare = word.lstrip("-")
    number = word[:2] != "--" and bare.lower() in ("inf", "infinity", "nan")
    return word.startswith("-") and bare[:1].isalpha() and not number


def _needs(option: Option) -> str:
    """Describe the values of an option."""
    kind: Any = option.kind
    if get_origin(kind) is Literal:
        return f"a value: {', '.join(map(str, get_args(kind)))}"
    if option.count != 1:
        return f"{option.count} values: {option.metavar}"
    return {int: "a whole number", float: "a number"}.get(kind, "a value")


def _switch_words(option: Option) -> str:
    if option.switch_or_unset:
        return f"write --{option.name} or --no-{option.name}"
    return f"it takes no value: write --{option.name} or --no-{option.name}"


def _whole(command: Command) -> str:
    """Return an example of a whole command."""
    return f"`detrkit {command.name} {command.example}`" if command.example else f"`detrkit {command.name}`"


def _shown(word: str) -> str:
    return one_line(shortened(word))
