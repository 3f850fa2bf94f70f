"""Half precision: which formats and machines have it, and how a file in float32 becomes one in bf16 or fp16."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detrkit.exporting.int8.layers import layers_between, layers_of
from detrkit.runtimes.metadata import Format, Half
from detrkit.runtimes.sessions import computes_half
from detrkit.utils.errors import DetrkitError, SettingError

_NEEDS = {"bf16": "AVX-512 BF16 or AMX", "fp16": "AVX-512 FP16 or AMX FP16"}
_CLASSES = "pkg.torch.onnx.class_hierarchy"  # of a node: the classes of its modules, from the outermost in
_ATTENTION = "MultiHeadAttention"


def check_half(half: Half, kind: Format) -> None:
    """Check that a format, and for OpenVINO this machine, computes in half precision.

    Raises:
        SettingError: the format does not.
        DetrkitError: the machine does not: the file could not be checked.
    """
    if kind == "torch":
        raise SettingError("half: a .pt2 file holds what PyTorch computes, float32: name the file .onnx or .xml")
    if kind == "onnx" and half == "bf16":
        raise SettingError(
            "half='bf16': ONNX Runtime computes it on no CPU: name the file .xml (OpenVINO), or take fp16"
        )
    if kind == "openvino" and not computes_half(half):
        raise DetrkitError(
            f"this CPU does not compute in {half} (it needs {_NEEDS[half]}), so that the file could not be checked: "
            "export it in float32 or INT8, or on a machine that does"
        )


def write_half(source: Path, graph: Path, target: Path, metadata: Mapping[str, str]) -> str:
    """Write a file in half precision.

    In OpenVINO all weights have 16 bits, and the CPU's plugin computes in the precision that the file names. In ONNX
    the graph says it: layers with weights and attention of backbone, encoder and decoder are in fp16, while
    coordinates, norms, positions, heads, inputs and outputs stay in float32.

    Args:
        source: the file in float32.
        graph: the .onnx file that it was made of.
        target: to write.
        metadata: of the file.

    Returns:
        What is in half precision, in words.

    Raises:
        DetrkitError: a graph without such layers.
    """
    return (
        _write_onnx(graph, target, metadata) if target.suffix == ".onnx" else _write_openvino(source, target, metadata)
    )


def _write_openvino(source: Path, target: Path, metadata: Mapping[str, str]) -> str:
    import openvino

    model = openvino.Core().read_model(source)
    for key, value in metadata.items():
        model.set_rt_info(value, ["detrkit", key])
    openvino.save_model(model, target, compress_to_fp16=True)
    return "weights, and what OpenVINO computes so"


def _write_onnx(source: Path, target: Path, metadata: Mapping[str, str]) -> str:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    model = onnx.load(source)
    halves = _halves(source, model.graph)
    if not halves:
        raise DetrkitError(
            "there is no layer for fp16 in the parts called backbone, encoder and decoder: export it without"
        )
    logger = logging.getLogger("onnxruntime.transformers.float16")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values beyond fp16's range are cut to it; the gate of AP judges
            blocked = [node.name for node in model.graph.node if node.name not in halves]
            model = convert_float_to_float16(model, keep_io_types=True, node_block_list=blocked)
    finally:
        logger.setLevel(level)
    _remove_detours(model.graph)
    OnnxModel(model).topological_sort()
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, target)
    return f"{len(halves)} operations of backbone, encoder and decoder"


def _halves(path: Path, graph: Any) -> set[str]:
    """Return the names of the nodes that compute in fp16."""
    layers = [layer.node for layer in layers_of(path, decoder=True)]
    names = {*layers, *layers_between(graph, layers)}
    for node in graph.node:
        scope = {prop.key: prop.value for prop in node.metadata_props}.get(_CLASSES, "[]")
        classes: Sequence[str] = [str(name).rpartition(".")[2] for name in ast.literal_eval(scope)[:-1]]
        if classes and classes[-1] == _ATTENTION:
            names.add(node.name)
    return names


def _remove_detours(graph: Any) -> None:
    """Let nodes that stay in float32 read each other's values as they are, in place.

    The converter casts what each of them makes to fp16, and back where the next one reads it, which would round
    coordinates; and weights that stay in float32 it casts to float32.
    """
    import onnx

    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    target = {
        node.output[0]: next(attribute.i for attribute in node.attribute if attribute.name == "to")
        for node in graph.node
        if node.op_type == "Cast"
    }
    made_by = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == float32}
    results = {value.name for value in graph.output}
    direct: dict[str, str] = {}  # name of a value -> name that it has from now on
    detours = set()
    for output, kind in target.items():
        source = made_by[output].input[0]
        if kind == float32 and target.get(source) == float16:
            source = made_by[source].input[0]
        elif kind != float32 or source not in weights:
            continue
        detours.add(output)
        direct.update({source: output} if output in results else {output: source})
    left = [node for node in graph.node if not set(node.output) & detours]
    for node in left:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                named = direct.get(name, name)
                names[i] = direct.get(named, named)  # read elsewhere, and a result
    read = {name for node in left for name in node.input} | results
    left = [node for node in left if node.op_type != "Cast" or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(left)
    del graph.value_info[:]  # of the values before; readers infer them
