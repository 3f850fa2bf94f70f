"""A model as another package may bring it: none of detrkit's backbones, none of its options, and its own losses."""

from __future__ import annotations

from torch import nn

import detrkit
from detrkit.models.criterion import SetCriterion
from detrkit.models.matcher import HungarianMatcher


class Grid(detrkit.DetectionModel):
    """What a package outside may bring: no backbone of detrkit, none of its options."""

    def __init__(self, *, num_classes: int = 91, num_queries: int = 6, cells: int = 4) -> None:
        super().__init__()
        self.num_classes, self.num_queries = num_classes, num_queries
        self.patches = nn.Conv2d(3, 8, 16, stride=16)
        self.pool = nn.AdaptiveAvgPool2d(cells)
        self.class_head = nn.Linear(8 * cells * cells, num_queries * (num_classes + 1))
        self.box_head = nn.Linear(8 * cells * cells, num_queries * 4)

    def forward(self, images, targets=None, capture=False, defer_masks=None):
        batch = images if isinstance(images, detrkit.Batch) else detrkit.Batch.from_images(images)
        features = self.pool(self.patches(batch.images)).flatten(1)
        logits = self.class_head(features).unflatten(1, (self.num_queries, -1))
        return detrkit.Outputs(logits, self.box_head(features).unflatten(1, (-1, 4)).sigmoid())


class PlainCriterion(SetCriterion):
    """Losses with one setting of their own."""

    def __init__(self, *, num_classes: int, eos_coef: float = 0.5) -> None:
        matcher = HungarianMatcher(cost_class=1, cost_bbox=1, cost_giou=1)
        weights = {"loss_ce": 1.0, "loss_bbox": 3.0, "loss_giou": 1.0}
        super().__init__(num_classes=num_classes, matcher=matcher, weights=weights, eos_coef=eos_coef)
