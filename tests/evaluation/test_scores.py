"""Precision, recall and F1 over the score: by hand, and against a search over pycocotools' matches."""

from __future__ import annotations

import numpy as np
import pytest

from detrkit.evaluation import evaluate_detections
from detrkit.structures.thresholds import ScoreThresholds
from detrkit.utils.errors import SettingError
from helpers.coco_sets import random_set
from helpers.oracle import run_pycocotools

BOXES = [[20.0 * i, 0, 10, 10] for i in range(20)]
NOWHERE = [500.0, 500, 10, 10]


def curves(objects, detections):
    """Of objects (category, box) and detections (category, box, score) of one image; categories 1 (a) and 2 (b)."""
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"image_id": 1, "category_id": c, "bbox": box} for c, box in objects],
    }
    results = [{"image_id": 1, "category_id": c, "bbox": b, "score": s} for c, b, s in detections]
    scores = evaluate_detections(truth, results, scores=True).scores
    assert scores is not None
    return scores


def test_by_hand():
    """Right, right, wrong, right: F1 of the best one to four is 2/5, 4/6, 4/7 and 6/8 of four objects."""
    one = curves(
        [(1, box) for box in BOXES[:4]],
        [(1, BOXES[0], 0.9), (1, BOXES[1], 0.8), (1, NOWHERE, 0.6), (1, BOXES[2], 0.4), (1, NOWHERE, 0.3)],
    )
    best = one.best(0)
    assert best == (0.35, 3, 1, 4)  # in the middle of 0.4 and 0.3
    assert (best.precision, best.recall, best.f1) == (0.75, 0.75, 0.75)
    assert one.best(1) is None  # b has no object
    curve = one.curve(np.array([0.85, 0.5, 0.35, 0.9]), 0)
    assert curve.f1.tolist() == [2 / 5, 4 / 7, 6 / 8, 0]
    assert curve.recall.tolist() == [1 / 4, 2 / 4, 3 / 4, 0]
    assert curve.precision[:3].tolist() == [1, 2 / 3, 3 / 4] and np.isnan(curve.precision[3])  # 0.9 is not above 0.9
    assert one.at(0.9, 0) == (0.9, 0, 0, 4)


def test_of_equal_f1_the_higher_score_and_equal_scores_count_together():
    right = [(1, BOXES[0], 0.9)]
    assert curves([(1, BOXES[0])], right).best(0).threshold == 0.45  # no other detection: half of its score
    both = curves([(1, BOXES[0])], [*right, (1, NOWHERE, 0.9), (1, NOWHERE, 0.2)])
    assert both.best(0) == (0.55, 1, 1, 1)
    near = curves([(1, BOXES[0])], [(1, BOXES[0], 0.50002), (1, NOWHERE, 0.50001)])
    assert 0.50001 <= near.best(0).threshold < 0.50002 and near.best(0).f1 == 1


def test_a_class_with_few_objects_has_the_general_threshold():
    objects = [(1, box) for box in BOXES[:10]] + [(2, box) for box in BOXES[10:14]]
    detections = [(1, box, 0.9) for box in BOXES[:10]] + [(2, box, 0.3) for box in BOXES[10:14]]
    scores = curves(objects, [*detections, *[(1, NOWHERE, 0.4)] * 3])
    thresholds = scores.suggest()
    # all: 10 right, 3 wrong at 0.4, 4 right at 0.3: F1 20/24, 20/27, 28/31
    assert thresholds == ScoreThresholds(0.15, 28 / 31, {"a": 0.65})
    assert (thresholds.of("a"), thresholds.of("b")) == (0.65, 0.15)
    assert scores.suggest(min_objects=4).classes == {"a": 0.65, "b": 0.15}
    assert scores.at(thresholds) == (0.15, 14, 0, 14)
    assert list(scores.points(thresholds)) == ["a", "b"]
    assert "b (that of all)" in scores.table(thresholds) and scores.table(thresholds).count("\n") == 5
    assert scores.to_json(thresholds)["classes"]["b"] == {
        "threshold": 0.15, "own": False, "objects": 4, "precision": 1.0, "recall": 1.0, "f1": 1.0
    }  # fmt: skip


def test_nothing_is_suggested_where_nothing_is_right():
    assert curves([(1, BOXES[0])], []).suggest() is None
    assert curves([(1, BOXES[0])], [(1, NOWHERE, 0.9)]).suggest() is None
    # one of 50 detections is right: F1 2/51
    assert curves([(1, BOXES[0])], [(1, BOXES[0], 0.1), *[(1, NOWHERE, 0.5)] * 49]).suggest() is None


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_search_over_the_matches_of_pycocotools(seed):
    truth, results = random_set(seed, images=25, crowded=30, extra=3, ties=seed % 2 == 0)
    scores = evaluate_detections(truth, results, scores=True).scores
    assert scores is not None
    everything = [e for e in run_pycocotools(truth, results).evalImgs if e and e["aRng"] == [0, 1e10]]
    ids = sorted(c["id"] for c in truth["categories"])
    names = {c["id"]: c["name"] for c in truth["categories"]}
    assert scores.names == tuple(names[i] for i in ids)
    for label in (None, *range(len(ids))):
        pairs, objects = [], 0
        for one in everything:
            if label is None or one["category_id"] == ids[label]:
                objects += int((1 - np.array(one["gtIgnore"])).sum())
                keep = ~np.array(one["dtIgnore"][0], bool)
                pairs += zip(np.array(one["dtScores"])[keep], np.array(one["dtMatches"][0])[keep] > 0, strict=True)
        found, right = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs], bool)
        cuts = np.concatenate([np.unique(found[found > 0]) - 1e-9, [1.0]])  # of a score of 0 nothing is above
        f1 = [2 * right[found > cut].sum() / max(1, (found > cut).sum() + objects) for cut in cuts]
        best = scores.best(label)
        assert (0 if best is None else best.f1) == pytest.approx(max(f1) if objects else 0, abs=1e-12)
        for cut, value in zip(cuts[::7], f1[::7], strict=True):
            assert max(0, scores.at(float(cut), label).f1) == pytest.approx(value, abs=1e-12)
        if best is not None:
            assert scores.at(best.threshold, label) == best


def test_thresholds_are_checked_when_they_are_read():
    thresholds = ScoreThresholds(0.3, 0.8, {"a": 0.25})
    assert ScoreThresholds.from_json(thresholds.to_json()) == thresholds
    for value, message in (
        ({"general": 2.0, "f1": 0.5}, "general is 2.0: must be at most 1"),
        ({"general": 0.5}, "f1 is missing"),
        ({"general": 0.5, "f1": 0.5, "classes": {"a": "x"}}, "classes.a is 'x'"),
        ([], "must be"),
    ):
        with pytest.raises(SettingError, match=message):
            ScoreThresholds.from_json(value)


def test_a_suggestion_is_short_where_that_costs_nothing():
    rng = np.random.default_rng(0)
    objects = [(1, box) for box in BOXES]
    detections = [(1, box, float(s)) for box, s in zip(BOXES, rng.normal(0.4, 0.05, 20), strict=True)]
    detections += [(1, NOWHERE, float(s)) for s in rng.normal(0.3, 0.05, 20)]
    scores = curves(objects, detections)
    best, suggested = scores.best(), scores.suggest()
    assert suggested.general in (round(best.threshold, 2), round(best.threshold, 3), best.threshold)
    assert suggested.f1 == scores.at(suggested.general).f1 >= best.f1 - 0.002
    near = curves(objects, [(1, BOXES[0], 0.5001), *[(1, NOWHERE, 0.4999)] * 20])
    assert 0.4999 <= near.suggest().general < 0.5001  # 0.5
    near = curves(objects, [*[(1, box, 0.51004) for box in BOXES], *[(1, NOWHERE, 0.51002)] * 20])
    assert near.suggest().general == 0.51003  # two decimals would let the wrong ones in


def test_a_narrow_peak_of_f1_is_drawn():
    """Scores of a model after a few steps: all within 0.003, right ones above wrong ones."""
    from detrkit.visualize import score_curves

    found = [(1, box, 0.1132 + 0.00001 * i) for i, box in enumerate(BOXES)]
    wrong = [(1, [500.0 + 20 * i, 0, 10, 10], 0.1101 + 0.000005 * i) for i in range(400)]
    scores = curves([(1, box) for box in BOXES], found + wrong)
    thresholds = scores.suggest()
    assert thresholds is not None
    f1 = score_curves(scores, thresholds).axes[2]
    line = next(line for line in f1.lines if line.get_label() == "a")
    assert max(line.get_ydata()) == pytest.approx(scores.best(0).f1) == 1.0
