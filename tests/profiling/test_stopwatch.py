"""The stopwatch counts each moment once, and leaves no trace where it was fixed."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn

from detrkit.profiling import Stopwatch, stopwatch, watched


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when told: `clock.now += 1`."""
    made = types.SimpleNamespace(now=100.0)
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: made.now)
    return made


@pytest.fixture
def watch():
    return Stopwatch(torch.device("cpu"))


def test_inner_parts_are_not_counted_twice(clock, watch):
    with watch.part("outer"):
        clock.now += 1
        with watch.part("inner"):
            clock.now += 10
            with watch.part("outer"):
                clock.now += 100
        clock.now += 2
    clock.now += 1000  # nobody's
    with watch.part("inner"):
        clock.now += 20
    assert watch.seconds == {"outer": 103.0, "inner": 30.0}


class Child(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, x):
        self.clock.now += self.seconds
        if x is None:
            raise ValueError("no input")
        return x + 1


class Parent(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.clock, self.first, self.second = clock, Child(clock, 3), Child(clock, 5)

    def forward(self, x):
        self.clock.now += 1
        return self.second(self.first(x))

    def after(self, x):
        self.clock.now += 7
        return 2 * x


def fixed(watch, model):
    modules = [(model, "rest"), (model.first, "first"), (model.second, "second")]
    return watched(watch, modules=modules, functions=[(model, "after", "after"), (helpers, "half", "half")])


helpers = types.ModuleType("helpers")
helpers.half = lambda x: x / 2


def test_modules_methods_and_functions_have_their_parts(clock, watch):
    model = Parent(clock)
    half = helpers.half
    with fixed(watch, model):
        assert helpers.half is not half
        assert helpers.half(model.after(model(torch.tensor(1)))) == 3
    assert watch.seconds == {"rest": 1.0, "first": 3.0, "second": 5.0, "after": 7.0, "half": 0.0}
    model.after(model(torch.tensor(1)))
    assert sum(watch.seconds.values()) == 16.0  # it is off
    assert helpers.half is half and "after" not in vars(model)


def test_an_error_leaves_no_hook_and_no_open_part(clock, watch):
    model = Parent(clock)
    half = helpers.half
    with pytest.raises(ValueError, match="no input"), fixed(watch, model):
        model(None)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert helpers.half is half and "after" not in vars(model)
    clock.now += 1000
    with watch.part("rest"):
        clock.now += 1
    assert watch.seconds == {"rest": 2.0, "first": 3.0}
