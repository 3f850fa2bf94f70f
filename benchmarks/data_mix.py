"""Measures what the settings of docs/data-mix.md do to the AP of each class, on shapes generated for each of them.

    python benchmarks/data_mix.py --out mix                                 every case below, seed 0
    python benchmarks/data_mix.py --out mix --cases plain repeat --seeds 0 1 2
    python benchmarks/data_mix.py --out mix --steps 900                     longer

Cases, each the quickstart's model on images of 96 to 128 pixels with the same number of steps, evaluated on 200 images:
plain, repeat       600 images in which the five classes are drawn 60 : 25 : 10 : 4 : 1; once each, and with repeat_rare
                    0.3
crowd, fewer, none  1,200 images of which 75 % have no object; as they are, with empty_share 0.25, and with 0
alone, both         150 images; the same and 600 other images (twice the objects, half as large), weights 1 1
both_all            the same two datasets without weights, so that the 150 are a fifth of an epoch instead of half
blood, blood_rare   bccd ($DETRKIT_DATA/bccd, 160 pixels), of whose images 57 % have platelets and 96 % red cells;
                    as it is, and with repeat_rare 1.0

A seed is that of weights, order and augmentation; the images are the same for all. AP is in percent. A run that is in
data_mix.json already is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detrkit.config import load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import train
from side_by_side import Report

IMAGES = 200  # to evaluate on
STEPS = 450  # 3,600 images of the 16,000 that the quickstart sees
# name -> arguments of `write_shapes`
DATA: dict[str, dict[str, Any]] = {
    "rare": {"images": {"train": 600, "val": IMAGES}, "class_shares": (60, 25, 10, 4, 1)},
    "empty": {"images": {"train": 1200, "val": IMAGES}, "empty": 0.75},
    "few": {"images": {"train": 150, "val": IMAGES}},
    "other": {"images": {"train": 600}, "seed": 7, "objects": (2, 12), "object_size": (0.1, 0.25)},
}


# a dataset that is not generated
BLOOD = "bccd"
BLOOD_SECTIONS: dict[str, dict[str, Any]] = {
    "data": {"layout": "voc", "size": 160, "max_size": None},
    "model": {"num_queries": 100},  # up to 30 objects an image
}


class Case(NamedTuple):
    """Datasets, of which the first one is evaluated on, and settings of the section data."""

    data: tuple[str, ...]
    settings: dict[str, Any]


CASES = {
    "plain": Case(("rare",), {}),
    "repeat": Case(("rare",), {"repeat_rare": 0.3}),
    "crowd": Case(("empty",), {}),
    "fewer": Case(("empty",), {"empty_share": 0.25}),
    "none": Case(("empty",), {"empty_share": 0.0}),
    "alone": Case(("few",), {}),
    "both": Case(("few", "other"), {"weights": (1.0, 1.0)}),
    "both_all": Case(("few", "other"), {}),
    "blood": Case((BLOOD,), {}),
    "blood_rare": Case((BLOOD,), {"repeat_rare": 1.0}),
}


def run(case: Case, seed: int, steps: int, data: Path, out: Path) -> dict[str, Any]:
    """Train one case; return AP, AP50 and the AP of each class, in percent, and the seconds it took."""
    paths = [str(folder(name, data)) for name in case.data]
    config = load_config("quickstart", data=paths[0])
    if case.data[0] == BLOOD:
        config = config.changed(**BLOOD_SECTIONS)
    config = config.changed(
        data={"more_paths": tuple(paths[1:]), "epoch_images": steps * config.data.batch_size, **case.settings},
        optim={"epochs": 1, "warmup_steps": min(100, steps // 5)},
        run={"out": str(out), "seed": seed, "device": "cpu", "tensorboard": False, "pictures": False},
    )
    began = time.perf_counter()
    metrics = train(config, resume=(out / "config.yaml").exists()).metrics  # one that was interrupted goes on
    assert metrics is not None
    return {
        "AP": 100 * metrics.AP,
        "AP50": 100 * metrics.AP50,
        "classes": {name: 100 * row["AP"] for name, row in metrics.per_class.items()},
        "seconds": time.perf_counter() - began,
    }


def folder(name: str, data: Path) -> Path:
    """The folder of a dataset: generated ones are under `data`."""
    return Path(os.environ["DETRKIT_DATA"]) / BLOOD if name == BLOOD else data / name


def rows(results: dict[str, dict[str, dict[str, Any]]]) -> list[dict[str, str]]:
    """A row for each case: mean over the seeds, with the standard deviation of AP where there are several."""
    lines = []
    for case, runs in results.items():
        values = list(runs.values())
        spread = f" ± {statistics.stdev(v['AP'] for v in values):.1f}" if len(values) > 1 else ""
        ap, ap50 = (statistics.fmean(v[name] for v in values) for name in ("AP", "AP50"))
        each = [f"{name} {statistics.fmean(v['classes'][name] for v in values):.1f}" for name in values[0]["classes"]]
        line = {"case": case, "seeds": str(len(values)), "AP": f"{ap:.1f}{spread}", "AP50": f"{ap50:.1f}"}
        lines.append({**line, "AP of each class": ", ".join(each)})
    return lines


def main() -> None:
    """Run the cases that are asked for and print the table; data_mix.json holds every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data_mix"), help="folder of data, runs and data_mix.json")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of 8 images each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows, for docs/measured_tables.py")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    file = options.out / "data_mix.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for name in {name for case in options.cases for name in CASES[case].data}:
        if name in DATA and not (options.out / "data" / name).exists():
            write_shapes(options.out / "data" / name, **DATA[name])
    for seed in options.seeds:
        for case in options.cases:
            key = f"{case}, {options.steps} steps, seed {seed}"
            if key in known:
                continue
            known[key] = run(
                CASES[case], seed, options.steps, options.out / "data", options.out / f"{case}-{options.steps}-{seed}"
            )
            file.write_text(json.dumps(known, indent=1) + "\n")
    results = {
        case: {str(seed): known[f"{case}, {options.steps} steps, seed {seed}"] for seed in options.seeds}
        for case in options.cases
    }
    report = Report(f"Data mixes, {options.steps} steps of 8 images")
    for row in rows(results):
        report.add(**row)
    report.write(options.json)


if __name__ == "__main__":
    main()
