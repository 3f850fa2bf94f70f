"""Two-stage models compute in inference what their queries are made of; all proposals come at the first access."""

from __future__ import annotations

import pytest
import torch

import goldens
from detrkit.models.proposals import observed_choice
from detrkit.structures.outputs import DeferredOutputs
from helpers.small_models import small_model

NAMES = ["deformable-detr-r50-two-stage", "h-deformable-detr-r50"]
IMAGES = [goldens.image("deferred0", 97, 131), goldens.image("deferred1", 70, 90)]


@pytest.fixture(params=NAMES)
def model(request):
    return small_model(request.param)[0].eval()


def test_results_and_proposals_are_those_of_a_pass_that_computes_them_all(model):
    """With gradients every proposal is computed, for the losses: nothing else may differ."""
    whole = model(IMAGES)
    assert type(whole.encoder) is not DeferredOutputs and whole.encoder.boxes.requires_grad
    with torch.no_grad():
        chosen = model(IMAGES)
    assert isinstance(chosen.encoder, DeferredOutputs)
    for a, b in ((whole, chosen), (whole.encoder, chosen.encoder)):
        torch.testing.assert_close(b.logits, a.logits, atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(b.boxes, a.boxes, atol=2e-5, rtol=1e-5)
    assert not chosen.encoder.boxes.requires_grad


def test_the_heads_see_the_chosen_tokens_alone(model):
    rows = []
    hook = model.box_heads[-1].register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    classes = model.class_heads[-1].register_forward_hook(lambda _, args, __: rows.append(args[0].shape[1]))
    try:
        with torch.no_grad(), observed_choice() as choice:
            outputs = model(IMAGES)
        tokens = choice.scores.shape[1]
        assert rows and tokens not in rows and set(rows) == {model.num_queries}
        assert outputs.encoder.logits.shape[1] == outputs.encoder.boxes.shape[1] == tokens  # now, for who asks
        assert rows.count(tokens) == 2
        assert outputs.encoder.boxes is outputs.encoder.boxes and rows.count(tokens) == 2  # once
    finally:
        hook.remove()
        classes.remove()


def test_a_copy_is_computed_and_plain(model):
    with torch.no_grad():
        outputs = model(IMAGES)
    copy = outputs.to("cpu")
    assert type(copy.encoder) is type(copy)
    assert torch.equal(copy.encoder.boxes, outputs.encoder.boxes)


def test_proposals_are_in_the_precision_of_their_pass(model):
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(IMAGES)
            want = model(IMAGES).encoder
            want = want.logits, want.boxes
        assert torch.equal(outputs.encoder.logits, want[0]) and outputs.encoder.logits.dtype == torch.bfloat16
        assert torch.equal(outputs.encoder.boxes, want[1])
