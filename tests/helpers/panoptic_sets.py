"""Panoptic maps: random ones with crowd and void, and predictions that are ground truth with every kind of fault."""

from __future__ import annotations

from typing import Any

import numpy as np

Map = tuple[np.ndarray, list[dict[str, Any]]]  # (H, W) ids and segments_info


def random_map(
    rng: np.random.Generator, categories: list[dict[str, Any]], size: tuple[int, int], *, crowd: bool = True
) -> Map:
    """Overlapping rectangles, stuff once a class; about a tenth of the pixels stays void, one in 8 things is crowd."""
    height, width = size
    ids = np.zeros(size, np.int32)
    info: list[dict[str, Any]] = []
    used: set[int] = set()
    for _ in range(int(rng.integers(0, 14))):
        category = categories[int(rng.integers(len(categories)))]
        alone = not category["isthing"] or (is_crowd := crowd and bool(rng.random() < 1 / 8))
        key = -category["id"] if category["isthing"] else category["id"]
        if alone and key in used:
            continue
        used |= {key} if alone else set()
        number = int(rng.integers(1, 2**24))
        top, left = rng.integers(0, height), rng.integers(0, width)
        ids[top : top + rng.integers(2, height), left : left + rng.integers(2, width)] = number
        info.append({"id": number, "category_id": category["id"], "iscrowd": int(category["isthing"] and is_crowd)})
    ids[rng.random(size) < 0.02] = 0
    present = set(np.unique(ids).tolist())
    return ids, [s for s in info if s["id"] in present]


def perturbed(rng: np.random.Generator, truth: Map, categories: list[dict[str, Any]]) -> Map:
    """A prediction from ground truth: segments shifted, grown, split, merged, dropped and given another class."""
    old, info = truth
    ids = np.zeros_like(old)
    found: list[dict[str, Any]] = []
    height, width = old.shape

    def add(mask: np.ndarray, category: int) -> None:
        number = len(found) + 1
        ids[mask] = number
        found.append({"id": number, "category_id": category})

    order = rng.permutation(len(info))
    for k in order:
        mask, category = old == info[k]["id"], info[k]["category_id"]
        fate = rng.random()
        if fate < 0.1:  # dropped
            continue
        if fate < 0.35:  # shifted by up to an eighth of its size
            rows, columns = np.nonzero(mask)
            far = max(1, int(np.ptp(rows)) // 8), max(1, int(np.ptp(columns)) // 8)
            dy, dx = (int(rng.integers(-f, f + 1)) for f in far)
            moved = np.zeros_like(mask)
            moved[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)] = mask[
                max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)
            ]
            mask = moved
        elif fate < 0.45:  # split in two
            columns = np.nonzero(mask.any(0))[0]
            cut = int(np.quantile(columns, rng.uniform(0.1, 0.9)))
            add(mask & (np.arange(width) < cut)[None], category)
            mask = mask & (np.arange(width) >= cut)[None]
        elif fate < 0.55 and found:  # merged with one before
            number = found[int(rng.integers(len(found)))]["id"]
            ids[mask] = number
            continue
        elif fate < 0.65:  # another class
            category = categories[int(rng.integers(len(categories)))]["id"]
        add(mask, category)
    if rng.random() < 0.5:  # something over void and whatever is there
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask = np.zeros_like(old, bool)
        mask[top : top + height // 4, left : left + width // 4] = True
        add(mask, categories[int(rng.integers(len(categories)))]["id"])
    void = (old == 0) & (ids == 0) & (rng.random() < 0.5)  # crowd and void belong to somebody's sky
    if void.any():
        add(void, categories[int(rng.integers(len(categories)))]["id"])
    present = set(np.unique(ids).tolist())
    return ids, [s for s in found if s["id"] in present]


def random_categories(rng: np.random.Generator, things: int = 5, stuff: int = 4) -> list[dict[str, Any]]:
    """Ids with gaps in no order of things and stuff."""
    ids = np.cumsum(rng.integers(1, 5, things + stuff)).tolist()
    kinds = rng.permutation([1] * things + [0] * stuff).tolist()
    return [{"id": i, "name": f"class {i}", "isthing": kind} for i, kind in zip(ids, kinds, strict=True)]


def random_set(seed: int, images: int = 12) -> tuple[dict[str, Any], dict[int, np.ndarray], dict[int, Map]]:
    """Ground truth json, its id maps, and predictions by image id."""
    rng = np.random.default_rng(seed)
    categories = random_categories(rng)
    annotations, maps, predictions = [], {}, {}
    for image_id in rng.permutation(np.arange(1, 3 * images))[:images].tolist():
        size = int(rng.integers(30, 70)), int(rng.integers(30, 70))
        truth = random_map(rng, categories, size)
        maps[image_id] = truth[0]
        annotations.append({"image_id": image_id, "file_name": f"{image_id:05}.png", "segments_info": truth[1]})
        predictions[image_id] = perturbed(rng, truth, categories)
    return {"images": [], "annotations": annotations, "categories": categories}, maps, predictions
