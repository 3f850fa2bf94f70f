"""Generated COCO ground truth and detections with everything that makes evaluators differ."""

from __future__ import annotations

from typing import Any

import numpy as np


def random_set(
    seed: int,
    *,
    images: int = 20,
    categories: int = 6,
    objects: int = 9,
    crowded: int = 0,
    extra: int = 0,
    ties: bool = True,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """COCO ground truth and results: shifted boxes, wrong classes, duplicates, inventions.

    Args:
        seed: of everything.
        images: some have no object, some no detection.
        categories: with gaps in their ids; the last one has no object.
        objects: mean number per image; about 1 in 12 is crowd.
        crowded: extra detections in each third image, to pass the limit of detections per image.
        extra: further invented detections in each image.
        ties: scores rounded to 0.05, so that many are equal.
    """
    rng = np.random.default_rng(seed)
    category_ids = np.cumsum(rng.integers(1, 4, categories)).tolist()
    image_ids = rng.permutation(np.arange(1, 4 * images))[:images].tolist()
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image_id in image_ids:
        count = 0 if rng.random() < 0.1 else int(rng.poisson(objects))
        for _ in range(count):
            # sides from 6 to 300 pixels: small, medium and large objects
            size = np.exp(rng.uniform(np.log(6), np.log(300), 2))
            box = np.concatenate([rng.uniform(0, 640 - size), size]).round(2)
            category = int(rng.choice(category_ids[:-1]))
            crowd = bool(rng.random() < 1 / 12)
            area = float(box[2] * box[3] * rng.uniform(0.4, 1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": box.tolist(),
                    "area": area,
                    "iscrowd": int(crowd),
                }
            )
            for _ in range(int(rng.choice([0, 1, 1, 1, 2, 3]))):
                moved = box + rng.normal(0, rng.choice([0.01, 0.08, 0.25]), 4) * np.tile(size, 2)
                moved[2:] = np.maximum(moved[2:], 1)
                found = category if rng.random() < 0.85 else int(rng.choice(category_ids))
                results.append(_result(rng, image_id, found, moved, ties))
        full = crowded if image_id % 3 == 0 else 0
        for _ in range(int(rng.poisson(2)) + full + extra):
            size = rng.uniform(5, 200, 2)
            box = np.concatenate([rng.uniform(0, 640 - size), size])
            # in the crowded images one class gets most of them, since the limit is per class
            category = category_ids[0] if full and rng.random() < 0.8 else int(rng.choice(category_ids))
            results.append(_result(rng, image_id, category, box, ties))
    rng.shuffle(results)
    return (
        {
            "images": [{"id": i, "width": 640, "height": 640, "file_name": f"{i}.jpg"} for i in image_ids],
            "annotations": annotations,
            "categories": [{"id": i, "name": f"class {i}"} for i in category_ids],
        },
        results,
    )


def _result(rng: np.random.Generator, image_id: int, category: int, box: np.ndarray, ties: bool) -> dict[str, Any]:
    score = float(rng.beta(1, 2))
    return {
        "image_id": image_id,
        "category_id": category,
        "bbox": [float(v) for v in box],
        "score": round(score * 20) / 20 if ties else score,
    }
