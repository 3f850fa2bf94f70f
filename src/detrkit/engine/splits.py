"""The datasets of a run: one or several to train on, and those to evaluate on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from detrkit.config import TrainConfig
from detrkit.data import Dataset, open_dataset
from detrkit.data.memory import is_path
from detrkit.data.merging import merge_datasets
from detrkit.data.parts import divided, split_and_part
from detrkit.data.readers.common import UnknownSplit
from detrkit.data.sampling import Sampling, plan_sampling
from detrkit.engine.objects import check_objects
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import counted
from detrkit.utils.similar import nearest_names

OVERFIT_STEPS = 50  # per epoch, with one process
_EVALUATION_SPLITS = ("val", "dev", "test")  # the names of splits begin so that nobody trains on
Use = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Splits:
    """The datasets of a run; `val` and `test` may be absent.

    Attributes:
        overfit: whether `val` has the images to learn and `train` the same ones, repeated to fill an epoch.
        sampling: how often the images of `train` are seen; None: once per epoch each.
        evaluated: what is evaluated on, where several datasets were given; else "".
    """

    train: Dataset
    val: Dataset | None
    test: Dataset | None
    overfit: bool = False
    sampling: Sampling | None = None
    evaluated: str = ""

    @property
    def learned(self) -> Dataset:
        """Dataset of the images to learn from, once each."""
        return self.val if self.overfit and self.val is not None else self.train

    @cached_property
    def rates(self) -> np.ndarray | None:
        """(N,) how often each image of `train` is expected per epoch, or None: once each."""
        return None if self.sampling is None else self.sampling.rates

    @property
    def epoch_images(self) -> int:
        """Number of images of a whole epoch."""
        return len(self.train) if self.sampling is None else self.sampling.epoch_images


def data_sources(config: TrainConfig, in_memory: Any = None) -> list[Any]:
    """Return the datasets to train on: paths, or data in memory.

    Args:
        config: of the run.
        in_memory: in place of the paths, unless it is None; a list of several.
    """
    if in_memory is not None:
        return list(in_memory) if isinstance(in_memory, list) else [in_memory]
    return [config.data.path, *config.data.more_paths]


def data_name(config: TrainConfig) -> str:
    """Return the name of the data of a run for titles: of several datasets "a + b"."""
    return " + ".join(Path(path).name for path in (config.data.path, *config.data.more_paths))


def open_sources(
    config: TrainConfig, use: Use, *, masks: bool, in_memory: Any = None, quiet: bool = False
) -> list[Dataset]:
    """Open the datasets of a config for one use.

    Of several datasets to train on, those without the split to evaluate on are left out. One that is not divided is
    trained on whole; a part of a split, such as train[20%:], is that part of it.

    Args:
        config: of the run.
        use: what they are for.
        masks: whether samples have masks.
        in_memory: opened in place of the paths of the config, unless it is None.
        quiet: do not print the datasets' notes.

    Raises:
        DetrkitError: a missing path or split; names the option to give.
    """
    data = config.data
    sources = data_sources(config, in_memory)
    if use != "train" and data.val_data is not None:
        sources = [data.val_data]
    split = {"train": data.train_split, "val": data.val_split, "test": data.test_split}[use]
    opened: list[Dataset] = []
    refusals: list[DetrkitError] = []
    for source in sources:
        try:
            dataset = _open(config, source, split, use, masks=masks, several=len(sources) > 1)
        except UnknownSplit as error:
            hint = _split_hint(use, error.names) if is_path(source) else _memory_hint(use, error.names)
            refusals.append(DetrkitError(f"{error}; {hint}"))
            if use == "train" or len(refusals) == len(sources):
                raise refusals[0] from error
            continue
        opened.append(dataset)
        for note in () if quiet else dataset.notes:
            console.print(note, markup=False)
    return opened


def _open(config: TrainConfig, source: Any, split: str | None, use: Use, *, masks: bool, several: bool) -> Dataset:
    """Open one dataset.

    Raises:
        UnknownSplit: it has no such split.
        DetrkitError: anything else that is wrong.
    """
    data = config.data
    options: dict[str, Any] = {
        "layout": data.layout if is_path(source) else None,
        "masks": masks,
        "ids": data.ids,
        "unusable": data.unusable if use == "train" else "error",
    }
    try:
        return open_dataset(source, split=split, **options)
    except UnknownSplit as error:
        part = split_and_part(split)[1]
        if not several or len(error.names) != 1 or error.names[0].startswith(_EVALUATION_SPLITS):
            raise
        if use != "train" and part is None:
            raise
        return open_dataset(source, split=f"{error.names[0]}{part or ''}", **options)


def open_split(config: TrainConfig, use: Use, *, masks: bool, in_memory: Any = None, quiet: bool = False) -> Dataset:
    """Open what a config has for one use as one dataset; arguments and errors as in `open_sources`."""
    return merge_datasets(open_sources(config, use, masks=masks, in_memory=in_memory, quiet=quiet))


def open_splits(config: TrainConfig, *, masks: bool = False, in_memory: Any = None) -> Splits:
    """Open the datasets of a config; with overfit, the same few images for training and evaluation.

    Args:
        config: of the run.
        masks: whether samples have masks, as a model that predicts them needs.
        in_memory: opened in place of the paths of the config, unless it is None; a list of several.

    Raises:
        DetrkitError: a missing path or split, no object to learn, or classes that differ between the splits.
    """
    data = config.data
    sources = open_sources(config, "train", masks=masks, in_memory=in_memory)
    train = merge_datasets(sources)
    if train.skipped:
        console.print(f"{train.skipped} images of {train.split} are left out; `detrkit data check` says why")
    if len(train) == 0:
        raise DetrkitError(f"{train.path}: the split {train.split} has no images")
    check_objects(train)
    if config.run.overfit:
        with_objects = [i for i, r in enumerate(train.records) if (~r.crowd).any()][: config.run.overfit]
        few = train.subset(with_objects)
        # an epoch of a few images would be a step or two: repeat them, else evaluations would dominate
        times = -(-OVERFIT_STEPS * data.batch_size * config.optim.accumulate // len(few))
        return Splits(train.subset(with_objects * times), few, None, overfit=True)
    evaluated: dict[str, list[Dataset]] = {}
    if data.val_split not in (None, "none"):
        evaluated["val"] = open_sources(config, "val", masks=masks, in_memory=in_memory)
    if data.test_split is not None:
        evaluated["test"] = open_sources(config, "test", masks=masks, in_memory=in_memory)
    for other in (dataset for datasets in evaluated.values() for dataset in datasets):
        _check_classes(other, train)
    val, test = (merge_datasets(evaluated[use]) if use in evaluated else None for use in ("val", "test"))
    sampling = plan_sampling(
        train, sources=sources, weights=data.weights, repeat_rare=data.repeat_rare, empty_share=data.empty_share
    )
    words = ""
    if len(sources) > 1:
        words = _evaluated_words(evaluated.get("val", []), sources if data.val_data is None else [])
    return Splits(train, val, test, sampling=sampling, evaluated=words)


def _check_classes(other: Dataset, train: Dataset) -> None:
    """Check that a dataset to evaluate on has no class that cannot be learned.

    Raises:
        DetrkitError: it has; names the class, and one that is spelled almost the same.
    """
    extra = sorted(set(other.class_names) - set(train.class_names))
    if not extra:
        return
    near = [f"{a!r} for {b!r}" for a, b in nearest_names(extra, train.class_names).items()]
    raise DetrkitError(
        f"{other.path} ({other.split}) has classes that {train.path} ({train.split}) has not: "
        f"{', '.join(extra[:5])}; give both splits one class list"
        + (f" (perhaps {', '.join(near[:5])})" if near else "")
    )


def _evaluated_words(evaluated: Sequence[Dataset], sources: Sequence[Dataset]) -> str:
    """Say which of several datasets are evaluated on, and which of those with this purpose lack the split."""
    if not evaluated:
        return "evaluated on none of the datasets"
    words = " + ".join(f"{d.name} ({d.split}, {counted(len(d), 'image')})" for d in evaluated)
    left = [d.name for d in sources if d.path not in {e.path for e in evaluated}]
    return f"evaluated on {words}" + (f"; {', '.join(left)} has no such split" if left else "")


def _split_hint(use: str, names: Sequence[str]) -> str:
    """Name the options that choose a split of a dataset.

    Args:
        use: "train", "val" or "test".
        names: of the existing splits.
    """
    if use in ("train", "val") and len(names) == 1:
        train, val = divided(names[0])
        options = f"--train-split '{train}' --val-split '{val}'"
        return f"to keep a fifth of it for evaluation, pass {options}; --val-split none: no evaluation"
    without = " (none: no evaluation)" if use == "val" else ""
    return f"choose with --{use}-split{without}"


def _memory_hint(use: str, names: Sequence[str]) -> str:
    """Name the settings that choose a split of data in memory, and the way to give it splits."""
    if use in ("train", "val") and len(names) == 1:
        train, val = divided(names[0])
        return (
            f"keep a fifth of it for evaluation by data.train_split={train!r} and data.val_split={val!r}, or give it "
            "splits: data={'train': ..., 'val': ...}"
        )
    without = " ('none': no evaluation)" if use == "val" else ""
    return f"choose with data.{use}_split{without}, or give it splits: data={{'train': ..., 'val': ...}}"
