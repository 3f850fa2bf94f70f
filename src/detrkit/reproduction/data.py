"""Data of the published evaluations: COCO val2017 with boxes, or with boxes, masks and panoptic segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from detrkit.data import Dataset, open_dataset
from detrkit.engine.evaluation_targets import EvaluationTargets, dataset_labels
from detrkit.evaluation import DetectionGroundTruth, PanopticGroundTruth
from detrkit.models.pretrained import EvaluationSettings
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import expanded_path
from detrkit.weights.checkpoint import ModelSpec


@dataclass(frozen=True)
class DatasetPaths:
    """Folders of COCO and COCO panoptic.

    Attributes:
        coco: folder with SPLIT/ and annotations/instances_SPLIT.json.
        panoptic: folder with panoptic_SPLIT/ and annotations/panoptic_SPLIT.json; the images may be in either
            folder.
        split: of both datasets.
    """

    coco: Path | None = None
    panoptic: Path | None = None
    split: str = "val2017"

    @classmethod
    def expanded(cls, coco: str | Path | None, panoptic: str | Path | None, *, split: str = "val2017") -> DatasetPaths:
        """Build the paths from a user's words, in which ~ stands for the home folder."""
        return cls(
            coco=None if coco is None else expanded_path(coco),
            panoptic=None if panoptic is None else expanded_path(panoptic),
            split=split,
        )

    def has(self, settings: EvaluationSettings) -> bool:
        """Return whether the data of an evaluation is given."""
        return (self.coco if settings.data == "coco" else self.panoptic) is not None


@dataclass(frozen=True)
class EvaluationData:
    """Images to evaluate on, with the annotations that results are compared with.

    Attributes:
        images: the dataset to predict on; panoptic for models with masks.
        objects: the dataset that boxes and masks are compared with: the instances of the same images.
        note: difference from the published evaluation, or "".
    """

    images: Dataset
    objects: Dataset
    note: str = ""

    @classmethod
    def open(
        cls, paths: DatasetPaths, *, panoptic: bool, masks: bool = False, limit: int | None = None
    ) -> EvaluationData:
        """Open the data of an evaluation.

        Args:
            paths: folders of the datasets.
            panoptic: evaluate boxes, masks and segments of the panoptic images; else boxes of the instances.
            masks: with `panoptic=False`, evaluate masks of the instances, too.
            limit: only the first `limit` images.

        Raises:
            DetrkitError: a folder is not given, or its files cannot be used.
        """
        if not panoptic:
            if paths.coco is None:
                raise DetrkitError("boxes are evaluated on COCO: give its folder with --coco")
            images = open_dataset(paths.coco, split=paths.split, layout="coco", masks=masks)
            images = images if limit is None else images.subset(range(min(limit, len(images))))
            return cls(images, images)
        if paths.panoptic is None:
            raise DetrkitError("panoptic models are evaluated on COCO panoptic: give its folder with --panoptic")
        more_images = [] if paths.coco is None else [paths.coco / paths.split]
        images = open_dataset(
            paths.panoptic, split=paths.split, layout="coco-panoptic", masks=True, more_images=more_images
        )
        images = images if limit is None else images.subset(range(min(limit, len(images))))
        if paths.coco is None:
            return cls(images, images.things(), "boxes and masks: of the panoptic annotations (no --coco is given)")
        instances = open_dataset(paths.coco, split=paths.split, layout="coco", masks=True)
        index_of = {record.image_id: index for index, record in enumerate(instances.records)}
        if any(record.image_id not in index_of for record in images.records):
            note = f"boxes and masks: of the panoptic annotations ({paths.coco.name} has other images)"
            return cls(images, images.things(), note)
        return cls(images, instances.subset([index_of[record.image_id] for record in images.records]))

    def ground_truth(self, spec: ModelSpec, model: nn.Module) -> EvaluationTargets:
        """Return the ground truth, restricted to the model's classes.

        Raises:
            DetrkitError: no common class, or annotations that cannot be read.
        """
        if not self.images.panoptic:
            return EvaluationTargets.of(self.images, spec, model)
        segments = PanopticGroundTruth.load(*self.images.panoptic_ground_truth())
        objects = DetectionGroundTruth.load(self.objects.ground_truth())
        return EvaluationTargets(dataset_labels(spec, self.images), objects, segments, masks=True)
