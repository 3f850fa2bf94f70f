"""`detrkit train` without a recipe, and with another number of epochs."""

from __future__ import annotations

import pytest

import detrkit
from detrkit.cli import main
from detrkit.cli.train import typed_settings, with_defaults
from detrkit.config import load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import facts
from detrkit.utils.errors import DetrkitError

TINY = ["--backbone-width", "8", "--hidden-dim", "32", "--nheads", "2", "--enc-layers", "1", "--dec-layers", "1"]
SHORT = ["--size", "64", "--no-tensorboard", "--no-pictures", "--device", "cpu"]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    return write_shapes(
        tmp_path_factory.mktemp("set") / "set", images={"train": 12, "val": 2}, sides=(48, 64), classes=2
    )


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """No weights at hand."""
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setattr(facts, "_answers", lambda url: False)
    return tmp_path / "cache"


def test_typed_settings_are_those_of_the_command_line():
    words = [
        "train",
        "set",
        "--model",
        "detr-r50",
        "--epochs=5",
        "--no-tensorboard",
        "--lr-drop",
        "3",
        "--options",
        "a=1",
        "--out",
        "run",
    ]
    assert set(typed_settings(words)) == {
        *("model.name", "optim.epochs", "run.tensorboard", "optim.lr_drop", "model.options", "run.out")
    }
    assert with_defaults(["train", "set", "--recipe", "auto"]).typed == ()
    assert with_defaults(["train", "set", "--help"]).typed == ()


def test_a_choice_is_complete_and_what_is_fixed_stays(shapes, empty_cache):
    config = detrkit.choose_config(shapes)
    assert config.data.path == str(shapes) and config.model == load_config("few-images").model
    assert config.data.epoch_images is not None and config.optim.epochs == 20
    fixed = config.changed(optim={"epochs": 7, "lr": 0.5})
    again = detrkit.choose_config(shapes, fixed, fixed=["optim.epochs", "optim.lr"])
    assert (again.optim.epochs, again.optim.lr) == (7, 0.5) and again.data.epoch_images is None
    with pytest.raises(DetrkitError, match="fixed: epochs is no setting: give section and field"):
        detrkit.choose_config(shapes, fixed, fixed=["epochs"])
    with pytest.raises(DetrkitError, match="nowhere"):
        detrkit.choose_config("nowhere")


def test_weights_for_another_number_of_datasets_are_refused_before_anything_is_chosen(shapes, capsys):
    assert main(["train", str(shapes), "--weights", "1", "2", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "detrkit: error: --weights 1.0 2.0: there is one dataset: give one weight for each\n"
    )


def test_the_facts_know_how_long_an_epoch_is_and_what_the_model_has(shapes, empty_cache):
    rare = load_config("small").changed(data={"path": str(shapes), "repeat_rare": 1.0}, model={"num_queries": 7})
    records = detrkit.open_dataset(shapes, split="train").records
    shares = [sum(label in record.labels for record in records) / len(records) for label in (0, 1)]
    turn = sum(max(max(shares[label] ** -0.5, 1) for label in record.labels) for record in records)
    assert turn > len(records) + 1
    assert facts.gather_facts(rare, ["data.repeat_rare"]).epoch_images == round(turn)
    assert facts.gather_facts(rare).epoch_images is None  # a setting that is not fixed is chosen anew
    dino = rare.changed(model={"name": "dino-r50-4scale"})
    assert facts.gather_facts(dino, ["model.name"]).queries == 900
    assert facts.gather_facts(dino, ["model.num_queries"]).queries_fixed


def test_chosen_epochs_have_a_time_and_given_ones_do_not(shapes, empty_cache):
    """A slower machine than the one that was guessed trains fewer of the epochs that were chosen for it."""
    settings = facts.choose_settings(shapes)
    assert settings.limit is not None and settings.limit.seconds >= facts.LEAST_SECONDS and not settings.limit.whole
    assert not any("first guess" in line for line in settings.lines)  # since it will be measured
    for section, field, value in (("optim", "epochs", 3), ("model", "name", "detr-r50"), ("run", "minutes", 2.0)):
        config = settings.config.changed(**{section: {field: value}})
        assert facts.choose_settings(shapes, config, fixed=[f"{section}.{field}"]).limit is None


def test_facts_are_those_of_the_records(shapes, empty_cache):
    dataset = detrkit.open_dataset(shapes, split="train")
    found = facts.gather_facts(detrkit.choose_config(shapes))
    assert found.images == 12 and found.classes == 2 and found.weights == {}
    assert found.most_objects == max(len(record.labels) for record in dataset.records)
    assert 48 <= found.height <= 64 and 0.05 < found.small_object < 1


def test_cached_weights_are_found(empty_cache, tmp_path):
    assert facts.weights_at_hand(download=False) == ({}, "detr-r50")
    snapshot = tmp_path / "hub" / "hub" / "models--facebook--detr-resnet-50" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").touch()
    assert facts.weights_at_hand(download=False)[0] == {}
    (snapshot / "model.safetensors").touch()
    assert facts.weights_at_hand(download=False) == ({"detr-r50": "cached"}, str(snapshot))
    (empty_cache / "weights").mkdir(parents=True)
    (empty_cache / "weights" / "detr-r50-e632da11.pth").touch()
    assert facts.weights_at_hand(download=False) == ({"detr-r50": "cached"}, "detr-r50")


@pytest.mark.slow
def test_a_run_without_a_recipe_says_what_was_chosen_and_keeps_it(shapes, empty_cache, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["train", str(shapes), "--out", str(out), "--epochs", "2", "--warmup-steps", "1", *TINY, *SHORT]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "chosen for 12 images of " in text and ": --recipe few-images, 2 epochs (6 steps of 4 images)" in text
    written = load_config(out / "config.yaml")
    assert (written.optim.epochs, written.optim.warmup_steps, written.model.hidden_dim) == (2, 1, 32)
    assert (out / "choice.txt").read_text().startswith("chosen for 12 images of ")
    assert "| settings chosen" in (out / "report.md").read_text()
    assert main(["train", "--resume", str(out)]) == 0  # which chooses nothing
    assert "chosen for" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_recipe_for_fewer_epochs_says_what_follows(shapes, tmp_path, capsys):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "model: {name: detr-r50, backbone: resnet10, backbone_weights: random}\n"
        "optim: {epochs: 30, lr_drop: 20, warmup_steps: 50}\n"
    )
    out = tmp_path / "run"
    words = ["train", str(shapes), "--recipe", str(recipe), "--out", str(out), "--epochs", "3", *TINY, *SHORT]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "the learning rate drops after 2 of 3 epochs, in proportion (20 of 30)" in text
    assert "warm-up: 3 steps instead of 50, at most a fifth of the 18 steps" in text
    written = load_config(out / "config.yaml").optim
    assert (written.epochs, written.lr_drop, written.warmup_steps) == (3, 2, 3)


def test_minutes_and_epochs_exclude_each_other(shapes, capsys):
    assert main(["train", str(shapes), "--minutes", "3", "--epochs", "2"]) == 2
    assert (
        capsys.readouterr().err
        == "detrkit: error: --minutes and --epochs: the minutes set the epochs, so give one of them\n"
    )


@pytest.mark.parametrize("words", [["--init-from", "detr-r50"], ["--recipe", "detr-300"]])
def test_weights_that_cannot_be_downloaded_name_the_ways_out(shapes, empty_cache, tmp_path, capsys, monkeypatch, words):
    from detrkit.utils.download import DownloadError

    def offline(url, *_, **__):
        raise DownloadError(f"cannot download {url} (offline)", "offline")

    monkeypatch.setattr("detrkit.weights.build.download", offline)
    monkeypatch.setattr("detrkit.backbones.resnet.download", offline)
    assert main(["train", str(shapes), "--out", str(tmp_path / "run"), "--device", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert "cannot download" in error and "path" in error
    assert "--recipe small (a small model from random weights), or --backbone-weights random" in error
