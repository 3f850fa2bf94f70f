"""What the benchmarks share: contenders that take turns, their peak memory, the file that docs/performance.md quotes.

A script builds its contenders, checks that they compute the same, calls `by_turns`, and hands rows to `Report`. With
`--json docs/measurements/NAME.json` the rows become a table of the page (`python docs/measured_tables.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from detrkit.engine.memory import peak_mib, reset_peak
from detrkit.profiling import machine

Cell = str | int | float
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def add_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """`--repeats` and `--json`, which every script has."""
    parser.add_argument("--repeats", type=int, default=repeats, help="turns of each (default %(default)s)")
    parser.add_argument("--json", type=Path, help="also write the rows there, for docs/performance.md")
    parser.add_argument("--avx2", action="store_true", help="use no more than AVX2 of a processor that has AVX-512")


def _limited() -> None:
    """Start anew with the variables by which PyTorch, oneDNN and MKL use AVX2 alone: they read them when loaded."""
    variables = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    if "--avx2" in sys.argv and variables.items() - os.environ.items():
        os.environ.update(variables)
        os.execv(sys.executable, [sys.executable, *sys.argv])


_limited()


def _machine() -> dict[str, str | int]:
    described = machine(DEVICE)
    if "--avx2" in sys.argv:
        described["instructions"] = f"{described['instructions']}, told to use no more"
    return described


def checkout(parser: argparse.ArgumentParser, flag: str, what: str) -> None:
    """An option for the path of somebody else's code, of which nothing is kept in this repository."""
    parser.add_argument(flag, type=Path, metavar="PATH", help=f"a checkout of {what}, to compare with")


def synchronize() -> None:
    """Waits for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def by_turns(contenders: Mapping[str, Callable[[], Any]], *, repeats: int, warmup: int = 1) -> dict[str, float]:
    """The median wall time in seconds of each contender; they take turns, so that a busy moment falls on all alike.

    Args:
        contenders: name -> what is timed.
        repeats: timed turns of each.
        warmup: turns before, not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + repeats):
        for name, call in contenders.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def peak_memory(call: Callable[[], Any]) -> float:
    """MiB that the process holds at most during a call: of the GPU where there is one, else resident (Linux alone)."""
    reset_peak(DEVICE)
    call()
    synchronize()
    return peak_mib(DEVICE)


class Worker:
    """The running script once more, in a process of its own: own memory, own malloc. A call is a turn of its work.

    Args:
        words: added to the command line; they lead the script to `serve`.
        environment: added to the environment.
    """

    def __init__(self, *words: str, environment: Mapping[str, str] | None = None) -> None:
        command = [sys.executable, *sys.argv, *words]
        pipe = subprocess.PIPE
        surroundings = os.environ | dict(environment or {})
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=surroundings)
        self.memory = float(self._answer())  # MiB at most in a turn

    def __call__(self) -> None:
        """One turn."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)
        self._answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("> "):
                return line[2:]
        raise SystemExit(f"{' '.join(self.process.args)} ended with {self.process.wait()}")  # type: ignore[arg-type]


def serve(turn: Callable[[], Any]) -> None:
    """What the process of a `Worker` does: two turns, of which the second tells the memory, then one for each line."""
    turn()
    print(f"> {peak_memory(turn)}", flush=True)
    for _ in sys.stdin:
        turn()
        synchronize()
        print("> done", flush=True)


class Report:
    """Rows of a table, printed as they come and written at the end.

    Args:
        title: what is compared.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[dict[str, Cell]] = []
        described = ", ".join(f"{key} {value}" for key, value in _machine().items())
        print(f"{title}\n{described}\n", flush=True)

    def add(self, **row: Cell) -> None:
        """A row: column title -> text or number. Units stand in the title: `**{"original, s": 1.22}`."""
        if not self.rows:
            print("  ".join(f"{title:>{_width(title)}}" for title in row))
        self.rows.append(row)
        print("  ".join(f"{shown(value):>{_width(title)}}" for title, value in row.items()), flush=True)

    def write(self, path: Path | None) -> None:
        """Writes title, command, machine and rows as JSON, if a path was given."""
        if path is None:
            return
        record = {
            "title": self.title,
            "command": _command(),
            "machine": _machine(),
            "rows": self.rows,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(path)
        print(f"\nwrote {path}")


def _command() -> str:
    """The command line without `--json`; paths of this machine by their last part, for the record is published."""
    words = sys.argv[1:]
    if "--json" in words:
        at = words.index("--json")
        del words[at : at + 2]
    shown = [Path(word).name if word.startswith(("/", "~")) else word for word in words]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *shown])


def _width(title: str) -> int:
    return max(len(title), 9)


def shown(value: Cell) -> str:
    """A number to three digits, as the tables have it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return f"{value:,}" if isinstance(value, int) else value


def table(rows: Iterable[Mapping[str, Cell]]) -> str:
    """Rows as a Markdown table; ratios ("times ...") are bold."""
    rows = list(rows)
    titles = list(rows[0])
    lines = [titles, ["---"] * len(titles)]
    for row in rows:
        lines.append([f"**{shown(v)}**" if t.startswith("times") else shown(v) for t, v in row.items()])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
