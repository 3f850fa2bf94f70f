"""Several runs of a study side by side, each in a process of its own with its share of the CPU cores.

Small models leave cores idle: an operation on a few thousand numbers ends before a second thread has begun.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from detrkit.engine.facts import usable_cores
from detrkit.engine.logs import CsvLog
from detrkit.engine.processes import StopSignals
from detrkit.study.config import MemberRun, StudyConfig
from detrkit.study.results import FAILURE, read_result
from detrkit.utils.atomic import write_atomic
from detrkit.utils.console import console
from detrkit.utils.signals import Stopped, signal_name

_SECONDS_BETWEEN_LOOKS = 0.2
_TO_SAVE_SECONDS = 300  # from a signal to the last saved state


@dataclass
class _Started:
    """A run in its process.

    Attributes:
        run: of a member.
        process: that trains it.
        output: file that holds what the process prints.
        rows: number of epochs that were reported.
    """

    run: MemberRun
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    rows: int


def run_side_by_side(
    study: StudyConfig,
    runs: Sequence[MemberRun],
    folder: Path,
    *,
    count: int,
    watch: StopSignals,
    ended: Callable[[MemberRun], None],
) -> None:
    """Train and evaluate runs, several at the same time; print a line for every epoch of each.

    What a run prints goes to STUDY/output/RUN.txt. A run whose process is killed has failed; the others go on.

    Args:
        study: as study.yaml in its folder says.
        runs: in the order in which they begin.
        folder: of the study.
        count: number of runs at the same time.
        watch: passes a signal on to the processes, which save and end.
        ended: called after each run.

    Raises:
        Stopped: a signal came; everything is saved.
    """
    waiting, started = list(runs), list[_Started]()
    threads = max(1, usable_cores() // count)
    try:
        with watch.waiting():
            while (waiting or started) and not watch.asked:
                while waiting and len(started) < count:
                    started.append(_start(waiting.pop(0), folder, threads=threads))
                    console.print(f"{started[-1].run.heading}: begins ({len(waiting)} more wait)")
                time.sleep(_SECONDS_BETWEEN_LOOKS)
                for one in list(started):
                    over = one.process.poll() is not None  # before its last rows are read
                    _report(one, folder, study.train.optim.epochs)
                    if over:
                        started.remove(one)
                        _end(one, folder)
                        ended(one.run)
            _stop(started, watch.asked)
    finally:
        for one in started:
            one.process.kill()
            one.process.wait()
            one.output.close()


def _start(run: MemberRun, folder: Path, *, threads: int) -> _Started:
    """Start the process of a run.

    Args:
        run: of a member.
        folder: of the study.
        threads: of torch in the process, unless the environment says otherwise.
    """
    file = folder / "output" / f"{run.folder}.txt"
    file.parent.mkdir(exist_ok=True)
    rows = len(CsvLog(folder / run.folder / "epochs.csv", key="epoch").rows())
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    command = [sys.executable, "-m", "detrkit.study", str(folder), run.folder, str(os.getpid())]
    output = file.open("ab")
    try:
        # a terminal's Ctrl-C goes to this process alone, which passes it on
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except BaseException:
        output.close()
        raise
    return _Started(run, process, output, rows)


def _report(one: _Started, folder: Path, epochs: int) -> None:
    """Print a line for each epoch that has ended since the last call."""
    rows = CsvLog(folder / one.run.folder / "epochs.csv", key="epoch").rows()
    for row in rows[one.rows :]:
        console.print(f"{one.run.heading}: epoch {row['epoch']} of {epochs}{_metric(row)}")
    one.rows = max(one.rows, len(rows))


def _metric(row: dict[str, Any]) -> str:
    """Format the mAP of an epoch, "" if it was not evaluated."""
    return f", mAP {float(row['val/AP']) * 100:.1f}" if row.get("val/AP") else ""


def _end(one: _Started, folder: Path) -> None:
    """Note the failure of a run whose process ended without a result, and print it."""
    one.output.close()
    result = read_result(folder, one.run)
    status = one.process.returncode
    if not result.done and not (result.failure and status == 0):
        reason = (
            f"its process was ended by {signal_name(-status)}" if status < 0 else f"its process ended with {status}"
        )
        write_atomic(folder / one.run.folder / FAILURE, f"{reason}; see output/{one.run.folder}.txt\n")
        result = read_result(folder, one.run)
    console.print(f"{one.run.heading} failed: {result.failure}" if result.failure else f"{one.run.heading}: done")


def _stop(started: Sequence[_Started], number: int) -> None:
    """Pass a signal on to the processes and wait until they have saved and ended."""
    if not started:
        return
    for one in started:
        with suppress(ProcessLookupError):
            one.process.send_signal(number)
    limit = time.monotonic() + _TO_SAVE_SECONDS
    for one in started:
        with suppress(subprocess.TimeoutExpired):
            one.process.wait(max(0.0, limit - time.monotonic()))
    raise Stopped(number)
