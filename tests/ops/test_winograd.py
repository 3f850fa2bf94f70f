"""Winograd's convolutions compute what direct ones do; they are chosen by shape and kind of processor alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detrkit.layers import folding
from detrkit.layers.conv_norm import ConvNorm
from detrkit.layers.norms import FrozenBatchNorm2d
from detrkit.models.proposals import observed_choice
from detrkit.ops import winograd
from detrkit.ops.dense import can_fuse, convolve
from detrkit.weights.build import build_model

SAME = nn.Conv2d(128, 128, 3, padding=1)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["AVX2", "AVX512"])
def capability(request, monkeypatch):
    monkeypatch.setattr(winograd, "_capability", lambda: request.param)
    return request.param


def test_the_matrices_are_those_of_the_algorithm():
    """A^T [(G g) * (B^T d)] is the correlation of six numbers with three, for the points that are named."""
    a, g, b = (torch.tensor(rows, dtype=torch.float64) for rows in (winograd._A_T, winograd._G, winograd._B_T))
    d, kernel = noise(6).double(), noise(3).double()
    want = F.conv1d(d[None, None], kernel[None, None])[0, 0]
    torch.testing.assert_close(a @ ((g @ kernel) * (b @ d)), want, rtol=0, atol=1e-12)
    points = a[1, :5]
    assert points.tolist() == [0, 1, -1, 0.5, -2]
    for power in range(4):
        assert torch.equal(a[power, :5], points**power)


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (13, 17), (16, 24), (30, 53)], ids=str)
@pytest.mark.parametrize("channels", [(3, 5), (64, 96)], ids=str)
@pytest.mark.parametrize("images", [1, 3])
def test_results_are_those_of_a_direct_convolution(size, channels, images, monkeypatch):
    monkeypatch.setattr(winograd, "_BLOCK", 20)  # several blocks of rows, the last one not full
    inside, outside = channels
    x, weight = noise(images, inside, *size), noise(outside, inside, 3, 3, seed=1) / (9 * inside) ** 0.5
    bias, residual = noise(outside, seed=2), noise(images, outside, *size, seed=3)
    kernel = winograd.transformed(weight)
    assert kernel.shape == (36, inside, outside)
    plain = F.conv2d(x.double(), weight.double(), padding=1)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = x.contiguous(memory_format=layout)
        for got, want in (
            (winograd.convolve(x, kernel, None), plain),
            (winograd.convolve(x, kernel, bias, relu=True), F.relu(plain + bias[:, None, None])),
            (winograd.convolve(x, kernel, bias, residual=residual), plain + bias[:, None, None] + residual),
            (convolve(x, kernel, bias, padding=(1, 1), silu=True), F.silu(plain + bias[:, None, None])),
        ):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=3e-5)


def test_an_image_has_the_same_result_in_a_larger_map_of_zeros():
    """As in a padded batch, whose margins are cleared; the image's sides are no multiples of a tile's."""
    weight = winograd.transformed(noise(64, 64, 3, 3, seed=1))
    image = noise(1, 64, 21, 18)
    padded = F.pad(image, (0, 30, 0, 11))
    got = winograd.convolve(padded, weight, None)[:, :, :21, :18]
    torch.testing.assert_close(got, winograd.convolve(image, weight, None), rtol=0, atol=1e-4)


def test_what_pays(capability):
    least = 64 if capability == "AVX2" else 128
    weight = noise(least, 64, 3, 3)
    assert winograd.pays(weight, SAME, 50, 75) and winograd.pays(weight, SAME, 16, 16)
    assert not winograd.pays(weight, SAME, 12, 16)  # 12 tiles
    assert not winograd.pays(weight[: least - 1], SAME, 50, 75)
    assert not winograd.pays(weight.bfloat16(), SAME, 50, 75) and not winograd.pays(weight.double(), SAME, 50, 75)
    for changed in (
        nn.Conv2d(128, 128, 3, stride=2, padding=1),
        nn.Conv2d(128, 128, 3, padding=2, dilation=2),
        nn.Conv2d(128, 128, 3),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
    ):
        assert not winograd.pays(weight, changed, 50, 75)
    assert not winograd.pays(noise(512, 512, 1, 1), nn.Conv2d(512, 512, 1), 50, 75)


def test_other_processors_and_a_variable_leave_it_alone(monkeypatch):
    weight = noise(256, 256, 3, 3)
    monkeypatch.setattr(winograd, "_capability", lambda: "DEFAULT")
    assert not winograd.pays(weight, SAME, 50, 75)
    monkeypatch.setattr(winograd, "_capability", lambda: "AVX2")
    assert winograd.pays(weight, SAME, 50, 75)
    monkeypatch.setenv(winograd.SWITCH, "0")
    assert not winograd.pays(weight, SAME, 50, 75)


@pytest.fixture
def layer(capability):
    torch.manual_seed(0)
    made = ConvNorm(128, 128, 3, activation="silu", norm=FrozenBatchNorm2d).eval()
    if not can_fuse(torch.empty(0), made.conv.weight.detach()):
        pytest.skip("oneDNN's operators cannot be used here")
    return made


def test_a_folded_layer_is_transformed_once_and_again_when_its_weights_change(layer, monkeypatch):
    calls = []
    transform = winograd.transformed
    monkeypatch.setattr(winograd, "transformed", lambda weight: (calls.append(1), transform(weight))[1])
    first, second = noise(1, 128, 20, 28), noise(1, 128, 24, 20, seed=1)

    def check(x):
        with torch.no_grad():
            got = layer(x)
        want = F.silu(F.conv2d(x.double(), layer.conv.weight.double(), padding=1))  # the norm is the identity
        torch.testing.assert_close(got.double(), want / 1, rtol=0, atol=3e-5)

    layer.norm.eps = 0.0
    for x in (first, second, first, second):
        check(x)
    assert len(calls) == 1
    with torch.no_grad():
        layer.conv.weight.mul_(1.5)
    check(first)
    assert len(calls) == 2
    check(noise(1, 128, 5, 6))  # too small
    assert len(calls) == 2


def test_gradients_are_those_of_a_direct_convolution(layer, monkeypatch):
    monkeypatch.setattr(winograd, "convolve", None)
    x = noise(1, 128, 20, 28).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and layer.conv.weight.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr-r50", "rtdetrv2-r18"])
def test_a_whole_model_has_the_same_outputs(name, capability, monkeypatch):
    torch.manual_seed(0)
    model = build_model(name).eval()
    x = noise(2, 3, 320, 320)
    used = []
    convolution = winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda *args, **more: (used.append(1), convolution(*args, **more))[1])
    with torch.no_grad():
        with observed_choice() as choice:
            faster = model(list(x))
        count = len(used)
        monkeypatch.setenv(winograd.SWITCH, "0")
        folding._KEPT.clear()
        with observed_choice(choice.indices):  # of random weights nearly equal tokens change places
            direct = model(list(x))
    assert count >= 8 and len(used) == count
    torch.testing.assert_close(faster.logits, direct.logits, rtol=0, atol=2e-4)
    torch.testing.assert_close(faster.boxes, direct.boxes, rtol=0, atol=5e-5)
