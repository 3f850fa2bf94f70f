"""The official interface of `torch.hub.load("facebookresearch/detr", ...)` for detrkit's models.

`OfficialModel` has the inputs, outputs and parameter names of the official models; the post-processing has the official
signatures. hubconf.py returns these classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detrkit.backbones.base import Padding
from detrkit.models.base import DetectionModel
from detrkit.models.instance_masks import Size, largest
from detrkit.models.postprocess import PostProcessor
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Outputs
from detrkit.utils.image_files import image_bytes
from detrkit.weights.build import build_model
from detrkit.weights.keymap import official_names

LAST_THING = 90  # COCO's last id of a thing; its ids are the labels of the published panoptic models


class OfficialModel(nn.Module):
    """A DETR with the interface of the official one.

    Its state dict has the official parameter names, so that checkpoints can be exchanged unchanged.

    Args:
        model: a detrkit DETR.
        aux_loss: also return `aux_outputs`, which the official loss needs; the official hub models do not.

    Attributes:
        model: the detrkit DETR.
    """

    def __init__(self, model: DetectionModel, *, aux_loss: bool = False) -> None:
        super().__init__()
        self.model = model
        self.aux_loss = aux_loss
        self._names = [(theirs, f"model.{ours}") for theirs, ours in official_names(model)]
        self.register_state_dict_post_hook(_to_official)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_official)  # type: ignore[no-untyped-call]

    @property
    def aux_loss(self) -> bool:
        """True if the outputs include those of the earlier decoder layers."""
        return bool(self.model.aux_loss)

    @aux_loss.setter
    def aux_loss(self, value: bool) -> None:
        self.model.aux_loss = value  # type: ignore[assignment]

    def forward(self, samples: Any) -> dict[str, Any]:
        """Predict a set of objects for every image.

        Args:
            samples: normalized images: a list of (3, H, W) tensors of any sizes, a (B, 3, H, W) tensor, or a batch with
                `tensors` (B, 3, H, W) and `mask` (B, H, W) bool, True where padded (the official NestedTensor).

        Returns:
            pred_logits (B, Q, num_classes + 1), the last class being "no object"; pred_boxes (B, Q, 4) cxcywh in
            [0, 1]; aux_outputs with `aux_loss`: a dict of logits and boxes for each earlier decoder layer; pred_masks
            (B, Q, H / 4, W / 4) logits for models with masks, and with padding="exact" mask_sizes (B, 2): height and
            width of the part of the masks that belongs to the image, for the post-processing below.

        Raises:
            ValueError: no images, or a mask that is not the padding of images in the top left corner.
        """
        outputs = self.model(as_batch(samples), defer_masks=False)
        result = _as_dict(outputs)
        if outputs.masks is not None:
            result["pred_masks"] = outputs.masks
            if outputs.mask_sizes is not None:
                result["mask_sizes"] = torch.tensor(outputs.mask_sizes)
        if outputs.aux:
            result["aux_outputs"] = [_as_dict(layer) for layer in outputs.aux]
        return result


def _as_dict(outputs: Outputs) -> dict[str, Any]:
    return {"pred_logits": outputs.logits, "pred_boxes": outputs.boxes}


def _to_official(module: OfficialModel, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Rename the entries of a state dict to their official names, in the official order."""
    for theirs, ours in module._names:
        state[prefix + theirs] = state[prefix + ours]
    for _, ours in module._names:
        state.pop(prefix + ours, None)


def _from_official(module: OfficialModel, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the entries of a state dict to be loaded from their official names."""
    for theirs, ours in module._names:
        if prefix + theirs in state:
            state[prefix + ours] = state.pop(prefix + theirs)


def as_batch(samples: Any) -> Batch:
    """Convert the official models' input to a `Batch`; see `OfficialModel.forward`."""
    if isinstance(samples, (list, tuple, Tensor)):
        return Batch.from_images(list(samples))
    images, mask = samples.tensors, samples.mask
    if mask is None:
        return Batch.from_images(list(images))
    valid = ~mask
    heights, widths = valid.any(2).sum(1).tolist(), valid.any(1).sum(1).tolist()
    batch = Batch(images, list(zip(heights, widths, strict=True)))
    if not torch.equal(batch.mask(), mask):
        raise ValueError("mask: padding is expected at the right and at the bottom of every image, and nowhere else")
    return batch


class PostProcess(nn.Module):
    """Post-processing to boxes in pixels, as the official class of this name."""

    def forward(self, outputs: Mapping[str, Any], target_sizes: Tensor) -> list[dict[str, Tensor]]:
        """Compute the best class and the box of every query.

        Args:
            outputs: of an `OfficialModel`.
            target_sizes: (B, 2) height and width of every image, to which the boxes are scaled: of the image file for
                evaluation, of the input without padding for drawing.

        Returns:
            For each image scores (Q,), labels (Q,) and boxes (Q, 4) xyxy in pixels.
        """
        detections = PostProcessor().detections(_as_outputs(outputs), _sizes(target_sizes))
        return [{"scores": one.scores, "labels": one.labels, "boxes": one.boxes} for one in detections]


class PostProcessSegm(nn.Module):
    """Post-processing to masks of instances, as the official class of this name.

    Args:
        threshold: probability above which a pixel belongs to a mask.
    """

    def __init__(self, threshold: float = 0.5) -> None:
        super().__init__()
        self.threshold = threshold

    @torch.no_grad()
    def forward(
        self,
        results: list[dict[str, Tensor]],
        outputs: Mapping[str, Any],
        orig_target_sizes: Tensor,
        max_target_sizes: Tensor,
    ) -> list[dict[str, Tensor]]:
        """Add `masks`, (Q, 1, H, W) uint8 on the CPU, to the results of `PostProcess`.

        Args:
            results: of `PostProcess`, one for each image.
            outputs: of an `OfficialModel`.
            orig_target_sizes: (B, 2) height and width of every image file.
            max_target_sizes: (B, 2) height and width of every input without padding.
        """
        input_sizes = _sizes(max_target_sizes)
        border = math.log(self.threshold / (1 - self.threshold)) if 0 < self.threshold < 1 else 0.0
        padded_size = largest(input_sizes)
        has_mask_sizes = "mask_sizes" in outputs
        rows = zip(results, _masks(outputs), input_sizes, _sizes(orig_target_sizes), strict=True)
        for one, masks, (h, w), size in rows:
            covered = (h, w) if has_mask_sizes else padded_size
            enlarged = F.interpolate(masks[:, None].float(), size=covered, mode="bilinear")[..., :h, :w]
            one["masks"] = F.interpolate((enlarged > border).to(torch.uint8), size=size).cpu()
        return results


class PostProcessPanoptic(nn.Module):
    """Post-processing to panoptic results, as the official class of this name.

    The official class enlarges the padding of a batch together with the image, so that its result fits only in a batch
    of one. This class does the same without `mask_sizes`; with them (models with padding="exact") it removes the
    padding first.

    Args:
        is_thing_map: label -> whether it is a thing.
        threshold: only queries with a greater score become segments.
    """

    def __init__(self, is_thing_map: Mapping[int, bool], threshold: float = 0.85) -> None:
        super().__init__()
        self.is_thing_map = dict(is_thing_map)
        self.threshold = threshold

    def forward(
        self,
        outputs: Mapping[str, Any],
        processed_sizes: Tensor | Sequence[Size],
        target_sizes: Tensor | Sequence[Size] | None = None,
    ) -> list[dict[str, Any]]:
        """Assign every pixel to one segment.

        Args:
            outputs: of an `OfficialModel`.
            processed_sizes: height and width of every input without padding.
            target_sizes: height and width of every result; by default as processed.

        Returns:
            For each image `png_string` (bytes of a PNG, id = R + 256 G + 65536 B, ids from 0) and `segments_info`: id,
            isthing, category_id and area of every segment.
        """
        processed = _sizes(processed_sizes)
        targets = processed if target_sizes is None else _sizes(target_sizes)
        things = [bool(self.is_thing_map.get(i, False)) for i in range(outputs["pred_logits"].shape[-1] - 1)]
        postprocessor = PostProcessor(things=things, segment_threshold=self.threshold, official=True)
        results = []
        for i, (masks, size, target) in enumerate(zip(_masks(outputs), processed, targets, strict=True)):
            one = Outputs(outputs["pred_logits"][i : i + 1], outputs["pred_boxes"][i : i + 1], masks[None])
            pixels, segments = postprocessor.panoptic(one, [target], [size])[0].to_coco()
            names = ("id", "isthing", "category_id", "area")
            info = [{name: segment[name] for name in names} for segment in segments]
            for segment in info:
                segment["isthing"] = bool(segment["isthing"])
            results.append({"png_string": image_bytes(pixels), "segments_info": info})
        return results


def _as_outputs(outputs: Mapping[str, Any]) -> Outputs:
    return Outputs(outputs["pred_logits"], outputs["pred_boxes"])


def _masks(outputs: Mapping[str, Any]) -> list[Tensor]:
    """Return the (Q, h, w) mask logits of every image, without padding if `mask_sizes` are given."""
    masks = outputs["pred_masks"]
    if "mask_sizes" not in outputs:
        return list(masks)
    return [one[:, :h, :w] for one, (h, w) in zip(masks, _sizes(outputs["mask_sizes"]), strict=True)]


def _sizes(sizes: Tensor | Sequence[Any]) -> list[Size]:
    """Return (height, width) per image from a (B, 2) tensor, or a list of pairs or of tensors."""
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    pairs = [[int(value) for value in row] for row in rows]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("sizes: expected a height and a width for every image")
    return [(height, width) for height, width in pairs]


def hub_model(
    name: str, *, pretrained: bool, num_classes: int, return_postprocessor: bool, threshold: float, padding: Padding
) -> nn.Module | tuple[nn.Module, nn.Module]:
    """Build the return value of an entry of hubconf.py.

    Args:
        name: of the model.
        pretrained: load the published weights, downloaded once and verified. With another number of classes, the class
            head is initialized anew.
        num_classes: number of labels; the logits have one more column.
        return_postprocessor: also return a `PostProcess`, or for models with masks a `PostProcessPanoptic`.
        threshold: of `PostProcessPanoptic`.
        padding: "exact" or "official", see `build_model`.

    Raises:
        DetrkitError: the published weights are not available.
    """
    weights = "published" if pretrained else None
    model = OfficialModel(build_model(name, num_classes=num_classes, weights=weights, padding=padding))
    if not return_postprocessor:
        return model
    if model.model.segmentation is None:
        return model, PostProcess()
    return model, PostProcessPanoptic({i: i <= LAST_THING for i in range(num_classes)}, threshold)
