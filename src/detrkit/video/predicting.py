"""`predict_video` and `iter_video`: a detector on the frames of a video, in batches, with flat memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from detrkit.detector import Detector
from detrkit.structures.detections import Detections
from detrkit.structures.panoptic import PanopticResult, Prediction
from detrkit.utils.atomic import atomic_file
from detrkit.utils.errors import SettingError
from detrkit.utils.names import full_path
from detrkit.utils.prefetch import Prefetcher
from detrkit.utils.ranges import BatchSize, Count, Scale, ScoreThreshold, check_arguments
from detrkit.video.reading import Frame, VideoReader
from detrkit.video.tracking import Tracker
from detrkit.video.writing import VideoWriter, check_video_name

_WAITING_BYTES = 2**27  # of frames that wait for the model, and of those that wait to be drawn


class FrameResult(NamedTuple):
    """Result of one frame.

    Attributes:
        number: of the frame, from 0.
        time: seconds from the first frame.
        image: the frame, upright RGB.
        result: its prediction; of a frame that was not predicted (`every`) that of the last one that was.
        predicted: whether it was.
    """

    number: int
    time: float
    image: Image.Image
    result: Prediction
    predicted: bool

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values: frame, time in seconds, and the detections, or segments, as their `to_json`."""
        kind = "segments" if isinstance(self.result, PanopticResult) else "detections"
        return {"frame": self.number, "time": round(self.time, 6), kind: self.result.to_json()}

    def draw(self, scale: float | None = 1.0) -> Image.Image:
        """Return the frame with its result drawn."""
        return self.result.draw(self.image, scale=scale)


@dataclass
class VideoReport:
    """What `predict_video` did.

    Attributes:
        frames: number of frames.
        predicted: frames that were predicted.
        seconds: length of the video, to the start of its last frame.
        objects: name of a class -> objects or segments of it, over the predicted frames.
        tracks: number of tracks; None without tracking.
        note: what was left out, in a sentence; "" for nothing.
    """

    frames: int = 0
    predicted: int = 0
    seconds: float = 0.0
    objects: Counter[str] = field(default_factory=Counter)
    tracks: int | None = None
    note: str = ""


def iter_video(
    detector: Detector,
    video: str | Path,
    *,
    threshold: ScoreThreshold | None = None,
    batch_size: BatchSize = 4,
    every: Count = 1,
    track: bool = False,
) -> Generator[FrameResult, None, None]:
    """Yield the results of a video's frames, one by one, while the next ones are decoded.

    Args:
        detector: predicts the frames, in tiles if it has them.
        video: a file that FFmpeg reads.
        threshold: as of `Detector.predict`.
        batch_size: frames of a forward pass; results do not depend on it.
        every: predict every so many frames; those between have the last result.
        track: give the detections tracks (`Detections.tracks`), by ByteTrack (extra `track`).

    Raises:
        DetrkitError: a file that is missing, damaged or no video, packages that are not installed, or "auto" for
            weights that suggest no threshold.
        ValueError: a number out of range, or tracks of a panoptic model.
    """
    check_arguments(iter_video, {"threshold": threshold, "batch_size": batch_size, "every": every})
    limit = detector.resolve_threshold(threshold, batch_size)
    if track and detector.panoptic:
        raise SettingError("track: a panoptic model has no boxes to track")
    with VideoReader(video) as reader:
        yield from _results(detector, reader, limit, threshold, batch_size, every, track)


def _results(
    detector: Detector,
    reader: VideoReader,
    limit: Any,
    threshold: float | str | None,
    batch_size: int,
    every: int,
    track: bool,
) -> Generator[FrameResult, None, None]:
    """Yield the results of an open video; arguments as of `iter_video`."""
    tracker = Tracker(limit, rate=reader.rate / every) if track else None
    result: Prediction | None = None
    # the thread that reads the frames ends first: a generator that is running cannot be closed
    with closing(reader.frames()) as frames, Prefetcher() as prefetcher:
        read = prefetcher.prefetch(
            frames, max_items=batch_size * every, weight=_bytes, max_weight=_WAITING_BYTES, abandoned=False
        )
        while batch := list(islice(read, batch_size * every)):
            chosen = [frame for frame in batch if frame.number % every == 0]
            images = [frame.image for frame in chosen]
            lowered = threshold if tracker is None else tracker.low_threshold
            predicted = detector.stream(images, threshold=lowered, batch_size=batch_size)
            for frame in batch:
                new = frame.number % every == 0
                if new:
                    result = next(predicted)
                    if tracker is not None and isinstance(result, Detections):
                        result = tracker.update(result, frame.time)
                assert result is not None
                yield FrameResult(*frame, result, new)


def predict_video(
    detector: Detector,
    video: str | Path,
    out: str | Path,
    *,
    threshold: ScoreThreshold | None = None,
    batch_size: BatchSize = 4,
    every: Count = 1,
    track: bool = False,
    pictures: bool = True,
    sound: bool = True,
    scale: Scale | None = 1.0,
    on_frame: Callable[[FrameResult], None] = lambda frame: None,
) -> VideoReport:
    """Predict a video; write a video with what was found drawn, and its numbers as JSON lines.

    The frames keep their times, whether the rate is constant or not; a video that players turn is written upright. The
    files get their names when they are complete: whatever ends the call before, none is left half written.

    Args:
        detector: predicts the frames.
        video: a file that FFmpeg reads.
        out: the video to write, an .mp4 (H.264); beside it, under its name with .jsonl, a line for each predicted
            frame: `FrameResult.to_json`.
        threshold: as of `iter_video`.
        batch_size: as of `iter_video`.
        every: as of `iter_video`.
        track: as of `iter_video`.
        pictures: False: write the JSON lines alone.
        sound: copy the sound of the video.
        scale: factor to enlarge the frames by before drawing, as of `Detections.draw`; None: chosen by the first one.
        on_frame: is called with every frame when it is written.

    Returns:
        What was done.

    Raises:
        DetrkitError: as of `iter_video`, or something cannot be written; nothing is written then.
        ValueError: as of `iter_video`.
    """
    path = full_path(out)
    check_video_name(path)
    report = VideoReport(tracks=0 if track else None)
    seen: set[int] = set()
    results = iter_video(detector, video, threshold=threshold, batch_size=batch_size, every=every, track=track)
    with closing(results), ExitStack() as files:
        first = next(results)  # what cannot be read makes no file
        lines_part = files.enter_context(atomic_file(path.with_suffix(".jsonl")))
        video_part = files.enter_context(atomic_file(path)) if pictures else None
        lines = files.enter_context(lines_part.open("w", encoding="utf-8"))
        writer = None
        if video_part is not None:
            with VideoReader(video) as reader:
                rate, source = reader.rate, reader.path
            writer = files.enter_context(VideoWriter(video_part, rate=rate, sound=source if sound else None))
        frame: FrameResult | None = first
        while frame is not None:
            if writer is not None:
                drawn = frame.draw(scale)
                scale = drawn.width / frame.image.width if scale is None else scale
                writer.add(drawn, frame.time)
            if frame.predicted:
                lines.write(json.dumps(frame.to_json(), ensure_ascii=False) + "\n")
                report.objects.update(frame.result.names)
                report.predicted += 1
            if isinstance(frame.result, Detections) and frame.result.tracks is not None:
                seen.update(frame.result.tracks.tolist())
            report.frames, report.seconds = report.frames + 1, frame.time
            on_frame(frame)
            frame = next(results, None)
        report.note = "" if writer is None else writer.silent
    if track:
        report.tracks = len(seen - {-1})
    return report


def _bytes(frame: Frame) -> int:
    return 3 * frame.image.width * frame.image.height
