"""Tools for datasets: checking, converting, and generating or downloading one to start with."""
