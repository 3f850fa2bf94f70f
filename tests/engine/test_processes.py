"""Two processes give what one gives: the same losses at the same global batch, the same AP."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch

from detrkit.cli import main
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import train
from detrkit.models.criterion import Normalizers, build_criterion
from detrkit.structures.outputs import Outputs, Target
from helpers.tiny import MODEL, losses, tiny_config


def _run_in_two(config, folder) -> None:
    """`detrkit train` in two processes under torchrun, one thread each; the run beside it is one of this process."""
    (folder / "two.yaml").write_text(config.to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    command += ["detrkit", "train", config.data.path, "--recipe", str(folder / "two.yaml")]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Grad strides" not in done.stderr + done.stdout


@pytest.mark.slow
def test_two_processes_equal_one(shapes, tmp_path):
    """13 training images in global batches of 4, 5 validation images: neither is a multiple of the processes' share.

    Some images have no object at all, so that a process now and then has a batch without any. Images of rarer classes
    come several times, those without objects less often.
    """
    truth = json.loads((shapes / "annotations" / "instances_train2017.json").read_text())
    empty = {i["id"] for i in truth["images"][::2]}
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] not in empty]
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train2017", "val2017", "annotations"):
        (data / part).mkdir()
        for file in (shapes / part).iterdir():
            (data / part / file.name).symlink_to(file)
    (data / "annotations" / "instances_train2017.json").unlink()
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(truth))

    mix = {"batch_size": 2, "repeat_rare": 0.9, "empty_share": 0.3}
    one = tiny_config(data, tmp_path / "one", data=mix, optim={"accumulate": 2}, run={"eval_every": 2})
    train(one)
    _run_in_two(one.changed(optim={"accumulate": 1}, run={"out": str(tmp_path / "two")}), tmp_path)
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [s for s, _ in expected] == [s for s, _ in found] == list(range(1, 7))
    assert found[0][1] == pytest.approx(expected[0][1], rel=1e-5)
    torch.testing.assert_close([v for _, v in found], [v for _, v in expected], rtol=2e-3, atol=0)
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two"))
    assert second["AP50"] == pytest.approx(first["AP50"], abs=2e-3)
    assert second["AP"] == pytest.approx(first["AP"], abs=2e-3)


@pytest.mark.slow
def test_two_processes_train_masks_as_one(tmp_path):
    """A frozen detector, and batches without any object, in which nothing asks for a mask."""
    data = write_shapes(
        tmp_path / "data", images={"train": 9, "val": 5}, sides=(48, 64), classes=3, seed=1, panoptic=True
    )
    file = data / "annotations" / "panoptic_train2017.json"
    truth = json.loads(file.read_text())
    for annotation in truth["annotations"][::2]:
        annotation["segments_info"] = []
    file.write_text(json.dumps(truth))
    model = dataclasses.replace(MODEL, masks=True)
    detector = tiny_config(data, tmp_path / "detector", data={"layout": "coco-panoptic"}, optim={"epochs": 1})
    train(detector)
    frozen = {"freeze_detector": str(tmp_path / "detector"), "threshold": 0.1, "eval_every": 2}
    one = tiny_config(data, tmp_path / "one", model=model, optim={"accumulate": 2}, run=frozen)
    train(one)
    _run_in_two(one.changed(optim={"accumulate": 1}, run={"out": str(tmp_path / "two")}), tmp_path)
    expected, found = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [s for s, _ in expected] == [s for s, _ in found] == list(range(1, 5))
    torch.testing.assert_close([v for _, v in found], [v for _, v in expected], rtol=2e-3, atol=0)
    first, second = (json.loads((tmp_path / run / "metrics.json").read_text()) for run in ("one", "two"))
    assert second["panoptic"]["PQ"] == pytest.approx(first["panoptic"]["PQ"], abs=5e-3)
    assert second["panoptic"]["images"] == 5 and second["AP"] == pytest.approx(first["AP"], abs=1e-6)


def test_divisors_of_a_share_may_be_less_than_one():
    """One object among two processes: each divides by a half, and their mean is the loss of one process."""
    torch.manual_seed(1)
    criterion = build_criterion("detr-r50", num_classes=3)
    full, empty = Outputs(torch.randn(1, 4, 4), torch.rand(1, 4, 4)), Outputs(torch.randn(1, 4, 4), torch.rand(1, 4, 4))
    one = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.2, 0.2]]))
    none = Target(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    together = Outputs(torch.cat([full.logits, empty.logits]), torch.cat([full.boxes, empty.boxes]))
    whole = criterion.total(criterion(together, [one, none]))
    counts = criterion.normalizers([one, none], 4)
    share = Normalizers(counts.num_boxes / 2, counts.class_weight / 2)
    parts = [criterion.total(criterion(o, [t], normalizers=share)) for o, t in ((full, one), (empty, none))]
    torch.testing.assert_close(sum(parts) / 2, whole)


@pytest.mark.slow
def test_a_command_leaves_the_group_of_processes(tmp_path, capsys):
    """A process that ends inside its group aborts now and then: pytorch/pytorch#190489."""
    for words, status, inside in ((["models"], 0, False), (["eval", "nothing.pt", "nowhere"], 2, True)):
        torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
        try:
            assert main(words) == status
            assert torch.distributed.is_initialized() is inside
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
