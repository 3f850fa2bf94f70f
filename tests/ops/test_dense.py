"""Linear maps and convolutions in one pass give what PyTorch's own operators give, and leave graphs alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from detrkit.layers.linear import Linear
from detrkit.ops import dense
from detrkit.ops.dense import CONV_LINEAR_MIN_ROWS, can_fuse, convolve, linear, pack

x86 = pytest.mark.skipif(not can_fuse(torch.zeros(1)), reason="needs oneDNN on an x86 processor")


def noise(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(0, 32), (3, 32), (2, 50, 32), (CONV_LINEAR_MIN_ROWS, 32), (2, 3, CONV_LINEAR_MIN_ROWS, 32)],
    ids=lambda s: f"{len(s)}d{s[-2]}",
)
def test_linear(shape, bias, relu):
    x, weight, add = noise(*shape), noise(48, 32), noise(48) if bias else None
    got = linear(x, weight, add, relu=relu)
    want = F.linear(x.double(), weight.double(), None if add is None else add.double())
    want = want.relu() if relu else want
    assert got.shape == want.shape
    torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [40, CONV_LINEAR_MIN_ROWS])
def test_linear_of_a_view(rows):
    x, weight = noise(32, rows, 2)[:, :, 0].t(), noise(64, 32)[::2]
    torch.testing.assert_close(linear(x, weight), F.linear(x, weight), atol=2e-5, rtol=1e-5)


GEOMETRIES = {
    "1x1": (1, {}),
    "strided": (1, {"stride": (2, 2)}),
    "3x3": (3, {"padding": (1, 1)}),
    "dilated": (3, {"padding": (2, 2), "dilation": (2, 2)}),
}


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=x86)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolve(name, packed, residual):
    side, geometry = GEOMETRIES[name]
    x = noise(2, 24, 19, 14).contiguous(memory_format=torch.channels_last)
    weight, bias = noise(40, 24, side, side), noise(40)
    want = F.conv2d(x.double(), weight.double(), bias.double(), **geometry)
    other = noise(*want.shape).contiguous(memory_format=torch.channels_last) if residual else None
    want = (want if other is None else want + other).relu()
    used = pack(weight, torch.nn.Conv2d(24, 40, side, **geometry), x.shape) if packed else weight
    got = convolve(x, used, bias, residual=other, relu=True, **geometry)
    torch.testing.assert_close(got.double(), want, atol=5e-5, rtol=1e-5)
    if packed:  # a weight brought into order for one size serves others
        smaller = x[:, :, :9, :10].contiguous(memory_format=torch.channels_last)
        want = F.conv2d(smaller, weight, bias, **geometry)
        torch.testing.assert_close(convolve(smaller, used, bias, **geometry), want, atol=5e-5, rtol=1e-5)


@x86
def test_bfloat16_rounds_once():
    x, weight, bias = (t.bfloat16() for t in (noise(300, 64), noise(32, 64), noise(32)))
    want = F.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(linear(x, weight, bias).double(), want, atol=0.02, rtol=0.01)


def test_gradients_are_those_of_torch():
    x, weight = noise(50, 32).requires_grad_(), noise(48, 32).requires_grad_()
    got = torch.autograd.grad(linear(x, weight, relu=True).square().sum(), (x, weight))
    want = torch.autograd.grad(F.linear(x, weight).relu().square().sum(), (x, weight))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


@x86
def test_when_it_is_used(monkeypatch):
    x, weight = noise(50, 32), noise(48, 32)
    learning = weight.clone().requires_grad_()
    assert can_fuse(x, weight, None)
    assert not can_fuse(x, learning)
    with torch.no_grad():
        assert can_fuse(x, learning)
    assert not can_fuse(x.double(), weight.double())
    assert not can_fuse(x, weight.bfloat16())
    assert not can_fuse(x.to("meta"), weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(x, weight)
    with torch.backends.mkldnn.flags(enabled=False):
        assert not can_fuse(x, weight)
    monkeypatch.setattr(dense, "_ON_X86", False)
    assert not can_fuse(x, weight)


def test_bfloat16_without_kernels_for_it(monkeypatch):
    """As on a processor without AVX-512, where oneDNN's operators fail: PyTorch's own operators compute."""
    monkeypatch.setattr(dense, "has_bf16_kernels", lambda: False)
    x, weight, bias = (noise(*shape, dtype=torch.bfloat16) for shape in ((CONV_LINEAR_MIN_ROWS, 32), (48, 32), (48,)))
    assert not can_fuse(x, weight, bias)
    for name in ("_linear_pointwise", "_convolution_pointwise", "_convolution_pointwise_"):
        monkeypatch.setattr(torch.ops.mkldnn, name, None)
    want = F.linear(x.double(), weight.double(), bias.double())
    for rows in (20, CONV_LINEAR_MIN_ROWS):
        torch.testing.assert_close(linear(x[:rows], weight, bias).double(), want[:rows], atol=0.05, rtol=0.01)
    picture, kernel = noise(2, 24, 9, 7, dtype=torch.bfloat16), noise(40, 24, 3, 3, dtype=torch.bfloat16)
    want = F.conv2d(picture.double(), kernel.double(), padding=1).relu()
    got = convolve(picture, kernel, None, padding=(1, 1), relu=True)
    torch.testing.assert_close(got.double(), want, atol=0.2, rtol=0.01)


def test_this_processor_says_what_it_has():
    """PyTorch asks for AVX-512 (with bw, vl and dq) or avx_ne_convert."""
    flags = Path("/proc/cpuinfo")
    if not flags.exists() or "flags" not in flags.read_text():
        pytest.skip("no list of the processor's flags")
    words = set(flags.read_text().split())
    assert dense.has_bf16_kernels() == bool({"avx512bw", "avx512vl", "avx512dq"} <= words or "avx_ne_convert" in words)


def test_graphs_and_counters_see_the_operators_of_torch():
    layer = Linear(32, 48).eval()
    x = noise(50, 32)
    with torch.no_grad():
        exported = torch.export.export(layer, (x,))
        names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
        assert not any("mkldnn" in name for name in names) and any("linear" in name for name in names)
        rows = torch.export.Dim("rows", min=2)
        program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
        torch.testing.assert_close(program.module()(x[:7]), layer(x[:7]))
        with FlopCounterMode(display=False) as counter:
            layer(x)
    assert counter.get_total_flops() == 2 * 50 * 32 * 48
