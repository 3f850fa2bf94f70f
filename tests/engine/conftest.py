from pathlib import Path

import pytest

from detrkit.data.tools.shapes import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """13 training and 5 validation images of 48 to 64 pixels: numbers that no batch size divides."""
    return write_shapes(
        tmp_path_factory.mktemp("shapes") / "set", images={"train": 13, "val": 5}, sides=(48, 64), classes=3, seed=1
    )
