"""H-Deformable-DETR and DINO against their official code: outputs, losses, denoising, gradients, names."""

from __future__ import annotations

import copy
import json
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

import goldens
from detrkit.convert import load_official, to_official
from detrkit.layers.denoising import make_denoising_queries
from detrkit.models.criterion import build_criterion
from detrkit.models.postprocess import PostProcessor
from detrkit.models.proposals import inverse_sigmoid
from detrkit.structures.outputs import Target
from detrkit.weights.build import build_model
from detrkit.weights.keymap import official_names
from goldens import filler

# tolerances of the goldens' own page: they separate noise from mistakes
LOGITS, BOXES, LOSSES, GRADIENTS = 1e-4, 2e-5, 2e-5, 2e-3
CASES = {
    "hybrid/hybrid_small": {
        "num_queries": 30,
        "num_queries_one2many": 50,
        "k_one2many": 4,
        "enc_layers": 2,
        "dec_layers": 3,
    },
    "hybrid/hybrid_tricks_only": {"num_queries": 60, "num_queries_one2many": 0},
    "dino/dino_small": {"num_queries": 40, "num_select": 30, "enc_layers": 2, "dec_layers": 3, "dn_number": 10},
    "dino/dino_full_depth": {"num_queries": 60, "num_select": 50},
}
MODELS = {"hybrid": "h-deformable-detr-r50", "dino": "dino-r50-4scale"}
DINO_CASES = [name for name in CASES if name.startswith("dino")]


def _described(name):
    return json.loads((goldens.HERE / f"{name}.json").read_text())


def _kind(name):
    return MODELS[name.split("/")[0]]


def _filled(entries):
    return {name: torch.from_numpy(filler.fill(fill, tuple(shape))) for name, shape, fill, _ in entries}


@cache
def _case(name):
    """The golden arrays, the filled model, its images and targets."""
    described = _described(name)
    model = build_model(_kind(name), padding="official", **CASES[name])
    load_official(model, _filled(described["entries"]))
    images = [goldens.image(*row) for row in described["images"]]
    targets = []
    for key, count in described["targets"]:
        u = filler.uniform(key, (count, 5))
        start, span = np.array([0.15, 0.15, 0.05, 0.05]), np.array([0.7, 0.7, 0.25, 0.25])
        boxes = (start + span * u[:, :4]).astype(np.float32)
        targets.append(Target(torch.from_numpy(np.floor(91 * u[:, 4]).astype(np.int64)), torch.from_numpy(boxes)))
    return goldens.arrays(f"{name}.npz"), model, images, targets


def _noise(data):
    return {name: data[name] for name in data if name.startswith("noise_")} or None


@cache
def _trained(name):
    """Outputs in training mode, the loss terms, and the model with the gradient of their total."""
    data, model, images, targets = _case(name)
    model.train().zero_grad()
    noise = {"noise": _noise(data)} if name in DINO_CASES else {}
    outputs = model(images, targets, **noise)
    criterion = build_criterion(_kind(name))
    losses = criterion(outputs, targets)
    total = criterion.total(losses)
    total.backward()
    model.eval()
    return outputs, losses, total


def _close(got, wanted, atol):
    torch.testing.assert_close(got.detach(), torch.from_numpy(wanted), rtol=0, atol=atol)


@pytest.mark.parametrize("name", list(CASES))
def test_outputs(name):
    data, model, images, _ = _case(name)
    with torch.inference_mode():
        outputs = model.eval()(images)
    assert outputs.one_to_many is None and outputs.denoising is None
    _close(outputs.logits, data["pred_logits"], LOGITS)
    _close(outputs.boxes, data["pred_boxes"], BOXES)
    boxes = torch.stack([one.boxes for one in outputs.aux])
    if "aux_boxes" in data:
        _close(boxes, data["aux_boxes"], BOXES)
    else:
        _close(boxes[:, :, ::7], data["aux_boxes__sub"], BOXES)
        _close(torch.stack([one.logits for one in outputs.aux])[:, :, ::7, ::5], data["aux_logits__sub"], LOGITS)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_outputs_in_training(name):
    data = _case(name)[0]
    outputs = _trained(name)[0]
    _close(outputs.boxes, data["train_boxes"], BOXES)
    if "train_boxes_one2many__sub" in data:
        branch = outputs.one_to_many.outputs
        _close(branch.boxes[:, ::7], data["train_boxes_one2many__sub"], BOXES)
        _close(branch.logits[:, ::7, ::5], data["train_logits_one2many__sub"], LOGITS)
    if name in DINO_CASES:
        _close(outputs.logits[..., ::5], data["train_logits__sub"], LOGITS)
        _close(outputs.encoder.boxes, data["interm_boxes"], BOXES)
        _close(outputs.denoising.outputs.boxes, data["dn_pred_boxes"], BOXES)
        _close(outputs.denoising.outputs.logits[..., ::5], data["dn_pred_logits__sub"], LOGITS)
        assert outputs.denoising.groups == data["dn_groups"]
        assert outputs.denoising.outputs.boxes.shape[1] == data["dn_pad_size"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_losses(name):
    data = _case(name)[0]
    _, losses, total = _trained(name)
    assert sorted(losses) == sorted(data["loss_names"].tolist())
    for term, value in zip(data["loss_names"], data["loss_values"], strict=True):
        assert losses[term].item() == pytest.approx(value, rel=LOSSES, abs=1e-6), term
    weighted = sum(w * v for w, v in zip(data["loss_weights"], data["loss_values"], strict=True))
    assert weighted == pytest.approx(data["loss_total"][0], rel=1e-6)
    assert total.item() == pytest.approx(data["loss_total"][0], rel=LOSSES)


def _double(noise):
    """Noise in double precision; what counts or chooses stays as it is."""
    return noise and {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in noise.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_gradients(name):
    """In double precision.

    The gradient of a sampled point jumps where the point passes from one cell to the next, and in float32 it depends
    on the processor on which side one of them is: that alone moves a sum by 4e-3 of the norm.
    """
    data, single, images, targets = _case(name)
    model = copy.deepcopy(single).double().train()
    noise = {"noise": _double(_noise(data))} if name in DINO_CASES else {}
    outputs = model(
        [image.double() for image in images], [replace(t, boxes=t.boxes.double()) for t in targets], **noise
    )
    criterion = build_criterion(_kind(name))
    criterion.total(criterion(outputs, targets)).backward()
    ours = dict(official_names(model))
    parameters = dict(model.named_parameters())
    for key in (key for key in data if key.startswith("grad/")):
        gradient = parameters[ours[key.removeprefix("grad/")]].grad.double().flatten()
        norm, total, largest, some = data[key]
        assert float(gradient.norm()) == pytest.approx(norm, rel=GRADIENTS), key
        assert float(gradient.sum()) == pytest.approx(total, abs=GRADIENTS * norm), key
        assert float(gradient.abs().max()) == pytest.approx(largest, rel=5 * GRADIENTS), key
        few = gradient[:: max(1, len(gradient) // 13)][:8].sum()
        assert float(few) == pytest.approx(some, abs=GRADIENTS * norm), key


@pytest.mark.parametrize("name", DINO_CASES)
def test_denoising_queries(name):
    data, model, _, targets = _case(name)
    made = make_denoising_queries(
        targets, number=model.dn_number, num_classes=91, label_ratio=0.5, box_scale=1.0, noise=_noise(data)
    )
    layout = made.layout
    assert layout.groups == data["dn_groups"] and layout.size == data["dn_pad_size"]
    contents = layout.placed(model.label_embed(made.labels), len(targets))
    _close(contents[..., ::16], data["dn_query_label"], 1e-6)
    _close(layout.placed(inverse_sigmoid(made.boxes, 1e-3), len(targets)), data["dn_query_bbox"], 1e-4)
    side, _ = data["dn_attn_mask_shape"]
    official = np.unpackbits(data["dn_attn_mask"], count=side * side).reshape(side, side).astype(bool)
    np.testing.assert_array_equal(layout.attn_mask(side - layout.size).numpy(), official)


@pytest.mark.parametrize("name", DINO_CASES)
def test_postprocessing(name):
    data, model, images, _ = _case(name)
    with torch.inference_mode():
        outputs = model.eval()(images)
    processor = PostProcessor(activation="sigmoid", top_k=CASES[name]["num_select"])
    found = processor.detections(outputs, [image.shape[-2:] for image in images])
    wanted = [data[f"post_{part}"] for part in ("scores", "labels", "boxes")]
    for one, scores, labels, boxes in zip(found, *wanted, strict=True):
        _close(one.scores, scores, 1e-5)
        _close(one.boxes, boxes, 1e-2)
        np.testing.assert_array_equal(one.labels, labels)


@pytest.mark.parametrize("family", ["hybrid", "dino"])
def test_the_published_state_dict(family):
    described = _described(f"{family}/{family}_published")
    model = build_model(MODELS[family])
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == described["trainable_parameters"]
    entries = described["entries"]
    state = _filled(entries)
    load_official(model, state)
    saved = to_official(model)
    assert list(saved) == [name for name, *_ in entries]
    for name, shape, _, crc in entries:
        assert list(saved[name].shape) == shape
        assert zlib.crc32(saved[name].numpy().tobytes()) == crc, name
