"""Layers of a recorded graph that can be computed in fewer bits, and the stage of the model that each belongs to."""

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
# Between two convolutions these keep the precision; elsewhere a conversion there and back costs more than it saves.
_BETWEEN = ("Relu", "Clip", "MaxPool", "Where", "Add")
_DECODER_LAYERS = "decoder.layers."  # beside them a decoder may hold heads
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
    stage: Stage | Literal["decoder"]


def layers_of(path: Path, *, decoder: bool = False) -> list[Layer]:
    """Return the layers of backbone and encoder that have weights, in the order of the graph.

    Args:
        path: a .onnx file as `write_onnx` writes it.
        decoder: those of the decoder's layers, too.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or len(node.input) < 2 or node.input[1] not in constants:
            continue
        module = _module(node)
        stage: Stage | Literal["decoder"] | None = _STAGE_OF.get(module.partition(".")[0])
        if decoder and module.startswith(_DECODER_LAYERS):
            stage = "decoder"
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


def layers_between(graph: Any, layers: Sequence[str]) -> list[str]:
    """Return the names of the nodes between convolutions that keep their precision: activations, pooling, additions.

    Args:
        graph: of a .onnx file.
        layers: names of the convolutions and linear layers.
    """
    made_by = {output: node for node in graph.node for output in node.output}
    names = set(layers)
    kept = {node.name for node in graph.node if node.name in names and node.op_type == "Conv"}
    found = []
    for node in graph.node:  # the graph is sorted: inputs come first
        if node.op_type not in _BETWEEN:
            continue
        sources = [made_by[name].name for name in node.input if name in made_by]
        count = sum(source in kept for source in sources)
        if count == (2 if node.op_type == "Add" else 1):
            kept.add(node.name)
            found.append(node.name)
    return found
