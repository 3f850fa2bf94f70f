"""The public names, and that importing them is cheap."""

from __future__ import annotations

import subprocess
import sys

import pytest

import detrkit


def test_import_is_light():
    code = "import detrkit, sys; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'rich')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_resolves():
    for name in detrkit.__all__:
        assert getattr(detrkit, name) is getattr(detrkit, name), name
    assert set(detrkit.__all__) <= set(dir(detrkit))
    assert callable(detrkit.evaluate) and callable(detrkit.train)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = detrkit.nothing


@pytest.mark.slow
def test_functions_stay_functions_whatever_is_imported():
    code = (
        "import detrkit, detrkit.engine, detrkit.evaluation, detrkit.weights.official;"
        "assert callable(detrkit.evaluate) and callable(detrkit.train) and callable(detrkit.convert.to_official)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
