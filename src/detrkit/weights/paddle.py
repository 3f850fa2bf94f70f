"""Conversion of PaddleDetection's weights (.pdparams) to official names.

Read from PaddleDetection at 666f597: ppdet/modeling/transformers/detr_transformer.py and deformable_transformer.py,
heads/detr_head.py, backbones/resnet.py, layers.py. A .pdparams file is a pickle of NumPy arrays by name.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detrkit.models.official_names import Rule
from detrkit.utils.errors import DetrkitError
from detrkit.utils.visible import first_line
from detrkit.weights.official import WeightsError

NAME_TABLE = "StructuredToParameterName@@"  # Paddle's own entry beside the arrays
SPLIT = "UnpackBigParamInfor@@"  # key of the parts of arrays over 1 GiB
# the files of its model zoo, whose classes are COCO's 80 in the order of their ids
PUBLISHED = ("detr_r50_1x_coco.pdparams", "deformable_detr_r50_1x_coco.pdparams")
SETTINGS = {"dilation": False}  # its ResNet has no DC5

_RULES: tuple[Rule, ...] = (
    (r"transformer\.encoder\.", "transformer.encoder."),
    (r"transformer\.decoder\.", "transformer.decoder."),
    (r"transformer\.reference_points\.", "transformer.reference_points."),
    (r"transformer\.level_embed\.weight", "transformer.level_embed"),
    (r"transformer\.input_proj\.", "input_proj."),
    (r"transformer\.position_embedding\.(row|col)_embed\.", r"backbone.1.\1_embed."),
    (r"transformer\.query_pos_embed\.", "query_embed."),
    (r"detr_head\.score_head\.", "class_embed."),
    (r"detr_head\.bbox_head\.", "bbox_embed."),
)
# a convolution with its norm, in the stem and in blocks; statistics of a norm
_CONVOLUTIONS = {
    "conv1": ("conv1", "bn1"),
    "branch2a": ("conv1", "bn1"),
    "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
    "short": ("downsample.0", "downsample.1"),
}
_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}


def load_paddle(path: Path) -> dict[str, Tensor]:
    """Read the weights of a .pdparams file, in official names.

    Raises:
        DetrkitError: damaged, not arrays by name, or of a model that detrkit does not have.
    """
    arrays = _read(path)
    try:
        return from_paddle({name: torch.from_numpy(array) for name, array in arrays.items()})
    # TypeError: an array of a type that torch lacks; the others: of a number of axes that its name does not have
    except (DetrkitError, TypeError, RuntimeError, IndexError) as error:
        raise DetrkitError(f"{path}: {first_line(error)}") from error


def from_paddle(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of PaddleDetection's DETR or Deformable DETR to official names.

    Paddle's linear layers hold (in, out) matrices, PyTorch's (out, in).

    Args:
        state: tensors by Paddle's structured names.

    Raises:
        WeightsError: names of another model; the message lists them.
        DetrkitError: a model with computations that DETR does not have.
    """
    _check(state)
    deformable = "transformer.level_embed.weight" in state
    official: dict[str, Tensor] = {}
    unknown = []
    for name, tensor in state.items():
        if name == "transformer.tgt_embed.weight":
            continue
        renamed = _renamed(name, deformable=deformable)
        if renamed is None:
            unknown.append(name)
            continue
        linear = tensor.ndim == 2 and not name.endswith("_embed.weight")
        official[renamed] = tensor.T.contiguous() if linear else tensor
    if unknown:
        raise WeightsError(f"no DETR or Deformable DETR of PaddleDetection has {', '.join(sorted(unknown)[:4])}")
    if deformable:
        target = state.get("transformer.tgt_embed.weight")
        if target is None or "query_embed.weight" not in official:
            raise WeightsError("missing: transformer.tgt_embed.weight or transformer.query_pos_embed.weight")
        # one embedding in the official code: the position of a query, then what it starts from
        official["query_embed.weight"] = torch.cat([official["query_embed.weight"], target], 1)
        layers = {m[1] for name in official if (m := re.match(r"transformer\.decoder\.layers\.(\d+)\.", name))}
        for head in ("class_embed.", "bbox_embed."):  # one head, which the official code lists for every layer
            for name in [n for n in official if n.startswith(head)]:
                tensor = official.pop(name)
                official |= {f"{head}{layer}.{name.removeprefix(head)}": tensor for layer in layers}
    return official


def _check(state: Mapping[str, Tensor]) -> None:
    """Check that a model has only parts that detrkit computes alike.

    Raises:
        DetrkitError: it has others.
    """
    if any(name.startswith(("detr_head.mask_head.", "detr_head.bbox_attention.")) for name in state):
        raise DetrkitError(
            "PaddleDetection's mask head weighs each attention head by itself, the official one all together: "
            "its masks cannot be had here; remove detr_head.mask_head and detr_head.bbox_attention"
        )
    if any(name.startswith("backbone.conv1.conv1_") for name in state):
        raise DetrkitError("a ResNet-vd (variant c or d, with a stem of three convolutions): detrkit has variant b")


def _renamed(name: str, *, deformable: bool) -> str | None:
    """Return the official name, or None where there is none."""
    block = r"backbone\.(?:conv1|res(\d)\.res\d([a-z])(\d*))\.(\w+)\.(conv|norm)\.(\w+)"
    if (m := re.fullmatch(block, name)) and m[4] in _CONVOLUTIONS:
        # ResNet-101 and deeper count the blocks of their fourth stage a, b1, b2, ...
        layer = f"layer{int(m[1]) - 1}.{m[3] or ord(m[2]) - ord('a')}." if m[1] else ""
        part = _CONVOLUTIONS[m[4]][m[5] == "norm"]
        return f"backbone.0.body.{layer}{part}.{_STATISTICS.get(m[6], m[6])}"
    for pattern, official in _RULES:
        renamed, count = re.subn(f"^{pattern}", official, name)
        if count and not official.startswith("transformer.decoder"):
            return renamed
        if count and deformable:  # numbered as published: 2 comes before 1
            return re.sub(r"\.norm([12])\.", lambda norm: f".norm{3 - int(norm[1])}.", renamed)
        if count:
            return renamed.replace(".cross_attn.", ".multihead_attn.")
    return None


_NDARRAY = "numpy.ndarray"  # only a placeholder: the real class would allocate any size that a file states


class _Arrays(pickle.Unpickler):
    """Unpickler of NumPy arrays in plain containers; other names are refused, not looked up."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if allowed is None:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return allowed


def _bytes_of(text: str, encoding: str) -> bytes:
    """Encode what pickles of protocol 2 hold for bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"_codecs.encode with {encoding}")
    return text.encode("latin1")


def _empty_array(kind: object, shape: Sequence[int], dtype: Any) -> np.ndarray:
    """Replace NumPy's `_reconstruct`: return an array that its pickled state fills."""
    if kind is not _NDARRAY or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array that no pickle of NumPy holds")
    return np.ndarray(0, np.dtype("b"))


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "tuple"): tuple,  # Paddle saves a single tensor as its name and array
    ("__builtin__", "tuple"): tuple,
    ("_codecs", "encode"): _bytes_of,
}


def _read(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .pdparams file by name, without executing anything in it.

    Raises:
        DetrkitError: damaged, or with content other than arrays.
    """
    try:
        with path.open("rb") as file:
            content = _Arrays(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise DetrkitError(f"{path}: holds more than arrays ({error}), or is damaged; it was not loaded") from error
    except Exception as error:  # a damaged pickle can raise any exception
        raise DetrkitError(f"{path}: damaged, or not a .pdparams file") from error
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping):
        raise DetrkitError(f"{path}: no arrays by name in this file")
    if SPLIT in content:
        raise DetrkitError(f"{path}: holds arrays in pieces, as Paddle saves those over 1 GiB: no DETR has such")
    arrays = {}
    for name, value in content.items():
        if name == NAME_TABLE:
            continue
        if isinstance(value, tuple) and len(value) == 2:
            value = value[1]  # (name of the parameter, array)
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or value.dtype.hasobject:
            raise DetrkitError(f"{path}: {name!r} is no array of numbers")
        arrays[name] = np.array(value)
    if not arrays:
        raise DetrkitError(f"{path}: no weights in this file")
    return arrays
