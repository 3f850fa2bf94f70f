"""Profiling of prediction and training on this machine, by parts: the measurements of `detrkit bench`."""

from detrkit.profiling.measuring import Measured, Setting, measure
from detrkit.profiling.stopwatch import Stopwatch, watched
from detrkit.utils.machine import machine

__all__ = ["Measured", "Setting", "Stopwatch", "machine", "measure", "watched"]
