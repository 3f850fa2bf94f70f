"""Frames of a video by PyAV, one at a time: upright, with the time at which each is shown."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from PIL import Image

from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import check_exists
from detrkit.utils.names import expanded_path
from detrkit.utils.visible import one_line

_DEFAULT_RATE = 25.0  # frames a second of a video that states none


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        number: from 0.
        time: seconds from the first frame.
        image: upright RGB.
    """

    number: int
    time: float
    image: Image.Image


class VideoReader:
    """A video file, opened; a context that closes it.

    Args:
        path: of the file.

    Attributes:
        rate: frames a second, on average.
        count: number of frames as the file states it; 0 where it does not.

    Raises:
        DetrkitError: PyAV is not installed, the file is missing, no video or damaged, or has no video stream.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = check_exists(expanded_path(path), "video")
        if not self.path.is_file():
            raise DetrkitError(f"{path}: a folder, no video")
        self._av = pyav()
        try:
            self._container = self._av.open(str(self.path))
        except (self._av.FFmpegError, ValueError, OSError) as error:
            raise DetrkitError(f"{path}: not a video, or damaged ({_reason(error)})") from error
        streams = self._container.streams.video
        if not streams:
            self._container.close()
            raise DetrkitError(f"{path}: has no video stream")
        self._stream = streams[0]
        self._stream.thread_type = "AUTO"
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate = float(rate) if rate else _DEFAULT_RATE
        self.count = int(self._stream.frames)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def frames(self) -> Generator[Frame, None, None]:
        """Yield the frames in the order in which they are shown.

        Raises:
            DetrkitError: the video is damaged, or has no frames; names the first frame that cannot be decoded.
        """
        index, first, last = 0, None, -1.0
        try:
            with closing(self._container.decode(self._stream)) as decoded:
                for frame in decoded:
                    shown = index / self.rate if frame.time is None else float(frame.time)
                    first = shown if first is None else first
                    # a broken clock goes on at the average rate: players need times that grow
                    time = shown - first if shown - first > last else last + 1 / self.rate
                    last = time
                    yield Frame(index, time, upright(frame.to_image(), frame.rotation))
                    index += 1
        except (self._av.FFmpegError, ValueError) as error:
            raise DetrkitError(f"{self.path}: damaged at frame {index} ({_reason(error)})") from error
        if not index:
            raise DetrkitError(f"{self.path}: has no frames")


def upright(image: Image.Image, rotation: int) -> Image.Image:
    """Turn a frame as players show it.

    Args:
        image: as decoded.
        rotation: of the file's display matrix in degrees, counterclockwise; rounded to quarters.
    """
    turns = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_270,
    }
    turn = turns.get(round(rotation / 90) * 90 % 360)
    return image if turn is None else image.transpose(turn)


def pyav() -> Any:
    """Import PyAV.

    Raises:
        DetrkitError: it is not installed.
    """
    try:
        import av
        import av.error
    except ImportError as error:
        raise DetrkitError("videos need PyAV: pip install 'detrkit[video]'") from error
    av.logging.set_level(av.logging.PANIC)  # what FFmpeg has to say comes as an exception
    return av


def _reason(error: BaseException) -> str:
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
