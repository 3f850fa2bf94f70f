"""transformers runs its own folder beside detrkit: every stage agrees, and a changed weight is found."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from detrkit.cli import main
from detrkit.comparison import DetrkitRunner, compare, record, seeded_model
from detrkit.comparison.inputs import made_input
from detrkit.comparison.transformers_runner import TransformersRunner
from detrkit.structures.outputs import Target
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import save_huggingface, save_model

pytest.importorskip("transformers")

SMALL = {"hidden_dim": 128, "dim_feedforward": 128, "num_queries": 12, "enc_layers": 2, "dec_layers": 4}
# width 128: transformers normalizes projections in 32 groups whatever the width
NAMES = [
    "detr-r50",
    "detr-r50-panoptic",
    "deformable-detr-r50",
    "deformable-detr-r50-single-scale",
    "deformable-detr-r50-refine",
    "deformable-detr-r50-two-stage",
]
TARGET = Target(torch.tensor([3, 1]), torch.tensor([[0.4, 0.5, 0.3, 0.4], [0.7, 0.3, 0.2, 0.5]]))


def pair(name, seed, folder, **options):
    """A detrkit side, and the folder of the same weights in transformers' form."""
    model, spec = seeded_model(name, seed, **SMALL | options)
    save_huggingface(folder, model, spec)
    return DetrkitRunner(name, model, spec), folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", NAMES)
def test_every_stage_agrees(name, seed, tmp_path):
    # its mask head normalizes in 8 groups whatever the width
    ours, folder = pair(name, seed, tmp_path / "hf", **{"hidden_dim": 256} if "panoptic" in name else {})
    theirs = TransformersRunner.load(folder)
    assert theirs.has_masks == ours.has_masks == ("panoptic" in name)
    pixels = made_input("noise", (131, 160), seed=seed).pixels
    target = TARGET
    if ours.has_masks:
        target = Target(TARGET.labels, TARGET.boxes, torch.rand(2, 131, 160) > 0.5)
    found = compare(record(ours, pixels, target), record(theirs, pixels, target))
    print({d.name: f"{d.absolute:.0e}" for d in found.differences})
    assert found.agrees, found.summary()
    names = {d.name for d in found.differences}
    layers = range(4)
    assert {f"backbone.{i}" for i in (2, 3, 4, 5)} | {f"decoder.{i}" for i in layers} | {
        "encoder.0",
        "encoder.1",
    } <= names
    levels = 4 if name.startswith("deformable") and "single" not in name else 1
    assert {f"{part}.{i}" for part in ("projection", "position") for i in range(levels)} <= names
    assert {"logits.3", "boxes.3", "loss_ce", "loss_giou"} <= names
    if "deformable" in name:
        alone = ["proposal.index"] if "two-stage" in name else []  # it does not tell, but the references do
        assert found.missing == (alone, []) and {f"boxes.{i}" for i in layers} | {"reference", "loss_ce_0"} <= names
    else:  # transformers leaves out what earlier layers predict
        alone = {f"{part}.{i}" for part in ("queries", "logits", "boxes") for i in range(3)}
        alone |= {f"loss_{term}_{i}" for term in ("ce", "bbox", "giou") for i in range(3)}
        assert (set(found.missing[0]), found.missing[1]) == (alone, [])
    assert ({"proposal.logits", "proposal.boxes", "loss_ce_enc"} <= names) == ("two-stage" in name)
    assert ({"mask_attention", "masks", "loss_mask", "loss_dice"} <= names) == ("panoptic" in name)


def test_dc5(tmp_path):
    """Which transformers has with timm's ResNet alone."""
    pytest.importorskip("timm")
    ours, folder = pair("detr-r50-dc5", 2, tmp_path / "hf")
    pixels = made_input("noise", (96, 130), seed=2).pixels
    found = compare(record(ours, pixels), record(TransformersRunner.load(folder), pixels))
    assert found.agrees, found.summary()
    assert {d.name for d in found.differences} >= {"backbone.2", "backbone.5", "decoder.3", "boxes.3"}


REAL_TIME = {
    **{"backbone": "presnet10", "backbone_width": 16, "hidden_dim": 64, "enc_hidden_dim": 48, "enc_layers": 2},
    **{"dim_feedforward": 48, "enc_dim_feedforward": 48, "num_queries": 12, "dec_layers": 3},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rtdetr-r18", {}),
        ("rtdetr-r50", {"backbone": "presnet50", "backbone_width": 8}),
        ("rtdetrv2-r18", {}),
        ("rtdetrv2-r18", {"discrete_sampling": True}),
    ],
)
def test_every_stage_of_real_time_models_agrees(name, options, tmp_path):
    seed = len(options)
    model, spec = seeded_model(name, seed, **REAL_TIME | options)
    save_huggingface(tmp_path / "hf", model, spec)
    ours, theirs = DetrkitRunner(name, model, spec), TransformersRunner.load(tmp_path / "hf")
    assert not theirs.has_masks
    pixels = made_input("noise", (128, 160), seed=seed).pixels
    recorded = [record(side, pixels, TARGET) for side in (ours, theirs)]
    found = compare(*recorded)
    assert found.agrees, found.summary()
    assert found.missing == (["proposal.index"], [])  # it does not tell, but the references do
    names = {d.name for d in found.differences}
    numbered = {
        "backbone": (2, 3, 4, 5),
        "projection": range(3),
        "position": [2],
        "encoder": range(2),
        "fused": range(3),
    }
    numbered |= {part: range(3) for part in ("decoder", "logits", "boxes")}
    losses = {f"loss_{term}{layer}" for term in ("vfl", "bbox", "giou") for layer in ("", "_0", "_1", "_enc")}
    alone = {"memory", "reference", "proposal.logits", "proposal.boxes"}
    assert names == {f"{part}.{i}" for part, numbers in numbered.items() for i in numbers} | losses | alone
    # the stages are stages of the model, not one tensor under several names
    stages = recorded[1].stages
    assert [tuple(stages[f"fused.{i}"].shape[2:]) for i in range(3)] == [(16, 20), (8, 10), (4, 5)]
    assert stages["memory"].shape == (1, 16 * 20 + 8 * 10 + 4 * 5, 64)
    # a weight of the convolutions that fuse the maps shows there first
    with torch.no_grad():  # not by .data, whose changes a folded convolution does not see
        model.encoder.pan_blocks[0].conv1.conv.weight[0, 0] += 0.5
    assert compare(record(ours, pixels), recorded[1]).first.name == "fused.1"


def test_sides_that_real_time_models_of_transformers_do_not_take(tmp_path, capsys):
    save_huggingface(tmp_path / "hf", *seeded_model("rtdetrv2-r18", 0, **REAL_TIME))
    words = [
        "compare",
        str(tmp_path / "hf"),
        str(tmp_path / "hf"),
        "--framework",
        "transformers",
        "--size",
        "96",
        "100",
    ]
    assert main(words) == 2
    assert capsys.readouterr().err == (
        f"detrkit: error: {tmp_path / 'hf'}: transformers' RT-DETR takes images whose sides 32 divides, not 96 x 100: "
        "give another --size or --input\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50-refine"])
def test_a_changed_weight(name, tmp_path, capsys):
    ours, folder = pair(name, 3, tmp_path / "hf")
    path = save_model(tmp_path / "ours.safetensors", ours.model, ours.spec)
    words = [
        "compare",
        str(path),
        str(folder),
        "--framework",
        "transformers",
        "--input",
        "noise",
        "--size",
        "96",
        "128",
    ]
    assert main(words) == 0
    assert "stages agree within tolerance" in capsys.readouterr().out
    state = load_file(folder / "model.safetensors")
    (key,) = (
        k
        for k in state
        if k.endswith("decoder.layers.3.self_attn.out_proj.weight")
        or k.endswith("decoder.layers.3.self_attn.o_proj.weight")
    )
    state[key][1, 2] += 0.05
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(words) == 1
    assert "first stage beyond its tolerance: decoder.3 (" in capsys.readouterr().out


def test_what_is_no_model_of_transformers(tmp_path):
    with pytest.raises(DetrkitError, match=r"no config\.json there"):
        TransformersRunner.load(tmp_path)
    _, folder = pair("detr-r50", 0, tmp_path / "hf", backbone="resnet18")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["YolosForObjectDetection"]}))
    with pytest.raises(DetrkitError, match=r"config\.json says YolosForObjectDetection; can be compared: DetrFor"):
        TransformersRunner.load(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DetrkitError, match="transformers cannot load it"):
        TransformersRunner.load(folder)
