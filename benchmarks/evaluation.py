"""Times detrkit's COCO evaluation against pycocotools' on the same generated detections.

    python benchmarks/evaluation.py --json docs/measurements/evaluation-boxes.json

Both start from the same lists, as a json gives them, and end with the 12 numbers; "arrays" are what
`DetectionEvaluator` has gathered during the evaluation of a model. Masks (`--kinds bbox segm`) are ellipses in the
boxes, as RLE.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import hotcoco
import numpy as np

from detrkit.evaluation import DetectionGroundTruth, ResultTable, evaluate_detections
from detrkit.evaluation.result_table import IouType
from side_by_side import Report, add_options, by_turns

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.coco_sets import random_set
from helpers.oracle import run_pycocotools, twelve

SIDE = 640  # pixels of the generated images


def add_masks(entries: list[dict[str, Any]]) -> None:
    """Gives every entry the ellipse in its box as `segmentation`, cut off at the border of the image."""
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    for entry in entries:
        box = np.array(entry["bbox"])
        polygon = np.clip(box[:2] + (circle + 1) / 2 * box[2:], 0, SIDE).ravel().tolist()
        rle = hotcoco.mask.merge(hotcoco.mask.fr_py_objects([polygon], SIDE, SIDE))
        entry["segmentation"] = {"size": [SIDE, SIDE], "counts": _text(rle["counts"])}


def _text(counts: bytes | str) -> str:
    """Compressed runs as json has them."""
    return counts.decode() if isinstance(counts, bytes) else counts


def pycocotools(truth: dict[str, Any], results: list[dict[str, Any]], kind: IouType) -> tuple[float, list[float]]:
    """Seconds and the 12 numbers.

    It changes what it is given, so it gets copies; that is not its fault, and their time is taken off.
    """
    start = time.perf_counter()
    copy.deepcopy(truth), copy.deepcopy(results)
    copied = time.perf_counter()
    numbers = twelve(run_pycocotools(truth, results, kind=kind))
    return time.perf_counter() - copied - (copied - start), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="number of images (default %(default)s)")
    parser.add_argument("--categories", type=int, default=80, help="number of classes (default %(default)s)")
    parser.add_argument("--detections", type=int, default=100, help="per image, as DETR gives (default %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=["bbox", "segm"], default=["bbox"])
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, repeats=5)
    args = parser.parse_args()

    truth, results = random_set(
        args.seed, images=args.images, categories=args.categories, objects=7, ties=False, extra=args.detections - 10
    )
    counts = f"{args.images:,} images, {len(truth['annotations']):,} objects, {len(results):,} detections"
    report = Report(f"COCO AP of {counts}")
    for kind in args.kinds:
        if kind == "segm":
            add_masks(truth["annotations"])
            add_masks(results)
            # with a box, pycocotools takes its area instead of the mask's for small, medium and large
            results = [{k: v for k, v in entry.items() if k != "bbox"} for entry in results]
        truth, results = json.loads(json.dumps([truth, results]))
        theirs, expected = pycocotools(truth, results, kind)  # once: it takes a minute
        loaded = DetectionGroundTruth.load(truth)
        table = ResultTable.load(results, loaded, iou_type=kind)
        contenders = {
            "dicts": partial(evaluate_detections, truth, results, iou_type=kind),
            "arrays": partial(evaluate_detections, loaded, table, iou_type=kind),
        }
        apart = max(float(np.abs(np.subtract(call().stats, expected)).max()) for call in contenders.values())
        assert apart < 1e-6, f"{kind}: the numbers differ by {apart}"
        times = by_turns(contenders, repeats=args.repeats)
        for start, seconds in times.items():
            row = {"AP of": "boxes" if kind == "bbox" else "masks", "images": args.images, "from": start}
            row |= {"pycocotools, s": theirs, "detrkit, s": seconds, "times pycocotools": theirs / seconds}
            report.add(**row, difference=f"{apart:.0e}")
    report.write(args.json)


if __name__ == "__main__":
    main()
