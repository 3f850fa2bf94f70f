"""Layers of a recorded graph that can be computed in 8 bits, and the stage of the model that each belongs to."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

Stage = Literal["backbone", "encoder"]
STAGES: tuple[Stage, ...] = get_args(Stage)

# Children of the models of detrkit. What is not among them (decoder, proposals, heads, masks) stays in float: rounded
# boxes and scores of the best tokens cost what nothing behind them can repair, and these layers are small.
_STAGE_OF: dict[str, Stage] = {
    "backbone": "backbone",
    "input_projection": "encoder",
    "projections": "encoder",
    "encoder": "encoder",
}
# They compute coordinates and shares of deformable attention, from a few channels.
_COORDINATES = ("sampling_offsets", "attention_weights")
_SCOPES = "pkg.torch.onnx.name_scopes"  # of a node: the modules that it is of, from the outermost in
_GRAPH = "model."  # the recorded module holds the model under this name


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer of a graph.

    Attributes:
        node: its name in the graph; that of OpenVINO's operation begins with it.
        module: path in the model, such as "encoder.layers.0.feed_forward.linear1".
        stage: of the model.
    """

    node: str
    module: str
    stage: Stage


def layers_of(path: Path) -> list[Layer]:
    """Return the layers of backbone and encoder that have weights, in the order of the graph.

    Args:
        path: a .onnx file as `write_onnx` writes it.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2 or node.input[1] not in constants:
            continue
        module = _module(node)
        stage = _STAGE_OF.get(module.partition(".")[0])
        if stage is not None and not module.endswith(_COORDINATES):
            layers.append(Layer(node.name, module, stage))
    return layers


def _module(node: Any) -> str:
    """Return the path of the module that a node is of: by the name of its weight, which convolutions keep."""
    if node.input[1].startswith(_GRAPH):
        return str(node.input[1]).removeprefix(_GRAPH).removesuffix(".weight")
    scopes = {prop.key: prop.value for prop in node.metadata_props}.get(_SCOPES, "[]")
    names = [str(name) for name in ast.literal_eval(scopes)]
    return next((name.removeprefix(_GRAPH) for name in reversed(names) if name.startswith(_GRAPH)), "")


def of_stages(layers: Sequence[Layer], stages: Sequence[Stage]) -> list[str]:
    """Return the names of the nodes of some stages."""
    return [layer.node for layer in layers if layer.stage in stages]
