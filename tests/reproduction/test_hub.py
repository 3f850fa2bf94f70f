"""torch.hub's entries: the official calls give the official numbers."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import goldens
from detrkit.compat.hub import OfficialModel, PostProcess, PostProcessPanoptic, PostProcessSegm
from detrkit.models.pretrained import PUBLISHED
from detrkit.structures.batch import Batch
from detrkit.utils.download import sha256

ROOT = Path(__file__).parents[2]
ENTRIES = {
    "detr_resnet50": "detr-r50",
    "detr_resnet50_dc5": "detr-r50-dc5",
    "detr_resnet101": "detr-r101",
    "detr_resnet101_dc5": "detr-r101-dc5",
    "detr_resnet50_panoptic": "detr-r50-panoptic",
    "detr_resnet50_dc5_panoptic": "detr-r50-dc5-panoptic",
    "detr_resnet101_panoptic": "detr-r101-panoptic",
}


@dataclass
class NestedTensor:
    """As in the official code's util/misc.py."""

    tensors: Tensor
    mask: Tensor | None


def hub(entry, **options):
    return torch.hub.load(str(ROOT), entry, source="local", **options)


def test_the_seven_entries():
    module = importlib.import_module("hubconf")
    assert {name for name, value in vars(module).items() if callable(value) and name.startswith("detr")} == set(ENTRIES)
    assert all(importlib.util.find_spec(name) for name in module.dependencies)
    assert "AP 43.3 / AP50 63.1" in module.detr_resnet50_dc5.__doc__


@pytest.mark.parametrize("entry", ENTRIES)
def test_arguments_in_the_official_order(entry):
    """Calls with positional arguments move over, too."""
    given = inspect.signature(getattr(importlib.import_module("hubconf"), entry)).parameters
    official = ["pretrained", "num_classes", "return_postprocessor"]
    defaults = {"pretrained": False, "num_classes": 91, "return_postprocessor": False}
    if "panoptic" in entry:
        official.insert(2, "threshold")
        defaults |= {"num_classes": 250, "threshold": 0.85}
    assert list(given)[: len(official)] == official
    assert {name: given[name].default for name in official} == defaults


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES)
def test_outputs_are_the_official_ones(entry):
    """Official weights by the official names; a batch with padding as published, as a NestedTensor."""
    model = hub(entry, padding="official").eval()
    state = goldens.filled(entry)
    assert list(model.state_dict()) == list(state)
    model.load_state_dict(state)
    file = f"{entry}__batch.npz"
    case = next(c for c in goldens.cases("model_forward") if c["file"] == file)
    images = goldens.images(case)
    batch = Batch.from_images(images)
    for samples in (images, NestedTensor(batch.images, batch.mask())):
        with torch.inference_mode():
            out = model(samples)
        known = {name.split("__")[0] for name in goldens.arrays(file)} & {"pred_logits", "pred_boxes", "pred_masks"}
        assert known <= set(out) and ("pred_masks" in known) == ("panoptic" in entry) == ("pred_masks" in out)
        assert "aux_outputs" not in out  # as from the official hub
        for name in known:
            assert goldens.difference(file, name, out[name]) <= goldens.ATOL[name]


def test_auxiliary_outputs_on_demand():
    model = OfficialModel(goldens.model("detr_resnet50")).eval()
    goldens.set_padding(model.model, "official")
    model.aux_loss = True
    case = next(c for c in goldens.cases("model_forward") if c["file"] == "detr_resnet50__single.npz")
    with torch.inference_mode():
        out = model(torch.stack(goldens.images(case)))  # notebooks give a (1, 3, H, W) tensor
    assert [set(layer) for layer in out["aux_outputs"]] == [{"pred_logits", "pred_boxes"}] * 5
    for name in ("logits", "boxes"):
        stacked = torch.stack([layer[f"pred_{name}"] for layer in out["aux_outputs"]])
        assert goldens.difference(case["file"], f"aux_{name}", stacked) <= goldens.ATOL[f"aux_{name}"]


def test_state_dicts_are_strict_and_say_what_is_wrong():
    model = hub("detr_resnet50", num_classes=3)
    state = model.state_dict()
    assert tuple(state["class_embed.weight"].shape) == (4, 256)
    with pytest.raises(RuntimeError, match=r"size mismatch for model\.class_head\.weight"):
        model.load_state_dict({**goldens.filled("detr_resnet50")})
    # how fine-tuning from the published weights is done: the head is deleted, the rest loaded
    rest = {k: v for k, v in goldens.filled("detr_resnet50").items() if not k.startswith("class_embed")}
    result = model.load_state_dict(rest, strict=False)
    assert len(result.missing_keys) == 2 and not result.unexpected_keys
    assert torch.equal(model.state_dict()["query_embed.weight"], rest["query_embed.weight"])
    inside = torch.nn.ModuleDict({"detr": model})
    assert "detr.backbone.0.body.conv1.weight" in inside.state_dict()
    inside.load_state_dict(inside.state_dict())


@pytest.mark.slow
def test_pretrained(tmp_path, monkeypatch):
    """The published file, from the cache; its class head starts anew for other classes."""
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path))
    row = PUBLISHED["detr-r50"]
    file = tmp_path / "weights" / row.file
    file.parent.mkdir()
    torch.save({"model": goldens.filled("detr_resnet50")}, file)
    monkeypatch.setitem(
        PUBLISHED, "detr-r50", replace(row, url=f"http://127.0.0.1:9/{row.file}", sha256=sha256(file)[:8])
    )
    model, postprocessor = hub("detr_resnet50", pretrained=True, return_postprocessor=True)
    assert isinstance(postprocessor, PostProcess)
    assert all(torch.equal(v, goldens.filled("detr_resnet50")[k]) for k, v in model.state_dict().items())
    other = hub("detr_resnet50", pretrained=True, num_classes=2)
    assert len(other.state_dict()["class_embed.bias"]) == 3
    assert torch.equal(other.state_dict()["query_embed.weight"], model.state_dict()["query_embed.weight"])


def test_masks_that_are_no_padding_are_refused():
    model = hub("detr_resnet50")
    mask = torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[0, 10, 10] = True
    with pytest.raises(ValueError, match="padding is expected at the right"):
        model(NestedTensor(torch.zeros(1, 3, 64, 64), mask))


def official_outputs(file):
    data = goldens.arrays(file)
    parts = ("logits", "boxes", "masks")
    return data, {f"pred_{p}": torch.from_numpy(data[f"in_pred_{p}"]) for p in parts if f"in_pred_{p}" in data}


def test_boxes():
    data, outputs = official_outputs("post_detr_bbox.npz")
    results = PostProcess()(outputs, torch.from_numpy(data["target_sizes"]))
    for i, one in enumerate(results):
        np.testing.assert_allclose(one["scores"], data["scores"][i], rtol=0, atol=1e-6)
        np.testing.assert_allclose(one["boxes"], data["boxes"][i], rtol=1e-6, atol=1e-4)
        assert one["labels"].tolist() == data["labels"][i].tolist()


def test_instance_masks():
    data, outputs = official_outputs("post_detr_segm.npz")
    sizes = (torch.from_numpy(data[name]) for name in ("orig_target_sizes", "max_target_sizes"))
    original, largest = sizes
    results = PostProcessSegm()(PostProcess()(outputs, original), outputs, original, largest)
    for i, one in enumerate(results):
        want = goldens.unpacked(data, f"img{i}_masks")
        assert one["masks"].dtype == torch.uint8 and one["masks"].shape == want.shape
        assert (one["masks"].bool() != want).float().mean() <= 1e-4 and 0.05 < want.float().mean() < 0.95


@pytest.mark.parametrize("file", ["post_detr_panoptic.npz", "post_detr_panoptic_no_target_size.npz"])
def test_panoptic(file):
    data = goldens.arrays(file)
    _, outputs = official_outputs("post_detr_panoptic.npz")
    post = PostProcessPanoptic({i: i <= 90 for i in range(250)}, threshold=0.85)
    targets = [torch.from_numpy(data["target_sizes"])] if "target_sizes" in data else []
    found = post(outputs, torch.from_numpy(data["processed_sizes"]), *targets)
    for i, one in enumerate(found):
        pixels = np.array(Image.open(io.BytesIO(one["png_string"]))).astype(np.int64)
        ids = pixels[..., 0] + 256 * pixels[..., 1] + 65536 * pixels[..., 2]
        want = data[f"img{i}_id_map"]
        assert ids.shape == want.shape and (ids != want).mean() <= 1e-4
        rows = [[s["id"], s["isthing"], s["category_id"]] for s in one["segments_info"]]
        assert rows == [[row[0], bool(row[1]), row[2]] for row in data[f"img{i}_segments"].tolist()]
        for segment, (*_, area) in zip(one["segments_info"], data[f"img{i}_segments"].tolist(), strict=True):
            assert abs(segment["area"] - area) <= 1e-4 * want.size


def test_panoptic_of_padded_batches_is_that_of_each_image():
    """Where the official post-processing enlarges the padding with the image."""
    masks = torch.full((2, 1, 16, 16), -5.0)
    masks[:, 0, :4] = 5.0  # a segment in the uppermost quarter of the large image, in the upper half of the small one
    masks[:, 0, 4:, 8:] = 4.0
    logits = torch.full((2, 1, 251), -20.0)
    logits[:, 0, 1] = 20.0
    sizes = torch.tensor([[16, 16], [8, 16]])
    outputs = {"pred_logits": logits, "pred_boxes": torch.full((2, 1, 4), 0.5), "pred_masks": masks}
    alone = {"pred_logits": logits[1:], "pred_boxes": outputs["pred_boxes"][1:], "pred_masks": masks[1:, :, :8]}
    rows = PostProcess()(outputs, torch.tensor([[64, 64], [32, 64]]))
    target = torch.tensor([[64, 64], [32, 64]])
    segm = PostProcessSegm()
    both = segm(rows, {**outputs, "mask_sizes": sizes}, target, target)
    one = segm(PostProcess()(alone, target[1:]), alone, target[1:], target[1:])
    assert torch.equal(both[1]["masks"], one[0]["masks"]) and 0 < one[0]["masks"].float().mean() < 1


def test_batches_of_panoptic_models(tmp_path):
    """An image's PNG and segments are the same alone and in a batch with a larger one."""
    model, post = hub("detr_resnet50_panoptic", return_postprocessor=True, threshold=0.02)
    model.load_state_dict(goldens.filled("detr_resnet50_panoptic"))
    model.eval()
    small, large = goldens.image("small", 64, 96), goldens.image("large", 128, 160)
    with torch.inference_mode():
        batch = post(model([small, large]), [(64, 96), (128, 160)], [(80, 120), (128, 160)])
        alone = post(model([small]), [(64, 96)], [(80, 120)])
    assert len(alone[0]["segments_info"]) > 1
    assert [s["category_id"] for s in batch[0]["segments_info"]] == [
        s["category_id"] for s in alone[0]["segments_info"]
    ]
    pictures = [np.array(Image.open(io.BytesIO(found[0]["png_string"]))) for found in (batch, alone)]
    assert pictures[0].shape == (80, 120, 3) and (pictures[0] != pictures[1]).mean() < 1e-3
