"""Keywords of public functions under the names that they had in earlier versions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def renamed_keywords(**present: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a decorator that accepts earlier names of keywords, with a DeprecationWarning.

    Args:
        present: earlier name -> present one.

    Raises:
        TypeError: at the call, a keyword that is given under both names.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def accepting(*args: P.args, **kwargs: P.kwargs) -> T:
            renamed: dict[str, Any] = kwargs
            for earlier in present.keys() & renamed.keys():
                name = present[earlier]
                if name in renamed:
                    raise TypeError(f"{function.__name__} takes {name} or its earlier name {earlier}, not both")
                warnings.warn(f"{function.__name__}: {earlier} is now {name}", DeprecationWarning, stacklevel=2)
                renamed[name] = renamed.pop(earlier)
            return function(*args, **kwargs)

        return accepting

    return decorate
