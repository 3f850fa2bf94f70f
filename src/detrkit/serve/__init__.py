"""A model over HTTP: `detrkit serve`, and its application for any ASGI server.

Needs the extra `serve`; importing this module does not.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from detrkit.serve.limits import Limits
from detrkit.utils.errors import DetrkitError

if TYPE_CHECKING:
    from detrkit.serve.app import create_app as create_app

__all__ = ["Limits", "check_installed", "create_app"]

_PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart"}
_PACKAGES["prometheus_client"] = "prometheus-client"


def check_installed() -> None:
    """Check that the packages of the extra `serve` are there, without importing them.

    Raises:
        DetrkitError: one is missing; names the command that installs it.
    """
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise DetrkitError(f"detrkit serve needs {', '.join(missing)}: pip install 'detrkit[serve]'")


def __getattr__(name: str) -> Any:
    if name != "create_app":
        raise AttributeError(f"module 'detrkit.serve' has no attribute {name!r}")
    check_installed()
    from detrkit.serve.app import create_app

    globals()[name] = create_app
    return create_app
