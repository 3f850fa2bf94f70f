"""The floor of `detrkit bench`: operations by closed forms, a rate by the clock."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.profiling import floor
from detrkit.profiling.floor import Floor, RateMeter, count_operations
from detrkit.utils.machine import instruction_set
from helpers.clock import Clock

CPU = torch.device("cpu")


def test_a_multiplication_and_its_addition_are_two_operations():
    layer, x = nn.Linear(32, 48), torch.randn(5, 32)
    with torch.no_grad():
        assert count_operations(lambda: layer(x)) == 2 * 5 * 32 * 48
        convolution, image = nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 10, 12)
        assert count_operations(lambda: convolution(image)) == 2 * 2 * 10 * 12 * 8 * 3 * 9
    # forward, and the gradient of the weight; that of the input is not asked for
    assert count_operations(lambda: layer(x).sum().backward()) == 2 * 2 * 5 * 32 * 48


def test_a_module_that_takes_parameters_is_counted_in_inference_mode():
    """As the decoder of Deformable DETR, which is given its queries: PyTorch's counter failed."""
    outer = nn.Module()
    outer.layer, outer.queries = nn.Linear(4, 5), nn.Parameter(torch.randn(7, 4))
    with torch.inference_mode():
        assert count_operations(lambda: outer.layer(outer.queries)) == 2 * 7 * 4 * 5


def test_the_fastest_product_gives_the_rate(monkeypatch):
    """By the clock of the test PyTorch's product takes a second, oneDNN's half of one."""
    clock = Clock(monkeypatch)

    def product(seconds):
        def run(a, b):
            clock.now += seconds

        return run

    monkeypatch.setattr(floor, "_SIDES", {"cpu": (64, 128)})
    monkeypatch.setattr(torch, "mm", product(1.0))
    monkeypatch.setattr(floor, "linear", product(0.5))
    meter = RateMeter(CPU, torch.float32)
    best = 2 * 128**3 / 0.5
    meter.measure()
    assert meter.rates == [pytest.approx(best)]
    meter.product = lambda: product(2.0)(None, None)  # the machine has other work: the median leaves it out
    meter.measure()
    meter.product = lambda: product(0.5)(None, None)
    meter.measure()
    assert meter.rate == pytest.approx(best)


def test_share_is_that_of_the_rate():
    result = Floor(operations=200e9, rate=400e9, model_seconds=0.8)
    assert result.seconds == 0.5 and result.share == 0.625


@pytest.mark.parametrize(
    ("capability", "amx", "name"),
    [
        ("AVX2", False, "AVX2"),
        ("AVX2", True, "AVX2"),
        ("AVX512", False, "AVX-512"),
        ("AVX512", True, "AVX-512 and AMX"),
    ],
)
def test_the_kind_of_the_processor(capability, amx, name, monkeypatch):
    """With AVX-512 switched off in PyTorch (ATEN_CPU_CAPABILITY), AMX is not said either."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert instruction_set() == name
