"""What `detrkit data check` prints: tables of the splits, faults, a sentence on what can be done, the next command."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from detrkit.data.readers import Fault
from detrkit.data.tools.check import ClassCount, Report, SplitSummary
from detrkit.data.tools.verdict import Verdict, verdict
from detrkit.utils.messages import first_names
from detrkit.utils.visible import one_line

_SEVERITY_COLORS = {"error": "red", "warning": "yellow", "info": "cyan", "hint": "blue"}
_CLASSES_SHOWN = 12  # rows of a table; of more classes, half of them from either end
_ALIKE = 4  # files of one fault, from which they share a line


def print_report(
    report: Report, console: Console, *, limit: int, path: Path, split: str | None, layout: str | None
) -> None:
    """Print a report.

    Args:
        report: of the dataset.
        console: to print on.
        limit: faults of each severity that are printed, 0 for all; with 0 the tables have all classes, too.
        path: of the dataset, as the user wrote it.
        split: the one that was checked, or None: all.
        layout: that was asked for.
    """
    _print_summary(report, console, whole=limit <= 0)
    for severity in ("error", "warning", "info"):
        lines = _lines(report.of(severity))
        for line in lines[:limit] if limit > 0 else lines:
            console.print(Text.assemble((severity, _SEVERITY_COLORS[severity]), " ", one_line(line)), soft_wrap=True)
        if 0 < limit < len(lines):
            console.print(f"... and {len(lines) - limit} more (--limit 0 prints all)")
    for hint in report.hints:
        console.print(Text.assemble(("hint", _SEVERITY_COLORS["hint"]), " ", one_line(hint)), soft_wrap=True)
    counts = ", ".join(f"{len(report.of(s))} {s}s" for s in ("error", "warning", "info"))
    console.print(f"{report.path!s} ({report.layout}): {counts}", soft_wrap=True)
    result = verdict(report, split)
    console.print(Text(one_line(result.sentence), style="bold green" if report.ok else "bold red"), soft_wrap=True)
    if result.advice:
        console.print(Text.assemble(("hint", _SEVERITY_COLORS["hint"]), " ", one_line(result.advice)), soft_wrap=True)
    for command in _next_commands(result, report, path, split, layout):
        console.print(Text(f"next: {command}"), soft_wrap=True)


def _lines(faults: Sequence[Fault]) -> list[str]:
    """Format faults; several files with the same fault share a line."""
    by_reason: dict[str, list[Fault]] = {}
    for fault in faults:
        by_reason.setdefault(fault.reason, []).append(fault)
    lines: list[str] = []
    for reason, alike in by_reason.items():
        if len({fault.file for fault in alike}) >= _ALIKE:
            names = first_names([fault.file.name for fault in alike], 3)
            lines.append(f"{len(alike)} files: {reason} ({names})")
        else:
            lines += [f"{f.file}: {f.id}: {reason}" if f.id else f"{f.file}: {reason}" for f in alike]
    return lines


def _next_commands(result: Verdict, report: Report, path: Path, split: str | None, layout: str | None) -> list[str]:
    """Return the commands to type next."""
    if not result.can_preview:
        return []
    more = [] if layout is None else ["--layout", layout]
    chosen = [] if split is None else ["--split", split]
    commands = [shlex.join(["detrkit", "data", "preview", str(path), *chosen, *more])]
    if report.ok and split is None:
        commands.append(shlex.join(["detrkit", "train", str(path), *result.train_options, *more]))
    return commands


def _print_summary(report: Report, console: Console, *, whole: bool) -> None:
    """Print the tables of the splits and of their classes."""
    splits = Table(title="Splits", title_justify="left")
    splits.add_column("split")
    for name in ("images", "objects", "crowd", "without objects", "boxes dropped", "boxes clamped"):
        splits.add_column(name, justify="right")
    for s in report.splits:
        splits.add_row(one_line(s.name), *map(str, (s.images, s.objects, s.crowd, s.empty, s.dropped, s.clamped)))
    if report.splits:
        console.print(splits)
    for s in report.splits:
        _print_classes(s, console, whole=whole)


def _print_classes(summary: SplitSummary, console: Console, *, whole: bool) -> None:
    """Print the table of a split's classes; of many, those with most and with fewest objects."""
    classes: Sequence[ClassCount | None] = summary.classes
    if len(classes) > _CLASSES_SHOWN and not whole:
        ranked = sorted(summary.classes, key=lambda c: -c.objects)
        half = _CLASSES_SHOWN // 2
        classes = [*ranked[:half], None, *ranked[-half:]]
    title = f"Objects of {summary.name} (areas in square pixels)"
    table = Table(title=title, title_justify="left")
    table.add_column("id", justify="right")
    table.add_column("class")
    for name in ("objects", "images", "small <32²", "medium", "large ≥96²"):
        table.add_column(name, justify="right")
    stuff = any(not c.thing for c in summary.classes)
    if stuff:
        table.add_column("kind")
    for c in classes:
        if c is None:
            table.add_row("...", f"{len(summary.classes) - len(classes) + 1} more: --limit 0")
            continue
        kind = ["thing" if c.thing else "stuff"] if stuff else []
        numbers = map(str, (c.objects, c.images, c.small, c.medium, c.large))
        table.add_row(str(c.id), one_line(c.name), *numbers, *kind)
    console.print(table)
