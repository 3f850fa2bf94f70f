"""Time is given to the part that took it; measuring changes nothing of what is measured."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

import detrkit.detector
from detrkit.models.criterion import SetCriterion
from detrkit.models.matcher import HungarianMatcher
from detrkit.profiling import Setting, measure, measuring
from detrkit.profiling.pictures import write_pictures
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec

SLOW = 0.2  # seconds, more than the rest of such a small turn takes
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
    return write_pictures(tmp_path, 3, (64, 96))


def built(spec):
    torch.manual_seed(0)
    return spec.build().eval()


def slowed(monkeypatch, owner, name):
    """Makes a function take `SLOW` seconds longer."""
    whole = getattr(owner, name)

    def slow(*args, **kwargs):
        time.sleep(SLOW)
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, slow)


def slowest(measured):
    return max(measured.medians, key=measured.medians.get)


MODEL = ["backbone", "projection, positions", "encoder", "decoder", "heads"]


@pytest.mark.parametrize(
    ("spec", "more"), [(DETR, []), (TWO_STAGE, ["proposals"]), (PANOPTIC, ["masks"])], ids=lambda x: str(x)[:30]
)
def test_predicting_has_these_parts(files, spec, more):
    model = built(spec)
    measured = measure(model, Setting(spec, files, 2, CPU, repeats=2, random=True))
    assert set(measured.parts) == {
        *("reading and decoding", "resizing and normalising", "batching, transfers", "post-processing"),
        *MODEL,
        *more,
    }
    assert all(len(taken) == 2 and min(taken) > 0 for taken in measured.parts.values())
    assert measured.inputs == ((64, 96), (64, 96)) and measured.images == 2 and len(measured.whole) == 2
    assert measured.rate == pytest.approx(4 / sum(measured.whole))
    assert measured.beside is None and measured.memory > 50
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_masks_are_made_for_as_many_as_a_picture_has(files):
    measured = measure(built(PANOPTIC), Setting(PANOPTIC, files, 1, CPU, repeats=1, random=True))
    assert 0 < measured.found <= 15
    trained = measure(built(PANOPTIC), Setting(PANOPTIC, files, 1, CPU, repeats=1))
    assert trained.found == 0  # nothing is above the threshold of trained weights


@pytest.mark.parametrize(("name", "part"), [("as_rgb", "reading and decoding"), ("postprocess", "post-processing")])
def test_a_slow_function_is_seen_in_its_part(files, monkeypatch, name, part):
    slowed(monkeypatch, detrkit.detector, name)
    measured = measure(built(DETR), Setting(DETR, files, 1, CPU, repeats=2))
    assert slowest(measured) == part and SLOW < measured.medians[part] < 1.5 * SLOW
    assert measured.median > SLOW and measured.total > SLOW


@pytest.mark.parametrize("part", ["backbone", "encoder", "decoder"])
def test_a_slow_module_is_seen_in_its_part(files, part):
    model = built(TWO_STAGE)
    module = getattr(model, part)
    if part != "backbone":
        module = module[1]  # the second layer
    module.register_forward_pre_hook(lambda *_: None)  # one of somebody else's stays
    forward = module.forward
    module.forward = lambda *args, **kwargs: (time.sleep(SLOW), forward(*args, **kwargs))[1]
    measured = measure(model, Setting(TWO_STAGE, files, 1, CPU, repeats=1))
    assert slowest(measured) == part and SLOW < measured.medians[part] < 2 * SLOW
    assert len(module._forward_pre_hooks) == 1


def test_training_has_these_parts_and_moves_the_weights(files, monkeypatch):
    monkeypatch.setattr(measuring, "default_workers", lambda: 0)  # a machine with more cores trains beside them, too
    model = built(PANOPTIC)
    before = model.class_head.weight.detach().clone()
    measured = measure(model, Setting(PANOPTIC, files, 2, CPU, repeats=2), training=True)
    rest = ("matching", "losses", "backward", "clipping", "optimiser", "rest of the step")
    assert list(measured.parts) == ["loading", *MODEL, "masks", *rest]
    assert all(len(taken) == 2 and min(taken) > 0 for taken in measured.parts.values())
    assert measured.found is None and len(measured.whole) == 2
    # 2 warm-up and 2 counted turns of both kinds; Adam's first steps are of the learning rate
    moved = (model.class_head.weight - before).abs().max()
    assert 4e-4 < moved < 9e-4
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize(
    ("owner", "name", "part"),
    [(HungarianMatcher, "match", "matching"), (SetCriterion, "_class_terms", "losses")],
    ids=["matching", "losses"],
)
def test_a_slow_loss_is_seen_in_its_part(files, monkeypatch, owner, name, part):
    slowed(monkeypatch, owner, name)
    measured = measure(built(DETR), Setting(DETR, files, 1, CPU, repeats=1), training=True)
    assert slowest(measured) == part and measured.medians[part] > SLOW


def test_damaged_picture_is_named(files):
    files[1].write_bytes(files[1].read_bytes()[:2000])
    with pytest.raises(DetrkitError, match=files[1].name):
        measure(built(DETR), Setting(DETR, files, 2, CPU, repeats=1))


def test_training_on_a_numbered_gpu_is_refused(files):
    with pytest.raises(DetrkitError, match="--train takes cpu or cuda"):
        measure(built(DETR), Setting(DETR, files, 1, torch.device("cuda:1"), repeats=1), training=True)


def test_too_little_memory_is_one_line(files, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = built(DETR)
    model.encoder.forward = full
    with pytest.raises(DetrkitError, match="smaller --batch or --size"):
        measure(model, Setting(DETR, files, 1, CPU, repeats=1))
