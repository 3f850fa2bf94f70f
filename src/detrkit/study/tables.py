"""The tables of a study: metrics, classes, comparison with published metrics; as text, CSV and on a terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from detrkit.evaluation.metrics import markdown_table, percent
from detrkit.study.config import Member, PublishedMetrics, StudyConfig
from detrkit.study.results import MemberResult
from detrkit.study.seeds import MemberResults, MemberRuns, Spread, by_member
from detrkit.utils.visible import one_line

METRICS = ("mAP", "mAP50", "mAP75", "small", "medium", "large")
MAX_TABLE_COLUMNS = 100  # columns that a table on a terminal takes at most


@dataclass(frozen=True)
class Table:
    """Table of strings.

    Attributes:
        title: above it.
        headings: of the columns.
        rows: of texts, as long as the headings.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """Format the table as Markdown, without the title."""
        return markdown_table(self.headings, self.rows)

    def parts(self, width: int) -> list[Table]:
        """Split the table into parts no wider than this many characters, if possible; all have the first column."""
        lengths = [max(map(len, column)) for column in zip(self.headings, *self.rows, strict=True)]
        groups: list[list[int]] = [[]]
        for i in range(1, len(lengths)):
            if groups[-1] and sum(2 + lengths[k] for k in [*groups[-1], i]) + lengths[0] > width:
                groups.append([])
            groups[-1].append(i)
        return [
            Table(self.title, [self.headings[k] for k in [0, *g]], [[row[k] for k in [0, *g]] for row in self.rows])
            for g in groups
        ]


def study_tables(study: StudyConfig, results: MemberResults) -> list[Table]:
    """Make all tables that have rows; metrics in percent, of several seeds the mean and the standard deviation."""
    members = by_member(results)
    tables = [_overall(study, members), _classes(members), _compared(members)]
    return [t for t in tables if t.rows]


def _overall(study: StudyConfig, members: Sequence[MemberRuns]) -> Table:
    """Make the table with a row for each member: metrics, seeds if there are several, size, time, memory."""
    several = any(len(m.runs) > 1 for m in members)
    rows = []
    for member in members:
        spreads = member.spreads()
        row = [_named(member, study.train.optim.epochs)]
        row += [spreads[name].text() if name in spreads else "n/a" for name in METRICS]
        row += [str(len(member.done))] * several
        size = next((run.parameters for run in member.runs if run.parameters is not None), None)
        times = [run.seconds for run in member.runs if run.seconds is not None]
        memory = [run.memory for run in member.runs if run.memory is not None]
        row.append("n/a" if size is None else f"{size / 1e6:.2f}")
        row.append(f"{statistics.median(times):.1f}" if times else "n/a")
        row.append(f"{max(memory):.0f}" if memory else "n/a")
        rows.append(row)
    headings = ["model", *METRICS, *["seeds"] * several, "parameters (M)", "epoch (s)", "memory (MiB)"]
    return Table("Result", headings, rows)


def _named(member: MemberRuns, epochs: int) -> str:
    """Return the member's heading, with its progress if it is not done."""
    heading, runs = member.member.heading, member.runs
    if len(member.done) == len(runs):
        return heading
    failed = sum(bool(run.failure) for run in runs if not run.done)
    if len(runs) > 1:
        reasons = f"{len(member.done)} of {len(runs)} seeds"
        return f"{heading} ({reasons}, {failed} failed)" if failed else f"{heading} ({reasons})"
    if failed:
        return f"{heading} (failed)"
    return f"{heading} (not trained)" if not runs[0].epochs else f"{heading} ({runs[0].epochs}/{epochs})"


def _classes(members: Sequence[MemberRuns]) -> Table:
    """Make the table of the AP of every class, with a column for each member that is done."""
    done = [m for m in members if m.done]
    names = dict.fromkeys(name for m in done for run in m.done for name in run.classes)
    spreads = [m.spreads() for m in done]
    rows = [[name, *(s[f"class {name}"].text() if f"class {name}" in s else "n/a" for s in spreads)] for name in names]
    return Table("AP of each class", ["class", *(m.member.heading for m in done)], rows)


def _compared(members: Sequence[MemberRuns]) -> Table:
    """Make the table "measured (published, difference)", with a column for each done member with published metrics."""
    compared = [
        (m.member, m.spreads(), m.member.published)
        for m in members
        if m.member.published is not None and m.done and not classes_of_other_dataset(m.member, m.done[0])
    ]
    published = {name for _, _, p in compared for name in p.metrics()}
    names = [n for n in METRICS if n in published] + sorted(published - set(METRICS))
    rows = [
        [name.removeprefix("class "), *(_measured_and_published(s.get(name), p, name) for _, s, p in compared)]
        for name in names
    ]
    title = "Measured (published, difference)"
    return Table(title, ["", *(m.heading for m, _, _ in compared)], rows)


def classes_of_other_dataset(member: Member, result: MemberResult) -> list[str]:
    """Return the classes of a member's published metrics that the dataset lacks: the metrics are of another dataset."""
    if member.published is None or not result.done:
        return []
    return sorted(set(member.published.classes) - set(result.classes))


def _measured_and_published(measured: Spread | None, published: PublishedMetrics, name: str) -> str:
    """Format a cell of the comparison."""
    other = published.metrics().get(name)
    text = "n/a" if measured is None else measured.text()
    if other is None:
        return text
    if measured is None:
        return f"{text} ({percent(other)})"
    gap = round((measured.mean - other) * 100, 1) + 0.0  # without the sign of -0.0
    return f"{text} ({percent(other)}, {gap:+.1f})"


def table_csv(results: MemberResults) -> str:
    """Format a CSV with one line for each run, metrics in [0, 1], unknown cells empty."""
    rows: list[dict[str, Any]] = []
    for member, result in results:
        measured = result.all_metrics()
        row: dict[str, Any] = {"model": member.name, "title": member.heading, "seed": result.seed}
        row |= {"epochs": result.epochs, **measured}
        row |= {"best mAP": result.best, "best epoch": result.best_epoch, "parameters": result.parameters}
        row |= {"epoch seconds": result.seconds, "peak memory MiB": result.memory}
        if member.published is not None and not classes_of_other_dataset(member, result):
            for name, value in member.published.metrics().items():
                row[f"published {name}"] = value
                row[f"difference {name}"] = measured[name] - value if name in measured else None
        rows.append({**row, "failure": result.failure, "machine": result.machine})
    last = ("failure", "machine")
    columns = [n for n in dict.fromkeys(name for row in rows for name in row) if n not in last] + list(last)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def print_tables(console: Console, study: StudyConfig, results: MemberResults) -> None:
    """Print the tables: on a terminal to fit its width, each member in its color; elsewhere as Markdown."""
    colors = {m.heading: study.color(m) for m, _ in results}
    width = min(MAX_TABLE_COLUMNS, console.width)
    for table in study_tables(study, results):
        if not console.is_terminal:
            console.print(f"{table.title}\n\n{table.markdown()}\n")
            continue
        for part in table.parts(width):
            console.print(part.title, style="bold")
            shown = TerminalTable(box=None, pad_edge=False)
            for i, heading in enumerate(part.headings):
                shown.add_column(_colored(heading, colors), justify="right" if i else "left")
            for first, *rest in part.rows:
                shown.add_row(_colored(first, colors), *map(one_line, rest))
            console.print(shown, soft_wrap=False, width=width)
            console.print()


def _colored(text: str, colors: dict[str, str]) -> Text:
    """Return a text in the color of the member that it begins with, if it begins with one."""
    names = [name for name in colors if text == name or text.startswith(f"{name} (")]
    return Text(one_line(text), style=colors[max(names, key=len)] if names else "")
