"""The real datasets, where DETRKIT_DATA says they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    folder = os.environ.get("DETRKIT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DETRKIT_DATA does not name the folder with bccd, coco_mini, panoptic_sample")
    return Path(folder)
