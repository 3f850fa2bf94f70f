"""`run_study`: several models, trained and evaluated one after another or side by side."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path

from detrkit.data.tools.shapes import ShapesOptions, write_shapes
from detrkit.engine.processes import StopSignals
from detrkit.engine.relations import check_config
from detrkit.engine.resuming import first_decides
from detrkit.engine.run_files import saved_in
from detrkit.engine.splits import open_splits
from detrkit.models.criterion import build_criterion
from detrkit.study.config import Member, MemberRun, StudyConfig, check_same, load_study
from detrkit.study.one_run import train_and_evaluate
from detrkit.study.parallel import run_side_by_side
from detrkit.study.report import STUDY_FILES, write_study
from detrkit.study.results import MemberResult, read_result
from detrkit.study.seeds import MemberResults
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import FIRST_PROCESS, console
from detrkit.utils.errors import DetrkitError, Interrupted, SettingError, how_to_go_on
from detrkit.utils.launch import several
from detrkit.utils.lock import FolderLock
from detrkit.utils.meta import on_meta
from detrkit.utils.signals import Stopped, number_of
from detrkit.weights.build import build_model


@dataclass(frozen=True)
class StudyResult:
    """Result of a study.

    Attributes:
        folder: of the study.
        results: every member with its result; a member with several seeds has an entry for each.
        report: study.md, or None in a process that is not the first.
    """

    folder: Path
    results: MemberResults
    report: Path | None

    @property
    def outcome(self) -> MemberResults:
        """The `results`, by their name in earlier versions."""
        return self.results

    @property
    def failed(self) -> list[Member]:
        """Members of which a run ended with an error."""
        return list({m.name: m for m, r in self.results if r.failure}.values())


def run_study(
    study: StudyConfig,
    out: str | Path,
    *,
    only: Sequence[str] = (),
    parallel: int = 1,
    command: str = "the same command again",
) -> StudyResult:
    """Train and evaluate every member and write the tables; resume where an earlier call stopped.

    A member has a run for each of its seeds; the first ones come before all second ones. Results of runs that are done
    are read back, an interrupted run resumes from its last saved step, a failed one is tried again after all others. A
    run that fails does not stop those after it, unless there are several processes: these may be waiting for each
    other, so the error ends them all.

    Starts unchanged under `torchrun` and Slurm, where each member is trained by all processes.

    Args:
        study: what to train.
        out: its folder, with a folder for each run.
        only: names of members to train; the tables show what is known of all.
        parallel: number of runs to train side by side, each in a process of its own with its share of the CPU cores.
        command: resumes the study, for the message when it is interrupted.

    Raises:
        DetrkitError: bad input; a study with other settings in the folder, or one that is running.
        Interrupted: asked to stop; everything is saved.
    """
    folder = Path(out)
    selected = _selected_members(study, only)
    study = _with_data(study, folder)
    _check_parallel(study, parallel)
    _check_models(study)
    splits = None
    try:
        with StopSignals() as watch, ExitStack() as lock_stack:
            watch.advice = lambda: how_to_go_on(str(folder), command)
            watch.last_words = lambda: str(Interrupted(signal.SIGINT, str(folder), command))
            # the first process plans for all, before it writes
            fabric, plan = first_decides(lambda: _plan(study, selected, folder, lock_stack), study.config(selected[0]))
            watch.join(fabric.world_size)
            if FIRST_PROCESS:
                _make_data(study, folder)
                splits = open_splits(study.train)
                write_atomic(folder / "study.yaml", study.to_yaml())
            runs = _in_order(study, study.members)
            of_name = {run.folder: run for run in runs}

            def write(_: MemberRun | None = None) -> None:
                if splits is not None:
                    write_study(folder, study, _read_results(study, folder), splits)

            if parallel > 1:
                todo = [of_name[name] for name, _ in plan]
                run_side_by_side(study, todo, folder, count=parallel, watch=watch, ended=write)
            for name, resume in plan if parallel == 1 else []:
                run = of_name[name]
                console.print(f"\n{run.heading} ({runs.index(run) + 1} of {len(runs)})")
                train_and_evaluate(study, run, folder, resume=resume, watch=watch)
                write()
            if not plan:
                write()
    except Interrupted as stop:
        raise Interrupted(stop.number, str(folder), command, agreed=stop.agreed) from stop
    except KeyboardInterrupt as stop:
        agreed = isinstance(stop, Stopped) and stop.agreed
        raise Interrupted(number_of(stop), str(folder), command, agreed=agreed) from stop
    return StudyResult(folder, _read_results(study, folder), None if splits is None else folder / "study.md")


def _plan(
    study: StudyConfig, selected: Sequence[Member], folder: Path, lock_stack: ExitStack
) -> list[tuple[str, bool]]:
    """Lock the study's folder; return the folders of the runs to train, each with whether to resume it.

    Args:
        study: with its data.
        selected: members.
        folder: of the study.
        lock_stack: holds the lock until it is closed.

    Raises:
        DetrkitError: another process writes the folder; it holds a study with other settings, or other files with the
            names of a study's.
    """
    lock_stack.enter_context(FolderLock(folder))
    saved = folder / "study.yaml"
    if saved.exists():
        check_same(load_study(saved), study, saved)
    elif foreign := next((name for name in STUDY_FILES if (folder / name).exists()), None):
        raise DetrkitError(f"{folder / foreign} is there and is of no study: choose another --out")
    before = {run.folder: read_result(folder, run) for run in _in_order(study, selected)}
    waiting = [name for name, result in before.items() if not result.done]
    waiting.sort(key=lambda name: bool(before[name].failure))
    return [(name, saved_in(folder / name) is not None) for name in waiting]


def _in_order(study: StudyConfig, members: Sequence[Member]) -> list[MemberRun]:
    """Return the runs of members in the order of their training: each with its first seed, then with the second, ..."""
    return sorted((run for m in members for run in study.runs(m)), key=lambda run: run.seed)


def _check_parallel(study: StudyConfig, parallel: int) -> None:
    """Check that runs can be trained side by side.

    Raises:
        SettingError: each run has several processes already.
    """
    if parallel > 1 and (several() or study.train.run.devices > 1 or study.train.run.nodes > 1):
        raise SettingError(
            f"--parallel {parallel} trains that many runs of one process each side by side: leave it out where "
            "--devices, torchrun or Slurm train every run with several processes"
        )


def _read_results(study: StudyConfig, folder: Path) -> list[tuple[Member, MemberResult]]:
    """Read the result of every run."""
    return [(run.member, read_result(folder, run)) for run in study.all_runs()]


def _selected_members(study: StudyConfig, only: Sequence[str]) -> list[Member]:
    """Return the members to train.

    Raises:
        DetrkitError: a name that none of them has.
    """
    names = [m.name for m in study.members]
    for name in only:
        if name not in names:
            raise DetrkitError(f"--only {name}: no member of that name (there are {', '.join(names)})")
    return [m for m in study.members if not only or m.name in only]


def _with_data(study: StudyConfig, folder: Path) -> StudyConfig:
    """Return the study with a dataset: the given one, or the one that it generates in its folder.

    Raises:
        DetrkitError: there is neither.
    """
    if study.train.data.path:
        return study
    if study.generate is None:
        raise DetrkitError(f"{study.title}: no dataset: give its path after the recipe")
    return replace(study, train=study.train.changed(data={"path": str(folder / "shapes")}))


def _make_data(study: StudyConfig, folder: Path) -> None:
    """Generate the study's own dataset, unless another one was given or it exists already.

    Raises:
        DetrkitError: an option that the shapes do not have; names it.
    """
    path = folder / "shapes"
    if study.generate is None or study.train.data.path != str(path) or path.exists():
        return
    options, field_names = study.generate.options, [f.name for f in fields(ShapesOptions)]
    for name in options:
        if name not in field_names:
            raise DetrkitError(f"generate.options.{name}: unknown field (there are {', '.join(field_names)})")
    images = ", ".join(f"{count} {split}" for split, count in study.generate.images.items())
    console.print(f"generating images in {path}: {images}")
    write_shapes(path, images=study.generate.images, seed=study.generate.seed, **options)


def _check_models(study: StudyConfig) -> None:
    """Check now, not after hours of training, that the model of every member can be built.

    Raises:
        DetrkitError: an unknown model, or an option that it does not take; names the member.
    """
    for member in study.members:
        config = study.config(member)
        try:
            check_config(config)
        except SettingError as error:
            raise DetrkitError(f"members.{member.name}: {error}") from error
        if config.run.init_from is not None:
            continue  # the options are known when the weights are read
        name = config.model.name or "detr-r50"
        try:
            with on_meta():  # no memory, no time
                build_model(name, num_classes=1, **config.model.overrides())
                build_criterion(name, num_classes=1, **config.loss.overrides())
        except (TypeError, ValueError) as error:
            raise DetrkitError(f"members.{member.name}: {error}") from error
