"""`detrkit` with the formula weights in a folder as the published ones: `published_command.py FOLDER WORDS ...`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import pytest  # noqa: E402
from layout import publish  # noqa: E402

from detrkit.cli import main  # noqa: E402
from detrkit.models.pretrained import PUBLISHED  # noqa: E402

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    with pytest.MonkeyPatch.context() as patch:
        for row in list(PUBLISHED.values()):
            if (folder / row.file).is_file():
                publish(patch, row.model, folder / row.file)
        sys.exit(main(sys.argv[2:]))
