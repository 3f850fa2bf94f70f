"""Callbacks of `detrkit.train`: when they are called, what they see, how they end a run, and their errors."""

from __future__ import annotations

import pytest
import torch

import detrkit
from detrkit.engine.logs import CsvLog
from detrkit.utils.errors import SettingError
from helpers.tiny import losses, tiny_config


class Recorder(detrkit.Callback):
    """Records (hook, epoch, step), and what came with it."""

    def __init__(self, calls: list | None = None) -> None:
        self.calls: list = [] if calls is None else calls
        self.seen: dict[str, list] = {}

    def _note(self, hook, run, *values):
        self.calls.append((hook, run.epoch, run.step))
        self.seen.setdefault(hook, []).append(values[0] if len(values) == 1 else values)

    def on_run_start(self, run):
        self._note("run_start", run)

    def on_step_end(self, run, values):
        self._note("step_end", run, dict(values))

    def on_evaluation_end(self, run, metrics):
        self._note("evaluation_end", run, metrics)

    def on_epoch_end(self, run, row):
        self._note("epoch_end", run, dict(row))

    def on_checkpoint(self, run, path, kind):
        self._note(kind, run, path)

    def on_run_end(self, run, result):
        self._note("run_end", run, result)

    def on_error(self, run, error):
        self._note("error", run, error)


@pytest.mark.slow
def test_the_order_of_the_calls_and_what_they_see(shapes, tmp_path):
    calls: list = []
    images: list = []

    class Looks(detrkit.Callback):
        def on_run_start(self, run):
            calls.append(("second run_start", run.epoch, run.step))
            self.view = (run.config, run.folder, run.epochs, run.steps_per_epoch, run.metrics, run.best)
            self.data = (len(run.train_data), len(run.val_data), run.spec.name)
            with pytest.raises(AttributeError):
                run.step = 7

        def on_step_start(self, run, batches):
            (batch, targets), (_, more) = batches
            assert batch.images.shape[1] == 3
            assert all(0 <= t.boxes.min() <= t.boxes.max() <= 1 for t in targets if len(t))
            images.append(len(targets) + len(more))

        def on_epoch_end(self, run, row):
            self.weights = {k: v.clone() for k, v in run.model.state_dict().items()}
            assert row["val/AP"] == run.metrics.AP and run.best >= run.metrics.AP and run.seconds > 0

        def on_run_end(self, run, result):
            calls.append(("second run_end", run.epoch, run.step))

    recorder, looks = Recorder(calls), Looks()
    config = tiny_config(
        shapes, tmp_path / "run", optim={"epochs": 2, "accumulate": 2, "ema": 0.9}, data={"val_split": "val"}
    )
    result = detrkit.train(config, callbacks=[recorder, looks])
    once_more = ("best", 2, 6) in calls
    assert calls == [
        *[("run_start", 1, 0), ("second run_start", 1, 0)],
        *[("step_end", 1, step) for step in (1, 2, 3)],
        *[("last", 1, 3), ("evaluation_end", 1, 3), ("best", 1, 3), ("epoch_end", 1, 3), ("last", 2, 3)],
        *[("step_end", 2, step) for step in (4, 5, 6)],
        *[("last", 2, 6), ("evaluation_end", 2, 6), *([("best", 2, 6)] if once_more else [])],
        *[("epoch_end", 2, 6), ("last", 2, 6), ("second run_end", 2, 6), ("run_end", 2, 6)],  # the last one ends first
    ]
    assert looks.view == (config, tmp_path / "run", 2, 3, None, None) and looks.data == (13, 5, "detr-r50")
    assert images == [4] * 6
    seen, folder = recorder.seen, result.folder
    assert [values["loss"] for values in seen["step_end"]] == pytest.approx([v for _, v in losses(folder)])
    rows = CsvLog(folder / "epochs.csv", key="epoch").rows()
    assert [row["train/loss"] for row in seen["epoch_end"]] == [float(row["train/loss"]) for row in rows]
    assert [m.AP for m in seen["evaluation_end"]] == [row["val/AP"] for row in seen["epoch_end"]]
    assert set(seen["last"]) == {folder / "last.pt"} and seen["run_end"] == [result]
    average = torch.load(folder / "last.pt", weights_only=True)["ema"]
    assert all(torch.equal(looks.weights[name], value) for name, value in average.items())


class Stop(detrkit.Callback):
    def __init__(self, step: int, now: bool) -> None:
        self.step, self.now = step, now

    def on_step_end(self, run, values):
        if run.step == self.step:
            run.stop("enough seen", now=self.now)


@pytest.mark.slow
@pytest.mark.parametrize(("now", "steps"), [(True, 8), (False, 12)])
def test_stop_ends_with_evaluation_and_report(now, steps, shapes, tmp_path, capsys):
    config = tiny_config(shapes, tmp_path / "run", optim={"epochs": 4}, run={"eval_every": 4})
    recorder = Recorder()
    result = detrkit.train(config, callbacks=[Stop(8, now), recorder])
    assert "a callback ends the run: enough seen" in capsys.readouterr().out
    assert [step for step, _ in losses(result.folder)] == list(range(1, steps + 1))
    assert result.report.exists() and result.metrics is not None
    rows = CsvLog(result.folder / "epochs.csv", key="epoch").rows()
    assert [bool(row["val/AP"]) for row in rows] == [False, True]  # evaluated, though its turn is epoch 4
    assert [name for name, *_ in recorder.calls][-1] == "run_end" and "error" not in recorder.seen


@pytest.mark.slow
def test_an_exception_leaves_as_it_is_and_names_the_callback(shapes, tmp_path, capsys):
    class Pruned(Exception):
        pass

    class Prunes(detrkit.Callback):
        def on_epoch_end(self, run, row):
            raise Pruned("too\nlow")

        def on_error(self, run, error):
            raise ValueError("second")

    recorder = Recorder()
    with pytest.raises(Pruned) as caught:
        detrkit.train(tiny_config(shapes, tmp_path / "run"), callbacks=[recorder, Prunes()])
    line = f"callback {Prunes.__qualname__}.on_epoch_end ended the run (Pruned: too)"
    out = capsys.readouterr().out
    assert line in out and caught.value.__notes__ == [line]
    assert f"warning: callback {Prunes.__qualname__}.on_error failed (ValueError: second)" in out
    assert recorder.seen["error"] == [caught.value] and "run_end" not in recorder.seen
    again = Recorder()  # the state is that of the epoch, whose evaluation is made again
    result = detrkit.train(tiny_config(shapes, tmp_path / "run"), resume=True, callbacks=[again])
    assert again.calls[:2] == [("run_start", 1, 6), ("evaluation_end", 1, 6)] and len(again.seen["step_end"]) == 6
    assert [step for step, _ in losses(result.folder)] == list(range(1, 13))


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (Recorder, "callbacks: Recorder is a class: pass an instance, Recorder()"),
        (print, "callbacks: builtin_function_or_method is no subclass of detrkit.Callback"),
        (
            type("Mine", (detrkit.Callback,), {"on_train_epoch_end": lambda *_: None})(),  # Lightning's name
            "callbacks: Mine.on_train_epoch_end is never called: did you mean on_epoch_end?",
        ),
    ],
)
def test_what_is_no_callback_is_refused_before_anything_is_written(callback, message, shapes, tmp_path):
    with pytest.raises(SettingError) as caught:
        detrkit.train(tiny_config(shapes, tmp_path / "run"), callbacks=[callback])
    assert str(caught.value) == message
    assert not (tmp_path / "run").exists()
