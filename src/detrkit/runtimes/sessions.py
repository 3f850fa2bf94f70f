"""Sessions of the runtimes: arrays by name in, arrays by name out. Each runtime is imported when it is first used."""

from __future__ import annotations

import importlib.util
import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from detrkit.runtimes.metadata import INFO_KEY, SUFFIXES, Format, Half
from detrkit.utils.documents import parse_json, require_regular
from detrkit.utils.errors import DetrkitError
from detrkit.utils.visible import first_line

Arrays = dict[str, np.ndarray[Any, Any]]
Runtime = Literal["onnxruntime", "openvino", "torch"]
Precision = Literal["f32", "f16", "bf16"]

PACKAGES: Mapping[str, str] = {
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "openvino": "openvino",
    "nncf": "openvino",
}
RUNTIMES: Mapping[Format, tuple[Runtime, ...]] = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "torch": ("torch",),
}
EXTRA_FILE = "detrkit.json"  # in a .pt2 archive: its metadata
# what a .pt2 archive of tensors and a graph does not need: objects that are unpickled, compiled code
_FOREIGN = ("custom_obj", "opaque_obj", "aotinductor")


class Session(Protocol):
    """A file opened in a runtime.

    Attributes:
        runtime: its name and version, "onnxruntime 1.32.0".
        metadata: of the file, text by key.
    """

    runtime: str
    metadata: Mapping[str, str]

    def run(self, inputs: Arrays) -> Arrays:
        """Compute all outputs by name."""


def require(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        DetrkitError: one is not; the message has the command that installs it.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise DetrkitError(f"{package} is not installed: pip install 'detrkit[{PACKAGES[package]}]'")


def exported_format(path: str | Path) -> Format | None:
    """Return the format of an exported file by its suffix; None for other files."""
    return SUFFIXES.get(Path(path).suffix.lower())


def choose_runtime(kind: Format, runtime: Runtime | None = None) -> Runtime:
    """Choose the runtime of a format: the first that is installed, or the one asked for.

    Raises:
        DetrkitError: it does not read the format, or is not installed.
    """
    choices = RUNTIMES[kind]
    if runtime is not None and runtime not in choices:
        raise DetrkitError(f"{runtime} does not run files of {kind}: choose {' or '.join(choices)}")
    for choice in choices if runtime is None else (runtime,):
        if choice == "torch" or importlib.util.find_spec(choice) is not None:
            return choice
    require(runtime or choices[0])
    raise AssertionError("unreachable")


def computes_half(half: Half) -> bool:
    """Whether OpenVINO computes in half precision on this machine's CPU."""
    import openvino

    capability = {"bf16": "BF16", "fp16": "FP16"}[half]
    return capability in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_session(path: Path, *, runtime: Runtime | None = None, precision: Precision | None = None) -> Session:
    """Open an exported file, on the CPU and with as many threads as torch has.

    Args:
        path: .onnx, .xml of OpenVINO with its .bin beside it, or .pt2 of torch.export.
        runtime: which runs it; by default as `choose_runtime`.
        precision: of the arithmetic in OpenVINO, which by itself chooses half precision where the CPU has it; by
            default what the file was exported for, where the CPU has it, or else float32.

    Raises:
        DetrkitError: missing, damaged or foreign, or its runtime is not installed.
    """
    kind = exported_format(path)
    if kind is None:
        raise DetrkitError(f"{path}: no exported model; their names end with {', '.join(SUFFIXES)}")
    chosen = choose_runtime(kind, runtime)
    try:
        require_regular(path)
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be read ({error.strerror or error})") from error
    if chosen == "onnxruntime":
        return OnnxSession(path)
    return OpenVinoSession(path, precision) if chosen == "openvino" else TorchSession(path)


@contextmanager
def _reading(path: Path, runtime: str) -> Iterator[None]:
    """Turn what a runtime raises for a file into one line.

    Raises:
        DetrkitError: names the file and the runtime's reason.
    """
    try:
        yield
    except (DetrkitError, MemoryError):
        raise
    except Exception as error:  # each runtime has exceptions of its own, some of them plain RuntimeErrors
        raise DetrkitError(f"{path}: {runtime} cannot read it ({first_line(error)[:300]})") from error


class OnnxSession:
    """A .onnx file in ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.runtime = f"onnxruntime {onnxruntime.__version__}"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with _reading(path, "onnxruntime"):
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.metadata: Mapping[str, str] = self._session.get_modelmeta().custom_metadata_map
        self.outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """See `Session`."""
        return dict(zip(self.outputs, self._session.run(self.outputs, inputs), strict=True))


class OpenVinoSession:
    """A .xml file (or .onnx) in OpenVINO, on the CPU."""

    def __init__(self, path: Path, precision: Precision | None) -> None:
        import openvino

        self.runtime = f"openvino {openvino.__version__.partition('-')[0]}"
        core = openvino.Core()
        with _reading(path, "openvino"):
            model = core.read_model(path)
            self.metadata: Mapping[str, str] = _openvino_metadata(model)
            settings = {
                "INFERENCE_PRECISION_HINT": precision or _precision(path, self.metadata),
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
            }
            self._request = core.compile_model(model, "CPU", settings).create_infer_request()
        self.outputs = [output.get_any_name() for output in model.outputs]

    def run(self, inputs: Arrays) -> Arrays:
        """See `Session`."""
        results = self._request.infer(inputs)
        return {name: np.array(results[i]) for i, name in enumerate(self.outputs)}  # its memory is used again


def _precision(path: Path, metadata: Mapping[str, str]) -> Precision:
    """Return the precision that a file was exported for; float32, with a warning, where this CPU has none of it."""
    plain = parse_json(metadata.get(INFO_KEY, "{}"), str(path))
    half = plain.get("half") if isinstance(plain, dict) else None
    if half not in ("bf16", "fp16"):
        return "f32"
    if not computes_half(half):
        warnings.warn(f"{path}: this CPU does not compute in {half}: it runs in float32", stacklevel=2)
        return "f32"
    return "bf16" if half == "bf16" else "f16"


def _openvino_metadata(model: Any) -> dict[str, str]:
    """Return the metadata of a model: detrkit's in a .xml file, or those that OpenVINO takes from a .onnx file."""
    for section in ("detrkit", "framework"):
        if model.has_rt_info([section]):
            info = model.get_rt_info([section]).value
            if isinstance(info, Mapping):
                return {key: _text(value) for key, value in info.items()}
    return {}


def _text(value: Any) -> str:
    value = getattr(value, "value", value)
    return value if isinstance(value, str) else str(value)


class TorchSession:
    """A .pt2 file of torch.export, run by torch."""

    def __init__(self, path: Path) -> None:
        self.runtime = f"torch {torch.__version__.partition('+')[0]}"
        check_archive(path)
        extra = {EXTRA_FILE: ""}
        with _reading(path, "torch"):
            program = torch.export.load(path, extra_files=extra)
            self._module = program.module()
        metadata = parse_json(extra[EXTRA_FILE] or "{}", str(path))
        self.metadata: Mapping[str, str] = metadata if isinstance(metadata, dict) else {}
        self.outputs: list[str] = [str(name) for name in self.metadata.get("output_names", "").split()]

    def run(self, inputs: Arrays) -> Arrays:
        """See `Session`."""
        with torch.inference_mode():
            results = self._module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: result.numpy() for name, result in zip(self.outputs, results, strict=True)}


def check_archive(path: Path) -> None:
    """Check that a .pt2 archive holds tensors and a graph alone: torch would unpickle other things, and run their code.

    Raises:
        DetrkitError: no archive of torch.export, or one with pickled objects or compiled code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                inside = name.partition("/")[2]
                if any(part in name for part in _FOREIGN) or (inside.endswith(".pt") and "sample_inputs" not in inside):
                    raise DetrkitError(f"{path}: holds {name}, which could run code: export the model again")
                if inside.endswith(".pt"):
                    _check_tensors(path, archive.open(name))
                elif inside.startswith("data/") and inside.endswith("_config.json"):
                    _check_payload(path, parse_json(archive.read(name), f"{path}: {name}"))
    except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
        raise DetrkitError(f"{path}: no archive of torch.export, or a damaged one ({first_line(error)})") from error


def _check_tensors(path: Path, file: Any) -> None:
    """Check that a pickled file of the archive holds tensors alone.

    Raises:
        DetrkitError: it does not.
    """
    try:
        torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the unpickler meets in a foreign file
        raise DetrkitError(f"{path}: holds pickled objects, which could run code: export the model again") from error


def _check_payload(path: Path, config: Any) -> None:
    """Check that no tensor of the archive is stored as a pickle.

    Raises:
        DetrkitError: one is.
    """
    entries = config.get("config", {}) if isinstance(config, dict) else {}
    if not isinstance(entries, dict) or any(
        not isinstance(entry, dict) or entry.get("use_pickle") for entry in entries.values()
    ):
        raise DetrkitError(f"{path}: holds pickled tensors, which could run code: export the model again")


def torch_metadata(metadata: Mapping[str, str], outputs: tuple[str, ...]) -> dict[str, str]:
    """Return the extra files of a .pt2 archive for these metadata."""
    return {EXTRA_FILE: json.dumps({**metadata, "output_names": " ".join(outputs)})}
