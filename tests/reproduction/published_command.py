"""`detrkit` with the formula weights in a folder as the published ones: `published_command.py FOLDER WORDS ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest

from detrkit.cli import main
from detrkit.models.pretrained import PUBLISHED
from helpers.layout import publish

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with pytest.MonkeyPatch.context() as patch:
        for row in list(PUBLISHED.values()):
            if (folder / row.file).is_file():
                publish(patch, row.model, folder / row.file)
        sys.exit(main(sys.argv[2:]))
