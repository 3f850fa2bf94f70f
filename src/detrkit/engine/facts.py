"""`gather_facts`, `choose_config`: the facts that a choice of settings depends on, and the settings chosen."""

from __future__ import annotations

import dataclasses
import os
import urllib.error
import urllib.request
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from detrkit.config import TrainConfig
from detrkit.data import Dataset
from detrkit.data.memory import is_path, named_data
from detrkit.data.merging import merge_datasets
from detrkit.data.opening import split_names
from detrkit.data.parts import divided
from detrkit.data.readers import match_split
from detrkit.data.readers.common import UnknownSplit
from detrkit.data.sampling import plan_sampling
from detrkit.engine.budget import TimeLimit
from detrkit.engine.choice import Choice, choose
from detrkit.engine.environment import check_processes
from detrkit.engine.schedule import with_epochs
from detrkit.engine.setup import chosen_model, predicts_masks
from detrkit.engine.splits import data_sources, open_sources
from detrkit.engine.training_facts import FINE_TUNED, Availability, Facts
from detrkit.models.registry import ARCHITECTURES
from detrkit.models.settings import full_options
from detrkit.utils.download import home
from detrkit.utils.errors import DetrkitError
from detrkit.utils.ranges import field_hints

_HUB_NAME = "models--facebook--detr-resnet-50"  # DETR-R50 in the cache of the Hugging Face Hub
SLOWER = 1.5  # a machine may be than was guessed before a run gets fewer epochs
LEAST_SECONDS = 180.0  # that a run may take at any rate
_LOOK_SECONDS = 3.0  # for an answer of the server with the weights
_RATES = ("weights", "repeat_rare", "empty_share")  # the settings that say how often images are seen
_SAMPLED = 5000  # images whose sizes and objects are looked at, evenly over the split


class ChosenSettings(NamedTuple):
    """Settings for a training, the lines that say what was chosen and why, and the time that it may take, or None."""

    config: TrainConfig
    lines: list[str]
    limit: TimeLimit | None = None


def choose_config(
    data: str | Path | Any, config: TrainConfig | None = None, *, fixed: Collection[str] = ()
) -> TrainConfig:
    """Choose the settings of a training from its data and this machine, as `detrkit train` does without a recipe.

    No image is decoded and nothing is downloaded; on a machine with a GPU the server of the published weights is asked
    whether it answers. The result is complete: `detrkit.train` takes it, `to_yaml` writes it.

    Args:
        data: path of the dataset, data in memory as `detrkit.train` takes it, or a list of several datasets.
        config: settings of which some are fixed; by default none are.
        fixed: names of the settings of `config` that stay, such as "model.name" or "optim.epochs".

    Raises:
        DetrkitError: a dataset or split that is missing or not readable; a fixed setting that there is not.
    """
    return choose_settings(data, config, fixed=fixed).config


def choose_settings(
    data: str | Path | Any, config: TrainConfig | None = None, *, fixed: Collection[str] = ()
) -> ChosenSettings:
    """Choose settings as `choose_config`, and say why.

    Args:
        data: as in `choose_config`.
        config: settings of which some are fixed.
        fixed: their names.

    Raises:
        DetrkitError: as `choose_config`.
    """
    names, in_memory = named_data(data)
    config = (TrainConfig() if config is None else config).changed(data=names)
    parts = _parts(data_sources(config, in_memory), config, fixed)
    config = config.changed(data=parts)
    values = _fixed_values(config, fixed)
    values["data"].update(parts)
    facts = gather_facts(config, fixed, in_memory=in_memory)
    choice = choose(facts)
    chosen = choice.config()
    made = chosen.changed(**values)
    if made.optim.epochs != chosen.optim.epochs and "data.epoch_images" not in fixed:
        # a number of epochs that somebody gives is one of turns through the whole split
        made = made.changed(data={"epoch_images": None})
    if "data.batch_size" in fixed and "optim.accumulate" not in fixed and facts.on_cpu:
        made = made.changed(optim={"accumulate": 1})
    fitted = with_epochs(
        dataclasses.replace(made.optim, epochs=chosen.optim.epochs, mask_epochs=chosen.optim.mask_epochs),
        made.optim.epochs,
        mask_epochs=made.optim.mask_epochs,
        keep_drop="optim.lr_drop" in fixed,
    )
    made = dataclasses.replace(made, optim=fitted.optim)
    limit = _limit(choice, facts, made, fixed)
    lines = [*choice.lines(facts, made, guess=limit is None), *([f"  {fitted.words}"] if fitted.words else [])]
    if parts:
        kept = f"a fifth of the images is kept for it (--val-split '{made.data.val_split}')"
        which = "the dataset has" if not config.data.more_paths else "the datasets have"
        lines.insert(1, f"  {which} no split to evaluate on: {kept}")
    return ChosenSettings(made, lines, limit)


def _limit(choice: Choice, facts: Facts, made: TrainConfig, fixed: Collection[str]) -> TimeLimit | None:
    """Return the time that a run on a CPU may take, whose epochs were chosen by a guess of this machine's speed.

    Steps are measured then: where they take much longer than was guessed, fewer epochs are trained. A model, epochs or
    minutes that were asked for are not changed.
    """
    asked = {"model.name", "optim.epochs", "data.epoch_images"}.intersection(fixed)
    if asked or choice.seconds is None or made.run.minutes is not None or made.run.overfit or not facts.on_cpu:
        return None
    return TimeLimit(max(LEAST_SECONDS, SLOWER * choice.seconds))


def _parts(sources: Sequence[Any], config: TrainConfig, fixed: Collection[str]) -> dict[str, Any]:
    """Return the splits to train and to evaluate on if no dataset has one to evaluate on, and none was asked for.

    Args:
        sources: paths of the datasets, or data in memory.
        config: settings of which some are fixed.
        fixed: their names.

    Raises:
        DetrkitError: nothing recognized, or the splits cannot be listed.
    """
    if config.data.val_data is not None or "data.val_split" in fixed:
        return {}
    train = config.data.train_split or "train"
    for source in sources:
        layout = config.data.layout if is_path(source) else None
        names, path = split_names(source, layout, masks=bool(config.model.masks))
        try:
            match_split(config.data.val_split or "val", names, path)
            return {}
        except UnknownSplit:
            pass
        try:
            train = match_split(config.data.train_split, names, path)
        except UnknownSplit:
            if len(names) > 1 or "data.train_split" in fixed:
                return {}
            train = names[0]
    # each of several datasets has the part of its own split
    train_split, val_split = divided(train if len(sources) == 1 else config.data.train_split or "train")
    return {"train_split": train_split, "val_split": val_split}


def _fixed_values(config: TrainConfig, fixed: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return section -> field -> value of the settings that stay.

    Raises:
        DetrkitError: there is no such setting.
    """
    names = {".".join(path) for path, _ in field_hints(TrainConfig)}
    values: dict[str, dict[str, Any]] = {"data": {}}
    for name in fixed:
        if name not in names:
            raise DetrkitError(f"fixed: {name} is no setting: give section and field, such as optim.epochs")
        section, _, field = name.partition(".")
        values.setdefault(section, {})[field] = getattr(getattr(config, section), field)
    values["data"] |= {"path": config.data.path, "more_paths": config.data.more_paths}
    return values


def gather_facts(config: TrainConfig, fixed: Collection[str] = (), *, in_memory: Any = None) -> Facts:
    """Gather the facts about a training's data and this machine; no image is decoded.

    Args:
        config: with the dataset's path.
        fixed: as in `choose_config`.
        in_memory: opened in place of the path, unless it is None.

    Raises:
        DetrkitError: as `choose_config`.
    """
    model, run = config.model, config.run
    init_from = run.freeze_detector or run.init_from
    masks = bool(model.masks) or config.optim.mask_epochs > 0 or run.freeze_detector is not None
    if model.name in ARCHITECTURES and not masks:
        masks = predicts_masks(*chosen_model(config.changed(run={"init_from": None}), None))
    sources = open_sources(config, "train", masks=masks, in_memory=in_memory, quiet=True)
    train = merge_datasets(sources)
    rates = {name: getattr(config.data, name) for name in _RATES if f"data.{name}" in fixed}
    devices, nodes = check_processes(config)
    cuda = torch.cuda.is_available() and run.device != "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30 if cuda else 0.0
    availability, source = weights_at_hand(download=cuda)
    return Facts(
        **shapes_of(train),
        images=len(train),
        epoch_images=plan_sampling(train, sources=sources, **rates).epoch_images if rates else None,
        classes=len(train.classes),
        masks=masks,
        panoptic=masks and train.panoptic,
        device="cuda" if cuda else "cpu",
        gpu_memory=memory,
        processes=devices * nodes,
        cores=usable_cores(),
        weights=availability,
        source=source,
        model=model.name if "model.name" in fixed else None,
        queries=_queries(model.name) if "model.name" in fixed else None,
        init_from=init_from,
        batch_size=config.data.batch_size if "data.batch_size" in fixed else None,
        size=config.data.size if "data.size" in fixed else None,
        queries_fixed="model.num_queries" in fixed,
    )


def _queries(name: str | None) -> int | None:
    """Return the published number of queries of a model; None of one that is not known here."""
    if name is None or name not in ARCHITECTURES:
        return None
    arch = ARCHITECTURES[name]
    queries: int | None = full_options(arch.build, arch.options).get("num_queries")
    return queries


def shapes_of(train: Dataset) -> dict[str, Any]:
    """Return the facts about sizes of images and objects, from the records: of large splits, from an even sample."""
    records = train.records[:: max(1, len(train) // _SAMPLED)]
    sides = [np.zeros(0)]
    for record in records:
        boxes = record.boxes[~record.crowd].reshape(-1, 4)  # (N, 4) xyxy, pixels
        sides.append(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1)) / min(record.height, record.width))
    every = np.concatenate(sides)
    return {
        "height": int(np.median([r.height for r in records])),
        "width": int(np.median([r.width for r in records])),
        "most_objects": max(int((~r.crowd).sum()) for r in train.records),
        "small_object": float(np.quantile(every, 0.1)) if len(every) else 0.1,
    }


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def weights_at_hand(*, download: bool) -> tuple[dict[str, Availability], str]:
    """Return the published weights that can be had without asking, and what --init-from takes for those of DETR-R50.

    Args:
        download: whether those count that would have to be downloaded; the server is asked then.
    """
    found: dict[str, Availability] = {}
    for name, arch in ARCHITECTURES.items():
        row = arch.row
        if row is not None and row.url is not None and (home() / "weights" / row.url.rsplit("/", 1)[1]).is_file():
            found[name] = "cached"
    if FINE_TUNED in found:
        return found, FINE_TUNED
    snapshot = _hub_snapshot()
    if snapshot is not None:
        return {**found, FINE_TUNED: "cached"}, str(snapshot)
    row = ARCHITECTURES[FINE_TUNED].row
    if download and row is not None and row.url is not None and _answers(row.url):
        found[FINE_TUNED] = "download"
    return found, FINE_TUNED


def _hub_snapshot() -> Path | None:
    """Return the folder of DETR-R50 in the Hub's cache, or None."""
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(
        os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"), "hub"
    )
    try:
        folders = sorted((Path(hub) / _HUB_NAME / "snapshots").iterdir())
    except OSError:
        return None
    complete = [
        folder
        for folder in folders
        if (folder / "config.json").is_file()
        and any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin"))
    ]
    return complete[-1] if complete else None


def _answers(url: str) -> bool:
    """Return whether a server can be reached, within three seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return False
    try:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "detrkit"})
        with urllib.request.urlopen(request, timeout=_LOOK_SECONDS):
            return True
    except (OSError, urllib.error.URLError, ValueError):
        return False
