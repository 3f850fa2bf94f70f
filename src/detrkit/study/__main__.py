"""A run of a study in a process of its own, as `--parallel` starts it: `python -m detrkit.study STUDY RUN PARENT`."""

from __future__ import annotations

import sys
from pathlib import Path

from detrkit.engine.processes import StopSignals
from detrkit.engine.run_files import saved_in
from detrkit.study.config import load_study
from detrkit.study.one_run import train_and_evaluate
from detrkit.utils.errors import Interrupted
from detrkit.utils.parent import end_with_parent
from detrkit.utils.signals import SignalWatch, Stopped


def main(words: list[str]) -> int:
    """Train and evaluate a run; return 0 if that was done or a failure noted, 128 and more after a signal.

    Args:
        words: folder of the study, name of the run's folder in it, number of the process that started this one.
    """
    folder, name, parent = words
    end_with_parent(int(parent))
    study = load_study(Path(folder) / "study.yaml")
    run = next(run for run in study.all_runs() if run.folder == name)
    try:
        with SignalWatch(program=True), StopSignals() as watch:
            resume = saved_in(Path(folder) / name) is not None
            train_and_evaluate(study, run, Path(folder), resume=resume, watch=watch)
    except (Interrupted, Stopped) as stop:
        print(stop)
        return 128 + stop.number
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
