"""Writers of a recorded graph, one for each format. Weights and metadata are in one file (OpenVINO: .xml and .bin)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from detrkit.exporting.graph import Recorded
from detrkit.runtimes.metadata import Format
from detrkit.runtimes.sessions import require, torch_metadata
from detrkit.utils.errors import DetrkitError
from detrkit.utils.visible import first_line

OPSET = 20  # GridSample of any rank; ONNX Runtime reads it since 1.17
SUFFIX: Mapping[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
NEEDED: Mapping[Format, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "torch": (),
}


def write(recorded: Recorded, folder: Path, name: str) -> list[Path]:
    """Write a recorded graph into a folder.

    Args:
        recorded: the graph, whose description says the format.
        folder: exists.
        name: of the file, without a suffix.

    Returns:
        The files: the first one is the model's.

    Raises:
        DetrkitError: a package is missing, or the exporter fails.
    """
    kind = recorded.info.format
    require(*NEEDED[kind])
    path = folder / f"{name}{SUFFIX[kind]}"
    with _quiet(kind):
        return WRITERS[kind](recorded, path)


def write_onnx(recorded: Recorded, path: Path) -> list[Path]:
    """Write a .onnx file that holds its weights."""
    program = torch.onnx.export(
        recorded.program,
        (),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(recorded.info.inputs),
        output_names=list(recorded.info.outputs),
        optimize=False,
        verbose=False,
    )
    assert program is not None
    _simplify(program.model)
    program.model.metadata_props.update(recorded.info.metadata(recorded.spec))
    program.save(path, external_data=False)
    return [path]


def _simplify(model: Any) -> None:
    """Fold what is constant and drop what is unused or there twice, in place: of 5,800 nodes 1,400 are left.

    The exporter's own optimization also applies rules of rewriting. On a small two-stage model they took 19 of an
    export's 56 seconds and left 1,300 nodes; after ONNX Runtime's fusions the difference is 2 %.
    """
    from onnx_ir.passes import Sequential, common
    from onnxscript import optimizer

    optimizer.inline(model)
    while optimizer.fold_constants(model, should_fold=_always_folded).modified:
        common.RemoveUnusedNodesPass()(model)
    Sequential(
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _always_folded(node: Any) -> bool | None:
    """Whether a node of constants is folded: a part of a weight whatever its size, others (None) where they are small.

    The projections of queries, keys and values are slices of one weight. As weights of their own they can be quantized,
    and no runtime cuts them for every image.
    """
    return True if node.op_type in ("Slice", "Split", "Gather", "Transpose", "Reshape", "Squeeze") else None


def write_openvino(recorded: Recorded, path: Path) -> list[Path]:
    """Write a .xml file of OpenVINO, and the weights beside it in a .bin file, in float32.

    It is converted from ONNX, whose operators OpenVINO knows all; of the exported program some are unknown to it. The
    .onnx file stays beside it: it says of which module an operation is.
    """
    import openvino

    onnx = path.with_suffix(".onnx")
    write_onnx(recorded, onnx)
    model = openvino.Core().read_model(onnx)  # `convert_model` does the same, and reports it to its authors
    for key, value in recorded.info.metadata(recorded.spec).items():
        model.set_rt_info(value, ["detrkit", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    return [path, path.with_suffix(".bin")]


def write_torch(recorded: Recorded, path: Path) -> list[Path]:
    """Write a .pt2 archive of `torch.export`."""
    metadata = recorded.info.metadata(recorded.spec)
    torch.export.save(recorded.program, path, extra_files=torch_metadata(metadata, recorded.info.outputs))
    return [path]


WRITERS: Mapping[Format, Callable[[Recorded, Path], list[Path]]] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "torch": write_torch,
}


@contextmanager
def _quiet(kind: Format) -> Iterator[None]:
    """Silence the notes of the exporters, which are for their developers; an error becomes one line.

    Raises:
        DetrkitError: the exporter fails.
    """
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (DetrkitError, MemoryError, OSError):
        raise
    except Exception as error:  # the exporters have exceptions of their own for every stage
        raise DetrkitError(f"the model cannot be written as {kind}: {first_line(error)[:300]}") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
