"""Two models on one input, stage by stage: where do they begin to differ?

    b = load_recording("theirs.npz")
    a = record(DetrkitSide.load("mine.safetensors"), b.pixels, b.target)
    print(compare(a, b).first)

A side is whatever runs a model and can say what it computed: `DetrkitSide`, `TransformersSide`, later an export. What a
side computed is a `Recording`, which a file can hold, too: so the numbers of any framework can be compared.
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
