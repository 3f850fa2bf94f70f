"""The evaluation loop runs a model in eval mode, one batch at a time, and leaves it as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detrkit.engine.evaluation_loop import iter_outputs, run_evaluation
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs, Target


class Model(nn.Module):
    """Its one logit is the mean of the images; notes the mode, and whether gradients are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.child = nn.Dropout()
        self.calls: list[tuple[bool, bool, bool]] = []

    def forward(self, batch: Batch, *, defer_masks: bool) -> Outputs:
        self.calls.append((self.child.training, torch.is_grad_enabled(), defer_masks))
        logits = (self.scale * batch.images).mean((1, 2, 3))[:, None, None]
        return Outputs(logits, torch.zeros(len(batch), 1, 4))


class Accumulator:
    """Notes what it gets; fails at the batch of a number."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.means: list[float] = []
        self.ids: list[object] = []
        self.fails_at, self.gathered = fails_at, False

    def add(self, outputs, batch, targets):
        if self.fails_at == len(self.means):
            raise RuntimeError("no space")
        self.means.append(float(outputs.logits))
        self.ids += [target.image_id for target in targets]

    def all_gather(self):
        self.gathered = True


def loader(count, seen=None):
    for k in range(count):
        if seen is not None:
            seen.append(k)
        target = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), image_id=k)
        yield Batch(torch.full((1, 3, 2, 2), float(k)), [(2, 2)]), [target]


@pytest.mark.parametrize("training", [True, False])
def test_every_batch_is_added_and_the_mode_comes_back(training):
    model, accumulator = Model().train(training), Accumulator()
    run_evaluation(model, loader(3), accumulator)
    assert accumulator.means == [0.0, 1.0, 2.0] and accumulator.ids == [0, 1, 2] and accumulator.gathered
    assert model.calls == [(False, False, True)] * 3
    assert model.training is model.child.training is training


def test_an_error_leaves_the_mode_and_gathers_nothing():
    model, accumulator = Model().train(), Accumulator(fails_at=1)
    with pytest.raises(RuntimeError, match="no space"):
        run_evaluation(model, loader(3), accumulator)
    assert accumulator.means == [0.0] and not accumulator.gathered and model.child.training


def test_batches_are_loaded_as_they_are_asked_for():
    seen: list[int] = []
    with torch.enable_grad():
        outputs = iter_outputs(Model(), loader(3, seen))
        assert seen == []
        first = next(outputs)
        assert seen == [0] and not first.outputs.logits.requires_grad and torch.is_grad_enabled()
    assert first.batch.sizes == [(2, 2)] and first.targets[0].image_id == 0
