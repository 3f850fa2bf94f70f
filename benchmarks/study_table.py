"""Writes the first table of a study for a page of docs/results: a row for each model, mean and spread over its seeds.

    python benchmarks/study_table.py runs/shapes-six --json docs/measurements/shapes-six.json --command "detrkit ..."

Run it on the machine that trained the study; `python docs/measured_tables.py` then fills the page. Leave the seconds
out (`--without "epoch (s)"`) where the machine had other work meanwhile.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detrkit.profiling import machine
from detrkit.study import load_study
from detrkit.study.results import read_result
from detrkit.study.tables import study_tables
from detrkit.utils.atomic import write_atomic
from side_by_side import DEVICE, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the folder of a study, all of whose runs are done")
    parser.add_argument("--command", required=True, help="that trained it, for the page")
    parser.add_argument("--json", type=Path, required=True, help="where to write the rows")
    parser.add_argument("--without", nargs="+", default=[], metavar="COLUMN", help='to leave out: "epoch (s)"')
    args = parser.parse_args()
    study = load_study(args.study / "study.yaml")
    results = [(run.member, read_result(args.study, run)) for run in study.all_runs()]
    missing = [result.folder for _, result in results if not result.done]
    if missing:
        raise SystemExit(f"{args.study}: not done: {', '.join(missing)}")
    overall = study_tables(study, results)[0]
    rows = [
        {name: cell for name, cell in zip(overall.headings, row, strict=True) if name not in args.without}
        for row in overall.rows
    ]
    print(table(rows))
    record = {"title": study.title, "command": args.command, "machine": machine(DEVICE), "rows": rows}
    write_atomic(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
