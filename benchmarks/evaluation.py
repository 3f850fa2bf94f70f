"""Times detrkit's COCO evaluation against pycocotools' on the same generated detections.

    python benchmarks/evaluation.py --images 1000

Both start from the same lists in memory and end with the 12 numbers; the ratio is of their best times in this run.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.evaluation import GroundTruth, ResultTable, evaluate_detections

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "evaluation"))
from coco_sets import random_set
from oracle import run_pycocotools, twelve


def best_time(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The least wall time of `repeats` calls in seconds, and what the last one gave."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = function()
        times.append(time.perf_counter() - start)
    return min(times), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000, help="number of images (default %(default)s)")
    parser.add_argument("--categories", type=int, default=80, help="number of classes (default %(default)s)")
    parser.add_argument("--detections", type=int, default=100, help="per image, as DETR gives (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of the detrkit path; pycocotools runs once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    truth, results = random_set(
        args.seed, images=args.images, categories=args.categories, objects=7, ties=False, extra=args.detections - 10
    )
    print(f"{args.images} images, {len(truth['annotations'])} objects, {len(results)} detections")
    ours, metrics = best_time(lambda: evaluate_detections(truth, results), args.repeats)
    ground_truth = GroundTruth.load(truth)
    table = ResultTable.load(results, ground_truth)
    arrays, _ = best_time(lambda: evaluate_detections(ground_truth, table), args.repeats)
    # The copies that keep pycocotools from changing the input are not its fault: their time is taken off.
    copying, _ = best_time(lambda: (copy.deepcopy(truth), copy.deepcopy(results)), 1)
    theirs, expected = best_time(lambda: twelve(run_pycocotools(truth, results)), 1)
    theirs -= copying
    difference = float(np.abs(np.subtract(metrics.stats, expected)).max())
    print(f"detrkit      {ours:8.3f} s   AP {metrics.AP:.6f}")
    print(f"  from arrays {arrays:7.3f} s   as DetectionEvaluator gathers them during a run")
    print(f"pycocotools  {theirs:8.3f} s   AP {expected[0]:.6f}")
    print(f"ratio {theirs / ours:.1f}, from arrays {theirs / arrays:.1f}")
    print(f"maximal difference of the 12 numbers {difference:.1e}")


if __name__ == "__main__":
    main()
