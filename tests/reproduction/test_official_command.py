"""`reproduce.py`: the original commands, as they were written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli import _parse
from detrkit.compat import main as official_command
from detrkit.compat.main import main, model_name, parser, training_command
from detrkit.convert import to_official
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from helpers.file_server import serving
from helpers.layout import publish, write_checkpoint

ROOT = Path(__file__).parents[2]
BASE = "https://dl.fbaipublicfiles.com/detr/"
# the reproduction report's seven evaluations
SEVEN = {
    "detr-r50": "--no_aux_loss --eval --batch_size 2",
    "detr-r50-dc5": "--no_aux_loss --eval --batch_size 1 --dilation",
    "detr-r101": "--no_aux_loss --eval --batch_size 2 --backbone resnet101",
    "detr-r101-dc5": "--no_aux_loss --eval --batch_size 1 --backbone resnet101 --dilation",
    "detr-r50-panoptic": "--no_aux_loss --eval --batch_size 1 --masks --dataset_file coco_panoptic",
    "detr-r50-dc5-panoptic": "--no_aux_loss --eval --batch_size 1 --dilation --masks --dataset_file coco_panoptic",
    "detr-r101-panoptic": "--no_aux_loss --eval --batch_size 1 --masks --backbone resnet101 "
    "--dataset_file coco_panoptic",
}
# main.py of facebookresearch/detr at 29901c5, get_args_parser
OFFICIAL = {
    **{"lr": 1e-4, "lr_backbone": 1e-5, "batch_size": 2, "weight_decay": 1e-4, "epochs": 300, "lr_drop": 200},
    **{"clip_max_norm": 0.1, "frozen_weights": None, "backbone": "resnet50", "dilation": False},
    **{"position_embedding": "sine", "enc_layers": 6, "dec_layers": 6, "dim_feedforward": 2048, "hidden_dim": 256},
    **{"dropout": 0.1, "nheads": 8, "num_queries": 100, "pre_norm": False, "masks": False, "aux_loss": True},
    **{"set_cost_class": 1, "set_cost_bbox": 5, "set_cost_giou": 2, "mask_loss_coef": 1, "dice_loss_coef": 1},
    **{"bbox_loss_coef": 5, "giou_loss_coef": 2, "eos_coef": 0.1, "dataset_file": "coco", "remove_difficult": False},
    **{"output_dir": "", "seed": 42, "resume": "", "start_epoch": 0, "eval": False, "num_workers": 2},
    **{"world_size": 1, "dist_url": "env://"},
}


def test_arguments_and_defaults_are_the_official_ones():
    given = vars(parser().parse_args([]))
    assert {name: given[name] for name in OFFICIAL} == OFFICIAL
    assert set(given) - set(OFFICIAL) == {"coco_path", "coco_panoptic_path", "device"}


@pytest.mark.parametrize("name", SEVEN)
def test_the_commands_name_their_models(name):
    assert model_name(parser().parse_args(SEVEN[name].split())) == (name, {})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns the file of a model, which is made when the first test asks for it: seven take 1.3 GB."""
    folder = tmp_path_factory.mktemp("weights")
    return cache(lambda name: write_checkpoint(name, folder))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two narrow pictures with a thing and some stuff: resized to 1333 pixels by 67 they take little time."""
    root = tmp_path_factory.mktemp("data")
    coco, panoptic = root / "coco", root / "coco_panoptic"
    for folder in (coco / "val2017", coco / "annotations", panoptic / "annotations", panoptic / "panoptic_val2017"):
        folder.mkdir(parents=True)
    images, objects, annotations = [], [], []
    for i in (1, 2):
        size = {"height": 20, "width": 400}
        images.append({"id": i, "file_name": f"{i:012d}.jpg", **size})
        pixels = np.random.default_rng(i).integers(0, 256, (20, 400, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(coco / "val2017" / f"{i:012d}.jpg")
        ids = np.full((20, 400, 3), (2, 0, 0), np.uint8)
        ids[4:16, 100:180] = (1, 0, 0)
        Image.fromarray(ids).save(panoptic / "panoptic_val2017" / f"{i:012d}.png")
        outline = [100, 4, 180, 4, 180, 16, 100, 16]
        thing = {"category_id": 16, "bbox": [100, 4, 80, 12], "area": 960, "iscrowd": 0}
        objects.append({"id": i, "image_id": i, "segmentation": [outline], **thing})
        stuff = {"id": 2, "category_id": 184, "bbox": [0, 0, 400, 20], "area": 7040, "iscrowd": 0}
        row = {"image_id": i, "file_name": f"{i:012d}.png", "segments_info": [{"id": 1, **thing}, stuff]}
        annotations.append(row)
    categories = [{"id": 16, "name": "bird", "isthing": 1}, {"id": 184, "name": "tree-merged", "isthing": 0}]
    truth = {"images": images, "annotations": objects, "categories": categories[:1]}
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(truth))
    truth = {"images": images, "annotations": annotations, "categories": categories}
    (panoptic / "annotations" / "panoptic_val2017.json").write_text(json.dumps(truth))
    return coco, panoptic


def words(name, data, resume, folder):
    """A command of the report with the places of this machine."""
    coco, panoptic = data
    places = ["--coco_path", str(coco), *(["--coco_panoptic_path", str(panoptic)] if "panoptic" in name else [])]
    where = ["--resume", str(resume), "--output_dir", str(folder), "--device", "cpu", "--num_workers", "0"]
    return [*SEVEN[name].split(), *places, *where]


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVEN)
def test_the_seven_commands(name, weights, data, tmp_path, monkeypatch, capsys):
    file = weights(name)
    publish(monkeypatch, name, file)
    assert main(words(name, data, file, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    figure = "PQ" if "panoptic" in name else "AP"
    assert f"| {name} | {figure}" in printed and "images 2 (published: 5000)" in printed
    assert ("segments:" in printed) == ("masks:" in printed) == ("panoptic" in name) and "boxes:" in printed
    report = (tmp_path / "out" / "report.md").read_text()
    assert f"# {name} on coco" in report and "short side 800, longest side 1333" in report
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    assert settings["batch size"] == (2 if name in ("detr-r50", "detr-r101") else 1) and settings["size"] == 800


@pytest.mark.slow
def test_masks_of_instances(data, tmp_path, capsys):
    """`--masks` on instances, with as many classes: a checkpoint of one's own, that nothing was published of."""
    sizes = {"hidden_dim": 32, "dim_feedforward": 64, "enc_layers": 1, "dec_layers": 1}
    model = build_model("detr-r50-panoptic", num_classes=91, backbone="resnet18", **sizes)
    file = tmp_path / "own.pth"
    torch.save({"model": to_official(model)}, file)
    extra = "--masks --backbone resnet18 --hidden_dim 32 --dim_feedforward 64 --enc_layers 1 --dec_layers 1"
    places = ["--coco_path", str(data[0]), "--resume", str(file), "--output_dir", str(tmp_path / "out")]
    assert main(["--eval", *extra.split(), *places, "--device", "cpu", "--num_workers", "0"]) == 0
    printed = capsys.readouterr().out
    assert "boxes:" in printed and "masks:" in printed and "segments:" not in printed
    assert re.search(r"mask AP +\| +- \| +- \|", printed) and "(published" not in printed


@pytest.mark.slow
def test_from_an_address(weights, data, tmp_path, monkeypatch):
    """As in the README of the official code, the checkpoint is downloaded; here from a server on this machine."""
    file = weights("detr-r50")
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    with serving(file.read_bytes(), f"/detr/{file.name}") as server:
        publish(monkeypatch, "detr-r50", file, server.url)
        assert main(words("detr-r50", data, server.url, tmp_path / "out")) == 0
    assert (tmp_path / "home" / "weights" / file.name).is_file()
    with pytest.raises(DetrkitError, match="its name has no hash to verify it; download it and give its path"):
        official_command.resumed_file("https://nowhere.invalid/checkpoint.pth")


@pytest.mark.parametrize(
    ("name", "left_out", "message"),
    [
        ("detr-r50-dc5", "--dilation", "dilation=True, but the model is detr-r50 with dilation=False"),
        (
            "detr-r101",
            "--backbone resnet101",
            "backbone='resnet101', but the model is detr-r50 with backbone='resnet50'",
        ),
        ("detr-r50-panoptic", "--masks", "masks=True, but the model is detr-r50 with masks=False"),
    ],
)
def test_other_arguments_than_the_files_are_refused(
    name, left_out, message, weights, data, tmp_path, monkeypatch, capsys
):
    """A DC5 file without --dilation loses 20 AP silently in the original."""
    file = weights(name)
    publish(monkeypatch, name, file)
    monkeypatch.setitem(SEVEN, name, SEVEN[name].replace(left_out, ""))
    assert main(words(name, data, file, tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert message in said and "the arguments have to be those of the checkpoint" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--eval", "--resume is missing"),
        ("--eval --resume a.pth", "--coco_path is missing"),
        ("--eval --resume a.pth --coco_path c --dataset_file coco_panoptic", "--coco_panoptic_path is missing"),
        ("--eval --resume a.pth --coco_path c", "a.pth: no such weights file"),
    ],
)
def test_what_is_missing(command, message, capsys):
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


def test_training_is_another_command(capsys):
    """The line names a command that parses, with the settings that were given."""
    command = (
        "--coco_path coco --epochs 150 --lr_drop 100 --batch_size 4 --dilation --num_queries 50 --output_dir runs/a"
    )
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    line = "detrkit train coco --model detr-r50-dc5 --ids official --num-queries 50 --epochs 150 --lr-drop 100"
    assert f"without --eval main.py trains, which here is: {line} --batch-size 4 --out runs/a\n" in said
    parsed = _parse(said.split("detrkit ")[1].split())
    assert callable(parsed.run)
    second = (
        "--coco_panoptic_path p --dataset_file coco_panoptic --masks --frozen_weights d.pth --no_aux_loss --pre_norm"
    )
    line = training_command(parser().parse_args(second.split()))
    assert line == (
        "detrkit train p --model detr-r50-panoptic --ids official --pre-norm True --freeze-detector d.pth "
        "--aux-loss False"
    )
    assert callable(_parse(line.split()[1:]).run)


def test_the_page_has_commands_that_parse():
    page = (ROOT / "docs" / "reproduce.md").read_text().replace("\\\n", " ")
    lines = re.findall(r"^python reproduce\.py (.*)$", page, re.MULTILINE)
    models = [model_name(parser().parse_args(line.split())) for line in lines]
    assert models == [("detr-r101-dc5", {}), ("detr-r50-panoptic", {})]


@pytest.mark.slow
def test_the_script_runs_where_nothing_is_installed(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "reproduce.py"), "--eval"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == (
        "reproduce.py: error: --resume is missing: give the checkpoint, a path or the address of a published file\n"
    )
