"""Writes the option tables of the pages from the code: `python docs/option_tables.py`. A test checks that it was done.

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; everything between them is replaced.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from detrkit.cli.options import field_texts
from detrkit.config import DataConfig, LossConfig, ModelConfig, OptimConfig, RunConfig
from detrkit.models.criterion import loss_settings
from detrkit.models.registry import ARCHITECTURES, architecture

HERE = Path(__file__).parent
SECTIONS = {"data": DataConfig, "model": ModelConfig, "optim": OptimConfig, "loss": LossConfig, "run": RunConfig}
# fields whose option is not the field's name
OPTIONS = {
    ("data", "path"): "dataset (positional)",
    ("data", "more_paths"): "further datasets (positional)",
    ("model", "name"): "`--model`",
}
_TABLE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def option(section: str, name: str, hint: Any) -> str:
    """How a field is set on the command line."""
    if (section, name) in OPTIONS:
        return OPTIONS[section, name]
    flag = "--" + name.replace("_", "-")
    return f"`{flag}`, `--no-{flag[2:]}`" if hint is bool else f"`{flag}`"


def values(hint: Any) -> str:
    """What a field takes."""
    parts = [p for p in typing.get_args(hint) if p is not type(None)]
    if typing.get_origin(hint) is Literal:
        return ", ".join(map(str, parts))
    if typing.get_origin(hint) is dict:
        return "name: value ..."
    if typing.get_origin(hint) is tuple:
        return f"{parts[0].__name__} ..."
    if parts:
        return values(parts[0])
    return {bool: "True, False", str: "text"}.get(hint, hint.__name__)


def default(value: Any) -> str:
    """A default as the table shows it; unset ones are empty."""
    return "" if value is None or value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def section_table(section: str) -> str:
    """The options of one section of a config."""
    kind = SECTIONS[section]
    hints, texts = typing.get_type_hints(kind), field_texts(kind)  # the texts of --help
    rows = []
    for f in dataclasses.fields(kind):
        how, text = option(section, f.name, hints[f.name]), texts.get(f.name, "").replace("|", "\\|")
        rows.append([f"`{f.name}`", how, values(hints[f.name]), default(f.default), text])
    return table(["YAML", "option", "values", "default", "meaning"], rows)


def loss_table() -> str:
    """The options of the losses with the published value of either family."""
    rows = []
    names = ("detr-r50", "deformable-detr-r50", "rtdetrv2-r50")
    settings = [loss_settings(architecture(name)) for name in names]
    for f in dataclasses.fields(LossConfig):
        published = [(default(values[f.name]) or "none") if f.name in values else "-" for values in settings]
        rows.append([f"`{f.name}`", option("loss", f.name, float), *published])
    return table(["YAML", "option", "DETR", "Deformable DETR", "RT-DETR"], rows)


def model_table() -> str:
    """The models and what was published of them."""
    rows = []
    for a in ARCHITECTURES.values():
        options = ", ".join(f"{k}={v}" for k, v in a.options.items()) or "-"
        figures = [f"{100 * a.published[m]:.1f}" if m in a.published else "-" for m in ("AP", "AP50", "AP_segm", "PQ")]
        rows.append([f"`{a.name}`", options, a.activation, *figures, f"`{a.weights}`" if a.weights else "-"])
    return table(["name", "differs in", "scores", "AP", "AP50", "mask AP", "PQ", "published weights"], rows)


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {
    "data": lambda: section_table("data"),
    "model": lambda: section_table("model"),
    "optim": lambda: section_table("optim"),
    "loss": loss_table,
    "run": lambda: section_table("run"),
    "models": model_table,
}


def rendered(text: str) -> str:
    """The page with fresh tables."""
    return _TABLE.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n{m[3]}", text)


if __name__ == "__main__":
    for page in sorted(HERE.glob("*.md")):
        before = page.read_text(encoding="utf-8")
        if rendered(before) != before:
            page.write_text(rendered(before), encoding="utf-8")
            print(f"{page.name}: tables renewed")
