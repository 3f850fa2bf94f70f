"""Panoptic quality against an independent reference and hotcoco, and what bad files are answered with."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import hotcoco.panoptic
import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data.panoptic import read_id_map
from detrkit.evaluation import PanopticEvaluator, PanopticGroundTruth, evaluate_panoptic, write_panoptic
from detrkit.evaluation.panoptic_matching import shared_pixels
from detrkit.evaluation.panoptic_metrics import NAMES
from detrkit.structures.classes import ClassList
from detrkit.structures.panoptic import PanopticResult, Segment
from detrkit.utils.errors import DetrkitError
from helpers.panoptic_oracle import count_image, panoptic_quality
from helpers.panoptic_sets import perturbed, random_set

DATA = Path(os.environ.get("DETRKIT_DATA", ""))
needs_data = pytest.mark.skipif("DETRKIT_DATA" not in os.environ, reason="set DETRKIT_DATA to the folder of real data")


def compare(metrics, truth, maps, predictions):
    """Against the reference: the 9 numbers, and every class with its counts."""
    counts = [
        count_image(maps[a["image_id"]], a["segments_info"], *predictions[a["image_id"]]) for a in truth["annotations"]
    ]
    numbers, rows = panoptic_quality(counts, truth["categories"])
    assert numbers == pytest.approx({n: metrics[n] for n in NAMES}, abs=1e-6)
    for category in truth["categories"]:
        ours = metrics.per_class[category["name"]]
        assert ours["thing"] == bool(category["isthing"])
        if category["id"] in rows:
            expected = rows[category["id"]]
            assert expected == pytest.approx({k: ours[k] for k in expected}, abs=1e-6)
        else:
            assert ours["PQ"] == ours["SQ"] == ours["RQ"] == -1


def evaluator_of(truth, maps, predictions, **options):
    evaluator = PanopticEvaluator(truth, maps.__getitem__, **options)
    classes = evaluator.ground_truth.classes
    for image_id, (ids, info) in predictions.items():
        evaluator.add(image_id, PanopticResult.from_coco(ids, info, classes))
    return evaluator


def write_set(folder, truth, maps, predictions):
    """Ground truth as COCO's archives have it, and predictions as panopticapi wants them."""
    for name, content in (("truth", maps), ("found", {k: v[0] for k, v in predictions.items()})):
        (folder / name).mkdir()
        for image_id, ids in content.items():
            rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
            Image.fromarray(rgb).save(folder / name / f"{image_id:05}.png")
    (folder / "truth.json").write_text(json.dumps(truth))
    entries = [{"image_id": k, "file_name": f"{k:05}.png", "segments_info": v[1]} for k, v in predictions.items()]
    (folder / "found.json").write_text(json.dumps({"annotations": entries}))


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_reference(seed):
    truth, maps, predictions = random_set(seed)
    metrics = evaluator_of(truth, maps, predictions).compute()
    compare(metrics, truth, maps, predictions)
    assert 0.1 < metrics.PQ < 0.95  # a set on which a wrong rule shows
    assert any(row["FP"] for row in metrics.per_class.values())
    assert any(s["iscrowd"] for a in truth["annotations"] for s in a["segments_info"])


@pytest.mark.parametrize("seed", range(4))
def test_equals_hotcoco(seed, tmp_path):
    truth, maps, predictions = random_set(100 + seed)
    write_set(tmp_path, truth, maps, predictions)
    metrics = evaluate_panoptic(tmp_path / "truth.json", tmp_path / "truth", tmp_path / "found.json")
    theirs = hotcoco.panoptic.pq_compute(str(tmp_path / "truth.json"), str(tmp_path / "found.json"))
    for group, suffix in (("All", ""), ("Things", "_th"), ("Stuff", "_st")):
        for name in ("pq", "sq", "rq"):
            assert metrics[name.upper() + suffix] == pytest.approx(theirs[group][name], abs=1e-6)


@pytest.mark.parametrize("text", [False, True])
def test_many_files(tmp_path, text):
    """More images than are checked one by one; with ids that hotcoco does not know."""
    truth, maps, predictions = random_set(7, images=30)
    write_set(tmp_path, truth, maps, predictions)
    files = [tmp_path / "truth.json", tmp_path / "found.json"]
    if text:
        for file in files:
            content = json.loads(file.read_text())
            for entry in content["annotations"]:
                entry["image_id"] = f"a {entry['image_id']}"
            file.write_text(json.dumps(content))
    metrics = evaluate_panoptic(files[0], None, files[1])
    compare(metrics, truth, maps, predictions)
    in_memory = evaluator_of(truth, maps, predictions).compute()
    assert metrics.images == in_memory.images == 30
    for name, row in in_memory.per_class.items():
        assert row == pytest.approx(metrics.per_class[name], abs=1e-12)
    if not text:
        assert evaluate_panoptic(truth, maps.__getitem__, files[1]) == in_memory


def test_faults_among_many_files_are_named(tmp_path):
    truth, maps, predictions = random_set(7, images=30)
    write_set(tmp_path, truth, maps, predictions)
    last = sorted(maps)[-1]
    for folder in ("found", "truth"):
        file = tmp_path / folder / f"{last:05}.png"
        good = file.read_bytes()
        picture = Image.open(file)
        picture.resize((9, 8)).save(file)
        with pytest.raises(DetrkitError, match=f"image {last}: the prediction has .* pixels, the ground truth"):
            evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json")
        file.write_bytes(good[:60])
        with pytest.raises(DetrkitError, match=f"{folder}/{last:05}.png: panoptic PNG cannot be read"):
            evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json")
        file.write_bytes(good)
    Image.fromarray(np.full((*maps[last].shape, 3), 9, np.uint8)).save(tmp_path / "found" / f"{last:05}.png")
    with pytest.raises(
        DetrkitError, match=f"image {last}: prediction: id 592137 is in the map and not in segments_info"
    ):
        evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json")


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3, 16])
def test_any_number_of_threads(tmp_path, threads):
    """The same to the bit, so that a figure does not depend on the machine."""
    write_set(tmp_path, *random_set(8, images=40))
    command = "import sys, detrkit; print(detrkit.evaluate_panoptic(sys.argv[1], None, sys.argv[2]).to_json())"
    run = subprocess.run(
        [sys.executable, "-c", command, tmp_path / "truth.json", tmp_path / "found.json"],
        env=os.environ | {"RAYON_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    here = evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json")
    assert run.stdout.strip() == str(here.to_json())


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("seed", range(3))
def test_perturbed_coco(seed, tmp_path):
    root = DATA / "panoptic_sample"
    file = root / "annotations/panoptic_val2017.json"
    truth = json.loads(file.read_text())
    rng = np.random.default_rng(seed)
    maps, predictions = {}, {}
    for annotation in truth["annotations"]:
        ids = read_id_map(root / "panoptic_val2017" / annotation["file_name"])
        maps[annotation["image_id"]] = ids
        predictions[annotation["image_id"]] = perturbed(rng, (ids, annotation["segments_info"]), truth["categories"])
    # through files, PNG for PNG, with the folder of the truth found where COCO's archives put it
    classes = PanopticGroundTruth.load(file).classes
    results = [
        (a["file_name"], PanopticResult.from_coco(*predictions[a["image_id"]], classes, image_id=a["image_id"]))
        for a in truth["annotations"]
    ]
    path = write_panoptic(tmp_path / "found.json", results)
    metrics = evaluate_panoptic(file, None, path)
    compare(metrics, truth, maps, predictions)
    assert metrics.images == 42
    assert metrics.segments == 591 - 7  # crowd left out
    assert 0.2 < metrics.PQ < 0.9


@needs_data
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_ground_truth_against_itself(split):
    file = DATA / f"panoptic_sample/annotations/panoptic_{split}.json"
    truth = PanopticGroundTruth.load(file)
    evaluator = PanopticEvaluator(truth)
    for annotation in json.loads(file.read_text())["annotations"]:
        # crowd, predicted as one object, counts nowhere
        result = PanopticResult.from_coco(
            truth.id_map(annotation["image_id"]), annotation["segments_info"], truth.classes
        )
        evaluator.add(annotation["image_id"], result)
    metrics = evaluator.compute()
    assert [metrics[n] for n in NAMES] == [1.0] * 9
    assert sum(row["FP"] + row["FN"] for row in metrics.per_class.values()) == 0


def two_segments(found, info=None, *, truth=None, crowd=0, categories=((1, 1), (2, 0))):
    """Metrics of one image with a thing (id 5) and stuff (id 6)."""
    truth = np.array(truth if truth is not None else [[5] * 10, [6] * 10])
    content = {
        "annotations": [
            {
                "image_id": 1,
                "file_name": "1.png",
                "segments_info": [{"id": 5, "category_id": 1, "iscrowd": crowd}, {"id": 6, "category_id": 2}],
            }
        ],
        "categories": [{"id": i, "name": f"class {i}", "isthing": thing} for i, thing in categories],
    }
    evaluator = PanopticEvaluator(content, lambda _: truth)
    info = info or [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 2}]
    evaluator.add(1, PanopticResult.from_coco(np.array(found), info, evaluator.ground_truth.classes))
    return evaluator.compute()


def test_a_match_needs_more_than_half():
    half = two_segments([[1] * 5 + [0] * 5, [2] * 10])
    assert half.per_class["class 1"] | {"thing": True} == {
        **{"PQ": 0.0, "SQ": 0.0, "RQ": 0.0, "thing": True, "segments": 1, "TP": 0, "FP": 1, "FN": 1}
    }
    more = two_segments([[1] * 6 + [0] * 4, [2] * 10])
    assert more.PQ_th == pytest.approx(0.6)
    assert more.PQ_st == 1
    assert pytest.approx(0.8) == more.PQ


def test_void_of_the_truth_is_taken_off_the_union():
    truth = [[5] * 4 + [0] * 6, [6] * 10]
    assert two_segments([[1] * 10, [2] * 10], truth=truth).PQ == 1
    # and what lies on void by more than half is not invented
    found = [[0] * 4 + [1] * 6, [1] * 5 + [2] * 5]
    assert two_segments(found, truth=truth).per_class["class 1"]["FP"] == 0
    found = [[0] * 4 + [1] * 6, [1] * 6 + [2] * 4]
    assert two_segments(found, truth=truth).per_class["class 1"]["FP"] == 1


def test_crowd_is_neither_missed_nor_wrong():
    metrics = two_segments([[0] * 10, [2] * 10], [{"id": 2, "category_id": 2}], crowd=1)
    assert metrics.PQ_th == -1
    assert metrics.PQ == metrics.PQ_st == 1
    metrics = two_segments([[1] * 10, [2] * 10], crowd=1)
    assert metrics.PQ_th == -1
    other = [{"id": 1, "category_id": 3}, {"id": 2, "category_id": 2}]  # crowd of another class does not excuse
    metrics = two_segments([[1] * 10, [2] * 10], other, crowd=1, categories=((1, 1), (2, 0), (3, 1)))
    assert metrics.per_class["class 3"]["FP"] == 1
    assert metrics.PQ_th == 0


def test_pixels_that_ids_share():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**24, (2, 30))[:, rng.integers(0, 30, (40, 50))].reshape(2, 40, 50)
    a[:20], b[30:] = 2**24 - 1, 7
    expected = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True)
    left, right, counts = shared_pixels(a.astype(np.int32), b.astype(np.int32))
    np.testing.assert_array_equal(np.stack([left, right]), expected[0])
    np.testing.assert_array_equal(counts, expected[1])


def test_processes_with_repeated_images_give_what_one_gives(tmp_path):
    truth, maps, predictions = random_set(20)
    alone = evaluator_of(truth, maps, predictions, out=tmp_path / "alone.json")
    shares = list(predictions)[::2], [*list(predictions)[1::2], *list(predictions)[:3]]
    first, second = (
        evaluator_of(truth, maps, {k: predictions[k] for k in share}, out=tmp_path / "many.json") for share in shares
    )
    with pytest.raises(DetrkitError, match="no result for 6 of 12 images"):
        first.compute()
    some = first.compute(only_added=True)
    compare(
        some,
        truth | {"annotations": [a for a in truth["annotations"] if a["image_id"] in shares[0]]},
        maps,
        predictions,
    )
    first.merge(pickle.loads(pickle.dumps(second.state()))).merge(second)
    assert len(first) == len(alone) == 12
    assert first.compute() == alone.compute()
    assert first.save().read_text() == alone.save().read_text()
    files = [{f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("alone", "many")]
    assert files[0] == files[1]
    assert len(files[0]) == 12
    assert sorted(f.name for f in tmp_path.iterdir()) == ["alone", "alone.json", "many", "many.json"]
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert evaluate_panoptic(tmp_path / "truth.json", maps.__getitem__, tmp_path / "many.json") == alone.compute()
    with pytest.raises(ValueError, match="make the evaluator with out="):
        evaluator_of(truth, maps, {}).save()
    with pytest.raises(DetrkitError, match="no image 999"):
        first.merge({999: first.state()[shares[0][0]]})


def test_unused_ids_are_void():
    truth, maps, predictions = random_set(21, images=3)
    evaluator = PanopticEvaluator(truth, maps.__getitem__)
    plain = PanopticEvaluator(truth, maps.__getitem__)
    ignoring = PanopticEvaluator(truth, maps.__getitem__, unknown_categories="ignore")
    known = evaluator.ground_truth.classes
    for image_id, (ids, info) in predictions.items():
        kept = [s for s in info if s["id"] != 1]
        plain.add(image_id, PanopticResult.from_coco(np.where(ids == 1, 0, ids), kept, known))
        for name, to in (("N/A", evaluator), ("kite", ignoring)):
            classes = ClassList((*known.names, name), (*known.ids, 500), (*known.things, True))
            changed = [s | {"category_id": 500 if s["id"] == 1 else s["category_id"]} for s in info]
            result = PanopticResult.from_coco(ids, changed, classes)
            to.add(image_id, result)
            if name == "kite" and len(kept) < len(info):
                with pytest.raises(DetrkitError, match="segment 1: category_id 500 is no category"):
                    PanopticEvaluator(truth, maps.__getitem__).add(image_id, result)
    assert evaluator.compute() == ignoring.compute() == plain.compute()


SEGMENTS = [Segment(1, 0, 0.9, 10, True), Segment(2, 1, 0.8, 10, False)]


@pytest.mark.parametrize(
    ("image_id", "ids", "segments", "message"),
    [
        (2, [[1] * 10, [2] * 10], SEGMENTS, "no image 2"),
        (1, [[1] * 10], SEGMENTS, "image 1: the prediction has 10 x 1 pixels, the ground truth 10 x 2"),
        (1, [[1] * 10, [3] * 10], SEGMENTS, "image 1: prediction: id 3 is in the map and not in segments_info"),
        (1, [[1] * 10] * 2, SEGMENTS, "image 1: prediction: segment 2 is in segments_info and has no pixel"),
        (1, [[1] * 10] * 2, SEGMENTS[:1] * 2, "image 1: prediction: segment id 1 is there twice"),
    ],
)
def test_bad_results_are_named(image_id, ids, segments, message):
    content = {
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 5, "category_id": 1}]}],
        "categories": [{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}],
    }
    evaluator = PanopticEvaluator(content, lambda _: np.full((2, 10), 5))
    result = PanopticResult(torch.tensor(ids, dtype=torch.int32), segments, evaluator.ground_truth.classes)
    with pytest.raises(DetrkitError, match=message):
        evaluator.add(image_id, result)
    assert len(evaluator) == 0


def edited(key, value):
    """A change of the json: the value at a path such as "annotations/0/file_name"; None takes it away."""

    def change(content):
        *path, last = (int(k) if k.isdigit() else k for k in key.split("/"))
        for k in path:
            content = content[k]
        if value is None:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("truth", edited("categories", None), "truth.json: no list 'categories'"),
        ("truth", edited("categories/0/isthing", None), "truth.json: category .*: field isthing is missing"),
        ("truth", edited("annotations/1/file_name", None), "truth.json: annotations: entry 1: field file_name"),
        ("truth", edited("annotations/0/segments_info/0/category_id", 999), "truth.json: image .* category_id 999"),
        ("truth", edited("annotations/0/segments_info/0/id", 0), "truth.json: image .*: a segment has the id 0"),
        ("truth", edited("annotations/0/segments_info/0/id", 3), "ground truth: id .* is in the map and not in segm"),
        ("found", edited("annotations", None), "found.json: no list 'annotations'"),
        ("found", edited("annotations/0", None), "no result for 1 of 4 images"),
        ("found", edited("annotations/0/image_id", 999), "found.json: image 999 is not in .*truth.json"),
        ("found", edited("annotations/0/segments_info", None), "found.json: annotations: entry 0: field segments_info"),
        ("found", edited("annotations/0/segments_info/0", 3), r"found.json: image .* segments_info\[0\]: id is no"),
        ("found", edited("annotations/0/segments_info/0/id", 999), "found.json: image .*: id 1 is in the map and not"),
        ("found", edited("annotations/0/segments_info/0/category_id", 999), "found.json: image .* category_id 999"),
        ("found", edited("annotations/0/file_name", "x.png"), "x.png: panoptic PNG is missing"),
        ("found", edited("annotations/1", {"image_id": 0}), "found.json: annotations: entry 1: field file_name"),
    ],
)
def test_bad_files_are_named(tmp_path, which, change, message):
    truth, maps, predictions = random_set(35, images=4)
    assert predictions[truth["annotations"][0]["image_id"]][1][0]["id"] == 1
    write_set(tmp_path, truth, maps, predictions)
    file = tmp_path / f"{which}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(DetrkitError, match=message):
        evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json")


def test_missing_folders_and_files_are_named(tmp_path):
    truth, maps, predictions = random_set(35, images=4)
    write_set(tmp_path, truth, maps, predictions)
    assert evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json").images == 4
    (tmp_path / "found").rename(tmp_path / "elsewhere")
    with pytest.raises(DetrkitError, match=r"found.json: its PNGs, such as .*png, are not in .*found"):
        evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json")
    assert evaluate_panoptic(truth, tmp_path / "truth", tmp_path / "found.json", tmp_path / "elsewhere").images == 4
    with pytest.raises(DetrkitError, match="no PNGs; give their folder"):
        evaluate_panoptic(truth, None, tmp_path / "found.json", tmp_path / "elsewhere")
    file = next((tmp_path / "elsewhere").iterdir())
    file.write_bytes(b"no picture")
    with pytest.raises(DetrkitError, match=rf"{file.name}: panoptic PNG cannot be read"):
        evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "found.json", tmp_path / "elsewhere")
    with pytest.raises(DetrkitError, match=r"nothing\.json: cannot be read"):
        evaluate_panoptic(tmp_path / "truth.json", None, tmp_path / "nothing.json")


def test_tables():
    metrics = two_segments([[1] * 6 + [0] * 4, [2] * 9 + [0]])
    assert str(metrics).splitlines()[2:] == [
        "| all    | 75.0 | 75.0 | 100.0 |       2 |",
        "| things | 60.0 | 60.0 | 100.0 |       1 |",
        "| stuff  | 90.0 | 90.0 | 100.0 |       1 |",
    ]
    rows = metrics.table(per_class=True).splitlines()[2:]
    assert [[c.strip() for c in row.split("|")[1:-1]] for row in rows] == [
        ["class 2", "stuff", "90.0", "90.0", "100.0", "1", "1", "0", "0"],
        ["class 1", "thing", "60.0", "60.0", "100.0", "1", "1", "0", "0"],
    ]
    assert metrics.worst(1) == ["class 1"]
    assert dict(metrics) == {n: metrics[n] for n in (*NAMES, "per_class")}
    assert json.loads(json.dumps(metrics.to_json())) == metrics.to_json()
    assert metrics.to_json() | {"images": 1, "segments": 2} == metrics.to_json()
    with pytest.raises(KeyError):
        metrics["images"]
