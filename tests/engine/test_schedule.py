"""Schedules for another number of epochs than they were made for."""

from __future__ import annotations

import pytest

from detrkit.config import OptimConfig, load_config
from detrkit.engine import train
from detrkit.engine.optim import lr_factor
from detrkit.engine.schedule import fit_lr, fit_warmup, steps_per_epoch, with_epochs
from helpers.tiny import losses, tiny_config


def peak(optim: OptimConfig, steps: int) -> float:
    return max(lr_factor(optim, step, steps // optim.epochs) for step in range(steps))


def test_a_shortened_schedule_reaches_its_rate():
    """104 steps with a warm-up of 100 peaked at little more than a quarter of the rate."""
    optim = with_epochs(load_config("small").optim, 4).optim
    assert (optim.epochs, optim.warmup_steps) == (4, 100)
    assert peak(optim, 104) < 0.28
    fitted = fit_warmup(optim, 104)
    assert fitted.optim.warmup_steps == 20
    assert peak(fitted.optim, 104) > 0.9
    assert fitted.words == "warm-up: 20 steps instead of 100, at most a fifth of the 104 steps"


def test_a_warmup_that_fits_stays():
    optim = load_config("small").optim
    assert fit_warmup(optim, 500) == (optim, "")
    assert fit_warmup(optim, 3).optim.warmup_steps == 0
    assert peak(fit_warmup(optim, 3).optim, 100) == 1.0


def test_a_drop_keeps_its_proportion():
    fitted = with_epochs(OptimConfig(), 30)
    assert (fitted.optim.epochs, fitted.optim.lr_drop) == (30, 20)
    assert fitted.words == "the learning rate drops after 20 of 30 epochs, in proportion (200 of 300)"
    assert with_epochs(OptimConfig(), 1).optim.lr_drop == 1
    assert with_epochs(OptimConfig(), 600).optim.lr_drop == 400


def test_a_drop_that_is_given_stays():
    assert with_epochs(OptimConfig(lr_drop=7), 30, keep_drop=True) == (OptimConfig(epochs=30, lr_drop=7), "")


def test_a_rate_without_a_drop_stays_constant():
    optim = with_epochs(OptimConfig(epochs=10, lr_drop=10), 500).optim
    assert {lr_factor(optim, step, 1) for step in range(500)} == {1.0}


def test_a_cosine_has_no_drop():
    small = load_config("small").optim
    assert with_epochs(small, 7).words == "" and with_epochs(small, 7).optim.lr_drop == small.lr_drop


def test_the_drop_of_the_masks_keeps_its_proportion():
    optim = with_epochs(load_config("panoptic-coco").optim, 30, mask_epochs=5).optim
    assert (optim.epochs, optim.lr_drop, optim.mask_epochs, optim.mask_lr_drop) == (30, 20, 5, 3)


@pytest.mark.parametrize(
    ("images", "world", "data", "accumulate", "steps"),
    [
        (13, 1, {}, 1, 6),
        (13, 2, {}, 1, 3),
        (13, 1, {}, 4, 1),
        (3, 1, {"batch_size": 8}, 1, 1),
        (13, 1, {"epoch_images": 100}, 1, 50),
        (1000, 1, {"epoch_images": 100}, 2, 25),
    ],
)
def test_steps_per_epoch(tmp_path, images, world, data, accumulate, steps):
    config = tiny_config(tmp_path, tmp_path, data=data, optim={"accumulate": accumulate})
    assert steps_per_epoch(config, images, world) == steps


@pytest.mark.parametrize(("batch", "accumulate", "world", "factor"), [(4, 1, 1, 0.5), (16, 1, 1, 1), (8, 4, 2, 2)])
def test_a_rate_for_a_batch_scales_by_the_root_of_the_ratio(tmp_path, batch, accumulate, world, factor):
    rates = {"lr": 2e-4, "lr_backbone": 2e-5, "lr_for_batch": 16}
    config = tiny_config(tmp_path, tmp_path, data={"batch_size": batch}, optim={"accumulate": accumulate, **rates})
    fitted = fit_lr(config, world)
    assert fitted.optim.lr == pytest.approx(factor * 2e-4) and fitted.optim.lr_backbone == pytest.approx(factor * 2e-5)
    assert fitted.optim.lr_for_batch == batch * accumulate * world
    again = config.changed(optim={name: getattr(fitted.optim, name) for name in rates})
    assert fit_lr(again, world) == (fitted.optim, "")  # the rule changes nothing a second time
    assert fitted.words == ("" if factor == 1 else fitted.words) and bool(fitted.words) == (factor != 1)
    plain = config.changed(optim={"lr_for_batch": None})
    assert fit_lr(plain, world) == (plain.optim, "")


@pytest.mark.slow
def test_a_run_has_the_rate_for_its_batch_and_keeps_it(shapes, tmp_path, capsys):
    """Written down, so that a resumed run, or one with its config.yaml as recipe, has the same rate."""
    given = tiny_config(shapes, tmp_path / "rule", data={"batch_size": 2}, optim={"lr": 1e-3, "lr_for_batch": 8})
    train(given)
    assert "learning rate: 0.0005 for 2 images a step, by the square root of the ratio (0.001 for 8)" in (
        capsys.readouterr().out
    )
    written = load_config(tmp_path / "rule" / "config.yaml")
    assert (written.optim.lr, written.optim.lr_for_batch) == (5e-4, 2)
    before = losses(tmp_path / "rule")
    train(given, resume=True)  # as torchrun does after a failure: with the settings that were given
    assert losses(tmp_path / "rule") == before
    train(written.changed(run={"out": str(tmp_path / "same")}))
    assert losses(tmp_path / "same") == before
