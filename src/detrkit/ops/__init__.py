"""Tensor operations that know nothing of models or data."""

from detrkit.ops.boxes import (
    box_area,
    cxcywh_to_xyxy,
    generalized_iou,
    iou,
    masks_to_boxes,
    pairwise_generalized_iou,
    xyxy_to_cxcywh,
)
from detrkit.ops.ms_deform import ms_deform_attn, ms_deform_backend

__all__ = [
    "box_area",
    "cxcywh_to_xyxy",
    "generalized_iou",
    "iou",
    "masks_to_boxes",
    "ms_deform_attn",
    "ms_deform_backend",
    "pairwise_generalized_iou",
    "xyxy_to_cxcywh",
]
