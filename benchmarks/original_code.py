"""The authors' code from a checkout given by path, for benchmarks that run it beside detrkit.

Their repositories are scripts around the top-level packages `models` and `util`, written for torch 1.5 or so. What
today's torch does not take is changed while they are imported; nothing of theirs is kept in this repository.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from torch import Tensor, nn

from detrkit.structures.outputs import Target

PACKAGES = ("models", "util", "datasets", "functions", "modules", "main", "engine")
CUDA_OP = "MultiScaleDeformableAttention"
# arguments of their main.py by the name that the models have here
ARGUMENTS: dict[str, list[str]] = {
    "detr-r50": [],
    "detr-r50-dc5": ["--dilation"],
    "deformable-detr-r50": [],
    "deformable-detr-r50-two-stage": ["--with_box_refine", "--two_stage"],
}


class OriginalCode:
    """A checkout, imported.

    Args:
        path: of facebookresearch/detr, or of fundamentalvision/Deformable-DETR; the operator of the latter is the one
            compiled for CUDA if it can be imported, else the PyTorch function it is tested with.
    """

    def __init__(self, path: Path) -> None:
        if not (path / "models" / "__init__.py").exists():
            raise SystemExit(f"{path}: no models/__init__.py, so no checkout of the original code")
        self.path = path
        with importing(path):
            self.models = importlib.import_module("models")
            self.misc = importlib.import_module("util.misc")
            self._parser = _main(path)
            # it would download ImageNet's weights
            importlib.import_module("models.backbone").is_main_process = lambda: False
            if (path / "models" / "ops").exists():
                operator = importlib.import_module("models.ops.functions.ms_deform_attn_func")
                self.compiled = hasattr(operator.MSDA, "ms_deform_attn_forward")
                if not self.compiled:
                    layer = importlib.import_module("models.ops.modules.ms_deform_attn")
                    layer.MSDeformAttnFunction = _on_any_device(operator.ms_deform_attn_core_pytorch)

    def arguments(self, name: str, device: str = "cpu", more: Sequence[str] = ()) -> Namespace:
        """Their options for a model: the defaults of main.py and what makes the variant."""
        words = [*ARGUMENTS[name], "--dataset_file", "coco", "--device", device, *more]
        return self._parser.parse_args(words)

    def build(self, arguments: Namespace) -> tuple[nn.Module, nn.Module]:
        """Their model, with random weights, and its criterion."""
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # torchvision's older arguments
            model, criterion, _ = self.models.build_model(arguments)
        return model, criterion


def their_targets(targets: Sequence[Target]) -> list[dict[str, Tensor]]:
    """Targets as their criterion takes them."""
    return [{"labels": t.labels, "boxes": t.boxes} for t in targets]


def their_outputs(logits: Tensor, boxes: Tensor) -> dict[str, Any]:
    """Outputs as their models give them, from (L, B, Q, C) logits and (L, B, Q, 4) boxes of all layers."""
    aux = [{"pred_logits": a, "pred_boxes": b} for a, b in zip(logits[:-1], boxes[:-1], strict=True)]
    return {"pred_logits": logits[-1], "pred_boxes": boxes[-1], "aux_outputs": aux}


@contextlib.contextmanager
def importing(path: Path) -> Iterator[None]:
    """Their packages can be imported in here; outside, another checkout may use the same names."""
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in PACKAGES}
    for name in before:
        del sys.modules[name]
    sys.path.insert(0, str(path))
    stub = CUDA_OP not in sys.modules and importlib.util.find_spec(CUDA_OP) is None
    if stub:
        sys.modules[CUDA_OP] = types.ModuleType(CUDA_OP)
    try:
        # they compare the first three characters of the version as a number: 0.29 is older than 0.5 to them
        with mock.patch.object(torchvision, "__version__", "0.9.0"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes in their docstrings
            yield
    finally:
        sys.path.remove(str(path))
        for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
        if stub:
            del sys.modules[CUDA_OP]
        sys.modules.update(before)


def _main(path: Path) -> Any:
    """The argument parser of their main.py, whose other imports (datasets, evaluation) are not needed."""
    text = (path / "main.py").read_text(encoding="utf-8")
    start = text.index("def get_args_parser():")
    scope: dict[str, Any] = {}
    exec("import argparse\nimport numpy as np\n" + text[start : text.index("\ndef main(")], scope)
    return scope["get_args_parser"]()


def _on_any_device(function: Any) -> type:
    """Their PyTorch function in the place of the compiled operator."""

    class Operator:
        @staticmethod
        def apply(
            value: Tensor, shapes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor, step: int
        ) -> Tensor:
            return function(value, shapes.tolist(), locations, weights)

    return Operator


def match_weights(model: nn.Module, theirs: nn.Module) -> None:
    """Gives their model the weights of one of ours."""
    from detrkit.weights.official import to_official

    state = {name: tensor.clone() for name, tensor in to_official(model).items()}
    with torch.no_grad():
        theirs.load_state_dict(state)
