"""The tables of a study: metrics, classes, comparison with published metrics; as text, CSV and on a terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table as TerminalTable
from rich.text import Text

from detrkit.evaluation.metrics import markdown_table, percent
from detrkit.study.config import Member, PublishedMetrics, StudyConfig
from detrkit.study.results import MemberResult
from detrkit.utils.visible import one_line

METRICS = ("mAP", "mAP50", "mAP75", "small", "medium", "large")
MAX_TABLE_COLUMNS = 100  # columns that a table on a terminal takes at most
MemberResults = Sequence[tuple[Member, MemberResult]]


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
    """Make all tables that have rows; metrics in percent."""
    tables = [_overall(study, results), _classes(results), _compared(results)]
    return [t for t in tables if t.rows]


def _overall(study: StudyConfig, results: MemberResults) -> Table:
    """Make the table with a row for each member: metrics, size, time, memory."""
    rows = []
    for member, result in results:
        metrics = [percent(result.figures.get(name, -1.0)) for name in METRICS]
        size = "n/a" if result.parameters is None else f"{result.parameters / 1e6:.2f}"
        time = "n/a" if result.seconds is None else f"{result.seconds:.1f}"
        memory = "n/a" if result.memory is None else f"{result.memory:.0f}"
        rows.append([_named(member, result, study.train.optim.epochs), *metrics, size, time, memory])
    return Table("Result", ["model", *METRICS, "parameters (M)", "epoch (s)", "memory (MiB)"], rows)


def _named(member: Member, result: MemberResult, epochs: int) -> str:
    """Return the member's heading, with its progress if it is not done."""
    if result.done:
        return member.heading
    if result.failure:
        return f"{member.heading} (failed)"
    return f"{member.heading} (not trained)" if not result.epochs else f"{member.heading} ({result.epochs}/{epochs})"


def _classes(results: MemberResults) -> Table:
    """Make the table of the AP of every class, with a column for each member that is done."""
    done = [(m, r) for m, r in results if r.done]
    names = list(dict.fromkeys(name for _, r in done for name in r.classes))
    rows = [[name, *(percent(r.classes.get(name, -1.0)) for _, r in done)] for name in names]
    return Table("AP of each class", ["class", *(m.heading for m, _ in done)], rows)


def _compared(results: MemberResults) -> Table:
    """Make the table "measured (published, difference)", with a column for each done member with published metrics."""
    done = [(m, r) for m, r in results if r.done and not classes_of_other_dataset(m, r)]
    compared = [(m, r, m.published) for m, r in done if m.published is not None]
    published = {name for _, _, p in compared for name in p.metrics()}
    names = [n for n in METRICS if n in published] + sorted(published - set(METRICS))
    rows = [
        [name.removeprefix("class "), *(_measured_and_published(r, p, name) for _, r, p in compared)] for name in names
    ]
    title = "Measured (published, difference)"
    return Table(title, ["", *(m.heading for m, _, _ in compared)], rows)


def classes_of_other_dataset(member: Member, result: MemberResult) -> list[str]:
    """Return the classes of a member's published metrics that the dataset lacks: the metrics are of another dataset."""
    if member.published is None or not result.done:
        return []
    return sorted(set(member.published.classes) - set(result.classes))


def _measured_and_published(result: MemberResult, published: PublishedMetrics, name: str) -> str:
    """Format a cell of the comparison."""
    measured, other = result.all_metrics().get(name), published.metrics().get(name)
    text = "n/a" if measured is None else percent(measured)
    if other is None:
        return text
    if measured is None:
        return f"{text} ({percent(other)})"
    gap = round((measured - other) * 100, 1) + 0.0  # without the sign of -0.0
    return f"{text} ({percent(other)}, {gap:+.1f})"


def table_csv(results: MemberResults) -> str:
    """Format a CSV with one line for each member, metrics in [0, 1], unknown cells empty."""
    rows: list[dict[str, Any]] = []
    for member, result in results:
        measured = result.all_metrics()
        row: dict[str, Any] = {"model": member.name, "title": member.heading, "epochs": result.epochs, **measured}
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
