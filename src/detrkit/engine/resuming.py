"""The start of a run: its folder is locked and checked to be free, or to hold the run that is resumed."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from detrkit.config import TrainConfig, load_config
from detrkit.data import Dataset
from detrkit.engine.environment import check_processes
from detrkit.engine.fabric import Fabric
from detrkit.engine.fingerprint import Fingerprint, class_difference, data_difference
from detrkit.engine.run_files import check_free, saved_in
from detrkit.engine.run_folder import ENVIRONMENT, STARTED_BY
from detrkit.engine.setup import make_fabric
from detrkit.engine.state import load_state
from detrkit.utils.console import FIRST_PROCESS, console
from detrkit.utils.errors import DetrkitError, PeerError
from detrkit.utils.launch import attempt, launched_outside, restarted_by
from detrkit.utils.lock import NAME as LOCK
from detrkit.utils.lock import FolderLock
from detrkit.weights.checkpoint import ModelSpec

T = TypeVar("T")
# settings that may differ between a run and its continuation without changing a result
_FREE = {
    "data": {"path", "more_paths", "val_data", "workers", "cache", "eval_batch_size"},
    "optim": {"epochs", "mask_epochs"},
    "run": {"out", "device", "devices", "nodes", "timeout"}
    | {"eval_every", "minutes", "patience", "log_every", "save_every", "tensorboard", "pictures", "loggers"},
}


class Beginning(NamedTuple):
    """Start of a run.

    Attributes:
        fabric: launched.
        place: the subfolder with the state to resume from: ".", or "detector" in the first of a run's two phases; None
            for a run that starts.
        state: what last.pt there holds, or None.
    """

    fabric: Fabric
    place: str | None
    state: dict[str, Any] | None


def adapted_fields(config: TrainConfig, *, shorten_warmup: bool, limited: bool = False) -> dict[str, tuple[str, ...]]:
    """Return section -> names of the settings that a run may have adapted before its first step.

    Args:
        config: as given.
        shorten_warmup: as `train`.
        limited: whether it has a `TimeLimit`.
    """
    rates = () if config.optim.lr_for_batch is None else ("lr", "lr_backbone", "lr_for_batch")
    optim: tuple[str, ...] = (*rates, *(("warmup_steps",) if shorten_warmup else ()))
    if config.run.minutes is None and not limited and not config.run.overfit:
        return {"optim": optim}
    optim = (*rates, "warmup_steps", "epochs", "mask_epochs", "lr_drop", "mask_lr_drop")
    if config.run.overfit:
        optim += ("schedule", "accumulate", "ema")
    return {"data": ("epoch_images",), "optim": optim, "run": ("eval_every", "minutes")}


def as_adapted(config: TrainConfig, saved: TrainConfig, adapted: Mapping[str, Sequence[str]]) -> TrainConfig:
    """Return the settings of a resumed run as they were adapted before its first step.

    A program, or torchrun after a failure, resumes with the settings that it started with. Settings of which nothing
    that matters differs, such as those of `detrkit train --resume` with more epochs, stay.

    Args:
        config: as given.
        saved: of the run's config.yaml.
        adapted: as `adapted_fields`.
    """
    if first_difference(saved, config) is None:
        return config
    values: dict[str, dict[str, Any]] = {
        part: {name: getattr(getattr(saved, part), name) for name in names} for part, names in adapted.items()
    }
    if config.run.minutes is not None and "run" in values:  # more of them go on for longer
        values["run"]["minutes"] = config.run.minutes
    return config.changed(**values)


def begin(
    config: TrainConfig, *, resume: bool, held: ExitStack, adapted: Mapping[str, Sequence[str]] | None = None
) -> Beginning:
    """Lock a run's folder, check that it may be written, and launch the processes of the run.

    The first process checks; if it refuses, the others end too.

    Args:
        config: of the run.
        resume: whether to resume the run in the folder.
        held: holds the lock until it is closed.
        adapted: as `adapted_fields`.

    Raises:
        DetrkitError: another process writes the folder; it holds a run that is not to be resumed, or another one; its
            state is damaged.
    """
    folder, state = Path(config.run.out), None

    def look() -> str | None:
        nonlocal state, resume
        if not resume and _restarted(folder):
            console.print(f"attempt {attempt() + 1} of torchrun goes on with its run in {folder}")
            resume = True
        _look(config, resume=resume, adapted=adapted or {})  # a folder that is refused is left as it is
        held.enter_context(FolderLock(folder))
        _look_inside(
            config, folder, resume=resume, adapted=adapted or {}
        )  # another process may have written there in the meantime
        place = saved_in(folder) if resume else None
        if place is not None:
            state = load_state(folder / place / "last.pt")
        elif resume:
            console.print(f"{folder} has no saved state: the run starts from its beginning")
        return place

    fabric, place = first_decides(look, config)
    if place is not None and state is None:  # in the other processes
        state = load_state(folder / place / "last.pt")
    return Beginning(fabric, place, state)


def first_decides(look: Callable[[], T], config: TrainConfig) -> tuple[Fabric, T]:
    """Launch the processes of a run after the first one has called `look`.

    Args:
        look: called by the first process before it starts the others, if they have not been started.
        config: of the run.

    Returns:
        Fabric, and in every process what `look` returned: small and picklable.

    Raises:
        DetrkitError: from `look`; in the other processes a `PeerError`.
    """
    check_processes(config)  # before the first one writes anything
    result, refusal = None, None
    if FIRST_PROCESS:
        try:
            result = look()
        except DetrkitError as error:
            if not launched_outside():
                raise  # there are no others yet
            refusal = error
    fabric = make_fabric(config)
    refused, result = fabric.broadcast((refusal is not None, result))
    if refusal is not None:
        raise refusal
    if refused:
        raise PeerError("the first process refused to start the run, and says why")
    return fabric, result  # type: ignore[return-value]


def _restarted(folder: Path) -> bool:
    """Return whether torchrun has restarted this process (--max-restarts) and a folder holds its earlier run."""
    agent, place = restarted_by(), saved_in(folder)
    if attempt() == 0 or agent is None or place is None:
        return False
    try:
        lines = (folder / place / ENVIRONMENT).read_text(errors="replace").splitlines()
    except OSError:
        return False
    return f"{STARTED_BY}{agent}" in lines


def _look(config: TrainConfig, *, resume: bool, adapted: Mapping[str, Sequence[str]]) -> None:
    """Check the folder of a run.

    Raises:
        DetrkitError: it is a file, or another process writes it; with `resume`: it holds no run, or one with other
            settings; else: it holds one, or other files that a run would overwrite.
    """
    try:
        _look_inside(config, Path(config.run.out), resume=resume, adapted=adapted)
    except DetrkitError:
        if (Path(config.run.out) / LOCK).exists():
            with FolderLock(config.run.out):  # raises the name of the process that writes there, which helps more
                pass
        raise


def _look_inside(config: TrainConfig, folder: Path, *, resume: bool, adapted: Mapping[str, Sequence[str]]) -> None:
    if not resume:
        check_free(folder)
        return
    if folder.exists() and not folder.is_dir():
        raise DetrkitError(f"{folder} is a file: choose another --out")
    _check_same(config, folder, adapted)
    if (folder / "best.safetensors").exists() and saved_in(folder) is None:
        quoted = shlex.quote(str(folder))
        raise DetrkitError(f"{folder}: its last.pt is gone: nothing to resume; start anew with --init-from {quoted}")


def _check_same(config: TrainConfig, folder: Path, adapted: Mapping[str, Sequence[str]]) -> None:
    """Check that no setting of a resumed run has changed that would make it another run."""
    saved = folder / "config.yaml"
    if not saved.exists():
        raise DetrkitError(f"{folder}: no config.yaml, so no run of detrkit to resume")
    before = load_config(saved)
    difference = first_difference(before, as_adapted(config, before, adapted))
    if difference is not None:
        raise DetrkitError(
            f"{saved}: {difference}: a resumed run keeps its settings; to change them start a new one with --init-from"
        )


def first_difference(before: TrainConfig, now: TrainConfig, *, epochs: bool = False) -> str | None:
    """Describe the first setting that a continuation changes, as "optim.lr was 0.1, now it is 0.2"; None without one.

    Args:
        before: of the run as it was started.
        now: of its continuation.
        epochs: whether another number of epochs is a difference too; a single run may be continued for longer.
    """
    free = {} if not epochs else {"optim": _FREE["optim"] - {"epochs", "mask_epochs"}}
    difference = differing_setting(before, now, free=_FREE | free)
    if difference is None:
        return None
    name, old, value = difference
    return f"{name} was {old!r}, now it is {value!r}"


def differing_setting(
    first: TrainConfig, second: TrainConfig, *, free: Mapping[str, set[str]]
) -> tuple[str, Any, Any] | None:
    """Return the first setting that differs between two configs, as "optim.lr", and its values; None without one.

    Args:
        first: a config.
        second: another.
        free: section -> names of settings that may differ.
    """
    before, now = dataclasses.asdict(first), dataclasses.asdict(second)
    for section, values in now.items():
        for key, value in values.items():
            old = before[section][key]
            old, value = (list(v) if isinstance(v, tuple | list) else v for v in (old, value))
            if old != value and key not in free.get(section, set()):
                return f"{section}.{key}", old, value
    return None


def check_same_data(state: dict[str, Any], train: Dataset, data: Fingerprint) -> None:
    """Check that a resumed run has the same classes and data as before.

    Args:
        state: from last.pt; earlier versions saved the classes alone.
        train: the training split as it is now.
        data: of all splits as they are now.

    Raises:
        DetrkitError: they differ; names the difference.
    """
    classes = ModelSpec.from_json(state["spec"]).classes
    difference = None if classes is None else class_difference(classes, train.classes)
    difference = difference or data_difference(state.get("data"), data)
    if difference is not None:
        raise DetrkitError(
            f"{train.path}: {difference}: a resumed run keeps its classes and its images (another place is fine); to "
            "train on others start a new run with --init-from"
        )
