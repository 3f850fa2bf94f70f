"""Suggested score thresholds written into a checkpoint that exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from detrkit.models.spec import SCORE_THRESHOLDS
from detrkit.structures.thresholds import ScoreThresholds
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import save_model
from detrkit.weights.files import WeightsFile, read_weights


def file_of_thresholds(path: str | Path) -> WeightsFile:
    """Read the file that thresholds can be written into.

    Raises:
        DetrkitError: missing, damaged, or no .safetensors file of detrkit.
    """
    file = read_weights(path)
    if file.spec is None or file.names != "detrkit" or file.path.suffix != ".safetensors":
        raise DetrkitError(
            f"{file.path}: thresholds are saved in .safetensors files of detrkit: make one first, with "
            "detrkit convert FILE NEW.safetensors"
        )
    return file


def save_thresholds(path: str | Path, thresholds: ScoreThresholds) -> Path:
    """Replace the suggested score thresholds of a checkpoint; its weights and all else stay as they are.

    Args:
        path: a .safetensors file of detrkit, or a run's folder. The file is replaced at once, or not at all.
        thresholds: from `Metrics.scores.suggest()`.

    Returns:
        The file.

    Raises:
        DetrkitError: another file, or one that cannot be written.
    """
    file = file_of_thresholds(path)
    assert file.spec is not None
    training = {**file.spec.training, SCORE_THRESHOLDS: thresholds.to_json()}
    return save_model(file.path, file.state, replace(file.spec, training=training))
