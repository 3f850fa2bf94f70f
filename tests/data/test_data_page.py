"""The programs of docs/data.md on data in memory run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas
import pytest

import detrkit
from detrkit.config import TrainConfig
from detrkit.data.tools.convert import convert
from detrkit.data.tools.shapes import write_shapes
from helpers.tiny import tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


def programs() -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split("## From a spreadsheet")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def write_data(folder: Path) -> None:
    """my_data with boxes.csv, its rows without the split as cells.csv, and my_hub_data."""
    import datasets

    write_shapes(folder / "shapes", images={"train": 6, "val": 4}, classes=2, sides=(48, 64))
    convert(folder / "shapes", folder / "my_data", to="csv")
    tables = {file.stem.removesuffix("2017"): file for file in sorted((folder / "my_data").glob("*.csv"))}
    tables = {split: file for split, file in tables.items() if split in ("train", "val")}
    frame = pandas.concat([pandas.read_csv(file).assign(split=split) for split, file in tables.items()])
    for file in tables.values():
        file.unlink()
    frame.to_csv(folder / "my_data" / "boxes.csv", index=False)
    cells = frame.assign(filename="my_data/images/" + frame["filename"])
    parts = {}
    for split in tables:
        records = detrkit.open_dataset(folder / "shapes", split=split).records
        rows: list[dict[str, Any]] = []
        for r in records:
            boxes = [[x, y, x1 - x, y1 - y] for x, y, x1, y1 in r.boxes.tolist()]
            rows.append({"image": str(r.file), "objects": {"bbox": boxes, "category": [f"c{k}" for k in r.labels]}})
        parts[split] = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        names = [str(r.file) for r in records]
        cells["filename"] = [next((n for n in names if Path(n).name == Path(f).name), f) for f in cells["filename"]]
    cells["filename"] = cells["filename"].map(lambda name: Path(name).relative_to(folder).as_posix())
    cells.drop(columns="split").to_csv(folder / "cells.csv", index=False)
    datasets.DatasetDict(parts).save_to_disk(str(folder / "my_hub_data"))


@pytest.mark.slow
def test_the_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    write_data(tmp_path)
    monkeypatch.chdir(tmp_path)

    def tiny(data: Any) -> TrainConfig:
        assert detrkit.open_dataset(data, split="train").class_names
        return tiny_config(Path(), tmp_path / "run", optim={"epochs": 1}, run={"pictures": False})

    monkeypatch.setattr(detrkit, "choose_config", tiny, raising=False)
    listed = programs()
    assert len(listed) == 3
    for program in listed:
        exec(compile(program, "data.md", "exec"), {})
    assert sorted(path.name for path in Path("runs").iterdir()) == ["cells", "frame", "hub"]
    assert all((path / "report.md").is_file() for path in Path("runs").iterdir())


@pytest.mark.slow
def test_settings_are_chosen_for_data_in_memory(tmp_path: Path) -> None:
    shapes = write_shapes(tmp_path / "shapes", images={"train": 6, "val": 4}, classes=2, sides=(48, 64))
    data = {split: detrkit.open_dataset(shapes, split=split) for split in ("train", "val")}
    by_path, in_memory = detrkit.choose_config(shapes), detrkit.choose_config(data)
    assert in_memory.data.path == ":memory:/shapes"
    assert in_memory == by_path.changed(data={"path": ":memory:/shapes"})
