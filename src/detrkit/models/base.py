"""`DetectionModel`: the base class of all models, whatever their transformer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from detrkit.backbones.base import Backbone
from detrkit.models.panoptic import MaskPredictor
from detrkit.structures.batch import Batch
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Capturing, Outputs, Target
from detrkit.utils.errors import SettingError


class DetectionModel(nn.Module):
    """A detector, with or without masks: the base of the models.

    Attributes:
        backbone: returns the feature maps.
        num_classes: labels, as `build_model` counts them.
        num_queries: the most objects found in an image.
        segmentation: computes the masks, or None.
        detector_frozen: whether `freeze_detector` was called.
        chooses_tokens: whether the queries are tokens of the encoder, chosen by their scores.
        free_options: options of the class that may differ from those of the file whose weights are loaded: neither
            tensors nor their meaning depend on them.
    """

    backbone: Backbone
    num_classes: int
    num_queries: int
    segmentation: MaskPredictor | None
    detector_frozen = False
    chooses_tokens: bool = False
    free_options: ClassVar[frozenset[str]] = frozenset()

    def __init__(self) -> None:
        super().__init__()
        self.segmentation = None

    def forward(
        self,
        images: Sequence[Tensor] | Batch,
        targets: Sequence[Target] | None = None,
        capture: Capturing = False,
        defer_masks: bool | None = None,
    ) -> Outputs:
        """Predict a set of objects for every image; see the models.

        Args:
            images: normalized (3, h, w) float tensors of any sizes, or a Batch.
            targets: ground truth of the images in training, for models that take it.
            capture: return attention and intermediate tensors, too; "attention": without the intermediate ones, which
                a model may return all the same.
            defer_masks: leave the masks to `Outputs.masks_of`, which computes those of chosen queries; by default in
                training.
        """
        raise TypeError(f"{type(self).__name__} has no forward pass: a model defines it")

    @property
    def level_strides(self) -> list[int]:
        """Pixels between the cells of each map that the transformer reads."""
        return self.backbone.strides if self.segmentation is None else self.backbone.strides[-1:]

    def with_num_queries(self, count: int) -> Self:
        """Return a model with these weights that chooses another number of tokens as its queries, for inference.

        It shares its parts with this one, but for a table of learned contents, of which it has the first `count` rows:
        they belong to the tokens by rank.

        Args:
            count: queries.

        Raises:
            SettingError: the queries are learned, or more are asked for than have learned contents.
        """
        if count == self.num_queries:
            return self
        if not self.chooses_tokens:
            raise SettingError(
                f"num_queries is {count}: the {self.num_queries} queries of this model are learned, each an embedding "
                "of its own, so there is no further one to add and none that could be left out; models that choose "
                "tokens of the image as queries (deformable-detr-r50-two-stage, h-deformable-detr, dino, rtdetr) take "
                "another number"
            )
        table = self._modules.get("queries")
        if isinstance(table, nn.Embedding) and count > self.num_queries:
            raise SettingError(
                f"num_queries is {count}: this model learned the contents of its {self.num_queries} queries (mixed "
                "query selection), so it has none for further ones: choose a smaller number"
            )
        model = copy.copy(self)
        model._modules = dict(self._modules)  # a part that is replaced stays in this model
        if isinstance(table, nn.Embedding):
            model.queries = nn.Embedding.from_pretrained(table.weight.detach()[:count])
        model.num_queries = count
        select = getattr(self, "num_select", None)
        if select is not None:
            model.num_select = max(select, count) if count > self.num_queries else select
        return model

    def freeze_detector(self) -> None:
        """Train only the masks (the second of the published two phases, official `--frozen_weights`).

        The rest takes no gradient, and stays in eval mode, also after `train()`. (The published code leaves its
        dropout active.)

        Raises:
            ValueError: a model without masks.
        """
        if self.segmentation is None:
            raise ValueError("freeze_detector leaves the masks to be trained, but this model has none: use masks=True")
        self.detector_frozen = True
        self.requires_grad_(False)
        self.segmentation.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> DetectionModel:
        """Set the mode as `torch.nn.Module.train`, except for a frozen detector."""
        super().train(mode)
        if self.detector_frozen:
            for part in self.children():
                part.train(mode and part is self.segmentation)
        return self

    def _add_masks(
        self,
        outputs: Outputs,
        hidden_states: Tensor,
        memory: Tensor,
        src: Tensor,
        features: Sequence[tuple[Tensor, Tensor]],
        batch: Batch,
        *,
        defer: bool | None,
    ) -> None:
        """Add masks to the outputs of a model that has them: all, or (by default in training) on request.

        Args: as `MaskPredictor.forward`; and

            outputs: of the last decoder layer.
            defer: whether the masks wait for `Outputs.masks_of`.
        """
        if self.segmentation is None:
            return
        exact = self.backbone.padding == "exact"
        masks = self.segmentation(hidden_states, memory, src, features, batch, boxes=outputs.boxes, exact=exact)
        outputs.mask_sizes = [parts[-1] for parts in masks.parts] if exact else None
        if self.training if defer is None else defer:
            outputs.deferred_masks = masks
        else:
            outputs.masks = masks.all()
        if outputs.capture is not None and outputs.capture.stages:  # empty with capture="attention"
            outputs.capture.stages["mask_attention"] = masks.attention


def has_masks(model: nn.Module) -> bool:
    """Return whether a model predicts masks."""
    return getattr(model, "segmentation", None) is not None


def is_panoptic(model: nn.Module, classes: ClassList | None) -> bool:
    """Return whether a model is panoptic: it has masks, and some of its classes are stuff (uncountable)."""
    things = None if classes is None else classes.things
    return has_masks(model) and things is not None and not all(things)
