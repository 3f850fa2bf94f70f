"""Panoptic quality in plain loops over pixels and segments, after the rules that panopticapi publishes."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

VOID = 0


def count_image(
    truth_map: np.ndarray, truth: list[dict[str, Any]], found_map: np.ndarray, found: list[dict[str, Any]]
) -> dict[int, dict[str, float]]:
    """Category id -> iou (a sum), tp, fp, fn of one image."""
    stats: dict[int, dict[str, float]] = defaultdict(lambda: {"iou": 0.0, "tp": 0, "fp": 0, "fn": 0})
    common: Counter[tuple[int, int]] = Counter(zip(truth_map.ravel().tolist(), found_map.ravel().tolist(), strict=True))
    truth_area, found_area = Counter(truth_map.ravel().tolist()), Counter(found_map.ravel().tolist())
    truth_matched, found_matched = set(), set()
    for g in truth:
        for p in found:
            if g.get("iscrowd", 0) or g["category_id"] != p["category_id"]:
                continue
            intersection = common[g["id"], p["id"]]
            union = truth_area[g["id"]] + found_area[p["id"]] - intersection - common[VOID, p["id"]]
            if union and intersection / union > 0.5:
                stats[g["category_id"]]["tp"] += 1
                stats[g["category_id"]]["iou"] += intersection / union
                truth_matched.add(g["id"])
                found_matched.add(p["id"])
    crowd = {}
    for g in truth:
        if g.get("iscrowd", 0):
            crowd[g["category_id"]] = g["id"]
        elif g["id"] not in truth_matched:
            stats[g["category_id"]]["fn"] += 1
    for p in found:
        if p["id"] in found_matched:
            continue
        nowhere = common[VOID, p["id"]]
        if p["category_id"] in crowd:
            nowhere += common[crowd[p["category_id"]], p["id"]]
        if nowhere / found_area[p["id"]] <= 0.5:
            stats[p["category_id"]]["fp"] += 1
    return stats


def panoptic_quality(
    images: list[dict[int, dict[str, float]]], categories: list[dict[str, Any]]
) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """The 9 numbers, and by category id PQ, SQ, RQ with the counts; a class that counts nowhere is left out."""
    rows = {}
    for category in categories:
        iou, tp, fp, fn = (
            sum(i[category["id"]][k] for i in images if category["id"] in i) for k in ("iou", "tp", "fp", "fn")
        )
        if tp + fp + fn:
            rows[category["id"]] = {
                "PQ": iou / (tp + fp / 2 + fn / 2),
                "SQ": iou / tp if tp else 0.0,
                "RQ": tp / (tp + fp / 2 + fn / 2),
                "TP": tp,
                "FP": fp,
                "FN": fn,
            }
    numbers = {}
    for suffix, kinds in (("", (0, 1)), ("_th", (1,)), ("_st", (0,))):
        some = [rows[c["id"]] for c in categories if c["id"] in rows and c["isthing"] in kinds]
        for name in ("PQ", "SQ", "RQ"):
            numbers[name + suffix] = sum(r[name] for r in some) / len(some) if some else -1.0
    return numbers, rows
