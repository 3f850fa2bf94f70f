"""Devices: names that torch takes, the one that is chosen by itself, and what is missing for one that was asked for.

This module imports torch only when a device is looked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from detrkit.utils.errors import SettingError
from detrkit.utils.messages import shortened
from detrkit.utils.ranges import Checked

if TYPE_CHECKING:
    import torch
    from torch import nn

AUTO = "auto"
_NAME = re.compile(r"[a-z_]+(:\d{1,4})?|\d{1,4}")
# what people call devices -> torch's name
_MEANT = {"gpu": "cuda, or mps on a Mac", "nvidia": "cuda", "rocm": "cuda", "metal": "mps", "apple": "mps"}


def device_reason(name: str) -> str | None:
    """Return why a text cannot name a device; None if it can. Whether the device is there is another question."""
    meant = _MEANT.get(name.lower().partition(":")[0])
    if meant is not None:
        return f"not a device of torch: did you mean {meant}?"
    if _NAME.fullmatch(name) is None:
        return "not available: choose auto, cpu, cuda, cuda:1, mps, xpu, or the number of a GPU"
    return None


DeviceName = Annotated[str, Checked(device_reason)]


def default_device() -> torch.device:
    """Return the device that `auto` means: CUDA, else MPS, else another accelerator of torch, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters; the CPU for one without any, such as an exported model."""
    import torch

    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def as_device(name: torch.device | str | int | None) -> torch.device:
    """Return the device of a name; "auto" and None: that of `default_device`; a number: that GPU.

    Raises:
        SettingError: this machine has no such device; says what is missing.
    """
    import torch

    if name is None or name == AUTO:
        return default_device()
    text = f"{default_gpu()}:{name}" if str(name).isdigit() else str(name)
    try:
        device = torch.device(text)
        reason = _missing(device)
        if reason is None:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError):  # torch has no common exception for this
        reason = "torch has none of that name here"
    if reason is not None:
        shown = f"{name}, which is {text}" if text != str(name) else text
        raise SettingError(
            f"device {shortened(shown)}: not available on this machine: {reason}; use cpu, or leave it out"
        )
    return device


def default_gpu() -> str:
    """Return the kind of device that a number alone means: "cuda", or that of this machine's accelerator."""
    kind = default_device().type
    return "cuda" if kind == "cpu" else kind


def copies_overlap(device: torch.device | str) -> bool:
    """Return whether copies to a device may run beside the host's work (`non_blocking`): from pinned memory to CUDA."""
    import torch

    return torch.device(device).type == "cuda"


def _missing(device: torch.device) -> str | None:
    """Return what is missing for a device; None if nothing is known to be."""
    import torch

    if device.type == "meta":
        return "it holds no values"
    if device.type == "cuda":
        if not torch.backends.cuda.is_built():
            return "this build of torch has no CUDA (pytorch.org names the command that installs one with it)"
        if not torch.cuda.is_available():
            return "torch sees no CUDA device (`nvidia-smi` shows whether the driver does)"
        return _beyond(device, torch.cuda.device_count())
    if device.type == "mps":
        if not torch.backends.mps.is_built():
            return "this build of torch has no MPS, which is for Macs with Apple silicon"
        if not torch.backends.mps.is_available():
            return "MPS needs a Mac with Apple silicon and a macOS that this torch knows"
        return _beyond(device, 1)
    return None


def _beyond(device: torch.device, count: int) -> str | None:
    """Return the reason if a device's number is too high."""
    if device.index is None or device.index < count:
        return None
    last = f"{device.type}:0" + (f" to {device.type}:{count - 1}" if count > 1 else "")
    return f"torch sees {count} of this kind, {last}"
