"""Writes the tables of measured figures from docs/measurements/*.json: `python docs/measured_tables.py`.

A table stands between `<!-- measured: NAME -->` and `<!-- end -->` on any page; everything between them is
replaced by the rows of NAME.json, the command that measured them, and the machine. A test checks that it was done.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from side_by_side import table

HERE = Path(__file__).parent
_TABLE = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def measured(name: str) -> str:
    """A table with the line that says how and where it was measured."""
    file = HERE / "measurements" / f"{name}.json"
    if not file.exists():
        return "\nNot measured yet.\n\n"
    record = json.loads(file.read_text(encoding="utf-8"))
    machine = record["machine"]
    cores = "one core" if machine["cores"] == 1 else f"{machine['cores']} cores"
    kind = f" ({machine['instructions']})" if "instructions" in machine else ""
    where = machine.get("gpu", f"{cores} of an {machine['processor']}{kind}")
    source = f"`{record['command']}`, {where}, torch {machine['torch'].partition('+')[0]}."
    return f"\n{table(record['rows'])}\n{source}\n\n"


def written(text: str) -> str:
    """A page with its tables filled."""
    return _TABLE.sub(lambda m: m[1] + measured(m[2]) + m[3], text)


def pages() -> list[Path]:
    """The pages with such tables."""
    return [page for page in sorted(HERE.rglob("*.md")) if "<!-- measured:" in page.read_text(encoding="utf-8")]


if __name__ == "__main__":
    for page in pages():
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
