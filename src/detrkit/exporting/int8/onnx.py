"""INT8 of a .onnx file by ONNX Runtime's static quantization: pairs of QuantizeLinear and DequantizeLinear (QDQ)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.exporting.int8.layers import layers_between
from detrkit.runtimes.sessions import Arrays


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
    _own_biases(model.graph)
    chosen = [*nodes, *layers_between(model.graph, nodes)]
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


def _own_biases(graph: Any) -> None:
    """Give every convolution a bias of its own, in place.

    Equal ones are one tensor of the graph. Their scales differ in 8 bits, and the names that ONNX Runtime gives to the
    copies, the name with a digit behind it, may be those of other values.
    """
    biases = {tensor.name: tensor for tensor in graph.initializer}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "Conv" or len(node.input) < 3 or node.input[2] not in biases:
            continue
        name = node.input[2]
        if name in taken:
            copy = graph.initializer.add()
            copy.CopyFrom(biases[name])
            copy.name = node.input[2] = f"{node.name}.bias"
        taken.add(name)


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
