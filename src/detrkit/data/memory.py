"""Datasets that a program hands over in memory: DataFrames, Hugging Face Datasets, open Datasets, dicts of these."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from detrkit.data.dataset import Dataset
from detrkit.data.readers.base import Reader
from detrkit.data.readers.common import match_split
from detrkit.data.readers.csv_columns import Form
from detrkit.data.readers.frames import FRAME, FrameReader, is_frame
from detrkit.data.readers.hub_datasets import DATASET, HubReader, is_hub_dataset
from detrkit.utils.errors import DetrkitError

# What the settings of a run have for data.path that was trained on data in memory: ":memory:/DataFrame". The part after
# the slash is the name that reports show.
IN_MEMORY = ":memory:/"
_TAKEN = (
    "a path, a pandas DataFrame, a datasets.Dataset or DatasetDict, or a dict of split -> one of these or a Dataset"
)
_Kind = Literal["frame", "hub", "open"]


def is_path(data: object) -> bool:
    """Tell whether data is named by its path, not handed over in memory."""
    return isinstance(data, str | os.PathLike)


def check_not_in_memory(path: str | Path) -> None:
    """Check that a path is not that of a run on data in memory.

    Raises:
        DetrkitError: it is; says what to do.
    """
    if str(path).startswith(IN_MEMORY):
        name = str(path)[len(IN_MEMORY) :]
        raise DetrkitError(
            f"data.path: the run was trained on data in memory ({name}), which no command can find: hand it over in "
            "Python, as in detrkit.train(config, resume=True, data=...)"
        )


def path_or_name(data: Any) -> str:
    """Return what a run's settings have for data.path: the path itself, or a name that `check_not_in_memory` knows.

    Raises:
        DetrkitError: as `name_in_memory`.
    """
    return str(os.fspath(data)) if is_path(data) else f"{IN_MEMORY}{name_in_memory(data)}"


def named_data(data: Any) -> tuple[dict[str, Any], Any]:
    """Return the settings that name one dataset or a list of several, and what is in memory.

    Args:
        data: a path or data in memory, or a list of these.

    Returns:
        Values of the settings data.path and data.more_paths; and the data as given, or None if all are paths.

    Raises:
        DetrkitError: an empty list, or one with something that cannot be opened.
    """
    several = list(data) if isinstance(data, list | tuple) else [data]
    if not several:
        raise DetrkitError("data: an empty list: give it a dataset")
    names = [path_or_name(item) for item in several]
    in_memory = None if all(map(is_path, several)) else several if len(several) > 1 else several[0]
    return {"path": names[0], "more_paths": tuple(names[1:])}, in_memory


def name_in_memory(data: Any) -> str:
    """Return the name of data in memory, for messages and reports.

    Raises:
        DetrkitError: it is none that can be opened.
    """
    kind = _kind(data)
    if kind == "open":
        first = data if isinstance(data, Dataset) else next(iter(data.values()))
        return first.name or DATASET
    return FRAME if kind == "frame" else DATASET


def memory_reader(data: Any, *, root: Path | None, box_format: Form | None) -> Reader:
    """Return a reader of a DataFrame or Hugging Face Dataset, or of a dict of split -> one of them.

    Raises:
        DetrkitError: anything else, or data without the columns that are needed.
    """
    kind = _kind(data)
    if kind == "open":
        raise DetrkitError(f"{name_in_memory(data)}: an open Dataset: give what it was opened from")
    return (FrameReader if kind == "frame" else HubReader)(data, root, box_format)


def open_names(data: Any) -> list[str] | None:
    """Return the names of the splits of an open Dataset, or of a dict of them; None if the data is not open yet."""
    if _kind(data) != "open":
        return None
    return [data.split or "all"] if isinstance(data, Dataset) else list(data)


def chosen_open(data: Any, split: str | None, *, masks: bool) -> Dataset | None:
    """Return the open Dataset of a split, from one or from a dict of them; None if the data is not open yet.

    Raises:
        DetrkitError: no such split, or no masks where they are needed.
    """
    if open_names(data) is None:
        return None
    parts: dict[str, Dataset] = {data.split or "all": data} if isinstance(data, Dataset) else dict(data)
    dataset = parts[match_split(split, list(parts), Path(name_in_memory(data)))]
    if masks and not dataset.with_masks:
        raise DetrkitError(f"{dataset.path}: opened without masks, but they are needed: open it with masks=True")
    return dataset if masks else dataset.without_masks()


def _kind(data: Any) -> _Kind:
    """Return what kind of data this is.

    Raises:
        DetrkitError: no kind that can be opened; a dict that is empty or mixed.
    """
    parts = list(data.values()) if isinstance(data, Mapping) else [data]
    if not parts:
        raise DetrkitError("data: an empty dict: give it a split, such as train")
    kinds: set[_Kind] = set()
    for part in parts:
        if isinstance(part, Dataset):
            kinds.add("open")
        elif is_frame(part):
            kinds.add("frame")
        elif is_hub_dataset(part):
            kinds.add("hub")
        else:
            raise DetrkitError(f"data: {type(part).__name__} is no dataset: expected {_TAKEN}")
    if len(kinds) > 1:
        raise DetrkitError("data: a dict of several kinds of datasets: open each with detrkit.open_dataset first")
    return kinds.pop()
