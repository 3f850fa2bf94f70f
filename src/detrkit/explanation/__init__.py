"""Explanations: what a model attended to when it found the objects of an image, in numbers and pictures."""

from __future__ import annotations

from detrkit.explanation.explain import explain, explanation_of
from detrkit.explanation.maps import Proposal
from detrkit.explanation.points import SampledPoints, density
from detrkit.explanation.result import Explanation

__all__ = ["Explanation", "Proposal", "SampledPoints", "density", "explain", "explanation_of"]
