"""The precision that a model computes in: bfloat16 where the device has instructions for it, float32 elsewhere."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Literal, get_args

import torch

from detrkit.models.base import DetectionModel
from detrkit.ops import dense
from detrkit.utils.errors import SettingError

Precision = Literal["fp32", "bf16"]


def in_precision(model: DetectionModel, precision: Precision, device: torch.device) -> DetectionModel:
    """Return a model with its weights in float32 or rounded to bfloat16: itself, or a copy.

    Args:
        model: on `device`.
        precision: "fp32" or "bf16".
        device: which may have no instructions for bfloat16, see `usable_precision`.

    Raises:
        SettingError: another precision, or an exported model, whose precision is part of its file.
    """
    dtype = torch.bfloat16 if usable_precision(precision, device) == "bf16" else torch.float32
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if not dtypes and precision != "fp32":
        raise SettingError(f"precision is {precision!r}: an exported model has that of its file: export it with --half")
    return model if dtypes <= {dtype} else deepcopy(model).to(dtype)


def usable_precision(precision: Precision, device: torch.device) -> Precision:
    """Return the precision to compute in: float32, with a warning, where bfloat16 is asked for and cannot be fast.

    Without instructions for it PyTorch converts to float32 and back around every operation, or fails in a kernel.

    Args:
        precision: "fp32" or "bf16".
        device: where to compute.

    Raises:
        SettingError: another precision.
    """
    if precision not in get_args(Precision):
        raise SettingError(f"precision is {precision!r}: must be fp32 or bf16")
    if precision == "bf16" and not _has_bf16(device):
        what = "GPU" if device.type == "cuda" else "CPU"
        warnings.warn(f"this {what} has no instructions for bfloat16: computing in float32", stacklevel=3)
        return "fp32"
    return precision


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cpu":
        return dense.has_bf16_kernels()
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
