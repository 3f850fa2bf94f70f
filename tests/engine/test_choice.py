"""The choice of a recipe, by a table of facts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from detrkit.config import TrainConfig
from detrkit.engine.choice import Choice, Facts, choose
from detrkit.engine.relations import check_config
from detrkit.engine.training import _of_first

BCCD = {"images": 205, "height": 480, "width": 640, "classes": 3, "most_objects": 30, "small_object": 0.08}
CACHED, ONLINE = {"weights": {"detr-r50": "cached"}}, {"weights": {"detr-r50": "download"}}


def chosen(**facts) -> tuple[Choice, TrainConfig]:
    choice = choose(Facts(**{**BCCD, **facts}))
    config = choice.config()
    check_config(config)
    return choice, config


def gpu(memory: float, **facts) -> tuple[Choice, TrainConfig]:
    return chosen(**{"device": "cuda", "gpu_memory": memory, **ONLINE, **facts})


def test_a_laptop_without_weights_trains_the_small_model_within_a_quarter_of_an_hour():
    choice, config = chosen()
    assert (choice.recipe, config.optim.epochs, config.data.size, config.data.batch_size) == ("own-data", 30, 256, 8)
    assert choice.steps == 30 * 25 and config.data.epoch_images is None
    assert choice.seconds is not None and 500 < choice.seconds < 720
    assert config.run.init_from is None and config.model.backbone_weights == "random"
    assert "no trained weights are at hand" in choice.reasons[0]


def test_weights_that_would_be_downloaded_are_left_alone_on_a_cpu():
    assert chosen(**ONLINE)[0].recipe == "own-data"


def test_a_laptop_with_trained_weights_starts_from_them():
    choice, config = chosen(**CACHED)
    assert (choice.recipe, config.run.init_from, config.data.size) == ("finetune", "detr-r50", 480)
    assert config.data.batch_size * config.optim.accumulate == 4
    assert config.optim.lr_drop == round(0.8 * config.optim.epochs)
    assert choice.seconds is not None and choice.seconds < 3600


def test_weights_in_the_cache_of_the_hub_are_named_by_their_folder():
    assert chosen(**CACHED, source="/cache/snapshots/1")[1].run.init_from == "/cache/snapshots/1"


def test_a_fine_tuning_that_takes_too_long_on_a_cpu_is_only_named():
    choice, config = chosen(images=20_000, **CACHED)
    assert choice.recipe == "own-data" and config.run.init_from is None
    assert "--recipe finetune --init-from detr-r50" in choice.reasons[0]


@pytest.mark.parametrize(("memory", "batch", "accumulate"), [(8, 2, 8), (24, 4, 4), (80, 16, 1)])
def test_the_batch_fits_the_gpu_and_a_step_has_sixteen_images(memory, batch, accumulate):
    choice, config = gpu(memory)
    assert (choice.recipe, config.run.init_from, config.data.size) == ("finetune", "detr-r50", 800)
    assert (config.data.batch_size, config.optim.accumulate) == (batch, accumulate)
    assert choice.seconds is None


def test_a_gpu_that_is_too_small_trains_the_small_model():
    choice, _ = gpu(3)
    assert choice.recipe == "own-data" and "3 GiB are too few" in choice.reasons[0]


def test_a_gpu_without_weights_trains_the_small_model_for_longer():
    choice, _ = gpu(24, weights={})
    assert choice.recipe == "own-data" and choice.steps > 2 * chosen()[0].steps


def test_several_gpus_share_the_step():
    _, config = gpu(24, processes=4, images=5000)
    assert config.data.batch_size * config.optim.accumulate * 4 == 16


def test_eight_images_have_a_number_of_steps_and_not_of_epochs():
    choice, config = chosen(images=8)
    assert choice.recipe == "few-images" and config.data.batch_size == 4
    assert choice.steps == 1200 and config.optim.epochs == 20 and config.data.epoch_images == 240
    assert config.run.eval_every == 1
    choice, config = gpu(24, images=8)
    assert choice.steps == 300 and config.data.epoch_images == 15 * 16


def test_many_images_on_a_cpu_end_within_hours():
    facts = Facts(**{**BCCD, "images": 100_000})
    choice, config = chosen(images=100_000)
    assert choice.recipe == "own-data" and choice.seconds is not None and choice.seconds < 3 * 3600
    assert config.data.epoch_images is not None and config.data.epoch_images < 100_000
    part = f"all epochs see {config.data.epoch_images * config.optim.epochs / 1000:.0f} % of them"
    assert part in "\n".join(choice.lines(facts))
    shorter = config.changed(optim={"epochs": 1})  # what is given changes what is seen
    assert f"all epochs see {config.data.epoch_images / 1000:.0f} % of them" in "\n".join(choice.lines(facts, shorter))
    timed = config.changed(run={"minutes": 3.0})  # what fits is measured later
    assert "all epochs see" not in "\n".join(choice.lines(facts, timed))


def test_many_images_on_a_gpu_are_seen_several_times():
    choice, config = gpu(80, images=100_000)
    assert choice.steps * 16 > 3 * 100_000 and config.optim.epochs < 10
    assert config.data.epoch_images is None


def test_many_objects_raise_queries_and_counted_detections():
    for choice, config in (chosen(most_objects=260), gpu(24, most_objects=260)):
        assert (config.model.num_queries, config.run.max_dets) == (350, 300)
        assert "350 queries: an image has 260 objects" in choice.reasons
    assert gpu(24, most_objects=90)[1].model.num_queries is None


def test_queries_are_never_fewer_than_the_model_has_nor_more_than_a_thousand():
    model = {"model": "dino-r50-4scale", "queries": 900}
    for most, queries, counted in ((90, None, 100), (300, None, 300), (800, None, 800), (820, 1000, 900)):
        config = gpu(80, most_objects=most, **model)[1]
        assert (config.model.num_queries, config.run.max_dets) == (queries, counted), most
    for facts in ({}, {"device": "cuda", "gpu_memory": 80.0}, {"device": "cuda", "gpu_memory": 80.0, **ONLINE}, model):
        choice, config = chosen(most_objects=5000, **facts)
        assert (config.model.num_queries, config.run.max_dets) == (1000, 1000)
        assert any("5000 objects, of which 4000 are not learned" in reason for reason in choice.reasons)
    choice, config = gpu(24, most_objects=260, queries_fixed=True)
    assert config.model.num_queries is None and config.run.max_dets == 300
    assert not any("queries" in reason for reason in choice.reasons)


def test_an_epoch_is_as_long_as_repeated_images_make_it():
    """The steps follow from the number of images, the epochs from how often these come."""
    choice, config = chosen(epoch_images=410)
    assert choice.steps == pytest.approx(750, abs=50) and config.optim.epochs == 15
    assert choice.seconds == pytest.approx(chosen()[0].seconds, rel=0.1)
    facts = Facts(**BCCD, epoch_images=410)
    line = choose(facts).lines(facts)[0]
    assert "205 images of 640 x 480 (410 in an epoch)" in line and "15 epochs (765 steps of 8 images)" in line


@pytest.mark.parametrize(
    ("facts", "recipe", "reason"),
    [
        ({}, "own-data", None),
        ({"images": 60}, "few-images", "for few images: "),
        ({"images": 61}, "own-data", None),
        ({"most_objects": 60}, "own-data", None),
        ({"most_objects": 61}, "dense", "for many objects: an image has 61"),
        (
            {"height": 1000, "width": 1000, "small_object": 0.02},
            "small-objects",
            "for small objects: a tenth of them is",
        ),
        ({"height": 256, "width": 256, "small_object": 0.02}, "own-data", None),  # no pixels to gain
        ({"images": 30, "most_objects": 200}, "dense", "for many objects: an image has 200"),
    ],
)
def test_the_recipe_of_a_small_model_is_the_one_for_the_case(facts, recipe, reason):
    choice, config = chosen(**facts)
    assert choice.recipe == recipe and config.optim.lr_for_batch == 8
    assert len(choice.reasons[1:]) >= (reason is not None)
    if reason is not None:
        assert choice.reasons[1].startswith(reason)
    if recipe == "dense":
        assert config.model.num_queries == 300 and config.run.max_dets == 300
    assert "first guess" in "".join(choice.lines(Facts(**{**BCCD, **facts})))
    assert "first guess" not in "".join(choice.lines(Facts(**{**BCCD, **facts}), guess=False))


def test_tiny_objects_get_larger_images():
    large = {"height": 2000, "width": 3000, "small_object": 0.02}
    choice, config = chosen(**large)
    assert (choice.recipe, config.data.size, config.data.augment) == ("small-objects", 512, "flip")
    assert 2 in config.model.backbone_stages and choice.seconds is not None and choice.seconds < 720
    assert chosen(height=480, width=640, small_object=0.04)[1].data.size == 352
    assert gpu(24, **large)[1].data.size == 1024


def test_small_images_are_not_made_large():
    assert chosen(height=64, width=64, small_object=0.2)[1].data.size == 128


@pytest.mark.parametrize("panoptic", [False, True])
def test_masks_that_are_asked_for_are_trained(panoptic):
    for choose_on in (chosen, lambda **facts: gpu(24, **facts)):
        assert choose_on(masks=True, panoptic=panoptic)[1].model.masks is True


def test_a_model_that_is_asked_for_keeps_its_published_options():
    choice, config = gpu(24, model="deformable-detr-r50")
    assert choice.recipe == "detr-300" and config.model.overrides() == {}
    assert config.optim.lr_drop == round(config.optim.epochs * 2 / 3)
    on_cpu, _ = chosen(model="detr-r50")
    assert on_cpu.seconds is not None and on_cpu.seconds > 3600
    assert "needs a GPU" in on_cpu.reasons[-1]


def test_weights_that_are_asked_for_keep_their_model_and_size():
    choice, config = chosen(init_from="runs/first")
    assert choice.recipe == "finetune" and config.model.overrides() == {}
    assert config.data.size is None and config.run.init_from is None  # given: they come on top


def test_a_size_and_a_batch_that_are_given_count():
    choice, config = chosen(size=512, batch_size=4)
    assert (config.data.size, config.data.batch_size) == (512, 4)
    assert choice.seconds == pytest.approx(600, rel=0.1)


def test_the_lines_say_what_was_chosen_and_why():
    facts = Facts(**BCCD)
    lines = choose(facts).lines(facts)
    assert lines[0] == (
        "chosen for 205 images of 640 x 480 on 2 CPU cores: --recipe own-data, 30 epochs (750 steps of 8 images), "
        "images of 256 pixels"
    )
    assert lines[1].startswith("  a small model from random weights: ") and lines[2].startswith("  this takes about 10")
    shorter = choose(facts).config().changed(optim={"epochs": 3}, run={"minutes": None})
    assert "3 epochs (75 steps" in choose(facts).lines(facts, shorter)[0]
    timed = shorter.changed(run={"minutes": 30})
    assert "as many epochs as fit into 30 minutes" in choose(facts).lines(facts, timed)[0]


def test_the_lines_are_about_the_epochs_that_the_run_has():
    """A number of epochs that is given is one of turns through the images: an epoch of three has one step."""
    facts = Facts(**{**BCCD, "images": 3})
    choice = choose(facts)
    per_epoch = choice.steps // choice.config().optim.epochs
    assert f"  an epoch has {per_epoch} steps: every image comes several times" in choice.lines(facts)
    given = choice.config().changed(optim={"epochs": 1}, data={"epoch_images": None})
    lines = choice.lines(facts, given)
    assert "1 epoch (1 step of 4 images)" in lines[0] and not any("several times" in line for line in lines)


def test_the_published_recipe_is_the_published_default():
    from detrkit.config import load_config

    assert load_config("detr-300") == TrainConfig()


@pytest.mark.parametrize("reasons", [(), ("chosen",)])
def test_processes_have_the_settings_that_the_first_one_has_chosen(reasons):
    """One of eight processes may find the weights' server slow, or another cache of weights on its machine."""
    first = TrainConfig().changed(data={"size": 256, "workers": 4}, optim={"epochs": 7}, run={"init_from": "detr-r50"})
    other = TrainConfig().changed(data={"size": 512, "workers": 1}, run={"out": "elsewhere"})
    fabric = SimpleNamespace(broadcast=lambda value: first if reasons else None, global_rank=1)
    settings = _of_first(other, fabric, reasons)
    if reasons:
        assert (settings.data.size, settings.optim.epochs, settings.run.init_from) == (256, 7, "detr-r50")
        assert (settings.data.workers, settings.run.out) == (1, "elsewhere")
    else:  # what a user gives is compared, see `check_agreement`
        assert settings == other
