"""`--overfit`: its schedule and its verdict."""

from __future__ import annotations

import re

import pytest

from detrkit.config import load_config, recipes
from detrkit.engine import train
from detrkit.engine.optim import lr_factor
from detrkit.engine.overfit import (
    MINUTES,
    STEPS,
    Seen,
    evaluation_due,
    learning,
    loss_ends,
    overfit_config,
    smaller_input,
    verdict,
)
from detrkit.engine.schedule import steps_per_epoch
from helpers.tiny import tiny_config


@pytest.mark.parametrize("recipe", recipes())
def test_each_recipe_overfits_at_a_constant_rate(recipe):
    config = overfit_config(load_config(recipe).changed(run={"overfit": 8}), world=1)
    optim = config.optim
    assert config.run.minutes == MINUTES and config.run.eval_every == 1
    assert steps_per_epoch(config, 400, 1) == STEPS and optim.accumulate == 1 and optim.ema == 0
    assert {lr_factor(optim, step, STEPS) for step in range(10, STEPS * optim.epochs)} == {1.0}
    assert config.data.batch_size <= 8


def test_minutes_that_are_given_count():
    config = load_config("small").changed(run={"overfit": 2, "minutes": 7.0})
    assert overfit_config(config, world=2).run.minutes == 7.0
    assert overfit_config(config, world=2).data.epoch_images == STEPS * 2 * 2


def test_large_images_become_small_on_a_cpu():
    config = load_config("detr-150").changed(run={"overfit": 8, "device": "cpu"})
    smaller, line = smaller_input(config)
    assert (smaller.data.size, smaller.data.max_size) == (384, None)
    assert line == "--overfit on a CPU: images of 384 pixels instead of 800; --size 800 keeps them"
    small = load_config("small").changed(run={"overfit": 8, "device": "cpu"})
    assert smaller_input(small) == (small, "")


def test_evaluations_take_a_quarter_of_the_time():
    assert evaluation_due(0.0, None)
    assert not evaluation_due(29.0, 10.0) and evaluation_due(30.0, 10.0)


def test_learning_is_a_loss_that_falls_or_a_metric_that_rises():
    falling = [10 - 0.1 * i for i in range(40)]
    assert loss_ends(falling) == pytest.approx((9.85, 6.25))
    assert learning(Seen(falling, [], 40, 100))
    assert not learning(Seen([10.0, 9.9, 10.1, 9.8], [("AP50", 0.0), ("AP50", 0.01)], 4, 100))
    assert learning(Seen([10.0, 9.9], [("AP50", 0.0), ("AP50", 0.2)], 2, 100))
    assert not learning(Seen([10.0], [("AP50", -1.0)], 1, 100))


def test_the_verdict_is_honest():
    seen = Seen([10.0, 9.0, 6.0], [("AP50", 0.3)], 3, 118.4)
    words = verdict("AP50", 0.31, 8, seen, folder="runs/a b", minutes=2.0)
    assert words == (
        "overfit: AP50 31.0 on 8 images: the loss went from 10.00 to 6.00, after 3 steps and 118 s: it is learning, "
        "and not done; go on with `detrkit train --resume 'runs/a b' --minutes 10`"
    )
    flat = verdict("PQ", 0.0, 1, Seen([10.0, 10.0], [], 2, 120.0), folder="run", minutes=2.0)
    assert "did NOT learn them yet: look at the boxes with `detrkit data preview`, or go on with" in flat
    assert verdict("AP50", 0.95, 8, seen, folder="run", minutes=2.0) == (
        "overfit: AP50 95.0 on 8 images: the pipeline can learn"
    )


@pytest.mark.slow
def test_a_run_that_has_not_learned_says_so_in_time(shapes, tmp_path, capsys):
    config = tiny_config(shapes, tmp_path / "run", optim={"epochs": 500, "lr": 1e-9, "lr_backbone": 1e-9})
    result = train(config.changed(run={"overfit": 2, "minutes": 0.3}))
    out = capsys.readouterr().out
    assert re.search(r"AP50 \d\.\d after 10 steps, \d+ s, loss ", out) and "--minutes 0.3: the time is over" in out
    assert result.can_learn is False and result.verdict is not None and "did NOT learn" in result.verdict
    assert f"--resume {tmp_path / 'run'} --minutes 1.5" in result.verdict
