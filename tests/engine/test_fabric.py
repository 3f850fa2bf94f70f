"""lightning-fabric is imported without what it only asks the version of."""

from __future__ import annotations

import subprocess
import sys

import pytest

from detrkit.engine.fabric import version_only


def test_torchmetrics_is_not_imported_and_can_be():
    pytest.importorskip("torchmetrics")
    lines = [
        "import detrkit.engine, sys",
        "assert 'torchmetrics' not in sys.modules and 'transformers' not in sys.modules",
        "from lightning_fabric.utilities.imports import _TORCHMETRICS_GREATER_EQUAL_1_0_0 as newer",
        "assert newer",
        "import torchmetrics; torchmetrics.Metric",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_stand_in_has_the_version_and_leaves():
    for name in ("six_of_nobody", "pytest"):  # not installed; imported already
        before = sys.modules.get(name)
        with version_only(name):
            assert sys.modules.get(name) is before
    name = "nbclient"
    kept = {key: sys.modules.pop(key) for key in list(sys.modules) if key == name or key.startswith(name + ".")}
    try:
        with version_only(name):
            stand_in = sys.modules[name]
            assert stand_in.__version__ and not hasattr(stand_in, "NotebookClient")
        assert name not in sys.modules
        with pytest.raises(RuntimeError), version_only(name):
            raise RuntimeError
        assert name not in sys.modules
    finally:
        sys.modules.update(kept)
