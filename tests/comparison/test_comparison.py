"""`detrkit compare`: a planted difference is found where it was planted, and what is equal is called equal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import goldens
from detrkit.cli import main
from detrkit.comparison import (
    DetrkitRunner,
    Recording,
    compare,
    load_recording,
    record,
    save_recording,
    seeded_model,
)
from detrkit.comparison.inputs import dataset_input, default_size, made_input, picture_input
from detrkit.comparison.stages import TOLERANCES, is_stage, order_of, tolerance_of
from detrkit.data import open_dataset
from detrkit.detector import Detector
from detrkit.layers.linear import Linear
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import published_spec, save_model, save_official

SMALL = {"backbone": "resnet18", "hidden_dim": 128, "dim_feedforward": 128, "num_queries": 12, "dec_layers": 5}
FAMILIES = ["detr-r50", "deformable-detr-r50", "deformable-detr-r50-refine", "deformable-detr-r50-two-stage"]
PIXELS = made_input("noise", (96, 128), seed=1).pixels


def side(name="detr-r50", seed=0, **options):
    model, spec = seeded_model(name, seed, **{**SMALL, "enc_layers": 4, **options})
    return DetrkitRunner(name, model, spec)


def difference(a, b, **options):
    return compare(record(a, PIXELS), record(b, PIXELS), **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_one_weight_in_decoder_layer_3(name):
    a, b = side(name), side(name)
    layers = b.model.decoder.layers if name == "detr-r50" else b.model.decoder
    layers[3].self_attention.out_proj.weight.data[5, 7] += 0.02
    found = difference(a, b)
    assert not found.agrees
    assert found.first.name == found.first_unequal.name == "decoder.3"
    before = [d for d in found.differences if order_of(d.name) < order_of("decoder.3")]
    assert len(before) > 15 and all(d.absolute == 0 for d in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part", "stage"),
    [
        ("detr-r50", "backbone.body.layer2.0.bn1", "backbone.3"),
        ("detr-r50", "encoder.layers.2.norm2", "encoder.2"),
        ("detr-r50", "decoder.layers.3.norm3", "decoder.3"),
        ("detr-r50", "decoder.norm", "queries.0"),
        ("deformable-detr-r50", "backbone.body.layer4.1.bn2", "backbone.5"),
        ("deformable-detr-r50", "projection_norms.2", "projection.2"),
        ("deformable-detr-r50-refine", "encoder.1.norm2", "encoder.1"),
        ("deformable-detr-r50-two-stage", "proposal_memory_norm", "proposal.logits"),
        ("deformable-detr-r50-two-stage", "decoder.3.norm3", "decoder.3"),
    ],
)
def test_a_wrong_epsilon(name, part, stage):
    """1e-3 instead of 1e-5, as Keras has it; and 1e-6, as JAX has it, which tolerances let pass."""
    a, b = side(name), side(name)
    norm = b.model.get_submodule(part)
    assert norm.eps == 1e-5
    norm.eps = 1e-3
    found = difference(a, b)
    assert found.first.name == found.first_unequal.name == stage
    norm.eps = 1e-6
    found = difference(a, b)
    assert found.agrees and found.first_unequal.name == stage


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FAMILIES, "detr-r50-panoptic", "detr-demo"])
def test_equal_models(name):
    options = {"backbone_norm": "frozen"} if name == "detr-demo" else {}
    found = difference(side(name, **options), side(name, **options), tolerance=0.0)
    assert found.agrees and found.first is found.first_unequal is None and found.missing == ([], [])
    names = [d.name for d in found.differences]
    assert names == sorted(names, key=order_of)
    heads = {"backbone", "projection", "position", "encoder", "decoder", "logits", "boxes"}
    heads |= {"mask_attention", "masks"} if "panoptic" in name else set()
    heads |= {"reference"} if "deformable" in name else {"queries"}
    heads |= {"proposal"} if "two-stage" in name else {"memory"} if "demo" in name else set()
    assert {n.split(".")[0] for n in names} == heads
    assert sum(n.startswith("encoder.") for n in names) == 4 and sum(n.startswith("decoder.") for n in names) == 5
    assert not difference(side(name, **options), side(name, seed=1, **options)).agrees


@pytest.mark.slow
def test_stages_are_the_official_codes():
    """The names stand for the tensors that the official code has at these places."""
    case = next(c for c in goldens.cases("model_forward") if c["file"] == "detr_resnet50__single.npz")
    model = goldens.model("detr_resnet50")
    goldens.set_padding(model, "official")
    own = DetrkitRunner("official", model, side().spec)
    stages = record(own, goldens.images(case)[0][None]).stages
    got = {
        "feature": stages["backbone.5"],
        "input_proj": stages["projection.0"],
        "pos": stages["position.0"],
        "hs": torch.stack([stages[f"queries.{i}"] for i in range(6)]),
        "aux_logits": torch.stack([stages[f"logits.{i}"] for i in range(5)]),
        "pred_logits": stages["logits.5"],
        "pred_boxes": stages["boxes.5"],
    }
    memory = stages["encoder.5"].transpose(1, 2).unflatten(2, stages["backbone.5"].shape[2:])
    for name, value in (got | {"memory": memory}).items():
        assert goldens.difference(case["file"], name, value) <= goldens.ATOL[name], name


def test_tolerances_are_the_goldens():
    pairs = {"backbone.5": "feature", "projection.0": "input_proj", "position.0": "pos", "encoder.5": "memory"}
    pairs |= {"queries.0": "hs", "decoder.0": "hs", "logits.0": "aux_logits", "boxes.5": "pred_boxes"}
    pairs |= {"masks": "pred_masks", "reference": "init_reference", "proposal.logits": "enc_logits"}
    pairs |= {"proposal.boxes": "enc_boxes", "proposal.index": "topk_indices", "memory": "memory"}
    assert {stage: tolerance_of(stage) for stage in pairs} == {s: goldens.ATOL[n] for s, n in pairs.items()}
    assert tolerance_of("loss_giou_3") == TOLERANCES["loss"] == 2e-5  # as in goldens/test_criterion.py


def test_order_is_the_way_of_the_data():
    words = (
        "backbone.2 backbone.5 projection.0 projection.3 position.0 encoder.0 encoder.11 fused.0 fused.2 memory "
        "proposal.logits proposal.boxes proposal.index reference decoder.0 queries.0 logits.0 boxes.0 decoder.1 "
        "logits.1 decoder.10 mask_attention masks loss_bbox_enc loss_ce_0 loss_giou_0 loss_ce_4 loss_ce loss_giou"
    )
    ordered = words.split()
    assert sorted(reversed(ordered), key=order_of) == ordered and all(map(is_stage, ordered))
    assert not any(map(is_stage, ("input", "encoder", "encoder.x", "class_error", "target.boxes", "proposal.0")))


def one(**stages):
    return Recording("one", {name.replace("__", "."): torch.tensor(value) for name, value in stages.items()})


def test_figures():
    a = one(logits__0=[[1.0, 2.0]], boxes__0=[0.5, 0.25], reference=[4.0, -200.0])
    b = one(logits__0=[[1.0, 2.5]], boxes__0=[0.5, 0.25], reference=[4.0, -200.002])
    by_name = {d.name: d for d in compare(a, b).differences}
    logits, reference = by_name["logits.0"], by_name["reference"]
    assert (logits.absolute, logits.relative) == (0.5, 0.2) and logits.limit == pytest.approx(
        6e-5 * ((1 + 2.5**2) / 2) ** 0.5
    )
    assert not logits.agrees and by_name["boxes.0"].absolute == 0
    assert reference.absolute == pytest.approx(2e-3, rel=1e-2) and reference.agrees  # 2e-5 of 141
    assert compare(a, b, tolerance=0.27).agrees and not compare(a, b, tolerance=0.26).agrees
    assert "first stage beyond its tolerance: logits.0 (5.0e-01, tolerance 1.1e-04)" in compare(a, b).summary()


def test_noise_of_attention_grows_with_it():
    """Weights of a softmax over few cells are large, and so is their noise; over many cells less is let through."""
    for largest in (0.5, 0.005):
        a, noise, mistake = (one(mask_attention=[largest * share, 1e-5]) for share in (1.0, 1 + 1e-5, 1 + 1e-4))
        assert compare(a, noise).agrees and not compare(a, mistake).agrees
    assert compare(a, mistake, tolerance=1e-4).agrees


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite(bad):
    good = one(logits__0=[1.0, 2.0])
    for pair in ((good, one(logits__0=[1.0, bad])), (one(logits__0=[1.0, bad]), good)):
        assert compare(*pair).first.name == "logits.0"
    assert compare(one(logits__0=[1.0, bad]), one(logits__0=[1.0, bad])).agrees


def test_shapes_and_missing_stages():
    a, b = one(logits__0=[1.0, 2.0], masks=[1.0]), one(logits__0=[[1.0, 2.0]], memory=[1.0])
    found = compare(a, b)
    assert found.first.name == "logits.0" and found.first.absolute == float("inf")
    assert found.missing == (["masks"], ["memory"])
    assert found.summary()[:2] == ["only in A: masks", "only in B: memory"]
    with pytest.raises(DetrkitError, match="no stage in common"):
        compare(one(masks=[1.0]), one(memory=[1.0]))
    with pytest.raises(DetrkitError, match="its input is not that of"):
        compare(Recording("a", a.stages, PIXELS), Recording("b", a.stages, PIXELS + 1))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    words = ["--train", "1", "--val", "3", "--seed", "4"]
    assert main(["data", "shapes", str(folder), *words]) == 0
    return folder


@pytest.fixture(scope="module")
def dataset_side(shapes):
    """A model with masks that knows the dataset's classes."""
    model, spec = seeded_model("detr-r50", 0, **SMALL, enc_layers=2, masks=True)
    classes = open_dataset(shapes, split="val").classes
    torch.manual_seed(0)
    model.num_classes = len(classes)
    model.class_head = Linear(model.class_head.in_features, len(classes) + 1)
    spec = replace(spec, num_classes=len(classes), classes=classes, size=96, max_size=128)
    return DetrkitRunner("masks", model.eval(), spec)


def test_losses(dataset_side, shapes, tmp_path):
    given = dataset_input(shapes, dataset_side.spec, split="val", image_id=1_000_002, masks=True)
    assert given.target.image_id == 1_000_002 and len(given.target) > 0
    assert given.target.masks.shape == (len(given.target), *given.pixels.shape[2:])
    a = record(dataset_side, given.pixels, given.target)
    terms = {"loss_ce", "loss_bbox", "loss_giou"}
    wanted = terms | {"loss_mask", "loss_dice"} | {f"{t}_{i}" for t in terms for i in range(4)}
    assert {n for n in a.stages if n.startswith("loss")} == wanted
    assert 0 < a.stages["loss_dice"] < len(given.target) and a.stages["loss_ce"] > 0.1
    # the file gives all back, and another class weight shows in the last layer's losses alone
    b = load_recording(save_recording(tmp_path / "stages.npz", a))
    assert compare(a, b, tolerance=0).agrees and torch.equal(b.target.masks, given.target.masks)
    other = dict(b.stages, loss_giou=b.stages["loss_giou"] * (1 + 1e-4))
    assert compare(a, Recording("b", other)).first.name == "loss_giou"


def test_labels_are_matched_by_name(dataset_side, shapes):
    classes = dataset_side.spec.classes
    turned = ClassList(tuple(reversed(classes.names)), tuple(range(len(classes))))
    inputs = [
        dataset_input(shapes, replace(dataset_side.spec, classes=c), split="val", image_id=None, masks=False)
        for c in (classes, turned, ClassList((*classes.names[:1], "moon"), (5, 6)))
    ]
    plain, reversed_, few = (i.target.labels for i in inputs)
    assert torch.equal(reversed_, len(classes) - 1 - plain)
    assert torch.equal(few, plain[plain == 0])
    with pytest.raises(DetrkitError, match="no image 7"):
        dataset_input(shapes, dataset_side.spec, split="val", image_id=7, masks=False)


def test_a_picture_is_prepared_as_for_prediction(dataset_side, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    got = picture_input(tmp_path / "a.png", dataset_side.spec).pixels
    want = Detector(dataset_side.model, dataset_side.spec, device="cpu").outputs([pixels]).batch.images
    assert got.shape == (1, 3, 60, 128) and torch.equal(got, want)
    with pytest.raises(DetrkitError, match=r"missing\.png"):
        picture_input(tmp_path / "missing.png", dataset_side.spec)


def test_made_inputs():
    assert made_input("ones").pixels.shape == (1, 3, 800, 1199) and made_input("ones").pixels.eq(1).all()
    a, b, c = (made_input("noise", (40, 50), seed=s).pixels for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and abs(float(a.std()) - 1) < 0.05
    assert default_size(published_spec("detr-r50")) == (800, 1199)
    assert default_size(published_spec("rtdetrv2-r18")) == (640, 640)  # every image is squashed to that
    for size in ((0, 5), (5, -1)):
        with pytest.raises(DetrkitError, match="must be positive"):
            made_input("ones", size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detr-r50", "deformable-detr-r50-two-stage", "rtdetr-r18"])
def test_seeded_models(name):
    options = {"backbone": "presnet18"} if name == "rtdetr-r18" else {}
    a, b, c = (seeded_model(name, seed, **SMALL | options)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert all(not torch.equal(a[key], c[key]) for key in a if not key.endswith("num_batches_tracked"))
    stages = record(side(name, **options), PIXELS).stages
    assert all(float(stage.abs().max()) < 100 for n, stage in stages.items() if n != "proposal.index")
    spread = [float(stages[f"{part}.{i}"].std(1).mean()) for i in range(5) for part in ("logits", "boxes")]
    assert min(spread[::2]) > 0.05 and min(spread[1::2]) > 0.02  # queries differ


def _run(capsys, *words):
    status = main(["compare", *map(str, words)])
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.fixture
def files(tmp_path):
    """A model, the same with one weight changed, and the same in official form."""
    own = side()
    paths = [tmp_path / name for name in ("a.safetensors", "changed.safetensors", "a.pth")]
    save_model(paths[0], own.model, own.spec)
    save_official(paths[2], own.model, own.spec)
    own.model.decoder.layers[3].self_attention.out_proj.weight.data[1, 2] += 0.05
    save_model(paths[1], own.model, own.spec)
    return paths


@pytest.mark.slow
def test_command(files, capsys, tmp_path):
    a, changed, official = files
    status, out, _ = _run(capsys, a, official, "--size", "64", "96", "--tolerance", "0")
    assert status == 0 and "every stage is the same to the bit" in out
    status, out, _ = _run(capsys, a, changed, "--size", "64", "96", "--input", "noise")
    assert status == 1 and "first stage beyond its tolerance: decoder.3 (" in out
    rows = {line.split("│")[1].strip(): line.split("│")[-2].strip() for line in out.splitlines() if "│" in line}
    assert rows["decoder.2"] == "same" and rows["decoder.3"] == rows["logits.3"] == "DIFFERS"
    assert _run(capsys, a, changed, "--size", "64", "96", "--tolerance", "10")[0] == 0


@pytest.mark.slow
def test_command_with_a_file_of_stages(files, capsys, tmp_path):
    a, changed, _ = files
    dump = tmp_path / "new" / "stages.npz"
    words = ["--input", "noise", "--seed", "3", "--size", "64", "96"]
    mine = tmp_path / "mine.npz"
    np.savez(mine, mine=np.arange(5))
    content = mine.read_bytes()
    status, _, error = _run(capsys, a, "--save", mine, *words)
    assert status == 2 and "is there and is no file of stages: choose another name" in error
    assert mine.read_bytes() == content
    for _ in range(2):  # the second time over the first's
        assert _run(capsys, a, "--save", dump, *words)[0] == 0
    assert torch.equal(load_recording(dump).pixels, made_input("noise", (64, 96), seed=3).pixels)
    status, out, _ = _run(capsys, a, dump)  # on the input in the file
    assert status == 0 and "every stage is the same to the bit" in out
    status, out, _ = _run(capsys, dump, changed)
    assert status == 1 and "decoder.3" in out
    # of another framework: the stages it has, in any order, and no input
    with np.load(dump) as file:
        few = {name: file[name].astype(np.float64) for name in ("boxes.4", "encoder.0", "backbone.5")}
    np.savez_compressed(tmp_path / "few.npz", **few)
    status, out, _ = _run(capsys, changed, tmp_path / "few.npz", *words)
    assert status == 1 and "first stage beyond its tolerance: boxes.4" in out and "only in A: " in out
    assert _run(capsys, a, tmp_path / "few.npz", *words)[0] == 0


def test_command_on_a_dataset(dataset_side, shapes, capsys, tmp_path):
    path = save_model(tmp_path / "a.safetensors", dataset_side.model, dataset_side.spec)
    words = ["--data", shapes, "--image-id", "1000001"]
    status, out, _ = _run(capsys, path, path, *words, "--save", tmp_path / "a.npz")
    assert status == 0 and "loss_dice" in out and "masks" in out
    assert load_recording(tmp_path / "a.npz").target.image_id is None
    status, out, _ = _run(capsys, path, tmp_path / "a.npz")  # with the targets of the file
    assert status == 0 and "loss_dice" in out and "only in" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.safetensors"], "give B, or --save"),
        (["a.safetensors", "nowhere.pth"], "nowhere.pth"),
        (["a.safetensors", "nowhere.npz"], "nowhere.npz: no such stage file"),
        (["a.safetensors", "text.npz"], "text.npz: damaged"),
        (["a.safetensors", "a.safetensors", "--tolerance", "-1"], "--tolerance -1: must be at least 0"),
        (["a.safetensors", "--save", "stages.txt"], "--save stages.txt"),
        (["a.safetensors", "a.safetensors", "--size", "0", "9"], "--size 0 9"),
        (["a.safetensors", "a.safetensors", "--input", "sea.jpg"], "sea.jpg"),
        (["a.safetensors", "a.safetensors", "--input", "ones", "--data", "x"], "give one of them"),
        (["detr-r51:0", "a.safetensors"], "no model of that name"),
        (["a.safetensors", "input.npz", "--input", "ones"], "input.npz holds its input"),
        (["a.safetensors", "shape.npz"], "input is 3 x 4 x 4, expected 1 x 3 x any x any"),
        (["a.safetensors", "names.npz"], "names.npz: 'hidden' is no stage"),
        (["a.safetensors", "half.npz"], "half.npz: target.labels and target.boxes"),
        (["a.safetensors", "a.safetensors", "--framework", "transformers"], "no config.json"),
    ],
)
def test_bad_input_is_one_line(files, words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npz").write_text("no numbers")
    np.savez(tmp_path / "input.npz", input=np.ones((1, 3, 64, 64), np.float32))
    np.savez(tmp_path / "shape.npz", input=np.ones((3, 4, 4), np.float32))
    np.savez(tmp_path / "names.npz", hidden=np.ones(3))
    np.savez(tmp_path / "half.npz", **{"target.boxes": np.ones((2, 4))})
    status, _, err = _run(capsys, *words)
    assert status == 2 and err.startswith("detrkit: error: ") and message in err
    assert len(err.strip().splitlines()) == 1


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "code.npz", **{"logits.0": np.array([{}], dtype=object)})
    with pytest.raises(DetrkitError, match=r"code.npz: damaged, or not a .npz file of numbers"):
        load_recording(tmp_path / "code.npz")
