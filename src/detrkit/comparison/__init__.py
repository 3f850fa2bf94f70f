"""Comparison of two models on one input, stage by stage: it shows the first stage at which they differ.

    b = load_recording("theirs.npz")
    a = record(DetrkitSide.load("mine.safetensors"), b.pixels, b.target)
    print(compare(a, b).first)

A side runs a model and returns its intermediate tensors: `DetrkitSide`, `TransformersSide`, later an export. These
tensors are a `Recording`, which can be saved to a file, too: so the numbers of any framework can be compared.
"""

from detrkit.comparison.difference import Comparison, Difference, compare
from detrkit.comparison.recording import Recording, load_recording, record, save_recording
from detrkit.comparison.sides import DetrkitSide, Side, open_side, seeded_model

__all__ = [
    "Comparison",
    "DetrkitSide",
    "Difference",
    "Recording",
    "Side",
    "compare",
    "load_recording",
    "open_side",
    "record",
    "save_recording",
    "seeded_model",
]
