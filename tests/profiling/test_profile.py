"""Time is given to the part that took it; measuring changes nothing of what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch.optim import AdamW

from detrkit.data import ImageProcessor
from detrkit.engine.processes import StopSignals
from detrkit.models.criterion import SetCriterion
from detrkit.models.matcher import HungarianMatcher
from detrkit.models.postprocess import PostProcessor
from detrkit.profiling import ProfileConfig, profile, profile_model
from detrkit.profiling.generated_images import write_images
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec
from helpers.clock import Clock

SLOW = 0.25  # seconds by the clock of the test
OPTIONS = {
    "backbone": "resnet18",
    "backbone_norm": "group",
    "backbone_width": 16,
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "enc_layers": 2,
    "dec_layers": 2,
    "num_queries": 15,
}
DETR = ModelSpec("detr-r50", OPTIONS, num_classes=5, size=64, max_size=96)
TWO_STAGE = replace(DETR, name="deformable-detr-r50-two-stage")
PANOPTIC = replace(DETR, name="detr-r50-panoptic", options={**OPTIONS, "masks": True})
CPU = torch.device("cpu")


@pytest.fixture
def files(tmp_path):
    return write_images(tmp_path, 3, (64, 96))


def built(spec):
    torch.manual_seed(0)
    return spec.build().eval()


class Meter:
    """A meter whose products take no time."""

    rate = 1e11

    def __init__(self, device, dtype):
        pass

    def measure(self):
        pass


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(profile, "RateMeter", Meter)  # by that clock a product takes no time
    return Clock(monkeypatch)


def slowed(monkeypatch, clock, owner, name):
    """Makes a function take `SLOW` seconds by the clock; all else takes none."""
    function = getattr(owner, name)

    def slow(*args, **kwargs):
        clock.now += SLOW
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


def taken(result):
    """The parts that took time."""
    return {name: seconds for name, seconds in result.medians.items() if seconds}


MODEL = ["backbone", "projection, positions", "encoder", "decoder", "heads"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "more"), [(DETR, []), (TWO_STAGE, ["proposals"]), (PANOPTIC, ["masks"])], ids=lambda x: str(x)[:30]
)
def test_predicting_has_these_parts(files, spec, more):
    model = built(spec)
    measured = profile_model(
        model, ProfileConfig(spec=spec, files=files, batch_size=2, device=CPU, repeats=2, random_weights=True)
    )
    assert set(measured.parts) == {
        *("reading and decoding", "resizing", "padding, normalizing", "batching, transfers", "post-processing"),
        *MODEL,
        *more,
    }
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in measured.parts.values())
    assert measured.input_sizes == ((64, 96), (64, 96)) and measured.batch_size == 2 and len(measured.totals) == 2
    assert measured.rate == pytest.approx(4 / sum(measured.totals))
    assert measured.rate_with_workers is None and measured.memory > 50
    assert measured.floor.rate > 1e9 and measured.floor.operations > 1e7
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_masks_are_made_for_as_many_as_a_picture_has(files):
    measured = profile_model(
        built(PANOPTIC),
        ProfileConfig(spec=PANOPTIC, files=files, batch_size=1, device=CPU, repeats=1, random_weights=True),
    )
    assert 0 < measured.objects_per_image <= 15
    trained = profile_model(
        built(PANOPTIC), ProfileConfig(spec=PANOPTIC, files=files, batch_size=1, device=CPU, repeats=1)
    )
    assert trained.objects_per_image == 0  # nothing is above the threshold of trained weights


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        (ImageProcessor, "read", "reading and decoding"),
        (ImageProcessor, "prepare", "resizing"),
        (ImageProcessor, "batch", "padding, normalizing"),
        (PostProcessor, "detections", "post-processing"),
    ],
)
def test_a_slow_stage_is_seen_in_its_part(files, monkeypatch, clock, owner, name, part):
    slowed(monkeypatch, clock, owner, name)
    measured = profile_model(built(DETR), ProfileConfig(spec=DETR, files=files, device=CPU, repeats=2))
    assert taken(measured) == {part: SLOW}
    assert measured.total == measured.parts_together == SLOW and measured.rate == 1 / SLOW


@pytest.mark.parametrize("part", ["backbone", "encoder", "decoder"])
def test_a_slow_module_is_seen_in_its_part(files, monkeypatch, clock, part):
    model = built(TWO_STAGE)
    module = getattr(model, part)
    if part != "backbone":
        module = module[1]  # the second layer
    module.register_forward_pre_hook(lambda *_: None)  # one of somebody else's stays
    slowed(monkeypatch, clock, module, "forward")
    measured = profile_model(model, ProfileConfig(spec=TWO_STAGE, files=files, batch_size=1, device=CPU, repeats=1))
    assert taken(measured) == {part: SLOW}
    assert len(module._forward_pre_hooks) == 1


def test_training_has_these_parts_and_moves_the_weights(files, monkeypatch):
    monkeypatch.setattr(profile, "default_workers", lambda: 0)  # a machine with more cores trains beside them, too
    model = built(PANOPTIC)
    before = model.class_head.weight.detach().clone()
    measured = profile_model(
        model, ProfileConfig(spec=PANOPTIC, files=files, batch_size=2, device=CPU, repeats=2), training=True
    )
    rest = ("matching", "losses", "backward", "clipping", "optimizer", "rest of the step")
    assert list(measured.parts) == ["loading", *MODEL, "masks", *rest]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in measured.parts.values())
    assert measured.objects_per_image is None and len(measured.totals) == 2
    # 2 warm-up and 2 counted turns of both kinds, 2 steps to count operations; Adam's first are of the learning rate
    moved = (model.class_head.weight - before).abs().max()
    assert 4e-4 < moved < 11e-4
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [
        (HungarianMatcher, "match", "matching"),
        (SetCriterion, "_class_terms", "losses"),
        (Fabric, "backward", "backward"),
        (Fabric, "clip_gradients", "clipping"),
        (AdamW, "step", "optimizer"),
        (StopSignals, "all_reduce_mean", "rest of the step"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_slow_stage_of_a_step_is_seen_in_its_part(files, monkeypatch, clock, owner, name, part):
    monkeypatch.setattr(profile, "default_workers", lambda: 0)
    slowed(monkeypatch, clock, owner, name)
    config = ProfileConfig(spec=DETR, files=files, device=CPU, repeats=1)
    measured = profile_model(built(DETR), config, training=True)
    times = round(measured.total / SLOW)  # of the call in a step
    assert times >= 1 and taken(measured) == {part: times * SLOW} and measured.total == measured.parts_together


def test_damaged_picture_is_named(files):
    files[1].write_bytes(files[1].read_bytes()[:2000])
    with pytest.raises(DetrkitError, match=files[1].name):
        profile_model(built(DETR), ProfileConfig(spec=DETR, files=files, batch_size=2, device=CPU, repeats=1))


def test_training_on_a_gpu_that_is_not_there_is_refused(files):
    config = ProfileConfig(spec=DETR, files=files, batch_size=1, device=torch.device("cuda:77"), repeats=1)
    with pytest.raises(DetrkitError, match="device cuda:77: not available on this machine: torch sees"):
        profile_model(built(DETR), config, training=True)


def test_too_little_memory_is_one_line(files, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = built(DETR)
    model.encoder.forward = full
    with pytest.raises(DetrkitError, match="smaller --batch or --size"):
        profile_model(model, ProfileConfig(spec=DETR, files=files, batch_size=1, device=CPU, repeats=1))
