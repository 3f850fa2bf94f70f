"""Exports every registered model at full size with random weights: does it pass the gates, how long, how much memory.

    python benchmarks/export.py                                      every model to ONNX
    python benchmarks/export.py --small --format openvino            small ones of each name: whether they pass
    python benchmarks/export.py --format openvino --only rtdetr-r18 dino-r50-4scale
    python benchmarks/export.py --fixed 800x1333 --only detr-r50 detr-r101-dc5 --json docs/measurements/export.json

Each export is a process of its own, so that its peak memory is its own; the gates include an image of the model's input
size (800 x 1067, RT-DETR 640 x 640). Seconds of export and gates are wall time. Weights are random
and such that every layer answers to its input (tests/helpers/weights.py).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from side_by_side import Report

ROOT = Path(__file__).parents[1]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def export_one(name: str, suffix: str, fixed: tuple[int, int] | None) -> dict:
    """Export one model in this process."""
    sys.path.insert(0, str(ROOT / "tests"))
    import torch

    from detrkit.exporting.export import export
    from detrkit.utils.errors import DetrkitError
    from detrkit.weights.checkpoint import published_spec
    from helpers.weights import randomize

    spec = published_spec(name)
    with torch.no_grad():
        model = spec.build().eval()
        randomize(model)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export((model, spec), Path(folder) / f"model{suffix}", fixed=None if spec.square else fixed)
        except DetrkitError as error:
            return {"model": name, "passed": f"no: {error}"}
        cost, original = report.exported_cost, report.model_cost
        assert cost is not None and original is not None
        return {
            "model": name,
            "passed": "yes",
            "logits differ by": f"{report.differences['logits']:.1e}",
            "boxes differ by": f"{report.differences['boxes']:.1e}",
            "file, MiB": round(report.size / 2**20),
            "export, s": round(report.seconds),
            "with gates, s": round(time.perf_counter() - began),
            "peak memory, MiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "input": f"{cost.height} x {cost.width}",
            "PyTorch, ms": round(1000 * original.seconds),
            "exported, ms": round(1000 * cost.seconds),
        }


def export_small(name: str, suffix: str) -> dict:
    """Export a small model of that name, with its post-processing where it has any."""
    sys.path.insert(0, str(ROOT / "tests"))
    from detrkit.exporting.export import export
    from detrkit.utils.errors import DetrkitError
    from helpers.small_models import small_model

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export(small_model(name), Path(folder) / f"model{suffix}", timing=False)
        except DetrkitError as error:
            return {"model": name, "passed": f"no: {error}"}
    return {
        "model": name,
        "passed": "yes",
        "logits differ by": f"{report.differences['logits']:.1e}",
        "boxes differ by": f"{report.differences['boxes']:.1e}",
        "with gates, s": round(time.perf_counter() - began),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", choices=SUFFIXES, default="onnx")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="some of `detrkit models`; by default all")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    parser.add_argument("--small", action="store_true", help="small models of each name, in one process")
    parser.add_argument("--fixed", metavar="HxW", help="export for this size alone, such as 800x1333 (not RT-DETR)")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.one:
        fixed = tuple(int(side) for side in arguments.fixed.split("x")) if arguments.fixed else None
        print("> " + json.dumps(export_one(arguments.one, SUFFIXES[arguments.format], fixed)), flush=True)
        return
    from detrkit.models.registry import list_models

    report = Report(f"Export of every model to {arguments.format}, {'small' if arguments.small else 'at full size'}")
    for name in arguments.only or list_models():
        if arguments.small:
            report.add(**export_small(name, SUFFIXES[arguments.format]))
            report.write(arguments.json)
            continue
        command = [sys.executable, __file__, "--format", arguments.format, "--one", name]
        command += ["--fixed", arguments.fixed] if arguments.fixed else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
        report.add(**(json.loads(lines[-1]) if lines else {"model": name, "passed": f"no: status {done.returncode}"}))
        report.write(arguments.json)


if __name__ == "__main__":
    main()
