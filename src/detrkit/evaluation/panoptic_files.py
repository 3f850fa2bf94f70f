"""Panoptic results in files of COCO's format: evaluation (equal to panopticapi's), reading and writing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import hotcoco.panoptic
import numpy as np

from detrkit.evaluation.ground_truth import read_json
from detrkit.evaluation.panoptic import PanopticEvaluator
from detrkit.evaluation.panoptic_ground_truth import (
    IdMaps,
    PanopticGroundTruth,
    PngFolder,
    Segments,
    image_entries,
    png_folder,
)
from detrkit.evaluation.panoptic_matching import ImageMatches, score_image
from detrkit.evaluation.panoptic_metrics import PanopticMetrics
from detrkit.structures.classes import ClassList
from detrkit.structures.panoptic import PanopticResult
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_files import image_bytes

# Number of images whose ground truth ids are checked, too: hotcoco accepts ids that segments_info lacks. Mistakes in
# PNGs (resizing, palettes, the wrong folder) affect all of them; checking 100 took a tenth of the time of 5,000.
_CHECKED = 20


def evaluate_panoptic(
    ground_truth: PanopticGroundTruth | str | Path | Mapping[str, Any],
    ground_truth_folder: str | Path | IdMaps | None,
    results: str | Path,
    results_folder: str | Path | None = None,
) -> PanopticMetrics:
    """Compute the panoptic quality of results in COCO's format, equal to panopticapi's.

    Args:
        ground_truth: a COCO panoptic file, its content, or a `PanopticGroundTruth`.
        ground_truth_folder: of its PNGs, or a function that gives the (H, W) ids of an image; None looks where COCO's
            archives put them.
        results: the json of the results: `annotations` with image_id, file_name and segments_info (id, category_id).
        results_folder: of their PNGs; by default the folder of the json's name, beside it.

    Raises:
        DetrkitError: a malformed file, an image without result, an unknown category, a PNG that is missing or holds
            other ids than segments_info: with the file, the image and the fix. If there are more than 20 ground truth
            PNGs, only the first 20 are checked for such ids; in others they count as in panopticapi: as neither a
            segment nor void.
    """
    annotated = PanopticGroundTruth.load(ground_truth, ground_truth_folder)
    entries, id_map = _result_files(results, results_folder)
    unknown = [i for i in entries if i not in annotated.image_position]
    if unknown:
        raise DetrkitError(
            f"{results}: image {unknown[0]!r} is not in {annotated.source}; evaluate on the same dataset"
        )
    annotated.check_complete(entries)

    def score(image_id: int | str) -> ImageMatches:
        try:
            return score_image(annotated, image_id, id_map(image_id), list(entries[image_id]["segments_info"]))
        except DetrkitError as error:
            raise DetrkitError(f"{results}: {error}") from error

    ids = list(entries)
    with ThreadPoolExecutor() as pool:  # reading PNGs and sorting release Python's lock
        matches = list(pool.map(score, ids[:_CHECKED]))
        if len(ids) > _CHECKED and isinstance(annotated.id_map, PngFolder):
            metrics = _by_hotcoco(annotated, annotated.id_map.folder, entries, id_map.folder, str(results))
            if metrics is not None:
                return metrics
        matches += pool.map(score, ids[_CHECKED:])
    return PanopticEvaluator(annotated).merge(dict(zip(ids, matches, strict=True))).compute()


def _by_hotcoco(
    ground_truth: PanopticGroundTruth,
    ground_truth_folder: Path,
    entries: Mapping[Any, Mapping[str, Any]],
    folder: Path,
    name: str,
) -> PanopticMetrics | None:
    """Compute the metrics from files with hotcoco, whose PNG decoder takes a third of Pillow's time.

    Returns:
        The metrics; None if hotcoco fails at a file: `score_image` names what is wrong there.

    Raises:
        DetrkitError: a malformed `segments_info` of the results.
    """

    def annotation(position: int, file: str, segments: Segments) -> dict[str, Any]:
        columns = (column.tolist() for column in segments)
        info = [{"id": i, "category_id": k, "iscrowd": int(c)} for i, k, c in zip(*columns, strict=True)]
        return {"image_id": position, "file_name": file, "segments_info": info}

    # Ids are positions, as everywhere in the evaluation: hotcoco takes only numbers from 0 on. Areas are left out;
    # hotcoco counts pixels then, as `score_image` does.
    kinds = enumerate(zip(ground_truth.names, ground_truth.things, strict=True))
    expected = {
        "images": [],
        "annotations": [
            annotation(i, *row) for i, row in enumerate(zip(ground_truth.files, ground_truth.segments, strict=True))
        ],
        "categories": [{"id": k, "name": class_name, "isthing": int(thing)} for k, (class_name, thing) in kinds],
    }
    predicted = []
    for image_id, entry in entries.items():
        where = f"{name}: image {image_id!r}: prediction"
        segments = Segments.from_info(entry["segments_info"], ground_truth.category_position, where)
        predicted.append(annotation(ground_truth.image_position[image_id], entry["file_name"], segments))
    try:
        evaluation = hotcoco.panoptic.PanopticEval(
            expected, {"annotations": predicted}, gt_folder=ground_truth_folder, pred_folder=folder
        )
        evaluation.evaluate()
    except (ValueError, OSError):
        return None
    classes = evaluation.results()["per_class"]
    counts = {
        key: np.array([classes[k][key] for k in range(len(ground_truth.names))]) for key in ("iou", "tp", "fp", "fn")
    }
    return PanopticMetrics.from_counts(
        ground_truth.names,
        ground_truth.things,
        iou=counts["iou"],
        matched=counts["tp"],
        false_positives=counts["fp"],
        false_negatives=counts["fn"],
        images=len(ground_truth.image_ids),
    )


def read_panoptic(
    results: str | Path, classes: ClassList, image_ids: Iterable[int | str], *, folder: str | Path | None = None
) -> list[PanopticResult]:
    """Read results in COCO's format, for example to draw them.

    Args:
        results: the json.
        classes: of the dataset.
        image_ids: which images.
        folder: of the PNGs; by default the folder of the json's name, beside it.

    Raises:
        DetrkitError: a malformed file, an unknown category, or an image without a result.
    """
    entries, id_map = _result_files(results, folder)
    loaded = []
    for image_id in image_ids:
        if image_id not in entries:
            raise DetrkitError(f"{results}: no result of image {image_id!r}; predict all of the dataset")
        info = entries[image_id]["segments_info"]
        Segments.from_info(info, classes.label_of, f"{results}: image {image_id!r}")
        loaded.append(PanopticResult.from_coco(id_map(image_id), info, classes, image_id=image_id))
    return loaded


def _result_files(
    results: str | Path, folder: str | Path | None
) -> tuple[dict[int | str, Mapping[str, Any]], PngFolder]:
    """Return the entries of the json by image id, and the folder that reads an image's PNG."""
    entries = image_entries(read_json(results), str(results))
    files = {image_id: entry["file_name"] for image_id, entry in entries.items()}
    where = png_folder(Path(results), list(files.values())) if folder is None else Path(folder)
    return entries, PngFolder(where, files)


def write_panoptic(path: str | Path, results: Iterable[tuple[str, PanopticResult]]) -> Path:
    """Write results in COCO's format: the PNGs into the folder of the json's name, then the json.

    Args:
        path: of the json.
        results: name of the PNG and result, image by image; `image_id` and `classes` determine the entries.

    Returns:
        The path of the json, which is written last.

    Raises:
        DetrkitError: the folder cannot be written.
    """
    path = Path(path)
    entries = []
    for file_name, result in results:
        pixels, info = result.to_coco()
        write_atomic(path.with_suffix("") / file_name, image_bytes(pixels), durable=False)
        entries.append({"image_id": result.image_id, "file_name": file_name, "segments_info": info})
    return write_atomic(path, json.dumps({"annotations": entries}) + "\n")
