"""torchvision, imported without torch's compiler: every module of detrkit takes torchvision from here.

torchvision imports `torch._dynamo` when it is imported itself, for one function that it asks and one decorator that it
puts on another. That takes 2.5 of the 7.4 seconds of CPU time in which `detrkit predict` begins, and nothing of it is
needed before a model is compiled. So it is given stand-ins meanwhile, which call torch's own functions once they are
called. A torchvision that takes more from the compiler is imported as it is.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

_COMPILER = "torch._dynamo"


def _is_compile_supported(device_type: Any) -> Any:
    """Return whether torch compiles for a device, as `torch._dynamo.utils.is_compile_supported`."""
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


_is_compile_supported._dynamo_marked_constant = True  # type: ignore[attr-defined]  # as torch's own


def _disabled_for_compiler(function: Callable[..., Any] | None = None, *args: Any, **options: Any) -> Any:
    """Return a function that the compiler does not enter, as `torch.compiler.disable`; nothing compiles before import.

    Args:
        function: None where the decorator has arguments.
        args: of `torch.compiler.disable`.
        options: likewise.
    """
    if function is None:
        return functools.partial(_disabled_for_compiler, **options)
    disabled: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        nonlocal disabled
        if _COMPILER not in sys.modules:
            return function(*values, **named)
        if disabled is None:
            disabled = torch.compiler.disable(function, *args, **options)
        return disabled(*values, **named)

    return call


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Give stand-ins for the compiler to what is imported within the context."""
    package: Any = ModuleType(_COMPILER)
    utils: Any = ModuleType(f"{_COMPILER}.utils")
    package.__path__, package.utils, utils.is_compile_supported = [], utils, _is_compile_supported
    modules = {_COMPILER: package, f"{_COMPILER}.utils": utils}
    disable = torch.compiler.disable
    sys.modules.update(modules)
    torch.compiler.disable = _disabled_for_compiler  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compiler.disable = disable
        for name in modules:
            sys.modules.pop(name, None)


if _COMPILER not in sys.modules and "torchvision" not in sys.modules:
    try:
        with _stand_ins():
            importlib.import_module("torchvision.transforms.v2")
    except (ImportError, AttributeError):  # another version of torchvision, which is imported as it is below
        pass

import torchvision as torchvision  # noqa: E402
from torchvision import tv_tensors as tv_tensors  # noqa: E402
from torchvision.models.resnet import BasicBlock as BasicBlock  # noqa: E402
from torchvision.models.resnet import Bottleneck as Bottleneck  # noqa: E402
from torchvision.models.resnet import ResNet as ResNet  # noqa: E402
from torchvision.ops import batched_nms as batched_nms  # noqa: E402
from torchvision.transforms.v2 import functional as functional  # noqa: E402
