"""What the settings make of a run's images: which epochs mix, what is refused, and that a resumed run sees the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from detrkit.config import TrainConfig
from detrkit.data import eval_transform, open_dataset
from detrkit.engine import train
from detrkit.engine.loading import image_mix, train_loader
from detrkit.engine.phases import detector_phase, mask_phase
from detrkit.engine.relations import check_config
from detrkit.engine.trainer import Trainer
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.weights.checkpoint import ModelSpec
from helpers.datasets import panoptic_map, write_panoptic
from helpers.tiny import MODEL, losses, tiny_config

MIXED = {"mosaic": 0.4, "mixup": 0.5, "color": 0.5, "augment": "lsj", "zoom_out": 0.5, "iou_crop": 0.8}
MIXED["multi_scale"] = True


@pytest.mark.parametrize(
    ("epochs", "plain", "mixed"),
    [(50, None, 40), (12, None, 10), (3, None, 2), (2, None, 1), (1, None, 1), (10, 3, 7), (10, 0, 10), (5, 9, 0)],
)
def test_the_last_epochs_are_plain(epochs, plain, mixed):
    config = TrainConfig().changed(data={"mosaic": 0.5, "plain_epochs": plain}, optim={"epochs": epochs})
    assert image_mix(config).epochs == mixed == image_mix(config).first_epochs
    assert image_mix(config.changed(data={"mosaic": 0.0})).first_epochs == 0


def test_no_epoch_left_to_mix_in_is_refused(tmp_path):
    config = tiny_config(tmp_path, tmp_path / "run", data={"mixup": 0.5, "plain_epochs": 2})
    with pytest.raises(
        SettingError, match=r"data.plain_epochs is 2 and optim.epochs is 2: no epoch is left that is not plain"
    ):
        check_config(config)
    check_config(config.changed(data={"mixup": 0.0}))
    check_config(config.changed(run={"minutes": 3.0}))  # which decides on the number of epochs later
    with pytest.raises(SettingError, match=r"data.mosaic is 1.5: must be at most 1"):
        check_config(config.changed(data={"mosaic": 1.5}))


def test_a_run_that_overfits_sees_its_images_as_they_are(shapes, tmp_path):
    dataset = open_dataset(shapes, split="train")
    config = tiny_config(shapes, tmp_path / "run", data=MIXED, run={"overfit": 4})
    spec = ModelSpec(name="detr-r50", num_classes=3, classes=dataset.classes, size=64, max_size=107)
    plain = {target.image_id: target.boxes for target in _targets(train_loader(dataset, config, spec))}
    expected = {r.image_id: eval_transform(64, 107)(dataset[i]) for i, r in enumerate(dataset.records)}
    for image_id, boxes in plain.items():
        height, width = expected[image_id].boxes.canvas_size
        corners = expected[image_id].boxes.as_subclass(torch.Tensor) / torch.tensor([width, height, width, height])
        torch.testing.assert_close(boxes[:, 2:], corners[:, 2:] - corners[:, :2])
    learned = {t.image_id: t.boxes for t in _targets(train_loader(dataset, config.changed(run={"overfit": 0}), spec))}
    assert any(boxes.shape != learned[i].shape or not torch.equal(boxes, learned[i]) for i, boxes in plain.items())


def _targets(loader):
    return [target for _, targets in loader for target in targets]


def test_what_cannot_be_mixed_is_refused_before_anything_is_written(shapes, tmp_path):
    write_panoptic(tmp_path / "panoptic", "train", {1: panoptic_map()})
    panoptic = {"layout": "coco-panoptic", "val_split": "none"}
    for data, options, message in [
        (tmp_path / "panoptic", {**panoptic, "mixup": 0.5}, r"data\.mixup: .*panoptic is panoptic"),
        (shapes, {"copy_paste": 0.5}, r"data\.copy_paste: .* without masks.*choose masks \(--masks\)"),
    ]:
        with pytest.raises(DetrkitError, match=message):
            train(tiny_config(data, tmp_path / "run", data=options))
        assert not (tmp_path / "run").exists()


def test_more_objects_than_queries_in_mixed_images_are_said_at_the_start(shapes, tmp_path, capsys):
    model = dataclasses.replace(
        MODEL, num_queries=max(len(r.labels) for r in open_dataset(shapes, split="train").records)
    )
    config = tiny_config(shapes, tmp_path / "mixed", model=model, data={"mosaic": 0.9}, optim={"epochs": 1})
    with pytest.warns(UserWarning, match=f"but the model only {model.num_queries} queries") as warned:
        train(config)
    assert len(warned) == 1
    said = [line for line in capsys.readouterr().out.splitlines() if "queries" in line and "warning" in line]
    assert len(said) == 1 and f"the model only {model.num_queries} queries: some objects are not learned" in said[0]


def test_of_two_phases_only_that_with_masks_pastes(shapes, tmp_path):
    config = tiny_config(shapes, tmp_path / "run", data={"copy_paste": 0.5, "mosaic": 0.3}, optim={"mask_epochs": 10})
    assert image_mix(detector_phase(config)).copy_paste == 0 and image_mix(detector_phase(config)).mosaic == 0.3
    assert image_mix(mask_phase(config)).copy_paste == 0.5 and image_mix(mask_phase(config)).epochs == 8


@pytest.mark.slow
@pytest.mark.parametrize("step", [10, 15])
def test_a_run_resumed_before_at_or_after_the_last_mixed_epoch_is_the_uninterrupted_one(
    shapes, tmp_path, monkeypatch, step
):
    """Six steps an epoch; the first two epochs mix."""
    config = tiny_config(
        shapes, tmp_path / "whole", data={**MIXED, "plain_epochs": 1}, optim={"epochs": 3}, run={"save_every": 1}
    )
    whole = train(config)
    part = config.changed(run={"out": str(tmp_path / "part")})
    steps = Trainer._step

    def crash(self, batches):
        if self.progress.step == step:
            raise RuntimeError("power cut")
        return steps(self, batches)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            train(part)
    again = train(part, resume=True)
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    before, after = load_file(whole.best), load_file(again.best)
    assert all(torch.equal(before[k], after[k]) for k in before)
    plain = train(config.changed(data={"mosaic": 0.0, "mixup": 0.0}, run={"out": str(tmp_path / "plain")}))
    assert losses(plain.folder)[:6] != losses(whole.folder)[:6]
