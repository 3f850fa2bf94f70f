"""INT8 of a .onnx file by ONNX Runtime's static quantization: pairs of QuantizeLinear and DequantizeLinear (QDQ)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.runtimes.sessions import Arrays

# Between two convolutions these keep 8 bits; elsewhere a conversion there and back would cost more than it saves.
_BETWEEN = ("Relu", "Clip", "MaxPool", "Where", "Add")


def quantize_onnx(
    source: Path, target: Path, inputs: Sequence[Arrays], nodes: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write a .onnx file whose given nodes compute in 8 bits; activations unsigned, weights signed and per channel.

    Args:
        source: the file in float32.
        target: to write.
        inputs: of the graph, by name, for calibration.
        nodes: names of convolutions and linear layers.
        metadata: of the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    chosen = [*nodes, *_between(model.graph, set(nodes))]
    kinds = {node.op_type for node in model.graph.node if node.name in set(chosen)}
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises to preprocess, which loses the names of nodes
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantize_static(
                model,
                target,
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(kinds),
                nodes_to_quantize=chosen,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                # the bias is added in float, which ONNX Runtime does in the same kernel
                extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"], "MatMulConstBOnly": True},
            )
    finally:
        logger.setLevel(level)
    written = onnx.load(target)
    onnx.helper.set_model_props(written, dict(metadata))
    onnx.save(written, target)


def _between(graph: Any, nodes: set[str]) -> list[str]:
    """Return the names of the nodes between convolutions that keep 8 bits: activations, pooling, residual additions."""
    made_by = {output: node for node in graph.node for output in node.output}
    quantized = {node.name for node in graph.node if node.name in nodes and node.op_type == "Conv"}
    found = []
    for node in graph.node:  # the graph is sorted: inputs come first
        if node.op_type not in _BETWEEN:
            continue
        sources = [made_by[name].name for name in node.input if name in made_by]
        count = sum(source in quantized for source in sources)
        if count == (2 if node.op_type == "Add" else 1):
            quantized.add(node.name)
            found.append(node.name)
    return found


class _Reader:
    """The inputs of a calibration, one after the other, as ONNX Runtime asks for them."""

    def __init__(self, inputs: Sequence[Arrays]) -> None:
        self._inputs = inputs
        self._left: Iterator[Arrays] = iter(inputs)

    def get_next(self) -> Arrays | None:
        """Return the next inputs, or None at the end."""
        return next(self._left, None)

    def rewind(self) -> None:
        """Begin again."""
        self._left = iter(self._inputs)
