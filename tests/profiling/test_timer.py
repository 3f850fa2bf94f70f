"""The timer counts each moment once, and leaves no trace where it was attached."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.profiling import Timer, instrument
from helpers.clock import Clock


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


@pytest.fixture
def timer():
    return Timer(torch.device("cpu"))


def test_inner_parts_are_not_counted_twice(clock, timer):
    with timer.part("outer"):
        clock.now += 1
        with timer.part("inner"):
            clock.now += 10
            with timer.part("outer"):
                clock.now += 100
        clock.now += 2
    clock.now += 1000  # nobody's
    with timer.part("inner"):
        clock.now += 20
    assert timer.seconds == {"outer": 103.0, "inner": 30.0}


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


def attached(timer, model):
    return instrument(timer, [(model, "rest"), (model.first, "first"), (model.second, "second")])


def test_modules_have_their_parts(clock, timer):
    model = Parent(clock)
    with attached(timer, model), timer.part("around"):
        clock.now += 2
        assert model(torch.tensor(1)) == 3
    assert timer.seconds == {"around": 2.0, "rest": 1.0, "first": 3.0, "second": 5.0}
    model(torch.tensor(1))
    assert sum(timer.seconds.values()) == 11.0  # it is off


def test_an_error_leaves_no_hook_and_no_open_part(clock, timer):
    model = Parent(clock)
    with pytest.raises(ValueError, match="no input"), attached(timer, model):
        model(None)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    clock.now += 1000
    with timer.part("rest"):
        clock.now += 1
    assert timer.seconds == {"rest": 2.0, "first": 3.0}
