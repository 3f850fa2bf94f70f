"""COCO val2017 as the published figures were measured on it: boxes, or boxes, masks and segments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from detrkit.data import Dataset, open_dataset
from detrkit.engine.gathering import Truth, dataset_labels
from detrkit.evaluation import GroundTruth, PanopticTruth
from detrkit.models.pretrained import EvaluationSettings
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec


@dataclass(frozen=True)
class Places:
    """Where the data is.

    Attributes:
        coco: folder with SPLIT/ and annotations/instances_SPLIT.json.
        panoptic: folder with panoptic_SPLIT/ and annotations/panoptic_SPLIT.json; the images may be here or there.
        split: of both.
    """

    coco: Path | None = None
    panoptic: Path | None = None
    split: str = "val2017"

    def has(self, settings: EvaluationSettings) -> bool:
        """Whether there is what an evaluation needs."""
        return (self.coco if settings.data == "coco" else self.panoptic) is not None


@dataclass(frozen=True)
class EvaluationData:
    """The images to evaluate on, and whose objects count.

    Attributes:
        images: the dataset that is predicted on; panoptic for models with masks.
        objects: the one that boxes and masks are compared with: the instances of the same images.
        note: what differs from the published evaluation, or "".
    """

    images: Dataset
    objects: Dataset
    note: str = ""

    @classmethod
    def open(cls, places: Places, *, panoptic: bool, masks: bool = False, limit: int | None = None) -> EvaluationData:
        """Opens what an evaluation needs.

        Args:
            places: where it is.
            panoptic: boxes, masks and segments of the panoptic images, or boxes of the instances.
            masks: of these, too.
            limit: the first so many images only.

        Raises:
            DetrkitError: a place is not given, or its files cannot be used.
        """
        if not panoptic:
            if places.coco is None:
                raise DetrkitError("boxes are evaluated on COCO: give its folder with --coco")
            images = open_dataset(places.coco, split=places.split, layout="coco", masks=masks)
            images = images if limit is None else images.subset(range(min(limit, len(images))))
            return cls(images, images)
        if places.panoptic is None:
            raise DetrkitError("panoptic models are evaluated on COCO panoptic: give its folder with --panoptic")
        also = [] if places.coco is None else [places.coco / places.split]
        images = open_dataset(places.panoptic, split=places.split, layout="coco-panoptic", masks=True, more_images=also)
        images = images if limit is None else images.subset(range(min(limit, len(images))))
        if places.coco is None:
            return cls(images, images.things(), "boxes and masks: of the panoptic annotations (no --coco is given)")
        instances = open_dataset(places.coco, split=places.split, layout="coco", masks=True)
        place = {record.image_id: index for index, record in enumerate(instances.records)}
        if any(record.image_id not in place for record in images.records):
            note = f"boxes and masks: of the panoptic annotations ({places.coco.name} has other images)"
            return cls(images, images.things(), note)
        return cls(images, instances.subset([place[record.image_id] for record in images.records]))

    def truth(self, spec: ModelSpec, model: nn.Module) -> Truth:
        """What there is to be found, of the model's classes.

        Raises:
            DetrkitError: not one class in common, or annotations that cannot be read.
        """
        if not self.images.panoptic:
            return Truth.of(self.images, spec, model)
        segments = PanopticTruth.load(*self.images.panoptic_ground_truth())
        objects = GroundTruth.load(self.objects.ground_truth())
        return Truth(dataset_labels(spec, self.images), objects, segments, masks=True)
