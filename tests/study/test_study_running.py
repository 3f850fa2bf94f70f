"""Studies: one table of several models; interrupted, resumed, failed and changed ones."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor

import detrkit.study.one_run as one_run
import detrkit.study.parallel as parallel
import detrkit.study.report
import detrkit.visualize.curves
from detrkit.cli import main
from detrkit.engine import evaluating
from detrkit.engine.trainer import Trainer
from detrkit.models.detr import DETR
from detrkit.study import load_study, run_study, studies
from detrkit.utils.errors import DetrkitError, Interrupted
from helpers.tiny_study import tiny_study

# differ from run to run of the same numbers
_OF_THE_MACHINE = ("seconds", "memory", "machine")
_OF_A_SEED = ("seed", "folder")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nothing happened to, and its YAML."""
    folder = tmp_path_factory.mktemp("study")
    file = tiny_study(folder)
    return file, run_study(load_study(file), folder / "whole")


@pytest.fixture
def quick(monkeypatch):
    """Pictures of plots are not drawn: they take most of a tiny study's time."""
    for module in (detrkit.visualize.curves, detrkit.study.report):
        monkeypatch.setattr(module, "png_bytes", lambda figure: b"")


def numbers(folder: Path) -> list[dict]:
    """The members of results.json without what is the machine's."""
    members = json.loads((folder / "results.json").read_text())["members"]
    return [{k: v for k, v in m.items() if k not in _OF_THE_MACHINE} for m in members]


def epochs_of(folder: Path) -> list[dict[str, str]]:
    """Rows of a run's epochs.csv; none before its first epoch has ended."""
    if not (folder / "epochs.csv").exists():
        return []
    with (folder / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def signal_at(monkeypatch, model: str, step: int) -> None:
    """Ctrl-C when a step of a model has been logged."""
    logged = Trainer._log_step

    def log_and_signal(self, values):
        logged(self, values)
        if self.spec.name == model and self.progress.step == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "_log_step", log_and_signal)


@pytest.mark.slow
def test_every_member_has_its_figures_of_the_last_epoch(whole):
    _, result = whole
    assert not result.failed
    for member, row in result.outcome:
        run = result.folder / member.name
        rows = epochs_of(run)
        last = {"mAP": "AP", "mAP50": "AP50", "mAP75": "AP75", "small": "APs", "medium": "APm", "large": "APl"}
        assert {k: row.figures[k] for k in last} == {k: float(rows[-1][f"val/{v}"]) for k, v in last.items()}
        assert (row.best, row.epochs) == (max(float(r["val/AP"]) for r in rows), 2)
        assert row.seconds == pytest.approx(sum(float(r["seconds"]) for r in rows) / 2)  # the median of two
        assert row.memory == max(float(r["peak_memory_mib"]) for r in rows) > 100
        assert list(row.classes) == ["circle", "square", "triangle"]
    state = torch.load(result.folder / "detr" / "last.pt", weights_only=True)
    trained = sum(v.numel() for v in state["model"].values())  # group norm: no buffers, nothing frozen
    assert result.outcome[0][1].parameters == trained


def test_the_folder_explains_itself(whole):
    file, result = whole
    page = result.report.read_text()
    assert "2 models under one budget: 2 epochs of the same 13 images" in page
    assert "evaluated on the 5 of split val" in page and "seed 3" in page
    assert re.search(r"\| mAP +\| [\d.]+ \(23\.2, [+-][\d.]+\) \|", page) and "made up for a test" in page
    assert "| DETR         | model.backbone_stage 4, model.name detr-r50, optim.lr 0.0005" in page
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert (result.folder / link).exists(), link
    assert str(result.folder) not in page
    with Image.open(result.folder / "examples.png") as sheet:  # image, truth, two models
        assert sheet.width == 10 + 4 * 330
        top = np.array(sheet.crop((0, 0, sheet.width, 40)))
    for i, (member, _) in enumerate(result.outcome):  # a bar in its colour above a member's column, and there alone
        color = (top == ImageColor.getrgb(load_study(file).color(member))).all(-1)
        assert color[:, 10 + (2 + i) * 330 : 10 + (2 + i) * 330 + 320].sum() == color.sum() > 320
    assert load_study(result.folder / "study.yaml").members == load_study(file).members
    rows = list(csv.DictReader((result.folder / "table.csv").open(newline="")))
    assert [float(r["mAP"]) for r in rows] == [r.figures["mAP"] for _, r in result.outcome]


def test_members_that_are_done_are_read_back(whole, monkeypatch, quick):
    file, result = whole
    before = numbers(result.folder)
    monkeypatch.setattr(one_run, "train", lambda *_, **__: pytest.fail("trained again"))
    again = run_study(load_study(file), result.folder)
    assert numbers(result.folder) == before and again.outcome == result.outcome


@pytest.mark.slow
def test_resumed_study_is_the_uninterrupted_one(whole, tmp_path, monkeypatch, quick):
    """Stopped in the first epoch of the first member, then in the second of the second."""
    file, result = whole
    study = load_study(file)
    for model, step in (("detr-r50", 3), ("deformable-detr-r50-two-stage", 9)):
        with monkeypatch.context() as patch:
            signal_at(patch, model, step)
            with pytest.raises(Interrupted, match="go on with: detrkit study x") as stop:
                run_study(study, tmp_path / "part", command="detrkit study x")
        assert stop.value.number == signal.SIGINT
        torch.rand(5)  # what else a process draws must not matter
    run_evaluation = evaluating.run_evaluation

    def signaled(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)  # noted, and looked at between batches
        run_evaluation(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "run_evaluation", signaled)
        with pytest.raises(Interrupted) as stop:
            run_study(study, tmp_path / "part")
    assert stop.value.number == signal.SIGTERM and stop.value.agreed
    run_study(study, tmp_path / "part")
    assert numbers(tmp_path / "part") == numbers(result.folder)


@pytest.mark.slow
def test_further_seeds_are_the_runs_of_that_seed(whole, tmp_path, quick, monkeypatch):
    """A second seed of the whole study: its first runs are read back; the one with a seed fails and is tried again."""
    file, result = whole
    out = shutil.copytree(result.folder, tmp_path / "more")
    for folder in ("detr", "two-stage"):  # as studies without seeds have written it
        plain = json.loads((out / folder / "result.json").read_text())
        (out / folder / "result.json").write_text(json.dumps({k: v for k, v in plain.items() if k not in _OF_A_SEED}))
    study = load_study(file, seeds=2)

    def broken(config, **options):
        raise ValueError("out of paper")

    with monkeypatch.context() as patch:
        patch.setattr(one_run, "train", broken)
        failed = run_study(study, out, only=["detr"])
    assert [(m.name, r.seed, r.failure) for m, r in failed.results] == [
        ("detr", 3, ""),
        ("detr", 4, "ValueError: out of paper"),
        ("two-stage", 3, ""),
        ("two-stage", 4, ""),
    ]
    page = (out / "study.md").read_text()
    assert "| DETR, seed 4 | ValueError: out of paper" in page and "DETR (1 of 2 seeds, 1 failed)" in page
    again = run_study(study, out, only=["detr"])
    run_study(load_study(file, shared={"run": {"seed": 4}}), tmp_path / "alone", only=["detr"])
    first, second = numbers(out)[:2]
    assert first == numbers(result.folder)[0]
    expected = numbers(tmp_path / "alone")[0]
    assert second == {**expected, "folder": "detr-seed4"} and expected["seed"] == 4
    assert second["best"] != first["best"] or epochs_of(out / "detr") != epochs_of(out / "detr-seed4")
    two = [r.figures["mAP"] for m, r in again.results if m.name == "detr"]
    over = json.loads((out / "results.json").read_text())["over_seeds"]["detr"]["mAP"]
    assert over == pytest.approx({"mean": sum(two) / 2, "std": abs(two[0] - two[1]) / 2**0.5, "seeds": 2})
    page = (out / "study.md").read_text()
    assert all((out / link).exists() for link in re.findall(r"\]\(([^)]+)\)", page))
    assert "[DETR, seed 4](detr-seed4/eval-last/report.md)" in page and "sample standard deviation" in page


@pytest.mark.slow
def test_a_member_killed_before_its_first_saved_state_begins_anew(whole, tmp_path, monkeypatch, quick):
    file, result = whole
    study = load_study(file)

    def power_cut(self, values):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_log_step", power_cut)
        with pytest.raises(SystemExit):
            run_study(study, tmp_path / "part", only=["detr"])
    assert (tmp_path / "part" / "detr" / "config.yaml").exists()
    run_study(study, tmp_path / "part", only=["detr"])
    detr, other = numbers(tmp_path / "part")
    assert detr == numbers(result.folder)[0] and other["figures"] == {}
    assert "++ two-stage (not trained)" in (tmp_path / "part" / "study.md").read_text()


@pytest.mark.slow
def test_a_member_that_fails_does_not_lose_the_others(whole, tmp_path, monkeypatch, quick, capsys):
    """The first one diverges in its second epoch; when that has been mended it goes on."""
    file, result = whole
    out = tmp_path / "part"
    forward, calls = DETR.forward, []

    def poisoned(self, images, *args, **kwargs):
        outputs = forward(self, images, *args, **kwargs)
        if self.training:
            calls.append(1)
            if len(calls) == 8:
                outputs.boxes = outputs.boxes * torch.nan
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(DETR, "forward", poisoned)
        assert main(["study", str(file), "--out", str(out)]) == 1
    said = capsys.readouterr().out
    assert re.search(r"DETR failed: .* not finite at step 8 \(epoch 2\)", said)
    detr, two_stage = numbers(out)
    assert "not finite at step 8" in detr["failure"] and detr["figures"] == {}
    assert two_stage == numbers(result.folder)[1]
    assert "## Failures" in (out / "study.md").read_text()
    assert "Traceback" in (out / "detr" / "failure.txt").read_text()
    assert main(["study", str(file), "--out", str(out)]) == 0
    assert numbers(out) == numbers(result.folder)


def test_a_study_with_other_settings_is_refused(whole, capsys):
    file, result = whole
    assert main(["study", str(file), "--out", str(result.folder), "--epochs", "3"]) == 2
    said = capsys.readouterr().err
    assert "study.yaml: train.optim.epochs was 2, now it is 3" in said and len(said.splitlines()) == 1


def test_help_names_every_study(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    said = capsys.readouterr().out
    assert all(name in said.split("Run\n")[0].split("RECIPE  ")[1] for name in studies())
    with pytest.raises(SystemExit):
        main(["study", "--help-all"])
    said = capsys.readouterr().out
    assert all(f"{name}: " in said for name in studies())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cppe5-four"], "no dataset: give its path after the recipe"),
        (["cppe5-four", "nowhere"], "nowhere"),
        (["none-such"], "no recipe of that name"),
        (["shapes-four", "--only", "detr", "dert"], "--only dert: no member of that name (there are detr, deformable"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert main(["study", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_unknown_shapes_are_refused(tmp_path):
    study = load_study(tiny_study(tmp_path, generate={"images": {"train": 2, "val": 1}, "options": {"side": 9}}))
    with pytest.raises(DetrkitError, match=r"generate\.options\.side: unknown field \(there are sides, classes"):
        run_study(study, tmp_path / "out")


@pytest.mark.slow
def test_runs_side_by_side_are_those_one_after_the_other(whole, tmp_path, monkeypatch, quick, capsys):
    """One is killed at its start and the other interrupted; the same command goes on with both."""
    _, result = whole
    file, out = tiny_study(tmp_path, run={"pictures": False}), tmp_path / "both"
    study = load_study(file)
    start, report, stopped = parallel._start, parallel._report, []

    def killed(run, folder, *, threads):
        one = start(run, folder, threads=threads)
        if run.folder == "two-stage":
            one.process.kill()
        return one

    def interrupted(one, folder, epochs):
        report(one, folder, epochs)
        if one.rows and not stopped:
            stopped.append(one)
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "_start", killed)
        patch.setattr(parallel, "_report", interrupted)
        with pytest.raises(Interrupted, match="go on with: detrkit study x") as stop:
            run_study(study, out, parallel=2, command="detrkit study x")
    assert stop.value.number == signal.SIGTERM
    assert (stopped[0].run.folder, stopped[0].process.returncode) == ("detr", 128 + signal.SIGTERM)
    assert "stopped by SIGTERM" in (out / "output" / "detr.txt").read_text()
    _, two_stage = numbers(out)
    assert two_stage["failure"] == "its process was ended by SIGKILL; see output/two-stage.txt"
    assert main(["study", str(file), "--out", str(out), "--parallel", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^\+\+ two-stage: epoch 2 of 2, mAP \d+\.\d$", said, re.MULTILINE) and "two-stage: done" in said
    assert numbers(out) == numbers(result.folder)


def test_runs_of_several_processes_are_not_trained_side_by_side(tmp_path, capsys):
    words = ["study", str(tiny_study(tmp_path)), "--out", str(tmp_path / "out"), "--parallel", "2", "--devices", "2"]
    assert main(words) == 2
    assert "--parallel 2 trains that many runs of one process each" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_train_every_member(whole, tmp_path):
    """Under torchrun: the first process writes, the tables are those of one process but for rounding."""
    _, result = whole
    file = tiny_study(tmp_path, data={"batch_size": 1}, model={"dropout": 0.0}, optim={"epochs": 1})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "detrkit"]
    command += ["study", str(file), "--out", str(tmp_path / "two")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for member in json.loads((tmp_path / "two" / "results.json").read_text())["members"]:
        assert member["machine"].startswith("2 x ")
        assert member["figures"]["mAP"] == float(epochs_of(tmp_path / "two" / member["name"])[-1]["val/AP"])
        assert member["parameters"] == {m.name: r.parameters for m, r in result.outcome}[member["name"]]
    assert done.stdout.count("DETR (1 of 2)") == 1
