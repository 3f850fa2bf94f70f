"""COCO 2017's folders made of the sample data, and checkpoints with formula weights under the published names."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import goldens
from detrkit.models.pretrained import PUBLISHED
from detrkit.structures.coco_classes import COCO_91, COCO_250
from detrkit.utils.download import sha256

# official hub names of the golden weights
VARIANTS = {
    "detr-r50": "detr_resnet50",
    "detr-r50-dc5": "detr_resnet50_dc5",
    "detr-r101": "detr_resnet101",
    "detr-r101-dc5": "detr_resnet101_dc5",
    "detr-r50-panoptic": "detr_resnet50_panoptic",
    "detr-r50-dc5-panoptic": "detr_resnet50_dc5_panoptic",
    "detr-r101-panoptic": "detr_resnet101_panoptic",
    "deformable-detr-r50": "deformable_multi_scale",
}
needs_data = pytest.mark.skipif("DETRKIT_DATA" not in os.environ, reason="DETRKIT_DATA is not set")


def write_checkpoint(name: str, folder: Path) -> Path:
    """The published file of a model with formula weights; DC5's and the plain one differ in their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / PUBLISHED[name].file
    state = dict(goldens.filled(VARIANTS[name]))
    for head in (n for n in state if n.endswith("class_embed.weight")):
        # formula weights prefer no class: with a steeper head there are confident queries of several classes
        bias = head.replace("weight", "bias")
        known = torch.tensor([n != "N/A" for n in (COCO_250 if "panoptic" in name else COCO_91).names])
        state[head] = state[head] * 12
        state[bias] = state[bias].clone()
        state[bias][: len(known)][~known] = -100.0
    content = {"model": state, "epoch": list(VARIANTS).index(name)}
    torch.save(content, file)
    return file


def publish(monkeypatch, name: str, file: Path, url: str | None = None) -> None:
    """Gives the file the rank of the published one: its hash, and where it is served."""
    row = PUBLISHED[name]
    if row.sha256 is not None:
        row = replace(row, sha256=sha256(file)[:8])
    monkeypatch.setitem(PUBLISHED, name, replace(row, url=url or row.url))


def coco_2017(folder: Path, count: int = 6) -> Path:
    """The smallest `count` images of coco_mini as COCO 2017."""
    return _subset(Path(os.environ["DETRKIT_DATA"]) / "coco_mini", "instances_val2017.json", folder, count)


def panoptic_2017(folder: Path, count: int = 4) -> Path:
    """Images of panoptic_sample as COCO panoptic 2017, without the pictures."""
    source = Path(os.environ["DETRKIT_DATA"]) / "panoptic_sample"
    return _subset(source, "panoptic_val2017.json", folder, count, pictures=False)


def instances_of_panoptic(folder: Path, count: int = 4) -> Path:
    """The COCO 2017 folder that belongs to `panoptic_2017`: its pictures, and their things as instances."""
    source = Path(os.environ["DETRKIT_DATA"]) / "panoptic_sample"
    _subset(source, "detection_from_panoptic_val2017.json", folder, count)
    annotations = folder / "annotations"
    (annotations / "detection_from_panoptic_val2017.json").rename(annotations / "instances_val2017.json")
    return folder


def _subset(source: Path, name: str, folder: Path, count: int, *, pictures: bool = True) -> Path:
    content = json.loads((source / "annotations" / name).read_text())
    images = sorted(content["images"], key=lambda i: (i["height"] * i["width"], i["id"]))[:count]
    ids = {image["id"] for image in images}
    content["images"] = images
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations" / name).write_text(json.dumps(content))
    if pictures:
        (folder / "val2017").mkdir()
        for image in images:
            (folder / "val2017" / image["file_name"]).symlink_to(source / "val2017" / image["file_name"])
    else:
        (folder / "panoptic_val2017").mkdir()
        for annotation in content["annotations"]:
            file = annotation["file_name"]
            (folder / "panoptic_val2017" / file).symlink_to(source / "panoptic_val2017" / file)
    return folder
