"""Forward passes are compiled for the sizes for which that is faster, by times that the tests choose."""

from __future__ import annotations

import copy
import logging
import pickle

import pytest
import torch

from detrkit.detector import Detector
from detrkit.models import compiled as module
from detrkit.models.compiled import (
    MOST_SIZES,
    PAIRS,
    PASSES,
    SEEN,
    CompiledForward,
    compile_training,
    compiled,
    compiled_forward,
)
from detrkit.models.proposals import observed_choice
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.errors import SettingError
from helpers.small_models import small_model


class Compiler:
    """Stands in for the compiler, and for the clock: a pass takes as long as a test says."""

    def __init__(self, monkeypatch, *, plain=2.0, compiled=1.0):
        self.seconds = {"plain": plain, "compiled": compiled}
        self.ways, self.now = [], 0.0
        monkeypatch.setattr(module, "_now", self.read)

    def read(self, device):
        self.now += self.seconds[self.ways[-1]] if self.ways else 0.0
        return self.now

    def __call__(self, function):
        def graph(*arguments):
            self.ways[-1] = "compiled"
            return function(*arguments)

        return graph


def forward_of(model, compiler, **options):
    """A model's forward pass, which notes the way of every pass."""
    forward = CompiledForward(model, compile=compiler, **options)

    def run(*arguments, **named):
        compiler.ways.append("plain")
        return forward(*arguments, **named)

    return forward, run


@pytest.fixture(scope="module")
def detr():
    return small_model("detr-r50")[0]


def batch(count=1, height=64, width=96, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch.from_images([torch.randn(3, height, width, generator=generator) for _ in range(count)])


@pytest.mark.parametrize(("seconds", "way", "gain"), [(1.0, "compiled", 2.0), (2.0, "plain", 1.0), (4.0, "plain", 0.5)])
def test_the_faster_way_stays(monkeypatch, caplog, detr, seconds, way, gain):
    compiler = Compiler(monkeypatch, compiled=seconds)
    forward, run = forward_of(detr, compiler)
    with torch.no_grad(), caplog.at_level(logging.INFO, "detrkit.compile"):
        for _ in range(PASSES + 3):
            run(batch())
    tried = ["compiled", *["plain", "compiled"] * PAIRS]  # the first one compiles, and is not timed
    assert compiler.ways == ["plain"] * SEEN + tried + [way] * 3
    (trial,) = forward.trials.values()
    assert (trial.chosen, trial.gain) == (way, gain)
    not_compiled = "" if way == "compiled" else "not "
    assert f"1 image of 96 x 64 pixels: {not_compiled}compiled" in caplog.text
    assert forward.report() == [caplog.messages[0]]
    assert f"{gain:.2f} times as fast" in caplog.messages[0]


def test_a_few_sizes_are_tried(monkeypatch, detr):
    compiler = Compiler(monkeypatch)
    forward, run = forward_of(detr, compiler)
    sizes = [64 + 32 * k for k in range(MOST_SIZES + 2)]
    with torch.no_grad():
        for width in (*sizes, 32):  # 32 comes once
            for _ in range(PASSES + 1 if width != 32 else 1):
                run(batch(width=width))
    chosen = [trial.chosen for trial in forward.trials.values()]
    assert chosen == ["compiled"] * MOST_SIZES + ["plain"] * 2 + [None]
    assert len(forward.report()) == MOST_SIZES + 1 and "after 4 others" in forward.report()[-1]


def test_settled(monkeypatch, detr):
    compiler = Compiler(monkeypatch)
    forward, run = forward_of(detr, compiler)
    assert forward.report() == [
        f"torch.compile: no size of input came {PASSES} times, which it takes to see whether it pays"
    ]
    with torch.no_grad():
        for _ in range(PASSES):
            run(batch())
        forward.settle()
        compiler.ways.clear()
        for _ in range(PASSES):
            run(batch(2))
        assert set(compiler.ways) == {"plain"}
        run(batch())
        assert compiler.ways[-1] == "compiled"


MODELS = ["detr-r50", "detr-r50-panoptic", "deformable-detr-r50-two-stage", "dino-r50-4scale", "rtdetrv2-r18"]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_graphs_compute_the_same(monkeypatch, name):
    """Whole graphs, without breaks, through PyTorch's tracer; also of a padded batch, where there is one."""
    torch._dynamo.reset()
    compiler = Compiler(monkeypatch)
    model, spec = small_model(name)

    def trace(function):
        return Compiler.__call__(compiler, torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager"))

    forward = CompiledForward(model, compile=trace)
    batches = [batch(2, 128, 128)]
    if not spec.square and model.segmentation is None:
        batches.append(Batch.from_images([torch.randn(3, 64, 96), torch.randn(3, 80, 70)]))
    with torch.no_grad():
        for one in batches:
            with observed_choice() as choice:
                want = model(one, defer_masks=True)
            for _ in range(SEEN + 1):
                compiler.ways.append("plain")
                with observed_choice(choice.indices):
                    got = forward(one, defer_masks=True)
            assert compiler.ways[-1] == "compiled", forward.report()
            torch.testing.assert_close(got.logits, want.logits, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(got.boxes, want.boxes, atol=1e-5, rtol=1e-4)
            if model.segmentation is not None:
                chosen = [torch.arange(3)] * 2
                torch.testing.assert_close(got.masks_of(chosen)[0], want.masks_of(chosen)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50-two-stage"])
def test_gradients_are_the_same(monkeypatch, name):
    torch._dynamo.reset()
    compiler = Compiler(monkeypatch)
    model = small_model(name, dropout=0.0)[0].train()

    def trace(function):
        return Compiler.__call__(compiler, torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager"))

    def gradients(forward, one, indices):
        with observed_choice(indices) as choice:
            outputs = forward(one)
        (outputs.logits.sin().sum() + outputs.boxes.sum()).backward()
        found = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        model.zero_grad()
        return choice.indices, found

    one = Batch.from_images([torch.randn(3, 64, 96), torch.randn(3, 80, 70)])
    indices, want = gradients(model, one, None)
    forward = CompiledForward(model, training=True, compile=trace)
    for _ in range(SEEN + 1):
        compiler.ways.append("plain")
        _, got = gradients(forward, one, indices)
        forward.took(torch.device("cpu"))
    assert compiler.ways[-1] == "compiled", forward.report()
    for a, b in zip(got, want, strict=True):
        if a is not None:  # a graph gives what this loss does not reach zeros, where there is no gradient else
            torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, atol=1e-4, rtol=1e-3)
        assert a is not None or b is None


def test_training_is_timed_with_its_backward_pass(monkeypatch, detr):
    """The time goes on until `took`; passes of inference between are plain, and not timed."""
    compiler = Compiler(monkeypatch, plain=3.0, compiled=1.0)
    model = copy.deepcopy(detr).train()
    forward, run = forward_of(model, compiler, training=True)
    for _ in range(PASSES):
        run(batch())
        forward.took(torch.device("cpu"))
    (trial,) = forward.trials.values()
    assert trial.chosen == "compiled" and trial.seconds["plain"] == [3.0] * PAIRS
    with torch.no_grad():
        run(batch())
        model.eval()
        run(batch())
    assert compiler.ways[-2:] == ["plain"] * 2


def test_denoising_models_train_without(monkeypatch):
    compiler = Compiler(monkeypatch)
    model = small_model("dino-r50-4scale")[0].train()
    forward, run = forward_of(model, compiler, training=True)
    for _ in range(PASSES):
        run(batch(), [Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))])
    assert set(compiler.ways) == {"plain"} and not forward.trials


def test_changed_weights_begin_anew(monkeypatch, detr):
    compiler = Compiler(monkeypatch)
    model = copy.deepcopy(detr)
    _, run = forward_of(model, compiler)
    with torch.no_grad():
        for _ in range(PASSES + 1):
            run(batch())
        assert compiler.ways[-1] == "compiled"
        model.class_head.bias.add_(1.0)
        got = run(batch())
        assert compiler.ways[-1] == "plain"
        torch.testing.assert_close(got.logits, model(batch()).logits)


@pytest.mark.parametrize("late", [False, True])
def test_a_compiler_that_fails(monkeypatch, detr, late):
    """It is said once, and everything is computed plainly."""
    made = []

    def fails(function):
        if not late:
            raise RuntimeError("no C++ compiler\nmore")
        made.append(function)
        return lambda *arguments: 1 / 0

    forward = CompiledForward(detr, compile=fails)
    want = detr(batch()).logits
    with torch.no_grad(), pytest.warns(UserWarning, match=r"torch\.compile failed, computing without it: ") as caught:
        for _ in range(PASSES):
            torch.testing.assert_close(forward(batch()).logits, want)
    assert len(caught) == 1 and len(made) == late
    assert forward.report()[0].startswith("torch.compile failed, so nothing was compiled: ")
    assert "more" not in forward.report()[0]


def test_a_detector_of_it_and_the_one_it_was_made_of():
    model, spec = small_model("detr-r50")
    detector = Detector(model, spec, device="cpu")
    fast = detector.compiled()
    assert compiled_forward(detector.model) is None
    forward = compiled_forward(fast.model)
    image = torch.zeros(3, 128, 160, dtype=torch.uint8)
    want, got = detector.predict(image, threshold=0.0), fast.predict(image, threshold=0.0)
    assert torch.equal(want.boxes, got.boxes) and next(iter(forward.trials.values())).passes == 1
    assert fast.outputs([image], capture=True).outputs.capture is not None  # as explanations do: plain
    assert next(iter(forward.trials.values())).passes == 1
    for again in (copy.deepcopy(fast.model), pickle.loads(pickle.dumps(fast)).model):
        assert compiled_forward(again).model is again and not compiled_forward(again).trials


def test_a_run_that_is_compiled(monkeypatch, detr):
    model = copy.deepcopy(detr).train()
    forward = compile_training(model)
    assert compiled_forward(model) is forward and forward.training
    assert set(model.state_dict()) == set(detr.state_dict())


def test_exported_models_are_refused():
    class Exported(torch.nn.Module):
        pass

    with pytest.raises(SettingError, match="exported model is compiled already"):
        compiled(Exported())


def test_graphs_are_kept_where_they_outlive_the_machines_start(monkeypatch, tmp_path):
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path))
    monkeypatch.setenv(module.CACHE, default_cache_dir())
    module.keep_graphs()
    assert cache_dir() == str(tmp_path / "compiled")
    monkeypatch.setenv(module.CACHE, str(tmp_path / "chosen"))
    module.keep_graphs()
    assert cache_dir() == str(tmp_path / "chosen")


def test_masks_at_once_and_masks_on_request_are_graphs_of_their_own(monkeypatch):
    compiler = Compiler(monkeypatch)
    model = small_model("detr-r50-panoptic")[0]
    forward, run = forward_of(model, compiler)
    with torch.no_grad():
        for defer in (True, False):
            for _ in range(PASSES + 1):
                outputs = run(batch(), defer_masks=defer)
            assert compiler.ways[-1] == "compiled"
            assert (outputs.masks is None) == defer
    assert len(forward.trials) == 2


def test_models_of_other_packages_train_without(monkeypatch, detr):
    """Their passes may read the ground truth, which a graph does not get."""
    compiler = Compiler(monkeypatch)
    model = copy.deepcopy(detr).train()
    model.__class__ = type("Foreign", (type(model),), {"__module__": "elsewhere"})
    forward, run = forward_of(model, compiler, training=True)
    for _ in range(PASSES):
        run(batch(), [Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))])
    assert set(compiler.ways) == {"plain"} and not forward.trials
