"""Masks in runs and evaluations: two steps, a detector that stays as it is, the same numbers in every batch."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import detrkit
from detrkit.config import ModelConfig
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import evaluate, train
from detrkit.engine.metrics import selection_metric
from detrkit.engine.trainer import Trainer
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.errors import DetrkitError, Interrupted
from detrkit.weights.checkpoint import ModelSpec, load_model
from helpers.tiny import MODEL, losses, tiny_config

PANOPTIC = dataclasses.replace(MODEL, masks=True)
TWO_STAGE = ModelConfig(
    name="deformable-detr-r50-two-stage",
    masks=True,
    backbone="resnet10",
    backbone_width=8,
    backbone_weights="random",
    backbone_stages=(3, 4),
    num_feature_levels=2,
    hidden_dim=32,
    nheads=2,
    dim_feedforward=32,
    enc_layers=1,
    dec_layers=2,
    num_queries=8,
    dropout=0.0,
)
SIZE = 64


@pytest.fixture(scope="module")
def things_and_stuff(tmp_path_factory) -> Path:
    """12 training and 5 validation images of different sizes, with instances and panoptic truth."""
    return write_shapes(
        tmp_path_factory.mktemp("panoptic") / "set",
        images={"train": 12, "val": 5},
        sides=(48, 64),
        classes=3,
        seed=1,
        panoptic=True,
    )


def untrained(data: Path, config: ModelConfig, layout: str):
    """A model for the classes of a dataset whose queries are unlike each other and sure of themselves."""
    torch.manual_seed(4)
    classes = detrkit.open_dataset(data, split="val", layout=layout, masks=True).classes
    options = {**config.overrides(), "backbone_norm": "group"}
    model = ModelSpec(config.name, options, len(classes), classes, size=SIZE, max_size=107).build()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=1.5 * parameter[0].numel() ** -0.5)
        model.segmentation.head.first.weight[:, -config.nheads :] *= 30
    return model, ModelSpec(config.name, options, len(classes), classes, size=SIZE, max_size=107)


@pytest.mark.slow
@pytest.mark.parametrize("config", [PANOPTIC, TWO_STAGE], ids=["detr", "two-stage"])
@pytest.mark.parametrize("layout", ["coco", "coco-panoptic"])
def test_masks_do_not_depend_on_the_batch(things_and_stuff, tmp_path, monkeypatch, config, layout):
    """Batches of images of different sizes give the pixels and numbers of one image at a time."""
    for name in ("write_report", "example_sheet"):  # pictures take most of the time
        monkeypatch.setattr(f"detrkit.engine.evaluating.{name}", lambda *args, **kwargs: None)
    pair = untrained(things_and_stuff, config, layout)
    measured = []
    for size in (1, 4):
        out = tmp_path / str(size)
        options = {"layout": layout, "threshold": 0.1, "device": "cpu", "workers": 0, "out": out}
        measured.append(evaluate(pair, things_and_stuff, batch_size=size, **options))
    one, four = measured
    if layout == "coco":
        assert one.panoptic is None and one.masks.iou_type == "segm"
        assert list(four.masks.stats) == pytest.approx(list(one.masks.stats), abs=1e-6)
        first, second = (json.loads((tmp_path / s / "results.json").read_text()) for s in "14")
        assert len(first) >= 5 * 8
        same = [a["segmentation"] == b["segmentation"] for a, b in zip(first, second, strict=True)]
        assert np.mean(same) > 0.9  # a pixel where a mask is all but undecided may differ
    else:
        assert one.masks is None and selection_metric(one) == ("PQ", one.panoptic.PQ)
        first, second = (json.loads((tmp_path / s / "panoptic.json").read_text())["annotations"] for s in "14")
        segments = [len(a["segments_info"]) for a in first]
        assert max(segments) > 2 and [len(a["segments_info"]) for a in second] == segments
        for entry in first:
            maps = [np.asarray(Image.open(tmp_path / s / "panoptic" / entry["file_name"])) for s in "14"]
            assert (maps[0] != maps[1]).any(-1).mean() < 0.002
        assert abs(four.panoptic.PQ - one.panoptic.PQ) <= 2e-3


def interrupt_at(patch, folder: str, step: int) -> None:
    """SIGTERM when a step of the run in a folder has been logged."""
    logged = Trainer._log_step

    def log_and_signal(self, values):
        logged(self, values)
        if self.folder.name == folder and self.progress.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Trainer, "_log_step", log_and_signal)


def in_two_steps(data: Path, out: Path):
    """Dropout and an average, so that a detector that is not quite frozen would be seen."""
    model = dataclasses.replace(PANOPTIC, dropout=0.1)
    return tiny_config(data, out, model=model, optim={"mask_epochs": 2, "ema": 0.9}, run={"threshold": 0.2})


@pytest.fixture(scope="module")
def whole(things_and_stuff, tmp_path_factory):
    """An uninterrupted run in two steps."""
    config = in_two_steps(things_and_stuff, tmp_path_factory.mktemp("runs") / "whole")
    return config, train(config)


def epochs(folder: Path) -> list[dict[str, str]]:
    with (folder / "epochs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_two_steps_leave_the_detector_as_it_was(whole):
    _, result = whole
    detector, model = load_file(result.folder / "detector" / "best.safetensors"), load_file(result.best)
    assert all(torch.equal(model[name], value) for name, value in detector.items())
    assert {n.split(".")[0] for n in model.keys() - detector.keys()} == {"segmentation"}
    first, second = epochs(result.folder / "detector"), epochs(result.folder)
    assert len(first) == len(second) == 2 and "val/PQ" not in first[0]
    # the boxes are those of the best epoch of the detector, whatever the masks learn
    best_ap = max(float(row["val/AP"]) for row in first)
    best = max(float(row["val/AP50"]) for row in first if float(row["val/AP"]) == best_ap)
    assert [float(row["val/AP50"]) for row in second] == pytest.approx([best] * 2, abs=1e-9)
    assert float(second[1]["train/loss_mask"]) < float(second[0]["train/loss_mask"])
    assert "SQ" in (result.folder / "report.md").read_text() and (result.folder / "training.png").exists()
    _, spec = load_model(result.folder)
    assert spec.classes.things == (True, True, True, False, False, False)
    assert set(spec.training["metrics"]) >= {"PQ", "PQ_things", "PQ_stuff", "AP"}


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "step"), [("detector", 4), ("part", 8)])
def test_a_run_in_two_steps_goes_on_where_it_was_interrupted(whole, tmp_path, monkeypatch, folder, step):
    config, result = whole
    part = config.changed(run={"out": str(tmp_path / "part")})
    with monkeypatch.context() as patch:
        interrupt_at(patch, folder, step)
        with pytest.raises(Interrupted, match=r"--resume .*part$"):
            train(part)
    assert (tmp_path / "part" / "last.pt").exists() == (folder == "part")
    again = train(part, resume=True)
    for name in ("detector", "."):
        assert losses(tmp_path / "part" / name) == losses(result.folder / name)
    assert again.metrics == result.metrics
    before, after = load_file(result.best), load_file(again.best)
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.slow
def test_masks_on_a_detector_from_elsewhere(things_and_stuff, tmp_path):
    """Of instances, with accumulation: the classes are those of the dataset, in their order there."""
    detector = train(tiny_config(things_and_stuff, tmp_path / "detector", optim={"epochs": 1}))
    bare = ModelConfig(masks=True)
    frozen = {"freeze_detector": str(detector.folder)}
    config = tiny_config(
        things_and_stuff,
        tmp_path / "masks",
        model=bare,
        data={"layout": "coco"},
        optim={"epochs": 1, "accumulate": 2},
        run=frozen,
    )
    result = train(config)
    before, after = load_file(detector.best), load_file(result.best)
    assert all(torch.equal(after[k], before[k]) for k in before) and len(after) > len(before)
    assert result.metrics.masks.iou_type == "segm" and result.metrics.panoptic is None
    assert result.metrics.AP == detector.metrics.AP
    assert "val/segm_AP" in epochs(result.folder)[0]
    with pytest.raises(DetrkitError, match=r"does not know 3 of the classes .* such as sky: train the detector"):
        train(config.changed(data={"layout": None}, run={"out": str(tmp_path / "other")}))
    wider = dataclasses.replace(bare, hidden_dim=64)
    with pytest.raises(DetrkitError, match=r"detector has another .* leave the model's options"):
        train(dataclasses.replace(config, model=wider).changed(run={"out": str(tmp_path / "other")}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"freeze_detector": "a", "init_from": "b"}}, "run.freeze_detector is 'a' and run.init_from is 'b'"),
        (
            {"run": {"freeze_detector": "a"}, "optim": {"mask_epochs": 1}},
            "'a' and optim.mask_epochs is 1",
        ),
        ({"model": {"masks": False}, "optim": {"mask_epochs": 1}}, "model.masks is False"),
        ({"optim": {"mask_epochs": -1}}, "optim.mask_epochs is -1"),
    ],
)
def test_settings_that_contradict_each_other(things_and_stuff, tmp_path, sections, message):
    config = tiny_config(things_and_stuff, tmp_path / "run", model=PANOPTIC)
    with pytest.raises(DetrkitError, match=message):
        train(config.changed(**sections))


@pytest.mark.slow
def test_all_at_once_learns_masks(things_and_stuff, tmp_path):
    config = tiny_config(things_and_stuff, tmp_path / "run", model=TWO_STAGE, optim={"epochs": 3})
    result = train(config)
    rows = epochs(result.folder)
    for name in ("loss_mask", "loss_dice", "loss_bbox"):
        assert float(rows[-1][f"train/{name}"]) < float(rows[0][f"train/{name}"])
    detector = detrkit.load(result.best, device="cpu")
    assert detector.panoptic and detector.threshold == 0.4
    pictures = sorted((things_and_stuff / "val2017").iterdir())
    alone = [detector.predict(p, threshold=0.05) for p in pictures]
    for found, same in zip(detector.predict(pictures, threshold=0.05), alone, strict=True):
        assert isinstance(found, PanopticResult) and found.id_map.shape == (found.image.height, found.image.width)
        assert {s.id for s in found.segments} | {0} >= set(found.id_map.unique().tolist())
        assert (found.id_map != same.id_map).float().mean() < 0.002
    assert detector.predict(pictures[0]).draw().size == Image.open(pictures[0]).size


def test_instance_models_predict_masks(things_and_stuff):
    model, spec = untrained(things_and_stuff, PANOPTIC, "coco")
    detector = detrkit.Detector(model, spec, device="cpu")
    picture = next((things_and_stuff / "val2017").iterdir())
    every = detector.predict(picture, threshold=0.0)
    assert isinstance(every, Detections) and every.masks.shape == (8, every.image.height, every.image.width)
    some = detector.predict(picture, threshold=float(every.scores[3]))
    assert len(some) == 3 and torch.equal(some.masks, every.masks[:3])


@pytest.mark.slow
@pytest.mark.skipif("DETRKIT_DATA" not in os.environ, reason="DETRKIT_DATA is not set")
def test_coco_panoptic_in_both_steps(tmp_path):
    """Real panoptic data: 133 classes, crowd, void, a grey picture; trained, evaluated and read back."""
    data = Path(os.environ["DETRKIT_DATA"]) / "panoptic_sample"
    config = tiny_config(
        data,
        tmp_path / "run",
        model=PANOPTIC,
        data={"train_split": "train2017", "val_split": "train2017", "batch_size": 4, "ids": "official"},
        optim={"epochs": 1, "mask_epochs": 1},
        run={"threshold": 0.02},
    )
    result = train(config)
    assert len(losses(result.folder)) == len(losses(result.folder / "detector")) == 4
    assert result.metrics.panoptic.segments == 311 and result.metrics.panoptic.images == 16
    metrics = evaluate(result.folder, data, split="val2017", batch_size=3, limit=6, device="cpu", threshold=0.02)
    assert metrics.panoptic.images == 6 and len(metrics.panoptic.per_class) == 133  # matched by name
