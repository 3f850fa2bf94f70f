"""Every writer on a full disk: one line that names the file, the old file whole, nothing else in the folder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.cli.predict_files import Results
from detrkit.comparison.recording import Recording, save_recording
from detrkit.data import open_dataset, train_transform
from detrkit.data.tools.convert import convert
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.logs import CsvLog
from detrkit.engine.state import save_state
from detrkit.evaluation import evaluate_detections, write_panoptic, write_report
from detrkit.evaluation.evaluator import DetectionEvaluator
from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.utils.errors import DetrkitError, WriteError
from detrkit.utils.image_files import image_bytes
from detrkit.visualize import save_figure, training_curves
from detrkit.visualize.preview import preview
from detrkit.weights.checkpoint import ModelSpec, save_huggingface, save_model, save_official
from helpers.disk import full_disk

# wide and deep enough for Hugging Face's DETR, which normalizes in 32 groups
OPTIONS = {"backbone": "resnet18", "hidden_dim": 128, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1}
SPEC = ModelSpec("detr-r50", OPTIONS, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=64)
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model():
    return SPEC.build()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    path = write_shapes(tmp_path_factory.mktemp("data") / "set", images={"val": 2}, sides=(48, 48), panoptic=True)
    return open_dataset(path, split="val", layout="coco")


@pytest.fixture(scope="module")
def metrics(dataset):
    return evaluate_detections(dataset.ground_truth(), [])


def evaluator(dataset):
    found = DetectionEvaluator(dataset.ground_truth())
    boxes, scores, labels = torch.rand(20, 4).cumsum(1) * 10, torch.rand(20), torch.zeros(20, dtype=torch.long)
    for record in dataset.records:
        found.add(Detections(boxes, scores, labels, classes=dataset.classes, image_id=record.image_id))
    return found


def segments():
    ids = torch.from_numpy(NOISE[..., 0].astype(np.int32))
    return PanopticResult(ids, [Segment(i, 0, 1.0, 1, True) for i in range(256)], classes=SPEC.classes, image_id=1)


def log(path, values):
    CsvLog(path, key="step").add(values)


ROWS = [{"epoch": i, "train/loss": 1.0} for i in range(3)]
FILES = {
    "best.safetensors": lambda f, model, **_: save_model(f, model, SPEC),
    "official.pth": lambda f, model, **_: save_official(f, model, SPEC),
    "last.pt": lambda f, model, **_: save_state(f, {"model": model.state_dict()}),
    "stages.npz": lambda f, **_: save_recording(f, Recording("a", {"stage": torch.rand(900)})),
    "results.json": lambda f, dataset, **_: evaluator(dataset).save(f),
    "curves.png": lambda f, **_: save_figure(training_curves(ROWS), f),
    "preview.png": lambda f, dataset, **_: preview(dataset, train_transform(48, 48), out=f, count=1),
    "preview.jpg": lambda f, dataset, **_: preview(dataset, train_transform(48, 48), out=f, count=1),
    "panoptic.json": lambda f, **_: write_panoptic(f, [("1.png", segments())]),
    "report.md": lambda f, metrics, **_: write_report(f.parent, metrics=metrics, title="t", settings={}),
    "steps.csv": lambda f, **_: log(f, {"step": 2, "loss": 0.5, "note": "x" * 400}),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 300])
@pytest.mark.parametrize("name", FILES)
def test_files(name, size, tmp_path, model, dataset, metrics):
    file = tmp_path / name
    if name == "steps.csv":
        log(file, {"step": 1, "loss": 0.1, "note": "x"})
    elif name.startswith("preview"):
        file.write_bytes(image_bytes(NOISE[:4, :4], file.suffix, marked=True))
    else:
        file.write_bytes(b"old")
    before = file.read_bytes()
    with pytest.raises(WriteError, match=r"^cannot write .*: File too large$") as caught, full_disk(size):
        FILES[name](file, model=model, dataset=dataset, metrics=metrics)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
    assert file.read_bytes() == before
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [name]
    FILES[name](file, model=model, dataset=dataset, metrics=metrics)  # and with room again
    assert file.read_bytes() != before
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("size", [0, 300])
@pytest.mark.parametrize("name", ["drawn.jpg", "drawn.png"])
def test_drawn_pictures(name, size, tmp_path):
    photo = tmp_path / "photos" / name
    results = Results(tmp_path / "out", [photo])
    (tmp_path / "out").mkdir()
    with pytest.raises(WriteError, match=r"^cannot write [^\n]*: File too large$"), full_disk(size):
        results.write_image(photo, Image.fromarray(NOISE))
    assert list((tmp_path / "out").iterdir()) == []
    results.write_image(photo, Image.fromarray(NOISE))  # and with room again
    with Image.open(tmp_path / "out" / name) as drawn:
        assert drawn.size == (64, 64)


FOLDERS = {
    "shapes": lambda f, **_: write_shapes(f, images={"train": 3}, sides=(48, 48), panoptic=True),
    "coco": lambda f, dataset: convert(dataset.path, f, to="coco"),
    "voc": lambda f, dataset: convert(dataset.path, f, to="voc"),
    "yolo": lambda f, dataset: convert(dataset.path, f, to="yolo"),
    "huggingface": lambda f, model, **_: save_huggingface(f, model, SPEC),
}


@pytest.mark.parametrize("size", [0, 300])
@pytest.mark.parametrize("name", FOLDERS)
def test_folders(name, size, tmp_path, model, dataset):
    given = {"dataset": dataset} if name in ("coco", "voc", "yolo") else {"model": model}
    with pytest.raises(DetrkitError, match=r"^[^\n]*File too large[^\n]*$"), full_disk(size):
        FOLDERS[name](tmp_path / "new", **given)
    assert list(tmp_path.iterdir()) == []


def test_the_permissions_are_those_of_any_new_file(tmp_path, model):
    (tmp_path / "any").write_text("")
    save_model(tmp_path / "a.safetensors", model, SPEC)
    save_huggingface(tmp_path / "b", model, SPEC)
    modes = {f.stat().st_mode & 0o777 for f in tmp_path.rglob("*") if f.is_file()}
    assert len(modes) == 1
    assert sorted(f.name for f in (tmp_path / "b").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
