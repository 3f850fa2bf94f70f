"""Where the time of predicting and training goes on this machine: what `detrkit bench` measures."""

from detrkit.benchmark.machine import machine
from detrkit.benchmark.measuring import Measured, Setting, measure
from detrkit.benchmark.stopwatch import Stopwatch, watched

__all__ = ["Measured", "Setting", "Stopwatch", "machine", "measure", "watched"]
