"""Pictures while a run trains: what they show, when they are drawn, and that they never end or change a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.engine import pictures
from detrkit.engine.batch_sheet import batch_sheet
from detrkit.engine.loggers import RunLogs
from detrkit.engine.pictures import RunPictures
from detrkit.structures.batch import Batch
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Target
from helpers.tiny import losses, tiny_config

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_a_batch_is_drawn_as_the_model_gets_it():
    color = torch.tensor([200.0, 100.0, 50.0]).view(3, 1, 1) / 255
    normalized = (color - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    batch = Batch.from_images([normalized.expand(3, 240, 480), normalized.expand(3, 120, 240)])
    masks = torch.zeros(1, 120, 240, dtype=torch.bool)
    masks[:, :, 120:] = True
    targets = [
        Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.5, 0.5]])),
        Target(torch.tensor([0]), torch.tensor([[0.75, 0.5, 0.5, 1.0]]), masks=masks),
    ]
    sheet = batch_sheet([(batch, targets)], classes=ClassList.contiguous({0: "cat", 1: "dog"}), mean=MEAN, std=STD)
    pixels = np.array(sheet).astype(int)
    gap = 15
    first, second = pixels[gap : gap + 240, gap : gap + 480], pixels[gap : gap + 240, 2 * gap + 480 : 2 * gap + 960]
    assert abs(first[20, 20] - (200, 100, 50)).max() <= 1  # the normalization is undone
    edges = [tuple(first[120, x]) for x in (120, 121, 359)]
    assert len(set(edges)) == 1 and abs(np.array(edges[0]) - (200, 100, 50)).max() > 50  # the box, from 120 to 360
    assert abs(second[60, 60] - (200, 100, 50)).max() <= 1  # without mask
    assert abs(second[60, 180] - (200, 100, 50)).max() > 20  # with it
    padding = second[121:, :].reshape(-1, 3)
    assert len(np.unique(padding, axis=0)) == 2  # the two colors of the hatching


class Clock:
    """A run of which evaluations take 10 seconds each and drawing 1 second."""

    def __init__(self, monkeypatch, folder, *, error=None):
        self.now, self.drawn = 0.0, []
        monkeypatch.setattr(pictures.time, "perf_counter", lambda: self.now)

        def draw(name):
            def drawn(*_):
                if error is not None:
                    raise error
                self.now += 0.5
                self.drawn.append((name, self.now))
                return b"content"

            return drawn

        for name in ("_label_plots", "_curves", "_examples"):
            monkeypatch.setattr(pictures, name, draw(name))
        self.run = SimpleNamespace(
            config=SimpleNamespace(run=SimpleNamespace(pictures=True)), folder=folder, step=1, val_data=range(20)
        )
        self.pictures = RunPictures(RunLogs())

    def epochs(self, count):
        for _ in range(count):
            self.now += 10.0
            self.run.seconds = self.now
            self.pictures.on_epoch_end(self.run, {"val/seconds": 1.0})


def test_pictures_take_a_small_share_of_the_time(monkeypatch, tmp_path):
    clock = Clock(monkeypatch, tmp_path)
    clock.epochs(100)
    curves, examples = ([when for name, when in clock.drawn if name == kind] for kind in ("_curves", "_examples"))
    assert examples[0] == 20.5  # 0.4 s are expected, the evaluation of 8 of 20 images: 2.5 percent of 16 s
    assert 40 < curves[0] <= 51  # 1 s is expected of the first curves
    assert len(clock.drawn) * 0.5 <= 0.05 * clock.now and min(len(curves), len(examples)) > 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples.png", "training.png"]


def test_an_error_is_said_once_and_ends_the_pictures(monkeypatch, tmp_path, capsys):
    clock = Clock(monkeypatch, tmp_path, error=OSError("no such font\nat all"))
    clock.run.step = 0
    clock.pictures.on_run_start(clock.run)
    clock.run.step = 1
    clock.epochs(50)
    said = " ".join(capsys.readouterr().out.split())
    assert said == "warning: labels.png could not be drawn (OSError: no such font); the run goes on without pictures"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_run_draws_while_it_trains_and_its_numbers_stay_the_same(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "TIME_SHARE", 1e9)
    seen = []

    class Looks(detrkit.Callback):
        def on_step_start(self, run, batches):
            if run.step == 0:
                seen.append(sorted(p.name for p in run.folder.glob("*.png")))

        def on_epoch_end(self, run, row):
            seen.append(sorted(p.name for p in run.folder.glob("*.png")))

    plain = detrkit.train(tiny_config(shapes, tmp_path / "plain"))
    assert not (plain.folder / "labels.png").exists()
    config = tiny_config(shapes, tmp_path / "drawn", run={"pictures": True, "tensorboard": True})
    drawn = detrkit.train(config, callbacks=[Looks()])
    start = ["first_batch.png", "labels.png"]
    assert seen == [start, *[["examples.png", *start, "training.png"]] * 2]
    assert losses(drawn.folder) == losses(plain.folder)
    assert drawn.metrics.AP == plain.metrics.AP
    with Image.open(drawn.folder / "first_batch.png") as sheet:
        assert sheet.width > 900  # two images side by side
    assert {tag.split("/")[0] for tag in images(drawn.folder / "tensorboard")} == {
        *("labels", "first_batch", "training", "examples")
    }


def images(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload().Tags()["images"]
