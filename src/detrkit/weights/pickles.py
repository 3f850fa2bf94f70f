"""Files of `torch.save`, read without running code from them and without allocating more than they hold."""

from __future__ import annotations

import argparse
import io
import pickle
import pickletools
import re
import threading
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from detrkit.utils.documents import require_regular, shown
from detrkit.utils.errors import DetrkitError

SLACK = 16 << 20  # bytes that the entries of an archive may have beyond its size: compressed metadata
_LOCK = threading.Lock()  # torch's list of allowed names is global to the process
_NUMBER = re.compile(r"[<>=|]?(?:b1|[iuf][1248])")  # NumPy's names of the types whose scalars are read
# Names that torch allows in a pickle and no weights need: each can use unlimited memory from a file of 100 bytes.
_UNNEEDED = {
    *(f"{module} bytearray" for module in ("builtins", "__builtin__")),
    *(f"torch._utils _rebuild_device_tensor_from_{kind}" for kind in ("numpy", "cpu_tensor")),
    *(f"torch._utils _rebuild_{kind}" for kind in ("wrapper_subclass", "qtensor", "sparse_tensor")),
}
_SLOW_ENCODINGS = ("punycode", "idna")  # quadratic: 60 kB of them take minutes
_PICKLES = 5  # at the beginning of a file that is no archive: magic number, version, system, object, keys
# Torch's reasons for refusing a file, and our words for them.
_REFUSED = (
    ("TorchScript", "a TorchScript archive, which holds code: save the model's state_dict() with torch.save"),
    ("legacy .tar", "of a PyTorch before 0.4 (.tar): load it there and save its state_dict() anew"),
)


class Ignored:
    """Placeholder for an object beside the weights (a path, a date, an array); takes any arguments, holds nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _DType:
    """A NumPy type by its name, such as "f8"."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Check the byte order, nearly always the machine's own: types of other orders are not read."""
        if not (isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", "|", "=")):
            self.name = None


def _scalar(dtype: object = None, data: object = None) -> Any:
    """Convert a NumPy scalar to Python's number; None where it is none."""
    if not isinstance(dtype, _DType) or not isinstance(data, bytes):
        return None
    if not isinstance(dtype.name, str) or not _NUMBER.fullmatch(dtype.name):
        return None
    kind = np.dtype(dtype.name)
    return np.frombuffer(data, kind)[0].item() if len(data) == kind.itemsize else None


def _dict(*_: object) -> dict[Any, Any]:
    """Return a plain dict for a `defaultdict`; its entries are then put into it."""
    return {}


def _list(*_: object) -> list[Any]:
    """Return a plain list for a `deque`."""
    return []


# Names often saved beside weights. Nothing of these modules is imported or called.
_HARMLESS: list[Any] = [
    argparse.Namespace,  # official checkpoints hold their arguments
    *((_scalar, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
    *((Ignored, f"{module}.multiarray._reconstruct") for module in ("numpy.core", "numpy._core")),
    (Ignored, "numpy.ndarray"),
    (_DType, "numpy.dtype"),
    (_dict, "collections.defaultdict"),
    (_list, "collections.deque"),
    *((Ignored, f"builtins.{name}") for name in ("list", "dict", "int", "float", "str", "bool", "tuple", "frozenset")),
    *(
        (Ignored, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path")
    ),
    *((Ignored, f"datetime.{name}") for name in ("datetime", "date", "time", "timedelta", "timezone")),
    (Ignored, "types.SimpleNamespace"),
    (Ignored, "uuid.UUID"),
]


def load_pickle(path: Path) -> Any:
    """Read a file of `torch.save`: tensors on the CPU and plain values; harmless other objects become `Ignored`.

    Raises:
        DetrkitError: damaged, no regular file, or with content other than tensors and plain values.
    """
    try:
        require_regular(path)
        _check_program(path)
        with _LOCK, warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # of other protocols of pickle, and of archives that are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except DetrkitError:
        raise
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Unsupported" in str(error):
            refused = re.search(r"GLOBAL (\S+)", str(error))
            what = f" ({refused[1][:80]})" if refused else ""
            raise DetrkitError(
                f"{path}: holds more than tensors and plain values{what}, or is no PyTorch file; it was not loaded"
            ) from error
        raise DetrkitError(f"{path}: damaged, or not a PyTorch file") from error
    except MemoryError as error:
        raise DetrkitError(f"{path}: damaged, or larger than this machine's memory") from error
    except Exception as error:  # torch raises all kinds of errors for a damaged file
        reason = next((words for sign, words in _REFUSED if sign in str(error)), "damaged, or not a PyTorch file")
        raise DetrkitError(f"{path}: {reason}") from error
    _check_tensors(path, content)
    return content


def _check_program(path: Path) -> None:
    """Check a pickle for what would run forever or fill the memory, though it would execute nothing.

    Raises:
        DetrkitError: an archive larger than its file, or a pickle with operations that no weights need.
    """
    with path.open("rb") as file, _pickles(path, file) as (stream, count):
        for _ in range(count):
            try:
                for operation, argument, _ in pickletools.genops(stream):
                    if operation.name == "GLOBAL" and argument in _UNNEEDED:
                        raise DetrkitError(f"{path}: holds more than tensors and plain values ({argument})")
                    if isinstance(argument, str) and len(argument) < 40:
                        name = re.sub("[^a-z]", "", argument.lower())
                        if name in _SLOW_ENCODINGS:
                            raise DetrkitError(f"{path}: holds text in {name}: these are no weights")
            except DetrkitError:
                raise
            except Exception:  # a damaged file; torch finds the same error at this place
                return


@contextmanager
def _pickles(path: Path, file: IO[bytes]) -> Iterator[tuple[IO[bytes], int]]:
    """Yield a stream of the pickles in a file of either format, and an upper bound on their number.

    Raises:
        DetrkitError: an archive whose entries are larger than itself (torch does not compress), or one without a table
            of contents.
    """
    archived = file.read(4) == b"PK\x03\x04"  # the same test as torch's
    size = file.seek(0, 2)
    file.seek(0)
    if not archived:
        yield file, _PICKLES
        return
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            names = [entry.filename for entry in entries if entry.filename.endswith("data.pkl")]
            small = unpacked <= size + SLACK
            stream = io.BytesIO(b"".join(archive.read(name) for name in names) if small else b"")
    except Exception as error:  # Python's reader also raises all kinds of errors
        raise DetrkitError(f"{path}: damaged, or not a PyTorch file") from error
    if not small:
        raise DetrkitError(
            f"{path}: its {size:,} bytes unpack to {unpacked:,}: torch saves without compression, so these are no "
            "weights of it; nothing was unpacked"
        )
    yield stream, len(names)


def _check_tensors(path: Path, content: Any) -> None:
    """Check every tensor in nested containers, and remove attributes that a file may have attached to it.

    Raises:
        DetrkitError: one that is not plain and dense, or that has more values than the file holds.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", content)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, (str, int, float)) or value is None or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            plain = type(value) in (Tensor, torch.nn.Parameter)
            plain = plain and value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
            if not plain:
                raise DetrkitError(f"{path}: {name or 'it'} is sparse, quantized or without values: save dense tensors")
            value.__dict__.clear()
            if value.nbytes > value.untyped_storage().nbytes():  # rows that repeat the same memory
                raise DetrkitError(f"{path}: {name or 'it'} has more values than the file holds: save it contiguous")
        elif isinstance(value, argparse.Namespace):
            waiting.append((name, vars(value)))
        elif isinstance(value, Mapping):
            waiting += [(shown(key).strip("'"), item) for key, item in value.items()]
        elif isinstance(value, (list, tuple, set, frozenset)):
            waiting += [(name, item) for item in value]
