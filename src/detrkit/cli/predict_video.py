"""`detrkit predict` on videos."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from detrkit.cli.inference import compiled_lines
from detrkit.cli.predict_files import output_stems
from detrkit.cli.preflight import check_model, check_weights
from detrkit.utils.console import console, progress_bar
from detrkit.utils.errors import DetrkitError, UsageError
from detrkit.utils.existing import check_exists
from detrkit.utils.folders import claimed_files
from detrkit.utils.launch import launched
from detrkit.utils.lock import FolderLock
from detrkit.utils.messages import counted, names_and_more
from detrkit.utils.names import expanded_path, full_path
from detrkit.utils.ranges import Count
from detrkit.utils.signals import SignalWatch
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from detrkit.cli.predict import Predict
    from detrkit.detector import Detector

SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv"})
_MAX_CLASSES = 8  # in a line


@dataclass(frozen=True)
class Video:
    """Options of a prediction of videos."""

    every: Count = 1
    """Of a video, predict every Nth frame; the frames between show the last result."""
    track: bool = False
    """Of a video, follow the objects from frame to frame: each has a number and a color of its own (extra track)."""
    sound: bool = True
    """Copy the sound of a video; --no-sound: leave it out."""


def find_videos(command: Predict) -> list[Path]:
    """Return the videos among the inputs; none if they are images.

    Raises:
        DetrkitError: both videos and images, options that do not go together, or a video that is missing.
    """
    paths = [expanded_path(text) for text in command.inputs]
    videos = [path for path in paths if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    if not videos:
        if command.video != Video():
            raise UsageError("--every, --track and --no-sound are of videos: name one, such as street.mp4")
        return []
    if len(videos) < len(paths):
        other = next(path for path in paths if path not in videos)
        raise UsageError(f"{videos[0]} is a video, {other} is none: give videos and images in commands of their own")
    if command.sharding.shards is not None:
        raise UsageError("--shards is of images: leave it out for videos")
    if launched() is not None:
        raise UsageError("videos are predicted by one process: start the command without torchrun or srun")
    for video in videos:
        check_exists(video, "video")
    return list(dict.fromkeys(videos))


def predict_videos(command: Predict) -> int:
    """Predict the videos of a command, and print what was found; return the status."""
    videos = find_videos(command)
    check_weights(command.checkpoint)
    check_model(command.model)
    out = full_path(command.out)
    from detrkit.detector import load
    from detrkit.video.reading import VideoReader
    from detrkit.video.tracking import check_trackers

    if command.video.track:
        check_trackers()
    for video in videos:  # before the weights are loaded
        VideoReader(video).close()
    detector = load(command.checkpoint, name=command.model, device=command.device)
    if command.size is not None:
        detector = detector.resized(command.size)
    detector = command.inference.applied(detector)
    detector.resolve_threshold(command.threshold)
    failed = 0
    with SignalWatch(), FolderLock(out):
        for video, stem in output_stems(videos).items():
            try:
                _predict(command, detector, video, out / f"{stem}.mp4")
            except DetrkitError as error:
                if len(videos) == 1:
                    raise
                failed += 1
                console.print(one_line(f"error {error}"), soft_wrap=True, markup=False, highlight=False)
    return 1 if failed else 0


def _predict(command: Predict, detector: Detector, video: Path, path: Path) -> None:
    """Predict one video.

    Raises:
        DetrkitError: it cannot be read, or something cannot be written; nothing is written then.
    """
    from detrkit.video import predict_video
    from detrkit.video.reading import VideoReader

    with VideoReader(video) as reader:
        total = reader.count
    lines = path.with_suffix(".jsonl")
    if path.exists() and path.samefile(video):
        raise DetrkitError(f"{path} is the input and would be overwritten: choose another folder with --out")
    names = [lines.name, *([path.name] if command.pictures else [])]
    with claimed_files(path.parent, names), progress_bar(video.name, total) as progress:
        report = predict_video(
            detector,
            video,
            path,
            threshold=command.threshold,
            batch_size=command.batch_size,
            every=command.video.every,
            track=command.video.track,
            pictures=command.pictures,
            sound=command.video.sound,
            scale=command.scale,
            on_frame=lambda frame: progress.advance(),
        )
    noun = "segment" if detector.panoptic else "object"
    found = names_and_more([f"{n:,} {name}" for name, n in Counter(report.objects).most_common()], _MAX_CLASSES)
    lines_of = [
        f"{counted(report.frames, 'frame')}, {report.seconds:.1f} s; {counted(report.predicted, 'frame')} predicted",
        f"{counted(report.objects.total(), noun)}{': ' + found if found else ''}",
        "" if report.tracks is None else counted(report.tracks, "track"),
        report.note,
        *compiled_lines(detector),
        *(str(command.out / name) for name in reversed(names)),
    ]
    for line in filter(None, lines_of):
        console.print(one_line(line), soft_wrap=True, markup=False, highlight=False)
