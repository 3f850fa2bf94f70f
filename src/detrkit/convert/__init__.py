"""Conversion of weights from and to other code bases; see `detrkit.weights`."""

from detrkit.weights.huggingface import load_huggingface, to_huggingface
from detrkit.weights.official import WeightsError, load_official, to_official

__all__ = ["WeightsError", "load_huggingface", "load_official", "to_huggingface", "to_official"]
