"""Models on the meta device: shapes without values, in no memory and little time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# functions that fill a tensor with first weights
_FILLS: frozenset[Any] = frozenset(
    {Tensor.normal_, Tensor.uniform_}
    | {getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_") and not name.startswith("_")}
)


class _NoFills(TorchFunctionMode):
    """Leaves tensors of the meta device as they are: they have no values.

    For random ones torch would run its Python decompositions, whose first use imports its compiler: 2 s of CPU time.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Return the tensor of a function that would fill it; else the function's result."""
        if function in _FILLS:
            tensor = args[0] if args else (kwargs or {}).get("tensor")
            if isinstance(tensor, Tensor) and tensor.is_meta:
                return tensor
        return function(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """Make new tensors and models on the meta device, without first weights, within the context."""
    with torch.device("meta"), _NoFills():
        yield
