"""INT8 beside float32 in ONNX Runtime and OpenVINO: size, latency in turns and AP of trained checkpoints.

    python benchmarks/int8.py --data shapes --out int8.json examples/tour/detr.safetensors runs/first

Every checkpoint is exported in both formats with `detrkit.export(..., int8=...)`, whose gates hold; AP that falls is
reported and not refused. Latency is the median of forward passes of one image, float32 and INT8 in turns,
on one thread unless OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import detrkit
from detrkit.utils.machine import machine

INSTRUCTIONS = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", required=True, help="calibrates by its split train; AP is that of its split val")
    parser.add_argument("--images", type=int, default=200, help="images that AP is measured on, at most")
    parser.add_argument("--calibration-images", type=int, default=100)
    parser.add_argument("--formats", nargs="+", default=["onnx", "openvino"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": dict(machine(torch.device("cpu"))),
        "instructions": instructions(),
        "threads": torch.get_num_threads(),
        "rows": [],
    }
    for checkpoint in arguments.checkpoints:
        for kind in arguments.formats:
            results["rows"].append(row(checkpoint, kind, arguments))
            print(json.dumps(results["rows"][-1]), flush=True)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")


def row(checkpoint: str, kind: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Export a checkpoint in a format and return what INT8 costs and is worth."""
    suffix = {"onnx": ".onnx", "openvino": ".xml"}[kind]
    with tempfile.TemporaryDirectory() as folder:
        report = detrkit.export(
            checkpoint,
            Path(folder) / f"model{suffix}",
            int8=arguments.data,
            images=arguments.images,
            calibration_images=arguments.calibration_images,
            max_drop=100.0,
        )
    check = report.reduced
    assert check is not None and check.float_cost is not None and check.cost is not None
    return {
        "checkpoint": Path(checkpoint).name,
        "model": report.spec.name,
        "runtime": report.runtime,
        "float32 bytes": check.float_bytes,
        "INT8 bytes": report.size,
        "speedup": check.float_cost.seconds / check.cost.seconds,
        "drop": check.drop,
        **dataclasses.asdict(check),
    }


def instructions() -> list[str]:
    """Return the instructions for 8-bit products that Linux names of this CPU."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return []
    return [name for name in INSTRUCTIONS if name in flags]


if __name__ == "__main__":
    main()
