"""Runs: exact resume, batches that may be split anyhow, fine-tuning, and what happens when something goes wrong."""

from __future__ import annotations

import dataclasses
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from detrkit.engine import train
from detrkit.engine.trainer import Trainer
from detrkit.models.detr import DETR
from detrkit.utils.errors import DetrkitError, Interrupted
from detrkit.weights.checkpoint import load_model
from helpers.tiny import MODEL, losses, tiny_config


@pytest.fixture(scope="module")
def whole(shapes, tmp_path_factory):
    """An uninterrupted run with everything that has a state: dropout, average, augmentation."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    config = tiny_config(
        shapes, folder, model=dataclasses.replace(MODEL, dropout=0.1), optim={"ema": 0.9, "schedule": "cosine"}
    )
    return config, train(config)


def _interrupt_at(monkeypatch, step: int, number: int) -> None:
    """Sends the process a signal when a step has been logged."""
    logged = Trainer._log_step

    def log_and_signal(self, values):
        logged(self, values)
        if self.progress.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "_log_step", log_and_signal)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "number"), [(4, signal.SIGINT), (9, signal.SIGTERM)])
def test_resumed_run_is_the_uninterrupted_one(whole, tmp_path, monkeypatch, step, number):
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part")})
    with monkeypatch.context() as patch:
        _interrupt_at(patch, step, number)
        with pytest.raises(Interrupted) as stop:
            train(part)
    assert stop.value.number == number
    assert [s for s, _ in losses(tmp_path / "part")] == list(range(1, step + 1))
    torch.rand(7)  # what else a process draws must not matter
    again = train(part, resume=True)
    assert losses(tmp_path / "part") == losses(result.folder)
    assert again.metrics.to_json() == result.metrics.to_json()
    before, after = load_file(result.best), load_file(again.best)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.slow
def test_resume_from_an_earlier_state_drops_later_log_lines(whole, tmp_path, monkeypatch):
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part"), "save_every": 4})
    steps = Trainer._step

    def crash(self, batches):
        if self.progress.step == 6:
            raise RuntimeError("power cut")
        return steps(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(part)
    assert len(losses(tmp_path / "part")) == 6  # two steps beyond the saved state
    train(part, resume=True)
    assert losses(tmp_path / "part") == losses(result.folder)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "accumulate"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("group_by_size", [False, True])
def test_accumulated_batches_equal_one_large_batch(shapes, tmp_path, batch_size, accumulate, group_by_size):
    """Same images, same divisors, padding that does not leak: only the order of float sums differs."""
    one = tiny_config(shapes, tmp_path / "one", data={"batch_size": 4, "group_by_size": group_by_size})
    split = one.changed(
        data={"batch_size": batch_size}, optim={"accumulate": accumulate}, run={"out": str(tmp_path / "split")}
    )
    train(one)
    train(split)
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "split")
    assert [s for s, _ in expected] == [s for s, _ in found]
    # Adam's first steps have the size of the learning rate whatever the gradient: noise grows along the run
    torch.testing.assert_close([v for _, v in found], [v for _, v in expected], rtol=2e-3, atol=0)
    assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5)


def test_run_folder_explains_itself(whole):
    _, result = whole
    names = {p.name for p in result.folder.iterdir()}
    assert {
        "README.md",
        "report.md",
        "best.safetensors",
        "last.pt",
        "config.yaml",
        "classes.txt",
        "environment.txt",
        "epochs.csv",
        "steps.csv",
        "training.png",
        "examples.png",
        "metrics.json",
    } <= names
    assert not [n for n in names if n.endswith(".tmp")]
    assert (result.folder / "classes.txt").read_text().splitlines()[0].split("\t")[0] == "0"
    model, spec = load_model(result.folder)
    assert spec.classes.names == tuple(
        line.split("\t")[2] for line in (result.folder / "classes.txt").read_text().splitlines()
    )
    assert isinstance(model, DETR)
    assert (spec.size, spec.max_size) == (64, 107)


def test_a_run_is_not_overwritten(whole):
    config, _ = whole
    with pytest.raises(DetrkitError, match=r"holds a run already.*--resume"):
        train(config)


def test_a_command_to_paste_has_its_folder_quoted(whole, tmp_path):
    config, result = whole
    folder = tmp_path / "two words"
    folder.symlink_to(result.folder)
    with pytest.raises(DetrkitError, match=r"`detrkit train --resume '.*/two words'`"):
        train(config.changed(run={"out": str(folder)}))


def test_resume_refuses_other_settings(whole):
    config, _ = whole
    with pytest.raises(DetrkitError, match=r"optim\.lr was 0\.001, now it is 0\.01"):
        train(config.changed(optim={"lr": 0.01}), resume=True)


@pytest.mark.slow
def test_resume_may_train_longer(whole, tmp_path):
    config, _ = whole
    longer = config.changed(run={"out": str(tmp_path / "longer")}, optim={"schedule": "step"})
    train(longer)
    train(longer.changed(optim={"epochs": 3}), resume=True)
    assert losses(tmp_path / "longer")[-1][0] == 3 * 6


def test_resume_needs_a_state(tmp_path, shapes):
    config = tiny_config(shapes, tmp_path / "nothing")
    with pytest.raises(DetrkitError, match=r"no config\.yaml"):
        train(config, resume=True)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "config.yaml").write_text(config.to_yaml())
    for content in (b"half a file", b""):
        (tmp_path / "nothing" / "last.pt").write_bytes(content)
        with pytest.raises(DetrkitError, match=r"last\.pt: damaged, or not a PyTorch file; start a new run"):
            train(config, resume=True)


def test_non_finite_output_stops_the_run_and_names_the_images(shapes, tmp_path, monkeypatch):
    forward, calls = DETR.forward, []

    def poisoned(self, images, *args, **kwargs):
        outputs = forward(self, images, *args, **kwargs)
        if self.training:
            calls.append(1)
            if len(calls) == 8:  # the second epoch
                outputs.boxes = outputs.boxes * torch.nan
        return outputs

    monkeypatch.setattr(DETR, "forward", poisoned)
    with pytest.raises(
        DetrkitError, match=r"not finite at step 8 \(epoch 2\), images \d+.*last good state is .*last\.pt"
    ):
        train(tiny_config(shapes, tmp_path / "run"))
    assert all(torch.isfinite(v).all() for v in torch.load(tmp_path / "run" / "last.pt")["model"].values())


def test_non_finite_loss_term_is_named(shapes, tmp_path, monkeypatch):
    from detrkit.models.criterion import SetCriterion

    terms = SetCriterion._box_terms

    def poisoned(self, *args):
        found = terms(self, *args)
        found["loss_giou"] = found["loss_giou"] * torch.inf
        return found

    monkeypatch.setattr(SetCriterion, "_box_terms", poisoned)
    with pytest.raises(DetrkitError, match=r"loss_giou.* is not finite at step 1 .*no state had been saved"):
        train(tiny_config(shapes, tmp_path / "run"))


@pytest.mark.slow
def test_early_stop(shapes, tmp_path, monkeypatch):
    """With a rate of nearly 0, AP never rises after the first evaluation."""
    config = tiny_config(
        shapes, tmp_path / "run", optim={"epochs": 9, "lr": 1e-12, "lr_backbone": 1e-12}, run={"patience": 2}
    )
    train(config)
    assert losses(tmp_path / "run")[-1][0] == 3 * 6


def test_without_validation_the_last_weights_are_kept(shapes, tmp_path):
    result = train(tiny_config(shapes, tmp_path / "run", data={"val_split": "none"}))
    assert result.metrics is None and result.report is None
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    best = load_file(result.best)
    assert all(torch.equal(best[k], state[k]) for k in best)


@pytest.mark.slow
def test_overfit_learns_a_few_images(shapes, tmp_path):
    config = tiny_config(
        shapes,
        tmp_path / "run",
        model=dataclasses.replace(MODEL, backbone_width=16, hidden_dim=64, nheads=4, dim_feedforward=128),
        data={"batch_size": 4},
        optim={"epochs": 20, "lr_backbone": 1e-3},
        run={"overfit": 3},
    )
    result = train(config)
    assert result.can_learn is True
    assert result.metrics.AP50 >= 0.9


def test_splits_with_other_classes_are_refused(shapes, tmp_path):
    from detrkit.data.tools.shapes import write_shapes

    more = write_shapes(tmp_path / "more", images={"val": 3}, sides=(48, 64), classes=5)
    with pytest.raises(DetrkitError, match=r"has classes that .* has not"):
        train(tiny_config(shapes, tmp_path / "run", data={"val_data": str(more)}))
