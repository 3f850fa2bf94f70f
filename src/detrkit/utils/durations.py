"""Times in words: elapsed and left told apart."""

from __future__ import annotations


def time_words(gone: float, left: float | None) -> str:
    """Format elapsed and remaining seconds: "12 min gone, about 41 min left (of 53 min)"; without `left` the first."""
    if left is None:
        return f"{duration(gone)} gone"
    return f"{duration(gone)} gone, about {duration(left)} left (of {duration(gone + left)})"


def duration(seconds: float) -> str:
    """Format seconds in the unit that a reader would use: "40 s", "12 min", "3.5 h", "10 days"."""
    seconds = max(0.0, seconds)
    for below, unit, name in ((119.5, 1, "s"), (119.5 * 60, 60, "min")):
        if seconds < below:
            return f"{seconds / unit:.0f} {name}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"


def seconds_text(seconds: float) -> str:
    """Format the seconds of a step: "0.05 s", "1.2 s", "20 s"."""
    return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"
