"""Deformable DETR where the original goes wrong: what it cannot train, what it leaves untrained, what it loads."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import goldens
from detrkit.convert import WeightsError, load_official, to_official
from detrkit.models.criterion import build_criterion
from detrkit.models.postprocess import postprocess
from detrkit.structures.outputs import Outputs, Target
from detrkit.weights.build import build_model

SMALL = {
    "backbone": "resnet18",
    "backbone_norm": "group",
    "backbone_width": 16,
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "enc_layers": 2,
    "dec_layers": 3,
    "num_queries": 10,
    "num_classes": 4,
    "dropout": 0.0,
}
IMAGES = [goldens.image("deformable0", 97, 131), goldens.image("deformable1", 70, 90)]
TARGETS = [
    Target(torch.tensor([1, 3]), torch.tensor([[0.4, 0.5, 0.3, 0.2], [0.7, 0.3, 0.2, 0.4]])),
    Target(torch.tensor([0]), torch.tensor([[0.5, 0.6, 0.4, 0.4]])),
]
CRITERION = build_criterion("deformable-detr-r50", num_classes=SMALL["num_classes"])


def build(name="deformable-detr-r50-two-stage", seed=0, **options):
    """A small model with weights that let every part matter (published initialization has heads of zeros)."""
    torch.manual_seed(seed)
    model = build_model(name, **SMALL | options).train()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("with_box_refine", [True, False])
@pytest.mark.parametrize("two_stage", [True, False])
def test_every_parameter_learns(two_stage, with_box_refine, seed):
    """Two stages without refinement, too, where the original fails: its decoder has no box heads to propose with."""
    model = build(two_stage=two_stage, with_box_refine=with_box_refine, seed=seed)
    losses = CRITERION(model(IMAGES), TARGETS)
    assert ("loss_giou_enc" in losses) == two_stage
    CRITERION.total(losses).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not idle, idle


def test_two_stage_without_refinement_shares_one_head_among_decoder_layers():
    model = build(with_box_refine=False).eval()
    with torch.inference_mode():
        out = model(IMAGES, capture=True)
    stages = out.capture.stages
    assert stages["init_reference"].shape == (2, 10, 4)
    assert all(torch.equal(reference, stages["init_reference"]) for reference in stages["inter_references"])
    with torch.inference_mode():
        for layer, states in zip([*out.aux, out], stages["queries"], strict=True):
            torch.testing.assert_close(layer.logits[0], model.class_heads[0](states[0]), rtol=0, atol=1e-5)


def test_proposals_learn_without_auxiliary_losses():
    """The original weighs the encoder's terms only together with the auxiliary ones: its proposals stay random."""
    model = build(aux_loss=False)
    heads = [model.class_heads[-1], model.box_heads[-1], model.proposal_memory, model.proposal_memory_norm]
    parameters = [parameter for head in heads for parameter in head.parameters()]
    losses = CRITERION(model(IMAGES), TARGETS)
    assert not any(name.endswith(("_0", "_1")) for name in losses)
    gradients = torch.autograd.grad(CRITERION.total(losses), parameters, retain_graph=True)
    assert all(gradient.any() for gradient in gradients)
    # from these terms alone: which tokens are chosen is no differentiable choice
    own = CRITERION.total({name: value for name, value in losses.items() if name.endswith("_enc")})
    for all_terms, gradient in zip(gradients, torch.autograd.grad(own, parameters), strict=True):
        torch.testing.assert_close(all_terms, gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("top_k", [1, 100, 300, 10**6])
def test_any_number_of_detections_is_kept(top_k):
    """Where the original keeps 100 of 300 queries x 91 classes, whatever is asked of it."""
    data = goldens.arrays("post_deformable_bbox.npz")
    outputs = Outputs(torch.from_numpy(data["in_pred_logits"]), torch.from_numpy(data["in_pred_boxes"]))
    sizes = [tuple(size) for size in data["target_sizes"].tolist()]
    for i, found in enumerate(postprocess(outputs, sizes, activation="sigmoid", top_k=top_k)):
        logits = data["in_pred_logits"][i].astype(np.float64)
        order = np.argsort(-logits, axis=None, kind="stable")[:top_k]
        assert len(found) == len(order)
        np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-logits.ravel()[order])), rtol=0, atol=1e-6)
        known = min(100, top_k)
        assert found.labels[:known].tolist() == data["labels"][i][:known].tolist()
        cx, cy, w, h = data["in_pred_boxes"][i][order[:known] // logits.shape[1]].T
        height, width = sizes[i]
        want = np.stack([(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height], -1)
        np.testing.assert_allclose(found.boxes[:known], want, rtol=1e-5, atol=1e-3)


VARIANTS = ["single-scale", "base", "refine", "two-stage"]


@pytest.mark.slow
@pytest.mark.parametrize("target", VARIANTS)
@pytest.mark.parametrize("source", VARIANTS)
def test_weights_of_another_variant_are_refused(source, target):
    """The original loads them with strict=False and warns."""

    def variant(name):
        suffix = "" if name == "base" else f"-{name}"
        return build_model(f"deformable-detr-r50{suffix}", **SMALL)

    state, model = to_official(variant(source)), variant(target)
    if source == target:
        load_official(model, state)
        return
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"(missing|left over|wrong shape) \(\d+\)"):
        load_official(model, state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deformable-detr-r50", "deformable-detr-r50-refine", "deformable-detr-r50-two-stage"])
def test_whole_models_in_bfloat16(name):
    torch.manual_seed(0)
    model = build_model(name, num_classes=5, enc_layers=1, dec_layers=2, dim_feedforward=64, num_queries=20)
    model = model.eval().to(torch.bfloat16)
    with torch.inference_mode():
        outputs = model([torch.randn(3, 96, 130).bfloat16(), torch.randn(3, 64, 100).bfloat16()])
    assert outputs.logits.dtype == outputs.boxes.dtype == torch.bfloat16
    assert outputs.boxes.isfinite().all() and outputs.boxes.min() >= 0 and outputs.boxes.max() <= 1
