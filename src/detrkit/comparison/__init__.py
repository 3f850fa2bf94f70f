"""Comparison of two models on one input, stage by stage: it shows the first stage at which they differ.

    reference = load_recording("reference.npz")
    candidate = record(DetrkitRunner.load("mine.safetensors"), reference.pixels, reference.target)
    print(compare(candidate, reference).first)

A `ModelRunner` runs a model and returns its intermediate tensors: `DetrkitRunner`, `TransformersRunner`, later an
export. These tensors are a `Recording`, which can be saved to a file, so that numbers of any framework can be compared.
"""

from detrkit.comparison.difference import Comparison, StageDifference, compare
from detrkit.comparison.recording import Recording, load_recording, record, save_recording
from detrkit.comparison.runners import DetrkitRunner, ModelRunner, open_runner, seeded_model

# names in earlier versions
Side, DetrkitSide, Difference = ModelRunner, DetrkitRunner, StageDifference

__all__ = [
    "Comparison",
    "DetrkitRunner",
    "DetrkitSide",
    "Difference",
    "ModelRunner",
    "Recording",
    "Side",
    "StageDifference",
    "compare",
    "load_recording",
    "open_runner",
    "record",
    "save_recording",
    "seeded_model",
]
