"""Panoptic quality of results in memory and in files, equal to panopticapi's.

hotcoco's PanopticEval gives the same numbers (a test compares them), but wants the results of all images at once, as
files. Here an image is reduced to its matches when it comes: 5,000 of them take a few megabytes, in any process.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from detrkit.classes import ClassList
from detrkit.errors import DetrkitError
from detrkit.evaluation.files import write_atomic
from detrkit.evaluation.ground_truth import read_json
from detrkit.evaluation.panoptic_matching import ImageMatches, score_image
from detrkit.evaluation.panoptic_metrics import PanopticMetrics
from detrkit.evaluation.panoptic_truth import (
    VOID,
    IdMaps,
    PanopticTruth,
    Segments,
    image_entries,
    png_folder,
    png_reader,
)
from detrkit.evaluation.result_table import Unknown
from detrkit.results import PanopticResult, Segment


class PanopticEvaluator:
    """Gathers panoptic results and evaluates them against one ground truth.

    Each image counts once, however often it is added: samplers repeat images to give every process the same number.

    In several processes, each adds its own images, then one merges the others' `state()`:

        evaluator.add(image_id, result)
        for state in all_gather(evaluator.state()):
            evaluator.merge(state)
        metrics = evaluator.compute()

    Args:
        ground_truth: COCO panoptic file, its content, or a `PanopticTruth`; read once.
        maps: folder of its PNGs, or a function that gives the (H, W) ids of an image, see `PanopticTruth.load`.
        out: a json that is to hold the results: their PNGs are written as they come, into the folder of its name.
        unknown_categories: what to do with segments of a category that the ground truth does not have: an "error", or
            "ignore" them, as if they were void. The unused ids of the published models (class "N/A") are always void.
    """

    def __init__(
        self,
        ground_truth: PanopticTruth | str | Path | Mapping[str, Any],
        maps: str | Path | IdMaps | None = None,
        *,
        out: str | Path | None = None,
        unknown_categories: Unknown = "error",
    ) -> None:
        self.truth = PanopticTruth.load(ground_truth, maps)
        self.out = None if out is None else Path(out)
        self.unknown_categories: Unknown = unknown_categories
        self._images: dict[int | str, ImageMatches] = {}

    def __len__(self) -> int:
        """How many images have been added."""
        return len(self._images)

    def add(self, image_id: int | str, result: PanopticResult) -> None:
        """Takes the result of one image; an image that is there already is left as it is.

        Args:
            image_id: the dataset's id.
            result: at the size of the original image; `classes` maps labels to the dataset's category ids, without it
                labels are taken for those.

        Raises:
            DetrkitError: an unknown image or category, another size, ids of the map that are no segment's, or segments
                without a pixel; the message names the image.
        """
        index = self.truth.image_position.get(image_id)
        if index is None:
            raise DetrkitError(f"{self.truth.source}: no image {image_id!r}; give the dataset's id")
        if image_id in self._images:
            return
        result = self._known(result)
        pixels, info = result.to_coco()
        matches = score_image(self.truth, image_id, result.id_map.cpu().numpy(), info)
        if self.out is not None:
            write_atomic(self.out.with_suffix("") / self.truth.files[index], _png(pixels))
        self._images[image_id] = matches

    def _known(self, result: PanopticResult) -> PanopticResult:
        """The result with void in place of the segments that are of no account."""
        classes, known = result.classes, self.truth.category_position

        def ignored(segment: Segment) -> bool:
            if classes is not None and classes.names[segment.label] == "N/A":
                return True
            category = segment.label if classes is None else classes.ids[segment.label]
            return self.unknown_categories == "ignore" and category not in known

        without = [segment for segment in result.segments if ignored(segment)]
        if not without:
            return result
        id_map = result.id_map.clone()
        for segment in without:
            id_map[id_map == segment.id] = VOID
        return replace(result, id_map=id_map, segments=[s for s in result.segments if s not in without])

    def state(self) -> dict[int | str, ImageMatches]:
        """What has been gathered, by image id: picklable, for `merge` in another process."""
        return dict(self._images)

    def merge(self, other: PanopticEvaluator | Mapping[int | str, ImageMatches]) -> PanopticEvaluator:
        """Takes over the images that are not here yet from an evaluator or its `state()`, and returns itself.

        Raises:
            DetrkitError: an unknown image.
        """
        for image_id, matches in (other.state() if isinstance(other, PanopticEvaluator) else other).items():
            if image_id not in self.truth.image_position:
                raise DetrkitError(f"{self.truth.source}: no image {image_id!r}; merge results of the same dataset")
            self._images.setdefault(image_id, matches)
        return self

    def save(self) -> Path:
        """Writes the json `out`, whole or not at all, and returns its path; panopticapi reads it too.

        Raises:
            ValueError: there is no `out`, so no PNGs were written.
        """
        if self.out is None:
            raise ValueError("results are not kept: make the evaluator with out=")
        annotations = [
            {"image_id": image_id, "file_name": file, "segments_info": self._images[image_id].segments_info}
            for image_id, file in zip(self.truth.image_ids, self.truth.files, strict=True)
            if image_id in self._images
        ]
        return write_atomic(self.out, json.dumps({"annotations": annotations}) + "\n")

    def compute(self, *, only_added: bool = False) -> PanopticMetrics:
        """The numbers over all images of the ground truth, or over those that were added alone.

        Raises:
            DetrkitError: an image has not been added, or there is none.
        """
        truth = self.truth
        missing = [i for i in truth.image_ids if i not in self._images]
        if missing and not only_added:
            raise DetrkitError(
                f"no result for {len(missing)} of {len(truth.image_ids)} images of {truth.source}, such as "
                f"{missing[0]!r}; predict all of them, or evaluate those that are there (only_added)"
            )
        images = [self._images[i] for i in truth.image_ids if i in self._images]
        if not images:
            raise DetrkitError(f"{truth.source}: no images; there is nothing to evaluate")

        def count(columns: list[np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(np.concatenate(columns), weights, len(truth.names))

        return PanopticMetrics.from_counts(
            truth.names,
            truth.things,
            iou=count([i.matched for i in images], np.concatenate([i.iou for i in images])),
            matched=count([i.matched for i in images]),
            invented=count([i.invented for i in images]),
            missed=count([i.missed for i in images]),
            images=len(images),
        )


def evaluate_panoptic(
    ground_truth: PanopticTruth | str | Path | Mapping[str, Any],
    ground_truth_folder: str | Path | IdMaps | None,
    results: str | Path,
    results_folder: str | Path | None = None,
) -> PanopticMetrics:
    """The panoptic quality of results in COCO's format, equal to panopticapi's.

    Args:
        ground_truth: a COCO panoptic file, its content, or a `PanopticTruth`.
        ground_truth_folder: of its PNGs, or a function that gives the (H, W) ids of an image; None looks where COCO's
            archives put them.
        results: the json of the results: `annotations` with image_id, file_name and segments_info (id, category_id).
        results_folder: of their PNGs; by default the folder of the json's name, beside it.

    Raises:
        DetrkitError: a malformed file, an image without result, an unknown category, a PNG that is missing or holds
            other ids than segments_info: with the file, the image and the fix.
    """
    truth = PanopticTruth.load(ground_truth, ground_truth_folder)
    entries, id_map = _result_files(results, results_folder)
    unknown = [i for i in entries if i not in truth.image_position]
    if unknown:
        raise DetrkitError(f"{results}: image {unknown[0]!r} is not in {truth.source}; evaluate on the same dataset")

    def score(image_id: int | str) -> ImageMatches:
        try:
            return score_image(truth, image_id, id_map(image_id), list(entries[image_id]["segments_info"]))
        except DetrkitError as error:
            raise DetrkitError(f"{results}: {error}") from error

    evaluator = PanopticEvaluator(truth)
    with ThreadPoolExecutor() as pool:  # reading PNGs and sorting leave Python's lock
        evaluator.merge(dict(zip(entries, pool.map(score, entries), strict=True)))
    return evaluator.compute()


def read_panoptic(
    results: str | Path, classes: ClassList, image_ids: Iterable[int | str], *, folder: str | Path | None = None
) -> list[PanopticResult]:
    """Reads results in COCO's format, such as to draw them.

    Args:
        results: the json.
        classes: of the dataset.
        image_ids: which images.
        folder: of the PNGs; by default that of the json's name, beside it.

    Raises:
        DetrkitError: a malformed file, an unknown category, or no result of an image.
    """
    entries, id_map = _result_files(results, folder)
    found = []
    for image_id in image_ids:
        if image_id not in entries:
            raise DetrkitError(f"{results}: no result of image {image_id!r}; predict all of the dataset")
        info = entries[image_id]["segments_info"]
        Segments.from_info(info, classes.label_of, f"{results}: image {image_id!r}")
        found.append(PanopticResult.from_coco(id_map(image_id), info, classes, image_id=image_id))
    return found


def _result_files(results: str | Path, folder: str | Path | None) -> tuple[dict[int | str, Mapping[str, Any]], IdMaps]:
    """The entries of the json by image id, and the function that reads an image's PNG."""
    entries = image_entries(read_json(results), str(results))
    files = {image_id: entry["file_name"] for image_id, entry in entries.items()}
    where = png_folder(Path(results), list(files.values())) if folder is None else Path(folder)
    return entries, png_reader(where, files)


def write_panoptic(path: str | Path, results: Iterable[tuple[str, PanopticResult]]) -> Path:
    """Writes results in COCO's format: the PNGs into the folder of the json's name, then the json.

    Args:
        path: of the json.
        results: name of the PNG and result, image by image; `image_id` and `classes` say what the entries hold.

    Returns:
        The path of the json. It is there when everything is.

    Raises:
        DetrkitError: the folder cannot be written.
    """
    path = Path(path)
    entries = []
    for file_name, result in results:
        pixels, info = result.to_coco()
        write_atomic(path.with_suffix("") / file_name, _png(pixels))
        entries.append({"image_id": result.image_id, "file_name": file_name, "segments_info": info})
    return write_atomic(path, json.dumps({"annotations": entries}) + "\n")


def _png(pixels: np.ndarray) -> bytes:
    """A PNG file's content of (H, W, 3) uint8."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
