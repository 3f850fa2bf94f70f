"""RT-DETR and RT-DETRv2: transformers' numbers, exact padding, any size and number of queries, denoising, sizes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import goldens
from detrkit.layers import set_checkpointing
from detrkit.layers.denoising import DenoisingLayout
from detrkit.models.criterion import build_criterion
from detrkit.models.postprocess import PostProcessor
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.errors import SettingError
from detrkit.weights.build import build_model
from detrkit.weights.describe import published_spec
from detrkit.weights.huggingface import load_huggingface
from helpers.rtdetr_peer import peer, small

# README of RT-DETRv2 and Table 2 of RT-DETR: millions of parameters, GFLOP at 640 x 640
PUBLISHED = {"r18": (20, 60), "r34": (31, 92), "r50-m": (36, 100), "r50": (42, 136), "r101": (76, 259)}


def _targets(counts):
    generator = torch.Generator().manual_seed(5)
    return [
        Target(torch.randint(5, (n,), generator=generator), 0.2 + 0.5 * torch.rand(n, 4, generator=generator))
        for n in counts
    ]


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("rtdetr-r18", {}, {}),
        ("rtdetrv2-r18", {}, {}),
        ("rtdetrv2-r50", {"backbone": "presnet50"}, {"backbone": "presnet50"}),
        ("rtdetrv2-r18", {"discrete_sampling": True}, {"decoder_method": "discrete"}),
    ],
    ids=["v1", "v2", "bottlenecks", "discrete"],
)
@torch.no_grad()
def test_as_transformers(name, ours, theirs):
    """Maps of the encoder, logits and boxes, for squares and other images (5.23 has the positions of both right)."""
    reference, model = peer(name, **theirs), small(name, **ours).eval()
    load_huggingface(model, reference.state_dict())
    for h, w in ((128, 128), (96, 160)):
        images = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(3))
        expected, got = reference(images), model(Batch(images, [(h, w)] * 2), capture=True)
        for level, map_ in enumerate(expected.encoder_last_hidden_state):
            torch.testing.assert_close(got.capture.stages[f"fused.{level}"], map_, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got.logits, expected.logits, rtol=1e-4, atol=2e-5)
        torch.testing.assert_close(got.boxes, expected.pred_boxes, rtol=1e-4, atol=1e-5)
        for aux, logits in zip(got.aux, expected.intermediate_logits.unbind(1), strict=False):
            torch.testing.assert_close(aux.logits, logits, rtol=1e-4, atol=2e-5)
        assert float(got.logits.std()) > 0.1  # queries differ


@pytest.mark.parametrize("discrete", [False, True])
@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch(discrete):
    model = small("rtdetrv2-r18", discrete_sampling=discrete).eval()
    images = [goldens.image(f"rtdetr {i}", *size) for i, size in enumerate([(70, 90), (16, 17), (160, 131)])]
    together = model(images, capture=True)
    for i, image in enumerate(images):
        alone = model([image])
        count = alone.logits.shape[1]
        assert count == (20 if i != 1 else 3 * 2 + 1 + 1 + 1 - 2 + 4 - 2)  # the second has fewer cells than queries
        torch.testing.assert_close(together.logits[i, :count], alone.logits[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(together.boxes[i, :count], alone.boxes[0], rtol=1e-4, atol=1e-4)
        assert (together.logits[i, count:] < -1e3).all()


@torch.no_grad()
def test_any_number_of_queries_and_layers():
    model = small("rtdetrv2-r18").eval()
    image = [goldens.image("rtdetr queries", 128, 96)]
    few = model(image)
    model.num_queries = 50
    more = model(image)
    assert more.logits.shape == (1, 50, 5) and more.encoder.logits.shape == (1, 50, 5)
    torch.testing.assert_close(more.encoder.boxes[:, :20], few.encoder.boxes)
    model.num_queries = 20
    layers = [*few.aux, few]
    model.eval_layers = 2
    fewer = model(image)
    assert len(fewer.aux) == 1
    torch.testing.assert_close(fewer.logits, layers[1].logits)
    assert len(model.train()(image).aux) == 2


def test_denoising_queries_learn_and_are_not_seen():
    """Matching queries are the same with and without them; every parameter has a gradient, also without objects."""
    model, criterion = (
        small("rtdetrv2-r18", dn_number=3, backbone_norm="batch"),
        build_criterion("rtdetrv2-r18", num_classes=5),
    )
    images = [goldens.image(f"rtdetr dn {i}", 96, 96) for i in range(2)]
    for counts in ([3, 1], [0, 0]):
        targets = _targets(counts)
        model.train().requires_grad_(True)
        outputs = model(images, targets)
        layout = DenoisingLayout.of(counts, 3, torch.device("cpu"), few_are_groups=False)
        assert outputs.logits.shape == (2, 20, 5) and len(outputs.aux) == len(outputs.denoising.outputs.aux) == 2
        assert outputs.denoising.outputs.logits.shape == (2, layout.size, 5)
        losses = criterion(outputs, targets)
        model.zero_grad()
        criterion.total(losses).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.eval()  # whose statistics change from pass to pass
    with_them, without_them = model(images, _targets([3, 1])), model(images)
    torch.testing.assert_close(with_them.logits, without_them.logits, rtol=1e-4, atol=1e-4)
    assert without_them.denoising is None


@pytest.mark.parametrize("number", [2, 7, 30, 100])
def test_as_many_denoising_queries_as_in_transformers(number):
    rt_detr = pytest.importorskip("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
    counts = [3, 1]
    theirs = rt_detr.get_contrastive_denoising_training_group(
        [{"class_labels": t.labels, "boxes": t.boxes} for t in _targets(counts)],
        5,
        20,
        torch.nn.Embedding(6, 8),
        num_denoising_queries=number,
    )[3]
    layout = DenoisingLayout.of(counts, number, torch.device("cpu"), few_are_groups=False)
    assert (layout.groups, layout.size) == (theirs["dn_num_group"], theirs["dn_num_split"][0])
    outputs = small("rtdetrv2-r18", dn_number=number).train()([torch.rand(3, 64, 64)] * 2, _targets(counts))
    assert outputs.denoising.outputs.logits.shape[1] == layout.size


def test_checkpointing_changes_no_gradient():
    model = small("rtdetrv2-r18", backbone_norm="batch").train()
    images = [goldens.image("rtdetr checkpointing", 64, 64)]
    gradients = []
    for on in (False, True):
        set_checkpointing(model, on)
        model.zero_grad()
        outputs = model(images)
        (outputs.logits.square().sum() + outputs.boxes.sum()).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 150
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", PUBLISHED)
def test_sizes(size):
    """Parameters as published, truncated; operations within 5%: branches are one convolution, and the box head of the
    encoder sees the tokens chosen alone."""
    parameters, gflop = PUBLISHED[size]
    with torch.device("meta"):
        model = build_model(f"rtdetrv2-{size}").eval()
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter:
            model(Batch(torch.zeros(1, 3, 640, 640), [(640, 640)]))
    names = [n for n, _ in model.named_parameters()]
    counted = sum(
        t.numel() for n, t in model.state_dict().items() if n in names or n.endswith(("norm.weight", "norm.bias"))
    )
    assert int(counted / 1e6) == parameters
    assert gflop * 0.95 < counter.get_total_flops() / 1e9 < gflop
    spec = published_spec(f"rtdetrv2-{size}")
    assert (spec.mean, spec.std, spec.size, spec.square) == ((0.0,) * 3, (1.0,) * 3, 640, True)
    assert spec.num_classes == 80 and spec.classes.names[79] == "toothbrush" and spec.classes.ids[79] == 90
    assert PostProcessor.of(spec).top_k == 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enc_hidden_dim": 30}, "enc_hidden_dim=30: its position encoding needs a width that 4 divides"),
        ({"level_points": (4, 4)}, r"level_points=\(4, 4\): give a number for each of the 3 levels"),
        ({"eval_layers": 7}, "eval_layers=7 and dec_layers=6: the layers that predict are the first of these"),
        ({"masks": True}, "rtdetrv2-r50 takes no argument masks"),
    ],
)
def test_options_that_do_not_go(options, message):
    with pytest.raises((SettingError, TypeError), match=message):
        build_model("rtdetrv2-r50", **options)
