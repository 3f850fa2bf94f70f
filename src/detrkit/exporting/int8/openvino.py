"""INT8 of an OpenVINO file by NNCF's post-training quantization."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from detrkit.runtimes.sessions import Arrays

# of those that NNCF would quantize beside layers with weights; only these are left to it, where they follow a layer
_BETWEEN = ("Add", "Relu", "Clamp", "MaxPool", "Select", "Multiply", "Swish")
_NO_REPORTS = "NNCF_CI"  # read when it is imported


def quantize_openvino(
    source: Path, target: Path, inputs: Sequence[Arrays], nodes: Sequence[str], metadata: Mapping[str, str]
) -> None:
    """Write an OpenVINO file whose given layers compute in 8 bits: activations asymmetric, weights symmetric.

    Everything else is in the ignored scope. Without NNCF's `ModelType.TRANSFORMER` there is no SmoothQuant, which fails
    on weights that layers share (nncf#4172).

    Args:
        source: the .xml file in float32.
        target: to write: .xml, with its .bin.
        inputs: of the graph, by name, for calibration.
        nodes: names of convolutions and linear layers, as in the ONNX file that `source` was converted from.
        metadata: of the file.
    """
    import openvino

    nncf = _silent_nncf()

    nncf.set_log_level(logging.ERROR)
    model = openvino.Core().read_model(source)
    with redirect_stdout(io.StringIO()):  # progress bars
        quantized = nncf.quantize(
            model,
            nncf.Dataset(list(inputs)),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(inputs),
            ignored_scope=nncf.IgnoredScope(names=_ignored(model, set(nodes)), validate=False),
        )
    for key, value in metadata.items():
        quantized.set_rt_info(value, ["detrkit", key])
    openvino.save_model(quantized, target, compress_to_fp16=False)


def _ignored(model: Any, nodes: set[str]) -> list[str]:
    """Return the names of the operations that stay in float: all but the layers and what keeps 8 bits behind them."""
    kept: set[str] = set()
    for operation in model.get_ordered_ops():
        name = operation.get_friendly_name()
        if name.partition("/")[0] in nodes:
            kept.add(name)
        elif operation.get_type_name() in _BETWEEN:
            sources = [value.get_node() for value in operation.input_values()]
            floating = [one for one in sources if one.get_type_name() not in ("Constant", "Parameter")]
            if floating and all(one.get_friendly_name() in kept for one in floating):
                kept.add(name)
    return [one.get_friendly_name() for one in model.get_ordered_ops() if one.get_friendly_name() not in kept]


def _silent_nncf() -> Any:
    """Import NNCF so that it does not report its use to its authors, as it does unless this variable is set."""
    before = os.environ.get(_NO_REPORTS)
    os.environ[_NO_REPORTS] = "1"
    try:
        import nncf
    finally:
        if before is None:
            del os.environ[_NO_REPORTS]
        else:
            os.environ[_NO_REPORTS] = before
    return nncf
