"""Profiling of prediction and training on this machine, by parts: the measurements of `detrkit bench`."""

from detrkit.profiling.profile import profile_model
from detrkit.profiling.result import ProfileConfig, ProfileResult
from detrkit.profiling.timer import Timer, instrument
from detrkit.utils.machine import machine

__all__ = ["ProfileConfig", "ProfileResult", "Timer", "instrument", "machine", "profile_model"]
