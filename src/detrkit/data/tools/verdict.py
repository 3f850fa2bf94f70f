"""`verdict`: whether a checked dataset can be trained on, in a sentence, and with which splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from detrkit.data.parts import HELD_OUT, divided
from detrkit.data.readers import READERS, match_split
from detrkit.data.tools.check import Report, SplitSummary
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import counted


class Verdict(NamedTuple):
    """Result of a check in words.

    Attributes:
        sentence: what can be done with the dataset.
        train_options: of `detrkit train`, for its splits; empty where the defaults fit.
        can_preview: whether a split could be read.
        advice: what would be better; empty if nothing.
    """

    sentence: str
    train_options: list[str]
    can_preview: bool
    advice: str = ""


def verdict(report: Report, split: str | None = None) -> Verdict:
    """Say whether a dataset can be trained on.

    Args:
        report: of `check`.
        split: the only one that was checked; None: all were.
    """
    errors, warnings = (len(report.of(severity)) for severity in ("error", "warning"))
    can_preview = any(summary.images for summary in report.splits)
    options, train, val = _splits(report)
    if errors:
        hint = ""
        if report.splits and all(fault.id.startswith("image ") for fault in report.of("error")):
            hint = ", or leave these images out with `detrkit train ... --unusable skip`"
        return Verdict(f"not ready to train: correct {counted(errors, 'error')} first{hint}", options, can_preview)
    end = f"; {counted(warnings, 'warning')}" if warnings else ""
    if train is None:
        return Verdict(f"nothing to train on: no split has an image{end}", [], can_preview)
    advice = ""
    classes = counted(len(train.classes), "class")
    if split is not None:
        text = f"split {train.name} can be used: {_contents(train)}, {classes}"
    elif val is None:
        text = f"ready to train: {_contents(train)}, no split to evaluate on, {classes}"
        advice = f"a training keeps {HELD_OUT} % of the images to evaluate on; {_how_to_divide(report)}"
    else:
        text = f"ready to train: {_contents(train)}, {counted(val.images, 'image')} to evaluate on, {classes}"
    return Verdict(text + end, options, can_preview, advice)


def _how_to_divide(report: Report) -> str:
    """Say how images that belong together are divided in this format."""
    how = READERS[report.layout].divided_by
    why = "images of the same scene belong into one split"
    return f"{why}; splits of {report.layout} are {how}" if how else why


def _splits(report: Report) -> tuple[list[str], SplitSummary | None, SplitSummary | None]:
    """Choose the splits to train and to evaluate on; also return the options that say so."""
    present = {summary.name: summary for summary in report.splits if summary.images}
    names = list(present)
    if not names:
        return [], None, None
    train = _matching("train", names, report)
    if train is None:
        return _divided(names[0]), present[names[0]], None
    val = _matching("val", names, report)
    if val is not None:
        return [], present[train], present[val]
    return _divided(train), present[train], None  # a test split is for the end


def _divided(split: str) -> list[str]:
    """Return the options with which a training keeps a part of a split to evaluate on."""
    train, val = divided(split)
    return ["--train-split", train, "--val-split", val]


def _matching(use: str, names: Sequence[str], report: Report) -> str | None:
    """Return the split that a name means, or None."""
    try:
        return match_split(use, names, report.path)
    except DetrkitError:
        return None


def _contents(summary: SplitSummary) -> str:
    return f"{counted(summary.images, 'image')} with {counted(summary.objects, 'object')}"
