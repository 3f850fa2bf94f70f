"""`DetectionModel`: the base class of all models, whatever their transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from detrkit.backbones.base import Backbone
from detrkit.models.panoptic import MaskPredictor
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Capturing, Outputs, Target


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
