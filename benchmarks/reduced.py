"""INT8 and half precision beside float32 in ONNX Runtime and OpenVINO: size, latency in turns, AP of trained models.

    python benchmarks/reduced.py --data shapes --json reduced.json examples/tour/detr.safetensors runs/first
    python benchmarks/reduced.py --data shapes --json reduced-full.json detr-r50 rtdetrv2-r18

What is no checkpoint but a model's name is built at full size with random weights (tests/helpers/weights.py), whose AP
means nothing: for its latency. Every model is exported with `detrkit.export(..., int8=...)` or `half=...`, whose gates
hold; AP that falls is reported and not refused. Latency is the median of forward passes of one image of the model's
input size, float32 and the other in turns, on one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import detrkit
from side_by_side import Report

ROOT = Path(__file__).parents[1]
KINDS = ("INT8 .onnx", "INT8 .xml", "bf16 .xml", "fp16 .onnx")
INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="checkpoints, or names of models")
    parser.add_argument("--data", required=True, help="calibrates by its split train; AP is that of its split val")
    parser.add_argument("--images", type=int, default=200, help="images that AP is measured on, at most")
    parser.add_argument("--calibration-images", type=int, default=100)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["INT8 .onnx", "INT8 .xml", "bf16 .xml"])
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    report = Report(f"Reduced precision beside float32; this CPU has {', '.join(instructions())}")
    for model in arguments.models:
        for kind in arguments.kinds:
            report.add(**row(model, kind, arguments))
            report.write(arguments.json)


def row(model: str, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Export a model in a precision and return what that costs and is worth."""
    word, suffix = kind.split()
    rule: dict[str, Any] = {"int8": arguments.data, "calibration_images": arguments.calibration_images}
    if word != "INT8":
        rule = {"half": word, "data": arguments.data}
    trained = Path(model).exists()
    images = arguments.images if trained else 1
    source: Any = model if trained else random_model(model, arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{suffix}"
        report = detrkit.export(source, path, images=images, max_drop=100.0, **rule)
    check = report.reduced
    assert check is not None and check.float_cost is not None and check.cost is not None
    before, after = check.float_cost.seconds, check.cost.seconds
    return {
        "model": f"{report.spec.name}, {'trained' if trained else 'full size'}",
        "runtime": report.runtime.partition(" ")[0],
        "precision": word,
        "input": f"{check.cost.height} x {check.cost.width}",
        "float32, MiB": check.float_bytes / 2**20,
        "MiB": report.size / 2**20,
        "float32, ms": 1000 * before,
        "ms": 1000 * after,
        "times faster": before / after,
        "AP float32": 100 * check.float_ap if trained else "",
        "AP": 100 * check.ap if trained else "",
    }


def random_model(name: str, data: str) -> Any:
    """A model at full size whose layers answer to their inputs, for the classes of a dataset, and its spec."""
    sys.path.insert(0, str(ROOT / "tests"))
    from dataclasses import replace

    from detrkit.data import open_dataset
    from detrkit.weights.checkpoint import published_spec
    from helpers.weights import randomize

    classes = open_dataset(data, split="val", masks=False).classes
    spec = published_spec(name)
    spec = replace(spec, num_classes=len(classes), classes=classes)
    with torch.no_grad():
        model = spec.build().eval()
        randomize(model)
    return model, spec


def instructions() -> list[str]:
    """Return the instructions for short numbers that Linux names of this CPU."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []
    return [name for name in INSTRUCTIONS if name in flags]


if __name__ == "__main__":
    main()
