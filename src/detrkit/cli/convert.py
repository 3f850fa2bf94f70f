"""`detrkit convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from tyro.conf import Positional

from detrkit.errors import DetrkitError


@dataclass(frozen=True)
class Convert:
    """Convert weights between detrkit, the official code, Hugging Face and, one way, PaddleDetection.

    The name of TARGET decides what is written. With the suffix .safetensors it is detrkit's form, which also holds the
    model's name, its options, classes and input size. With .pth it is the official form, which the official code reads.
    Without a suffix it is a directory that Hugging Face's from_pretrained reads, with class names as id2label.

    SOURCE may be any of these, a training state or run directory, or a .pdparams file of PaddleDetection. No file is
    unpickled with code in it. Published .pth files are recognised by their hash, other .pth files by the arguments and
    the tensors in them. Dilation (DC5) does not show in tensors: where nothing tells it, it is asked for.

    Such as:

    detrkit convert detr-r50-e632da11.pth detr.safetensors

    detrkit convert runs/first my-hugging-face-model

    detrkit convert weights.pth detr.safetensors --dilation False
    """

    source: Positional[Path]
    """Weights to read: .pth, .safetensors, .pdparams, a training state, a run directory or a Hugging Face directory."""
    target: Positional[Path]
    """What to write: a .pth or .safetensors file, or a new directory."""
    model: str | None = None
    """Model name, such as detr-r50, for files that do not say what they are of."""
    dilation: bool | None = None
    """Whether the model is a DC5 one, for files that do not say it."""
    nheads: int | None = None
    """Attention heads, for files that do not say it; by default 8."""
    backbone_names: Literal["resnet", "timm"] | None = None
    """For Hugging Face: whose names the backbone's weights have, those of transformers' own ResNet or timm's, which
    loading them then needs. By default transformers' own; for DC5 timm's, because transformers' own has none."""

    def run(self) -> int:
        """Reads, writes and prints the path."""
        from detrkit.checkpoint import load_model, save_huggingface, save_model, save_official

        suffix = self.target.suffix
        if suffix not in (".pth", ".safetensors", ""):
            raise DetrkitError(
                f"{self.target}: the name must end with .pth (official) or .safetensors (detrkit), "
                "or have no suffix (a Hugging Face directory)"
            )
        if self.backbone_names is not None and suffix:
            raise DetrkitError(f"--backbone-names is for Hugging Face directories, and {self.target} is none")
        given = {"dilation": self.dilation, "nheads": self.nheads}
        options = {option: value for option, value in given.items() if value is not None}
        model, spec = load_model(self.source, name=self.model, options=options)
        if suffix == ".pth":
            save_official(self.target, model, spec)
        elif suffix == ".safetensors":
            save_model(self.target, model, spec)
        else:
            save_huggingface(self.target, model, spec, backbone=self.backbone_names)
        classes = f"{spec.num_classes} classes"
        Console().print(f"{escape(str(self.target))}: {spec.name}, {classes}", soft_wrap=True, highlight=False)
        return 0
