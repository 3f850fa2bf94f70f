"""Signals at every moment of a run: before its first step, in a step, in an evaluation, in the report; and twice."""

from __future__ import annotations

import csv
import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

import detrkit.engine.training as training
from detrkit.engine import result as run_result
from detrkit.engine import train
from detrkit.engine.trainer import Trainer
from detrkit.models.detr import DETR
from detrkit.utils.errors import DetrkitError, Interrupted
from detrkit.utils.signals import SignalWatch, Stopped
from helpers.tiny import MODEL, losses, tiny_config

VOLATILE = {"seconds", "images_per_second", "peak_memory_mib", "val/seconds"}


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """An uninterrupted run with everything that has a state."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_config(shapes, folder, model=dataclasses.replace(MODEL, dropout=0.1), optim={"ema": 0.9})
    return config, train(config)


def steady_rows(run) -> list[dict[str, str]]:
    """epochs.csv without times and memory."""
    with (run.folder / "epochs.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in VOLATILE} for row in csv.DictReader(file)]


def assert_same_run(first, second) -> None:
    """Two runs agree in every number, to the bit."""
    assert (first.folder / "steps.csv").read_bytes() == (second.folder / "steps.csv").read_bytes()
    assert steady_rows(first) == steady_rows(second)
    assert first.metrics.to_json() == second.metrics.to_json()
    weights = [load_file(r.best) for r in (first, second)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    states = [torch.load(r.folder / "last.pt", weights_only=True) for r in (first, second)]
    for part in ("model", "ema"):
        assert all(torch.equal(states[0][part][k], states[1][part][k]) for k in states[0][part])
    assert torch.equal(states[0]["generators"][0]["torch"], states[1]["generators"][0]["torch"])
    assert states[0]["progress"] == states[1]["progress"] and states[0]["data"] == states[1]["data"]


def signal_in(patch, owner, name: str, number: int, *, call: int = 1) -> list[int]:
    """Sends this process a signal in a call of a function; returns a list with an entry for every call."""
    function, calls = getattr(owner, name), []

    def with_signal(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    patch.setattr(owner, name, with_signal)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("again", ["resume", "the same command"])
def test_before_the_first_step_nothing_is_saved_and_the_folder_may_be_used_again(
    whole, tmp_path, monkeypatch, capsys, again
):
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part")})
    with monkeypatch.context() as patch:
        signal_in(patch, training, "announce", signal.SIGHUP)
        with pytest.raises(Interrupted) as stop:
            train(part)
    assert stop.value.number == signal.SIGHUP
    assert str(stop.value) == (
        "stopped by SIGHUP before the first training step: nothing was saved; the same command starts it again"
    )
    assert (tmp_path / "part" / "config.yaml").exists() and not (tmp_path / "part" / "last.pt").exists()
    assert not (tmp_path / "part" / "run.lock").exists()
    assert_same_run(train(part, resume=again == "resume"), result)
    assert ("no saved state: the run starts from its beginning" in capsys.readouterr().out) == (again == "resume")


@pytest.mark.slow
@pytest.mark.parametrize(("evaluation", "number"), [(0, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_an_evaluation_stops_between_batches_and_is_done_by_the_resumed_run(
    whole, tmp_path, monkeypatch, capsys, evaluation, number
):
    """5 images in batches of 2 are three forward passes; the first of those stops it."""
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part")})
    forward, passes = DETR.forward, []

    def signal_at(self, images, *args, **kwargs):
        if not self.training:
            passes.append(1)
            if len(passes) == evaluation * 3 + 1:
                os.kill(os.getpid(), number)
        return forward(self, images, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(DETR, "forward", signal_at)
        with pytest.raises(Interrupted, match=r"in an evaluation; go on with: detrkit train --resume") as stop:
            train(part)
    assert stop.value.number == number and len(passes) == evaluation * 3 + 1
    progress = torch.load(tmp_path / "part" / "last.pt", weights_only=True)["progress"]
    assert (progress["epoch"], progress["batch"]) == (evaluation, 6)
    assert (tmp_path / "part" / "epochs.csv").exists() == (evaluation == 1)
    assert_same_run(train(part, resume=True), result)
    assert f"at the evaluation of epoch {evaluation + 1}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_report_is_written_by_the_resumed_run(whole, tmp_path, monkeypatch):
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part")})
    with monkeypatch.context() as patch:
        signal_in(patch, run_result, "example_sheet", signal.SIGTERM)
        with pytest.raises(Interrupted, match=r"stopped by SIGTERM in the report; go on with"):
            train(part)
    assert not (tmp_path / "part" / "report.md").exists()
    again = train(part, resume=True)
    assert_same_run(again, result)
    assert again.report.exists()


@pytest.mark.slow
def test_states_of_earlier_versions_load(whole, tmp_path, monkeypatch):
    """Without the fields that came later."""
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part")})
    with monkeypatch.context() as patch:
        signal_in(patch, Trainer, "_log_step", signal.SIGTERM, call=4)
        with pytest.raises(Interrupted):
            train(part)
    state = torch.load(tmp_path / "part" / "last.pt", weights_only=True)
    del state["data"], state["progress"]["learned"]
    torch.save(state, tmp_path / "part" / "last.pt")
    assert_same_run(train(part, resume=True), result)


@pytest.mark.slow
def test_an_overfitted_run_is_not_trained_on_when_its_report_is_written_again(shapes, tmp_path, monkeypatch):
    config = tiny_config(shapes, tmp_path / "run", optim={"epochs": 3}, run={"overfit": 2})
    monkeypatch.setattr("detrkit.engine.trainer.OVERFIT_DONE", -0.5)  # enough after one epoch, whatever it is
    with monkeypatch.context() as patch:
        signal_in(patch, run_result, "example_sheet", signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(config)
    steps = losses(tmp_path / "run")
    train(config, resume=True)
    assert losses(tmp_path / "run") == steps


def test_a_second_ctrl_c_stops_at_once(shapes, tmp_path, monkeypatch):
    logged = Trainer._log_step

    def twice(self, values):
        logged(self, values)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("went on")

    monkeypatch.setattr(Trainer, "_log_step", twice)
    with pytest.raises(Interrupted, match=r"stopped by SIGINT: nothing was saved; the same command starts it again"):
        train(tiny_config(shapes, tmp_path / "run"))


def test_signals_that_are_ignored_stay_ignored():
    """Those of nohup and of a shell's background job."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.asked == 0
            with pytest.raises(Stopped):
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_wish_that_nobody_acted_on_is_not_lost():
    with SignalWatch() as outer, SignalWatch() as watch:
        with pytest.raises(Stopped) as stop, watch.waiting():
            os.kill(os.getpid(), signal.SIGTERM)
            assert watch.asked == outer.asked == signal.SIGTERM
            os.kill(os.getpid(), signal.SIGUSR1)  # the first one counts
        assert stop.value.number == signal.SIGTERM


def _program(config, folder, *more: str) -> subprocess.Popen:
    """`detrkit train` in a process group of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(config.to_yaml())
    words = [sys.executable, "-m", "detrkit", "train", "--recipe", str(folder / "recipe.yaml"), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _wait_for(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_terminal_s_ctrl_c_twice_is_one_line(shapes, tmp_path):
    """Its signal goes to the workers too, which leave it to the run."""
    config = tiny_config(shapes, tmp_path / "run", data={"workers": 1}, optim={"epochs": 500}, run={"eval_every": 99})
    process = _program(config, tmp_path)
    _wait_for(lambda: (tmp_path / "run" / "last.pt").exists() or process.poll() is not None)
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    lines = [line for line in err.splitlines() if not line.startswith("warning")]
    assert len(lines) == 1 and lines[0].startswith("detrkit: stopped by SIGINT"), err
    assert lines[0].endswith(f"go on with: detrkit train --resume {tmp_path / 'run'}")


@pytest.mark.slow
def test_a_job_s_sigterm_to_the_whole_group_saves_once(shapes, tmp_path):
    """As Slurm and systemd send it: the workers stay until the step is done. A second run is refused meanwhile."""
    config = tiny_config(shapes, tmp_path / "run", data={"workers": 1}, optim={"epochs": 500}, run={"eval_every": 99})
    process = _program(config, tmp_path)
    _wait_for(lambda: (tmp_path / "run" / "last.pt").exists() or process.poll() is not None)
    with pytest.raises(DetrkitError, match=rf"run is being written by process {process.pid} on"):
        train(config)
    with pytest.raises(DetrkitError, match=rf"run is being written by process {process.pid} on"):
        train(config, resume=True)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "Traceback" not in err and "stopped by SIGTERM; go on with: detrkit train --resume" in err
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["progress"]["step"] == losses(tmp_path / "run")[-1][0]
