"""`--minutes`: the plan, and runs that end in time."""

from __future__ import annotations

import csv

import pytest

from detrkit.config import load_config
from detrkit.engine import budget, pace, planning, train
from detrkit.engine.budget import Plan, Rates, TimeLimit, plan, plan_words, planned_seconds
from detrkit.engine.resuming import adapted_fields, as_adapted
from helpers.tiny import losses, tiny_config


def seconds(rates: Rates, made: Plan, steps_per_epoch: int, final: float = 1.0) -> float:
    """What a planned run takes."""
    steps = made.epochs * (made.epoch_steps or steps_per_epoch)
    evaluations = pace.evaluations_after(made.epochs, made.eval_every)
    return steps * rates.step + (evaluations + final) * rates.evaluation + pace.REPORT_SECONDS


@pytest.mark.parametrize("rates", [Rates(0.8, 4.0), Rates(0.8, 0.0), Rates(5.0, 20.0), Rates(0.01, 30.0)])
@pytest.mark.parametrize("minutes", [5, 30, 600])
@pytest.mark.parametrize("steps", [1, 25, 12_500])
def test_a_plan_fits_into_its_time_and_uses_it(rates, minutes, steps):
    made = plan(rates, 60 * minutes, steps_per_epoch=steps)
    assert 1 <= made.eval_every <= max(1, made.epochs)
    taken = seconds(rates, made, steps)
    assert taken <= 60 * minutes
    longer = Plan(made.epochs + max(1, made.epochs // 3), made.epoch_steps, made.eval_every)
    assert made.epoch_steps is not None or seconds(rates, longer, steps) > 0.9 * 60 * minutes


def test_evaluations_take_a_quarter_of_the_time_at_most():
    made = plan(Rates(0.1, 60.0), 3600, steps_per_epoch=25)
    assert made.eval_every > 1 and made.epochs // made.eval_every * 60 <= 0.3 * 3600


def test_an_epoch_longer_than_the_budget_becomes_a_part():
    made = plan(Rates(1.0, 30.0), 1800, steps_per_epoch=10_000)
    assert made.epochs == 5 and made.eval_every == 1
    assert made.epoch_steps is not None and 200 < made.epoch_steps < 320


@pytest.mark.parametrize("fitting", [1.2, 1.9, 3.7, 4.6])
@pytest.mark.parametrize("evaluation", [0.0, 1.0, 3.0])
def test_few_epochs_become_parts_that_use_the_time(fitting, evaluation):
    """Whole epochs alone would leave up to half of the time unused."""
    rates, steps = Rates(0.2, evaluation), 250
    available = fitting * (steps * rates.step + evaluation) + evaluation + pace.REPORT_SECONDS
    made = plan(rates, available / budget._SAFE_SHARE, steps_per_epoch=steps)
    assert 0.9 * fitting * steps < made.epochs * (made.epoch_steps or steps) <= fitting * steps + steps / 10
    assert seconds(rates, made, steps) <= available / budget._SAFE_SHARE


def test_no_more_epochs_than_the_most_are_planned():
    for most in (1, 7):
        made = plan(Rates(0.1, 4.0), 3600, steps_per_epoch=100, eval_every=2, most_epochs=most)
        assert made == Plan(most, None, min(2, most))
    tight = {"seconds": 120, "steps_per_epoch": 100}
    assert plan(Rates(0.2, 4.0), **tight, most_epochs=50) == plan(Rates(0.2, 4.0), **tight)


def test_the_seconds_of_a_plan_are_those_of_its_parts():
    rates = Rates(0.5, 3.0)
    for made in (Plan(7, None, 2), Plan(3, 20, 1)):
        assert planned_seconds(rates, made, steps_per_epoch=40) == seconds(rates, made, 40)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (79, "5 epochs of 632 images each (each of 2000 is seen 1.6 times on average) fit"),
        (20, "5 epochs of 160 images each (800 of 2000 images are seen) fit"),
    ],
)
def test_the_words_of_a_plan_say_how_much_is_seen(steps, words):
    line = plan_words("--minutes 3", Rates(0.3, 2), Plan(5, steps, 1), images=8, train=range(2000), seconds=180)
    assert words in line


def test_a_budget_of_nothing_is_one_step():
    assert plan(Rates(10.0, 60.0), 30, steps_per_epoch=100) == Plan(1, 1, 1)


@pytest.mark.slow
def test_a_run_with_a_budget_is_the_run_with_those_epochs(shapes, tmp_path, monkeypatch):
    """Measuring changes no weight, no generator and no order of images."""
    optim = {"lr_drop": 1, "warmup_steps": 4}
    monkeypatch.setattr(planning, "plan", lambda *_, **__: Plan(3, None, 2))
    timed = tiny_config(shapes, tmp_path / "timed", optim={**optim, "epochs": 30, "lr_drop": 10}, run={"minutes": 5.0})
    train(timed)
    written = load_config(tmp_path / "timed" / "config.yaml")
    assert (written.optim.epochs, written.optim.lr_drop, written.optim.warmup_steps) == (3, 1, 3)
    assert (written.run.minutes, written.run.eval_every) == (5.0, 2)
    given = tiny_config(shapes, tmp_path / "given", optim={**optim, "epochs": 3, "warmup_steps": 3})
    train(given)
    assert losses(tmp_path / "timed") == losses(tmp_path / "given")
    notes = (tmp_path / "timed" / "choice.txt").read_text()
    assert "--minutes 5: 3 epochs fit, with steps of " in notes
    assert "the learning rate drops after 1 of 3 epochs, in proportion (10 of 30)" in notes
    assert "warm-up: 3 steps instead of 4, at most a fifth of the 18 steps" in notes


@pytest.mark.slow
def test_a_slower_machine_ends_in_time_with_a_report_and_goes_on(shapes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pace, "REPORT_SECONDS", 1.0)
    monkeypatch.setattr(budget, "_TRIAL_SECONDS", 0.1)
    monkeypatch.setattr(planning, "plan", lambda *_, **__: Plan(100_000, None, 100_000))
    config = tiny_config(shapes, tmp_path / "run", optim={"schedule": "cosine"}, run={"minutes": 0.1})
    result = train(config)
    out = capsys.readouterr().out
    assert "--minutes 0.1: the time is over after " in out and result.report is not None
    assert result.metrics is not None and result.best.is_file()
    before = losses(tmp_path / "run")
    written = load_config(tmp_path / "run" / "config.yaml")
    assert len(before) >= 1 and written.optim.epochs == 100_000
    if len(before) >= 50:  # the rate has come down with the time, not with the plan
        with (tmp_path / "run" / "steps.csv").open(newline="") as rows:
            last = list(csv.DictReader(rows))[-1]
        assert float(last["lr"]) < 0.1 * config.optim.lr
    train(written, resume=True)  # nothing is left of the time
    assert losses(tmp_path / "run") == before
    assert "give --resume more of them" in capsys.readouterr().out
    train(written.changed(run={"minutes": 0.25}), resume=True)
    assert len(losses(tmp_path / "run")) > len(before)


def test_a_run_is_resumed_with_the_settings_it_was_started_with(tmp_path):
    given = tiny_config(tmp_path, tmp_path, optim={"epochs": 30, "warmup_steps": 50}, run={"minutes": 5.0})
    saved = given.changed(
        data={"epoch_images": 40}, optim={"epochs": 3, "warmup_steps": 3}, run={"eval_every": 2, "out": "elsewhere"}
    )
    adapted = adapted_fields(given, shorten_warmup=False)
    assert as_adapted(given, saved, adapted) == saved.changed(run={"out": given.run.out})
    longer = saved.changed(optim={"epochs": 9}, run={"minutes": 9.0})
    assert as_adapted(longer, saved, adapted) == longer
    plain = given.changed(run={"minutes": None})
    assert adapted_fields(plain, shorten_warmup=False) == {"optim": ()}
    assert adapted_fields(plain, shorten_warmup=False, limited=True) == adapted
    assert as_adapted(plain, plain.changed(optim={"lr": 0.5}), {"optim": ()}) == plain  # refused later


@pytest.mark.slow
def test_a_run_with_a_limit_does_less_and_is_the_run_that_does_so_much(shapes, tmp_path, capsys):
    """Where the epochs fit nothing changes; where they do not, the schedule has the steps that do."""
    given = {"optim": {"epochs": 2}, "data": {"val_split": "none"}}
    train(tiny_config(shapes, tmp_path / "fits", **given), limit=TimeLimit(3600.0))
    train(tiny_config(shapes, tmp_path / "given", **given))
    assert losses(tmp_path / "fits") == losses(tmp_path / "given")
    assert "measured: 2 epochs fit, with steps of " in capsys.readouterr().out
    large = {**given, "optim": {"epochs": 100_000}}
    train(tiny_config(shapes, tmp_path / "short", **large), limit=TimeLimit(pace.REPORT_SECONDS + 4.0, 2.0))
    written = load_config(tmp_path / "short" / "config.yaml")
    assert written.optim.epochs < 100_000 and written.run.minutes is None
    same = written.changed(run={"out": str(tmp_path / "same")})
    train(same)
    assert losses(tmp_path / "short") == losses(tmp_path / "same")
