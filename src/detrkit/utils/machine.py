"""Description of the machine that measurements were made on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

import detrkit


def machine(device: torch.device) -> dict[str, str | int]:
    """Describe the machine for a measurement.

    Returns:
        `processor` (name of the CPU), `instructions` (see `instruction_set`), `cores` that this process may use,
        `threads` of torch, versions of `torch` and `python`, `device`, and the name of the `gpu` if that is the device.
    """
    result: dict[str, str | int] = {
        "processor": cpu_name(),
        "instructions": instruction_set(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "python": platform.python_version(),
        "device": str(device),
    }
    if device.type == "cuda":
        result["gpu"] = torch.cuda.get_device_name(device)
    return result


def machine_line(device_type: str, *, processes: int = 1) -> str:
    """Describe the machine of a run in one line: number of processes, device, versions.

    Args:
        device_type: "cuda"; for any other device the CPU is described.
        processes: number of processes of the run.
    """
    if device_type == "cuda":
        device = f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    else:
        device = f"{cpu_name()}, {os.cpu_count()} cores, torch threads: {torch.get_num_threads()}"
    several = f"{processes} x " if processes > 1 else ""
    return f"{several}{device}, torch {torch.__version__}, detrkit {detrkit.__version__}"


def instruction_set() -> str:
    """Return the kind of the CPU by which its speed goes most: "AVX2", "AVX-512", "AVX-512 and AMX", ...

    It is what PyTorch's kernels use: ATEN_CPU_CAPABILITY=avx2 makes an AVX2 processor of one with AVX-512. AMX, matrix
    units for bfloat16 and INT8, is said beside AVX-512, which it needs.
    """
    used = torch.backends.cpu.get_cpu_capability()
    if used == "DEFAULT":  # nothing wider than what every CPU of this architecture has
        return platform.machine()
    amx = used == "AVX512" and torch.cpu._is_amx_tile_supported()
    return used.replace("AVX512", "AVX-512") + (" and AMX" if amx else "")


def cpu_name() -> str:
    """Return the CPU's name; its architecture where the system states no name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
