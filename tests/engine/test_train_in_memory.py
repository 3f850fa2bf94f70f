"""Training on data in memory is training on the same files, and is resumed with the same data alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pandas
import pytest

import detrkit
from detrkit.cli import main
from detrkit.config import load_config
from detrkit.data.tools.convert import convert
from detrkit.data.tools.shapes import write_shapes
from detrkit.utils.errors import DetrkitError, Interrupted
from helpers.tiny import losses, tiny_config

pytestmark = pytest.mark.slow


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    write_shapes(tmp_path / "shapes", images={"train": 6, "val": 4}, classes=2, sides=(48, 64))
    convert(tmp_path / "shapes", tmp_path / "csv", to="csv")
    return tmp_path / "csv"


def test_a_run_on_a_frame(csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = {file.stem.removesuffix("2017"): pandas.read_csv(file) for file in sorted(csv.glob("*.csv"))}
    opened = {split: detrkit.open_dataset(frames, split=split, root=csv) for split in frames}
    one = {"optim": {"epochs": 1}, "run": {"pictures": False}}
    by_files = detrkit.train(tiny_config(csv, tmp_path / "files", **one))
    by_frames = detrkit.train(tiny_config(Path(), tmp_path / "frames", **one), data=opened)
    assert losses(tmp_path / "files") == losses(tmp_path / "frames")
    assert by_files.metrics == by_frames.metrics == detrkit.evaluate(tmp_path / "frames", opened["val"])
    assert (tmp_path / "frames" / "report.md").read_text().startswith("# detr-r50 on DataFrame")

    config = load_config(tmp_path / "frames" / "config.yaml").changed(optim={"epochs": 2})
    assert config.data.path == ":memory:/DataFrame"
    fewer = {**opened, "train": opened["train"].subset(range(5))}
    with pytest.raises(DetrkitError, match="6 images were trained on, now there are 5: a resumed run keeps"):
        detrkit.train(config, resume=True, data=fewer)
    # without the data, in Python and as a command: one line that says how
    with pytest.raises(DetrkitError, match=r"trained on data in memory \(DataFrame\), which no command can find"):
        detrkit.train(config, resume=True)
    capsys.readouterr()
    assert main(["train", "--resume", str(by_frames.folder), "--epochs", "2"]) == 2
    assert "hand it over in Python" in capsys.readouterr().err
    detrkit.train(config, resume=True, data=opened)
    assert len(losses(tmp_path / "frames")) == 6


def test_what_a_run_that_was_stopped_says_is_possible(csv: Path, tmp_path: Path) -> None:
    """No command finds data in memory, so the advice is a line of Python."""

    class Stop(detrkit.Callback):
        def on_step_end(self, run, values):
            os.kill(os.getpid(), signal.SIGINT)

    frames = {file.stem.removesuffix("2017"): pandas.read_csv(file) for file in csv.glob("*.csv")}
    opened = {split: detrkit.open_dataset(frames, split=split, root=csv) for split in frames}
    with pytest.raises(Interrupted) as stopped:
        detrkit.train(tiny_config(Path(), tmp_path / "run"), callbacks=[Stop()], data=opened)
    advice = "detrkit.train(config, resume=True, data=...)"
    assert str(stopped.value) == f"stopped by SIGINT; go on with: {advice}, in Python"
    assert f"`{advice}` in Python continues it" in (tmp_path / "run" / "README.md").read_text()


def test_a_frame_without_splits_says_what_to_do(csv: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(next(csv.glob("train*.csv"))).drop(columns="split", errors="ignore")
    with pytest.raises(
        DetrkitError,
        match=r"DataFrame has no split 'train'; it has one, all, since it is not divided; .* data=\{'train': ",
    ):
        detrkit.train(tiny_config(Path(), tmp_path / "run"), data=frame)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())
