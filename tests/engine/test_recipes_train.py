"""Every recipe that comes with detrkit trains on one class, on two, and on many."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.config import load_config, recipes
from detrkit.data.panoptic import write_id_map
from detrkit.engine import train
from helpers.tiny import losses

SIDE = 64
BY_CASE = ("own-data", "few-images", "dense", "small-objects", "from-scratch")
REAL_TIME = ("realtime", "rtdetrv2-72")
SMALL_ENCODER = {"enc_hidden_dim": 32, "enc_dim_feedforward": 32}
SMALL = {
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_weights": "random",
    "hidden_dim": 32,
    "nheads": 2,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 2,
    "num_queries": 8,
}


def write_classes(root: Path, count: int) -> Path:
    """Two training and two validation images with objects of the last of `count` classes, as instances and panoptic."""
    categories = [{"id": k + 1, "name": f"class {k + 1}", "isthing": 1} for k in range(count)]
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        for folder in (root / split, root / f"panoptic_{split}"):
            folder.mkdir()
        images, boxes, segments = [], [], []
        for i in (1, 2):
            left, top = 8 * i, 4 * i
            pixels = np.full((SIDE, SIDE, 3), 90, np.uint8)
            pixels[top : top + 30, left : left + 20] = (200, 40, 40)
            Image.fromarray(pixels).save(root / split / f"{i}.png")
            ids = np.zeros((SIDE, SIDE), np.int32)
            ids[top : top + 30, left : left + 20] = 7
            write_id_map(root / f"panoptic_{split}" / f"{i}.png", ids)
            images.append({"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE})
            shared = {"category_id": count, "bbox": [left, top, 20, 30], "area": 600, "iscrowd": 0}
            outline = [left, top, left + 20, top, left + 20, top + 30, left, top + 30]
            boxes.append({"id": i, "image_id": i, "segmentation": [outline], **shared})
            segments.append({"image_id": i, "file_name": f"{i}.png", "segments_info": [{"id": 7, **shared}]})
        for kind, entries in (("instances", boxes), ("panoptic", segments)):
            content = {"images": images, "annotations": entries, "categories": categories}
            (root / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module", params=[1, 2, 200], ids=lambda n: f"{n}-classes")
def data(request, tmp_path_factory) -> Path:
    return write_classes(tmp_path_factory.mktemp(f"classes{request.param}-") / "set", request.param)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes())
def test_a_recipe_trains(data, tmp_path, recipe, monkeypatch):
    if recipe in BY_CASE and not data.parent.name.startswith("classes2-"):
        pytest.skip("a model of the kind of `small`, which is trained on each number of classes")
    if recipe not in ("small", "shapes-panoptic"):  # pictures take most of the time
        for name in ("write_report", "example_sheet"):
            monkeypatch.setattr(f"detrkit.engine.result.{name}", lambda *a, **k: None)
    config = load_config(recipe, data=str(data))
    masks = config.optim.mask_epochs > 0
    config = config.changed(
        data={
            "size": SIDE,
            "max_size": None,
            "train_split": "train",
            "val_split": "val",
            "batch_size": 1,
            "workers": 0,
            "epoch_images": None,
            "plain_epochs": None,
        },
        model={**SMALL, "dropout": 0.0, **(SMALL_ENCODER if recipe in REAL_TIME else {})},
        optim={"epochs": 1, "accumulate": 1, "warmup_steps": 0, "lr_for_batch": None, "mask_epochs": int(masks)},
        run={
            "out": str(tmp_path / "run"),
            "device": "cpu",
            "tensorboard": False,
            "log_every": 1,
            "eval_every": 1,
            "init_from": None,
        },
    )
    result = train(config)
    for folder in (tmp_path / "run", *([tmp_path / "run" / "detector"] if masks else [])):
        steps = losses(folder)
        assert [step for step, _ in steps] == [1, 2]
        assert all(np.isfinite(loss) for _, loss in steps)
    assert 0 <= result.metrics.AP <= 1
