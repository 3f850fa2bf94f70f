"""`PanopticEvaluator`: collects panoptic results image by image, in one process or several, and computes their quality.

Each image is reduced to its matches when it is added: 5,000 images take a few megabytes per process. PNGs are written
only with `out`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.evaluation.panoptic_ground_truth import IdMaps, PanopticGroundTruth
from detrkit.evaluation.panoptic_matching import ImageMatches, score_image
from detrkit.evaluation.panoptic_metrics import PanopticMetrics
from detrkit.evaluation.result_table import OnUnknown
from detrkit.structures.panoptic import VOID, PanopticResult, Segment
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import DetrkitError
from detrkit.utils.image_files import image_bytes


class PanopticEvaluator:
    """Collection of panoptic results that is evaluated against one ground truth.

    Each image counts once, however often it is added: samplers repeat images to give every process the same number.

    In several processes, each adds its own images, then one merges the others' `state()`:

        evaluator.add(image_id, result)
        for state in all_gather(evaluator.state()):
            evaluator.merge(state)
        metrics = evaluator.compute()

    Args:
        ground_truth: COCO panoptic file, its content, or a `PanopticGroundTruth`; read once.
        maps: folder of its PNGs, or a function that gives the (H, W) ids of an image, see `PanopticGroundTruth.load`.
        out: the json of the results, for `save`; PNGs are written when images are added, into the folder of its name.
        unknown_categories: what to do with segments of a category that the ground truth does not have: an "error", or
            "ignore" them, as if they were void. Unused labels (`ClassList.unused`) are always void.
    """

    def __init__(
        self,
        ground_truth: PanopticGroundTruth | str | Path | Mapping[str, Any],
        maps: str | Path | IdMaps | None = None,
        *,
        out: str | Path | None = None,
        unknown_categories: OnUnknown = "error",
    ) -> None:
        self.ground_truth = PanopticGroundTruth.load(ground_truth, maps)
        self.out = None if out is None else Path(out)
        self.unknown_categories: OnUnknown = unknown_categories
        self._images: dict[int | str, ImageMatches] = {}

    def __len__(self) -> int:
        """Return the number of images that have been added."""
        return len(self._images)

    def add(self, image_id: int | str, result: PanopticResult) -> None:
        """Add the result of one image; an image added before stays unchanged.

        Args:
            image_id: the dataset's id.
            result: at the size of the original image; `classes` maps labels to the dataset's category ids; without
                it, labels are category ids.

        Raises:
            DetrkitError: an unknown image or category, another size, ids in the map that belong to no segment, or
                segments without a pixel; the message names the image.
        """
        index = self.ground_truth.image_position.get(image_id)
        if index is None:
            raise DetrkitError(f"{self.ground_truth.source}: no image {image_id!r}; give the dataset's id")
        if image_id in self._images:
            return
        result = self._void_ignored(result)
        matches = score_image(self.ground_truth, image_id, result.id_map.cpu().numpy(), result.segments_info())
        if self.out is not None:
            file = self.out.with_suffix("") / self.ground_truth.files[index]
            write_atomic(file, image_bytes(result.to_coco()[0]), durable=False)
        self._images[image_id] = matches

    def _void_ignored(self, result: PanopticResult) -> PanopticResult:
        """Replace segments of ignored categories by void."""
        classes, category_ids = result.classes, self.ground_truth.category_position

        def ignored(segment: Segment) -> bool:
            if classes is not None and classes.is_unused(segment.label):
                return True
            category = segment.label if classes is None else classes.ids[segment.label]
            return self.unknown_categories == "ignore" and category not in category_ids

        without = [segment for segment in result.segments if ignored(segment)]
        if not without:
            return result
        id_map = result.id_map.clone()
        for segment in without:
            id_map[id_map == segment.id] = VOID
        return replace(result, id_map=id_map, segments=[s for s in result.segments if s not in without])

    def state(self) -> dict[int | str, ImageMatches]:
        """Return the matches by image id: picklable, for `merge` in another process."""
        return dict(self._images)

    def merge(self, other: PanopticEvaluator | Mapping[int | str, ImageMatches]) -> PanopticEvaluator:
        """Add the images of an evaluator or its `state()` that this one does not have yet, and return this one.

        Raises:
            DetrkitError: an unknown image.
        """
        for image_id, matches in (other.state() if isinstance(other, PanopticEvaluator) else other).items():
            if image_id not in self.ground_truth.image_position:
                raise DetrkitError(
                    f"{self.ground_truth.source}: no image {image_id!r}; merge results of the same dataset"
                )
            self._images.setdefault(image_id, matches)
        return self

    def save(self) -> Path:
        """Write the json `out` atomically, and return its path; panopticapi reads it, too.

        Raises:
            ValueError: the evaluator was made without `out`, so no PNGs were written.
        """
        if self.out is None:
            raise ValueError("results are not kept: make the evaluator with out=")
        annotations = [
            {"image_id": image_id, "file_name": file, "segments_info": self._images[image_id].segments_info}
            for image_id, file in zip(self.ground_truth.image_ids, self.ground_truth.files, strict=True)
            if image_id in self._images
        ]
        return write_atomic(self.out, json.dumps({"annotations": annotations}) + "\n")

    def compute(self, *, only_added: bool = False) -> PanopticMetrics:
        """Compute the metrics over all images of the ground truth, or only over those that were added.

        Raises:
            DetrkitError: an image has not been added, or there are no images.
        """
        ground_truth = self.ground_truth
        if not only_added or not self._images:
            ground_truth.check_complete(self._images)
        images = [self._images[i] for i in ground_truth.image_ids if i in self._images]

        def count(columns: list[np.ndarray], weights: np.ndarray | None = None) -> np.ndarray:
            return np.bincount(np.concatenate(columns), weights, len(ground_truth.names))

        return PanopticMetrics.from_counts(
            ground_truth.names,
            ground_truth.things,
            iou=count([i.matched for i in images], np.concatenate([i.iou for i in images])),
            matched=count([i.matched for i in images]),
            false_positives=count([i.false_positives for i in images]),
            false_negatives=count([i.false_negatives for i in images]),
            images=len(images),
        )
