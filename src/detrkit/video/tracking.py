"""Tracks: which detections of a video's frames are one object, by ByteTrack of `trackers` (extra `track`)."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from detrkit.structures.detections import Detections
from detrkit.utils.errors import DetrkitError

LOW_SHARE = 0.5  # of the threshold: detections down to there go on with a track, but begin none
NO_TRACK = -1


def check_trackers() -> None:
    """Check that the packages of tracking are there, without importing them.

    Raises:
        DetrkitError: one is missing.
    """
    if find_spec("trackers") is None or find_spec("supervision") is None:
        raise DetrkitError("tracks need the package trackers: pip install 'detrkit[track]'")


class Tracker:
    """ByteTrack (Zhang et al. 2022) over the frames of one video.

    Detections above their threshold are matched with the tracks first, and begin new ones; then those down to half of
    it with the tracks that are left: an object that is hidden for a moment keeps its track. Boxes are matched by their
    overlap with the position that a Kalman filter predicts, whatever their classes. A track that is not seen for a
    second ends. An object has a track from its second frame on.

    Args:
        threshold: of the detections: one for all labels, or one for each.
        rate: frames a second that are tracked.

    Raises:
        DetrkitError: `trackers` is not installed.
    """

    def __init__(self, threshold: float | tuple[float, ...], *, rate: float) -> None:
        check_trackers()
        import supervision
        from trackers import ByteTrackTracker

        self._supervision: Any = supervision
        self._threshold = threshold
        # scores are passed as shares of twice their threshold, as thresholds may be those of each label
        self._tracker: Any = ByteTrackTracker(
            frame_rate=rate,
            lost_track_buffer=30,  # of frames at 30 a second
            track_activation_threshold=LOW_SHARE,
            high_conf_det_threshold=LOW_SHARE,
            minimum_consecutive_frames=1,
        )

    @property
    def low_threshold(self) -> float | tuple[float, ...]:
        """Threshold that frames are predicted with."""
        limit = self._threshold
        return tuple(LOW_SHARE * one for one in limit) if isinstance(limit, tuple) else LOW_SHARE * limit

    def update(self, detections: Detections, time: float) -> Detections:
        """Return the detections of the next frame with their tracks, in their order.

        Args:
            detections: predicted with `low_threshold`.
            time: of the frame in seconds.

        Returns:
            Those above their threshold, and those below it that belong to a track; `tracks` has their numbers, from 0.
        """
        limits = torch.as_tensor(self._threshold, dtype=detections.scores.dtype)
        limits = limits[detections.labels] if limits.ndim else limits.expand_as(detections.scores)
        above = detections.scores > limits
        shares = (detections.scores / limits.clamp(min=1e-6) * LOW_SHARE).clamp(max=1.0)
        # a score equal to its threshold is not above it
        shares = torch.where(above, shares.clamp(min=LOW_SHARE), shares.clamp(max=LOW_SHARE - 1e-6))
        frame = self._supervision.Detections(
            xyxy=detections.boxes.float().numpy(),
            confidence=shares.numpy(),
            class_id=detections.labels.numpy(),
            data={"row": np.arange(len(detections))},
        )
        tracked = self._tracker.update(frame, timestamp=time)
        tracks = torch.full((len(detections),), NO_TRACK, dtype=torch.int64)
        if len(tracked):
            tracks[torch.from_numpy(np.asarray(tracked.data["row"]))] = torch.from_numpy(
                np.asarray(tracked.tracker_id).astype(np.int64)
            )
        return replace(detections, tracks=tracks).select(above | (tracks != NO_TRACK))
