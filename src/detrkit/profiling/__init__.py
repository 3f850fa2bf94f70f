"""Where the time of predicting and training goes on this machine: what `detrkit bench` measures."""

from detrkit.profiling.measuring import Measured, Setting, measure
from detrkit.profiling.stopwatch import Stopwatch, watched
from detrkit.utils.machine import machine

__all__ = ["Measured", "Setting", "Stopwatch", "machine", "measure", "watched"]
