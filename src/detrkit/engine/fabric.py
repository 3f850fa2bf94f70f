"""What the engine takes from lightning-fabric, imported without torchmetrics.

lightning-fabric asks for the version of torchmetrics by importing it, and with it transformers and more: ten seconds
where pytorch-lightning has installed it, for an answer that training does not use. It gets the version without that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType


@contextmanager
def version_only(package: str) -> Iterator[None]:
    """Stand in for a package that is not imported yet: `import` finds its `__version__` alone.

    Args:
        package: name of its module and of its distribution.
    """
    try:
        found = None if package in sys.modules else version(package)
    except PackageNotFoundError:
        found = None
    if found is None:
        yield
        return
    stand_in = ModuleType(package)
    stand_in.__dict__["__version__"] = found
    sys.modules[package] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(package) is stand_in:
            del sys.modules[package]


with version_only("torchmetrics"):
    from lightning_fabric import Fabric
    from lightning_fabric.loggers import Logger
    from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

__all__ = ["ClusterEnvironment", "DDPStrategy", "Fabric", "LightningEnvironment", "Logger"]
