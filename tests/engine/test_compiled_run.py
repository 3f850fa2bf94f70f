"""A run whose passes are compiled where that is faster; a stand-in is the compiler."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from detrkit.engine import train
from helpers.compiler import Compiler
from helpers.tiny import losses, tiny_config


@pytest.mark.slow
def test_the_run_is_the_same(shapes, tmp_path, monkeypatch):
    """A run is the same whoever computes it; its checkpoints and its evaluations are of the plain model."""
    compiler = Compiler().install(monkeypatch)
    plain = tiny_config(
        shapes, tmp_path / "plain", data={"augment": "flip", "max_size": 64}, optim={"ema": 0.9, "epochs": 3}
    )
    want = train(plain)
    assert compiler.graphs == 0
    config = plain.changed(run={"out": str(tmp_path / "fast"), "compile": True})
    got = train(config)
    assert compiler.graphs == 1 and compiler.passes >= 5
    assert [loss for _, loss in losses(got.folder)] == pytest.approx([loss for _, loss in losses(want.folder)])
    assert abs(got.metrics.AP - want.metrics.AP) < 1e-6
    before, after = load_file(want.best), load_file(got.best)
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[k], after[k], atol=1e-6) for k in before)
