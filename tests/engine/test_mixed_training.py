"""A training on several datasets, with rare classes repeated: what it says, and that it resumes to the bit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import detrkit
from detrkit.cli import main
from detrkit.config import load_config
from detrkit.data import open_dataset
from detrkit.data.tools.convert import convert
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError, Interrupted
from helpers.tiny import losses, tiny_config


class StopAt(detrkit.Callback):
    """Asks the run to stop after a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def on_step_end(self, run, values):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_a_run_on_two_datasets_resumes_to_the_bit_and_says_what_it_has(tmp_path: Path, capsys) -> None:
    first = write_shapes(tmp_path / "first", images={"train": 8, "val": 3}, classes=2, sides=(32, 40), objects=(0, 2))
    write_shapes(tmp_path / "coco", images={"train": 5, "val": 2}, classes=3, sides=(32, 40), seed=1)
    second = convert(tmp_path / "coco", tmp_path / "second", to="yolo") and tmp_path / "second"
    mix = {"weights": (3, 1), "repeat_rare": 0.9, "more_paths": (str(second),)}
    recipe = tmp_path / "mix.yaml"
    recipe.write_text(tiny_config(first, tmp_path / "whole", data=mix).to_yaml())
    assert main(["train", str(first), str(second), "--recipe", str(recipe)]) == 0
    said = capsys.readouterr().out
    assert "2 datasets, 13 images: an epoch has" in said and "second (yolo, train): 5 images" in said
    assert "evaluated on first (val2017, 3 images) + second (val, 2 images)" in said
    assert "first does not have triangle (1 of 3 classes): such objects in its 8 images count as background" in said
    report = (tmp_path / "whole" / "report.md").read_text()
    assert report.startswith("# detr-r50 on first + second\n") and "| classes of the datasets |" in report
    assert (tmp_path / "whole" / "classes.txt").read_text().split("\n")[2].endswith("triangle")

    part = load_config(tmp_path / "whole" / "config.yaml").changed(run={"out": str(tmp_path / "part")})
    with pytest.raises(Interrupted):
        detrkit.train(part, callbacks=[StopAt(3)])
    other = part.changed(data={"weights": (1, 1)})
    with pytest.raises(DetrkitError, match=r"data\.weights was \[3\.0, 1\.0\], now it is \[1, 1\]"):
        detrkit.train(other, resume=True)
    label = next(file for file in sorted(second.rglob("*.txt")) if "train" in str(file.relative_to(second)))
    text = label.read_text()
    label.write_text(text + "0 0.5 0.5 0.3 0.3\n")
    with pytest.raises(DetrkitError, match="the 13 images that were trained on have other boxes and labels now"):
        detrkit.train(part, resume=True)
    label.write_text(text)
    assert main(["train", "--resume", str(tmp_path / "part")]) == 0
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    # the same data in memory, in a list
    opened = [{s: open_dataset(path, split=s) for s in ("train", "val")} for path in (first, second)]
    again = detrkit.train(part.changed(run={"out": str(tmp_path / "memory")}), data=opened)
    assert losses(again.folder) == losses(tmp_path / "whole")
