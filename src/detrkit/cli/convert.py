"""`detrkit convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional

from detrkit.errors import DetrkitError


@dataclass(frozen=True)
class Convert:
    """Convert weights between the official .pth form and detrkit's .safetensors, either way.

    A .safetensors file also holds the model's name, its options, classes and input size. Official code reads the .pth
    files written here; published .pth files are recognised by their hash.
    """

    source: Positional[Path]
    """Weights to read: .pth, .safetensors, a training state or a run directory."""
    target: Positional[Path]
    """File to write; its suffix, .pth or .safetensors, decides the form."""
    model: str | None = None
    """Model name, such as detr-r50, for official files that do not say what they are of."""

    def run(self) -> int:
        """Reads, writes and prints the path."""
        from detrkit.checkpoint import load_model, save_model, save_official

        writers = {".pth": save_official, ".safetensors": save_model}
        if self.target.suffix not in writers:
            raise DetrkitError(f"{self.target}: the name must end with .pth (official) or .safetensors (detrkit)")
        model, spec = load_model(self.source, name=self.model)
        writers[self.target.suffix](self.target, model, spec)
        classes = f"{spec.num_classes} classes"
        Console().print(f"{escape(str(self.target))}: {spec.name}, {classes}", soft_wrap=True, highlight=False)
        return 0
