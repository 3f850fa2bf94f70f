"""`detrkit.evaluate`: the same numbers at every batch size, and pycocotools' numbers."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import detrkit
from detrkit.config import ModelConfig
from detrkit.data import Dataset
from detrkit.engine.evaluating import evaluate
from detrkit.engine.evaluation_targets import dataset_labels
from detrkit.models.pretrained import PUBLISHED
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError
from detrkit.weights.build import build_model
from detrkit.weights.checkpoint import ModelSpec, save_model
from helpers.tiny import MODEL, tiny_config

OPTIONS = {**MODEL.overrides(), "backbone_norm": "group"}


def _model(names, seed=0):
    torch.manual_seed(seed)
    spec = ModelSpec("detr-r50", OPTIONS, len(names), ClassList(tuple(names), tuple(range(len(names)))), size=64)
    return spec.build(), spec


def _pycocotools(truth, results) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        one = COCOeval(coco, coco.loadRes(results), "bbox")
        one.evaluate()
        one.accumulate()
        one.summarize()
    return [float(v) for v in one.stats]


@pytest.mark.slow
def test_batch_size_changes_nothing(shapes, tmp_path):
    names = detrkit.open_dataset(shapes, split="val").class_names
    for i, size in enumerate((1, 3, 5)):
        evaluate(_model(names), shapes, batch_size=size, device="cpu", workers=0, out=tmp_path / str(i))
    first, *others = ([*json.loads((tmp_path / str(i) / "results.json").read_text())] for i in range(3))
    assert len(first) == 5 * 8  # every image once, every query
    for other in others:
        assert [(r["image_id"], r["category_id"]) for r in other] == [(r["image_id"], r["category_id"]) for r in first]
        torch.testing.assert_close(
            [b for r in other for b in [*r["bbox"], r["score"]]],
            [b for r in first for b in [*r["bbox"], r["score"]]],
            rtol=1e-4,
            atol=1e-4,
        )


def test_what_stands_for_a_model(shapes, tmp_path):
    """A checkpoint, a model with its spec, a detector and the bare model give the same numbers."""
    names = detrkit.open_dataset(shapes, split="val").class_names
    model, spec = _model(names)
    save_model(tmp_path / "model.safetensors", model, spec)
    options = {"device": "cpu", "workers": 0, "size": 64, "max_size": 64}
    ways = [tmp_path / "model.safetensors", (model, spec), detrkit.Detector(model, spec, device="cpu"), model]
    first, *others = (list(evaluate(way, shapes, **options).stats) for way in ways)
    assert all(other == pytest.approx(first, abs=1e-12) for other in others)


def test_classes_are_matched_by_name(shapes):
    dataset = detrkit.open_dataset(shapes, split="val")
    a, _, c = dataset.class_names
    _, spec = _model([c, "submarine", a])
    labels = dataset_labels(spec, dataset)
    assert labels.names == (c, "N/A", a)
    assert labels.ids[0] == dataset.classes.ids[2] and labels.ids[2] == dataset.classes.ids[0]
    assert labels.ids[1] not in dataset.classes.ids
    with pytest.raises(
        DetrkitError, match=rf"knows none of the classes of .* \({', '.join(dataset.class_names)}\): it"
    ):
        dataset_labels(_model(["submarine"])[1], dataset)
    with pytest.raises(DetrkitError, match=r"it knows a, b, c, d, e, \.\.\.$"):
        dataset_labels(_model(list("abcdef"))[1], dataset)


def test_classes_that_the_model_does_not_know_are_named(shapes, tmp_path):
    """They count with AP 0, which is said with what they may be called in the model; the numbers are as they were."""
    dataset = detrkit.open_dataset(shapes, split="val")
    a, b, c = dataset.class_names
    objects = {name: 0 for name in dataset.class_names}
    for record in dataset.records:
        for label, crowd in zip(record.labels, record.crowd, strict=True):
            objects[dataset.class_names[label]] += not crowd
    assert all(objects.values())
    with pytest.warns(UserWarning) as said:
        metrics = evaluate(
            _model([a, f" {b.upper()}", "zebra"]), dataset, device="cpu", workers=0, out=tmp_path / "out"
        )
    text = str(said[0].message)
    share = f"{objects[b] + objects[c]} of {sum(objects.values())} objects"
    assert text.startswith(
        f"2 of the 3 classes of {shapes.name}, with {share}, are unknown to the model and count with AP 0"
    )
    assert f"{b}, {c}; perhaps {b!r} is {f' {b.upper()}'!r} in the model" in text
    assert metrics.per_class[b]["AP"] == metrics.per_class[c]["AP"] == 0
    assert pytest.approx(metrics.per_class[a]["AP"] / 3) == metrics.AP
    assert json.loads((tmp_path / "out/metrics.json").read_text())["notes"][0] == text
    assert "unknown to the model" in (tmp_path / "out/report.md").read_text()
    few = dataset.subset([i for i, r in enumerate(dataset.records) if set(r.labels.tolist()) <= {0}])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no object of what it does not know
        assert not len(few) or evaluate(_model([a]), few, device="cpu", workers=0)
        evaluate(_model([a, b, c, "zebra"]), dataset, device="cpu", workers=0)
    with pytest.raises(DetrkitError, match=f"rename {a!r} to {a.upper()!r} in the dataset$"):
        evaluate(_model([a.upper()]), dataset, device="cpu", workers=0)


def test_a_class_may_be_called_like_an_unused_label():
    classes = ClassList.contiguous({3: "N/A", 5: "nan"})
    spec = ModelSpec("detr-r50", OPTIONS, 2, classes)
    labels = dataset_labels(spec, Dataset([], classes))
    assert labels == classes and labels.used == {"N/A": 0, "nan": 1}
    other = dataset_labels(spec, Dataset([], ClassList.contiguous({7: "nan"})))
    assert other.used == {"nan": 1} and other.ids[1] == 7


@pytest.mark.slow
@pytest.mark.skipif("DETRKIT_DATA" not in os.environ, reason="DETRKIT_DATA is not set")
def test_coco_mini_equals_pycocotools(tmp_path):
    """80 classes, crowd, images without annotations; untrained weights give low scores but many numbers above 0."""
    root = Path(os.environ["DETRKIT_DATA"]) / "coco_mini"
    dataset = detrkit.open_dataset(root, split="val2017")
    assert len(dataset.class_names) == 80
    model, spec = _model(dataset.class_names)
    # boxes of the truth, shifted, as detections: the model alone would give AP 0 and hide a fault
    metrics = evaluate((model, spec), dataset, batch_size=6, device="cpu", workers=0, out=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    truth = json.loads((root / "annotations" / "instances_val2017.json").read_text())
    assert {r["image_id"] for r in results} == {i["id"] for i in truth["images"]}
    generator = torch.Generator().manual_seed(0)
    for annotation in truth["annotations"]:
        shift = torch.randn(4, generator=generator) * 0.1 * min(annotation["bbox"][2:])
        box = [v + s for v, s in zip(annotation["bbox"], shift.tolist(), strict=True)]
        score = float(torch.rand(1, generator=generator))
        results.append(
            {"image_id": annotation["image_id"], "category_id": annotation["category_id"], "bbox": box, "score": score}
        )
    expected = _pycocotools(truth, results)
    found = detrkit.evaluate_detections(truth, results)
    assert found.AP > 0.3
    assert list(found.stats) == pytest.approx(expected, abs=1e-6)
    own = _pycocotools(truth, json.loads((tmp_path / "results.json").read_text()))
    assert list(metrics.stats) == pytest.approx(own, abs=1e-6)


def test_published_model_without_network_says_what_to_do(monkeypatch, tmp_path, shapes):
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path))
    row = PUBLISHED["detr-r50"]
    monkeypatch.setitem(PUBLISHED, row.model, replace(row, url=f"http://127.0.0.1:9/{row.file}"))
    with pytest.raises(DetrkitError, match=r"detr-r50-e632da11\.pth"):
        evaluate("detr-r50", shapes, device="cpu", workers=0)


def test_build_model_is_what_a_spec_builds():
    model, spec = _model(["a"])
    again = build_model(spec.name, num_classes=1, **spec.options)
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}


@pytest.mark.parametrize("model", [{"backbone_norm": "frozen"}, {"backbone_norm": "batch"}, {"name": "rtdetrv2-r18"}])
def test_a_run_evaluates_the_weights_that_it_has(model, shapes, tmp_path):
    # norms are folded into the weights once and kept: those of an earlier evaluation are not the present ones
    differences = []

    class Compare(detrkit.Callback):
        def on_evaluation_end(self, run, metrics):
            images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2)]
            with torch.inference_mode():
                kept, anew = (one.eval()(images).logits for one in (run.model, copy.deepcopy(run.model)))
            differences.append(float((kept - anew).abs().max()))

    config = tiny_config(shapes, tmp_path / "run", optim={"epochs": 3, "lr_backbone": 1e-2}, run={"eval_every": 1})
    if "name" in model:
        small = {"enc_hidden_dim": 32, "enc_dim_feedforward": 32, "hidden_dim": 32, "dec_layers": 1, "num_queries": 8}
        model = {**model, "backbone": "presnet10", "backbone_width": 8, "backbone_weights": "random", **small}
        config = replace(config, model=ModelConfig(**model)).changed(data={"size": 64})
    else:
        config = config.changed(model=model)
    detrkit.train(config, callbacks=[Compare()])
    assert len(differences) == 3 and max(differences) < 1e-5
