"""From pictures of any kind to detections in their own pixels."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data.images import as_rgb
from detrkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from detrkit.detector import Detector
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec, save_model

OPTIONS = {
    "backbone": "resnet18",
    "backbone_norm": "group",
    "hidden_dim": 32,
    "dim_feedforward": 64,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 9,
}
SPEC = ModelSpec(
    "detr-r50", OPTIONS, num_classes=3, classes=ClassList(("a", "b", "c"), (4, 5, 9)), size=96, max_size=150
)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(5)
    model = SPEC.build()
    with torch.no_grad():
        model.class_head.weight.mul_(8)  # scores that differ
    return Detector(model, SPEC, device="cpu")


def picture(seed, width=130, height=100):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


def equal(a, b, atol=0.0):
    assert a.labels.tolist() == b.labels.tolist()
    assert torch.allclose(a.boxes, b.boxes, rtol=0, atol=atol) and torch.allclose(a.scores, b.scores, rtol=0, atol=atol)


def test_against_the_steps_by_hand(detector):
    image = picture(1, 260, 130)
    got = detector.predict(image, threshold=0.0)
    # 130 -> 96 would make the long side 192 > 150: short side round(150 * 130 / 260) = 75, long side 150
    small = np.asarray(image.resize((150, 75), Image.Resampling.BILINEAR), np.float32) / 255
    pixels = torch.from_numpy((small - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)).permute(2, 0, 1)
    with torch.inference_mode():
        out = detector.model([pixels])
    scores, labels = out.logits[0].softmax(-1)[:, :-1].max(-1)
    order = scores.argsort(descending=True)
    cx, cy, w, h = out.boxes[0][order].unbind(-1)
    boxes = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], -1) * torch.tensor([260, 130, 260, 130.0])
    # torchvision's and PIL's resizing of bytes may differ by one grey level
    assert torch.allclose(got.scores, scores[order], atol=5e-3)
    assert torch.allclose(got.boxes, boxes, atol=1.0)
    assert got.labels.tolist() == labels[order].tolist()
    assert got.names == [SPEC.classes.names[label] for label in got.labels.tolist()]


def test_all_kinds_of_pictures_are_one(detector, tmp_path):
    image = picture(2)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    want = detector.predict(image)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        equal(detector.predict(same), want)
    equal(detector.predict(array[:, ::-1][:, ::-1]), want)  # a view
    assert want.image.size == (130, 100) and want.draw().size == (130, 100)


def test_one_or_a_list_as_given(detector, tmp_path):
    for i in range(3):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("")
    alone = [detector.predict(tmp_path / f"{i}.png") for i in range(3)]
    for many in (detector.predict(tmp_path), detector.predict([tmp_path / f"{i}.png" for i in range(3)])):
        assert isinstance(many, list)
        for a, b in zip(many, alone, strict=True):
            equal(a, b, atol=1e-3)
    assert detector.predict([]) == []


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_does_not_matter(detector, batch_size):
    images = [picture(i, 100 + 37 * i, 90 + 23 * (i % 3)) for i in range(5)]
    together = detector.predict(images, threshold=0.0, batch_size=batch_size)
    for found, image in zip(together, images, strict=True):
        equal(found, detector.predict(image, threshold=0.0), atol=1e-3)


def test_threshold_and_order(detector):
    everything = detector.predict(picture(3), threshold=0.0)
    assert len(everything) == OPTIONS["num_queries"]
    assert everything.scores.tolist() == sorted(everything.scores.tolist(), reverse=True)
    middle = float(everything.scores[4])
    assert len(detector.predict(picture(3), threshold=middle)) == 4
    assert len(detector.predict(picture(3), threshold=1.0)) == 0


@pytest.mark.parametrize("as_file", [True, False])
def test_exif_orientation_is_followed(detector, tmp_path, as_file):
    upright = picture(4)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    equal(detector.predict(path if as_file else Image.open(path)), detector.predict(upright))


def test_gray_and_transparent_pictures():
    assert as_rgb(Image.new("L", (4, 3), 7)).getpixel((0, 0)) == (7, 7, 7)
    assert as_rgb(Image.new("RGBA", (4, 3), (1, 2, 3, 0))).getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"\(H, W, 3\) uint8, not \(4, 4, 2\)"),
        (np.zeros((4, 4, 3), np.float32), "not .* float32"),
        (torch.zeros(3, 4, 4), "uint8, not .*float32"),
        (torch.zeros(6, 4, 3, dtype=torch.uint8), r"\(3, H, W\)"),
        (7, "no image: int"),
    ],
)
def test_what_is_no_picture(detector, bad, message):
    with pytest.raises(ValueError, match=message):
        detector.predict(bad)


def test_missing_and_damaged_files(detector, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.jpg").write_text("hello")
    for path in ("missing.jpg", "text.jpg", "empty"):
        with pytest.raises(DetrkitError, match=path):
            detector.predict(tmp_path / path)


def test_load_and_resize(detector, tmp_path):
    path = save_model(tmp_path / "best.safetensors", detector.model, SPEC)
    for source in (path, str(path), tmp_path):
        loaded = detrkit.load(source, device="cpu")
        equal(loaded.predict(picture(6)), detector.predict(picture(6)))
        assert loaded.classes == SPEC.classes and loaded.spec == SPEC
    small = loaded.resized(48)
    assert (small.spec.size, small.spec.max_size) == (48, 75) and small.model is loaded.model
    assert Detector(detector.model, replace(SPEC, max_size=None), device="cpu").resized(48).spec.max_size is None
    with pytest.raises(DetrkitError, match="neither a file nor a model; models are detr-r50"):
        detrkit.load("detr-r5")
    with pytest.raises(DetrkitError, match="no such weights file"):
        detrkit.load(tmp_path / "x.pth")


def test_published_by_name(monkeypatch, detector, tmp_path):
    path = save_model(tmp_path / "a.safetensors", detector.model, replace(SPEC, name="detr-demo", options={}))
    monkeypatch.setattr("detrkit.weights.checkpoint.published_weights", lambda name: path)
    with pytest.raises(DetrkitError, match="do not fit"):  # it went for the file of that name
        detrkit.load("detr-demo")


@pytest.mark.parametrize("norm", ["frozen", "group", "batch"])
@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("detr-r50", {"position_embedding": "learned"}),
        ("detr-r50-panoptic", {}),
        ("deformable-detr-r50-two-stage", {"masks": True}),
    ],
)
def test_detectors_go_to_other_processes(name, more, norm):
    """Started afresh (spawn) or by joblib, a process gets its detector pickled."""
    options = {**OPTIONS, **more, "backbone_norm": norm}
    options |= {"backbone": "resnet10", "backbone_width": 16}
    torch.manual_seed(7)
    spec = ModelSpec(name, options, num_classes=3, classes=SPEC.classes, size=64, max_size=96)
    sent = Detector(spec.build(), spec, device="cpu")
    before = sent.predict(picture(2), threshold=0.0)
    arrived = pickle.loads(pickle.dumps(sent))
    equal(arrived.predict(picture(2), threshold=0.0), before)
    assert arrived.spec == spec and not arrived.model.training


def test_results_are_ordinary_tensors(detector):
    found = detector.predict(picture(7), threshold=0.0)
    boxes = found.boxes.clone()
    found.boxes += 5
    assert torch.equal(found.boxes, boxes + 5)
    found.boxes.clamp_(0, 50)
    weights = torch.ones(len(found), requires_grad=True)
    (weights * found.scores).sum().backward()
    assert torch.equal(weights.grad, found.scores)
    assert not any(t.is_inference() or t.requires_grad for t in (found.boxes, found.scores, found.labels))


def test_panoptic_results_are_ordinary_tensors():
    spec = replace(
        SPEC, options={**OPTIONS, "masks": True}, classes=ClassList(("a", "b", "c"), (4, 5, 9), (True, False, False))
    )
    result = Detector(spec.build(), spec, device="cpu").predict(picture(7), threshold=0.0)
    result.id_map[0] = 0
    assert not result.id_map.is_inference() and result.masks.shape[1:] == (100, 130)


def test_outputs_are_what_results_are_made_of(detector):
    images = [picture(1), np.asarray(picture(2, 90, 140))]
    made = detector.outputs(images)
    assert made.target_sizes == [(100, 130), (140, 90)] and made.batch.sizes == [(96, 124), (149, 96)]
    assert made.images[1].size == (90, 140) and made.outputs.logits.shape == (2, 9, 4)
    found = replace(detector.postprocessor, threshold=0.2).detections(made.outputs, made.target_sizes)
    for one, other in zip(found, detector.predict(images, threshold=0.2), strict=True):
        order = one.scores.argsort(descending=True, stable=True)
        assert torch.equal(one.select(order).boxes, other.boxes) and torch.equal(one.scores[order], other.scores)
    captured = detector.outputs(images, capture=True).outputs
    (attention,) = captured.capture.decoder_attention
    assert attention.shape[:3] == (2, 8, 9) and torch.allclose(attention.sum(-1), torch.ones(()), atol=1e-5)
    assert torch.allclose(captured.boxes, made.outputs.boxes, atol=1e-5) and made.outputs.capture is None
    made.outputs.boxes.mul_(2)  # an ordinary tensor
    assert not made.outputs.logits.is_inference() and not made.outputs.logits.requires_grad
    with torch.inference_mode():
        assert not detector.outputs(images[:1]).outputs.logits.is_inference()
    with pytest.raises(ValueError, match=r"^a batch needs at least one image$"):
        detector.outputs([])
    with pytest.raises(ValueError, match=r"^image 1 as an array must be"):
        detector.outputs([images[0], np.zeros((4, 4, 2), np.uint8)])


def test_an_empty_crop_is_named(detector):
    crop = np.zeros((60, 50, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^image 1 is 50 x 0 pixels"):
        detector.predict([crop, crop[5:5], crop])
    with pytest.raises(ValueError, match=r"^the image is 0 x 60 pixels"):
        detector.predict(crop[:, 9:9])
    with pytest.raises(ValueError, match=r"^image 9 as an array must be"):  # of another batch
        detector.predict([crop] * 9 + [crop[..., :2]], batch_size=4)


@pytest.mark.parametrize("threshold", [float("nan"), -0.1, 1.5, float("inf"), "high", [0.5]])
def test_thresholds_are_checked_as_on_the_command_line(detector, threshold):
    for call in (detector.predict, detector.stream):  # the stream before its first result
        with pytest.raises(ValueError, match=r"^threshold is .*: must be "):
            call([picture(1)], threshold=threshold)
    with pytest.raises(ValueError, match="batch_size is 0"):
        detector.stream([picture(1)], batch_size=0)


def test_hidden_files_are_no_pictures(detector, tmp_path):
    for name in ("a.jfif", "b.png", ".c.png", "._b.png"):
        picture(1).save(tmp_path / name, format="PNG")
    assert len(detector.predict(tmp_path)) == 2


@pytest.mark.parametrize("padding", ["exact", "official"])
def test_strips_of_one_batch_are_not_padded_to_one_square(detector, monkeypatch, padding):
    """Two of them were 32750 x 32750 pixels each: over 9 GB."""
    areas = []
    forward = detector.model.forward

    def seen(batch, **options):
        areas.append(batch.images[:, 0].numel())
        return forward(batch, **options)

    monkeypatch.setattr(detector.model, "forward", seen)
    images = [Image.new("RGB", size, (90, 9, 200)) for size in ((2, 20_001), (20_001, 2), (130, 100), (2, 20_000))]
    with monkeypatch.context() as small:
        small.setattr("detrkit.detector.batch_pixels", lambda _: 2e4)
        one = Detector(detector.model, replace(SPEC, padding=padding), device="cpu")
        together = one.predict(images, threshold=0.0, batch_size=4)
    assert len(areas) == 3 and max(areas) <= 4e4
    for found, image in zip(together, images, strict=True):
        assert found.image.size == image.size
        if padding == "exact":
            equal(found, detector.predict(image, threshold=0.0), atol=0.05)  # of 20,000 pixels
    areas.clear()
    detector.predict(images, threshold=0.0, batch_size=4)
    assert areas == [4 * 150 * 150]  # as long as memory does not mind, one forward pass


def test_a_strip_that_no_memory_holds_is_named(detector, monkeypatch):
    monkeypatch.setattr("detrkit.utils.memory.machine_memory", lambda: 8 * 2**30)
    unlimited = Detector(detector.model, replace(SPEC, max_size=None), device="cpu")
    with pytest.raises(
        DetrkitError, match=r"an image of 60001 x 1 pixels, resized to 5760096 x 96 .* would take about"
    ):
        unlimited.predict(Image.new("RGB", (60_001, 1)))
