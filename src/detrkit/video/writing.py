"""A video with drawn frames, at the times of its source and with the source's sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from detrkit.utils.errors import DetrkitError, WriteError
from detrkit.video.reading import pyav

TIME_BASE = Fraction(1, 90_000)  # seconds: of the frames' times, fine enough for 23.976 and 29.97 frames a second
_CODECS = ("libx264", "mpeg4")  # the first one that this PyAV has
_PRIMING_SECONDS = 0.5  # of sound before the first frame, by which decoders of AAC and MP3 begin
_QUALITY = "20"  # of x264: constant, lower is better


class VideoWriter:
    """An .mp4 that is written frame by frame (H.264); a context that finishes it.

    Args:
        path: of the file, which need not end in .mp4.
        rate: frames a second, for players; the frames keep their own times.
        sound: a video whose sound is copied, as it is; None for none.

    Attributes:
        silent: why there is no sound although the source has some; "" otherwise.

    Raises:
        DetrkitError: PyAV is not installed.
        WriteError: the file cannot be written.
    """

    def __init__(self, path: Path, *, rate: float, sound: Path | None = None) -> None:
        self._av = pyav()
        self._rate = Fraction(rate).limit_denominator(1001)
        self._stream: Any = None
        self._size = (0, 0)
        self._last = -1
        self.silent = ""
        self._path = path
        self._stack = ExitStack()
        try:
            self._out = self._av.open(str(path), "w", format="mp4")
        except (self._av.FFmpegError, OSError) as error:
            raise WriteError(f"cannot write {path}: {error}") from error
        self._packets: Iterator[Any] = iter(())
        self._waiting: Any = None
        self._sound: Any = None
        if sound is not None:
            self._open_sound(sound)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._stream is not None:
                self._mux(self._stream.encode())
                self._copy_sound(None)
        finally:
            self._stack.close()
            if kind is None and self._stream is not None:
                try:
                    self._out.close()
                except (self._av.FFmpegError, OSError) as failure:
                    raise WriteError(f"cannot write {self._path}: {failure}") from failure
            else:
                with suppress(Exception):  # of a file that is thrown away
                    self._out.close()

    def add(self, image: Image.Image, time: float) -> None:
        """Add a frame.

        Args:
            image: RGB, all of one size; another size is scaled to that of the first one.
            time: seconds from the first frame, greater than that of the frame before.

        Raises:
            WriteError: it cannot be written.
        """
        if self._stream is None:
            self._open_stream(image)
        if image.size != self._size:
            image = image.resize(self._size)
        frame = self._av.VideoFrame.from_ndarray(_even(np.asarray(image)), format="rgb24")
        frame.pts = self._last = max(self._last + 1, round(time / TIME_BASE))
        frame.time_base = TIME_BASE
        self._mux(self._stream.encode(frame))
        self._copy_sound(time)

    def _open_stream(self, image: Image.Image) -> None:
        codec = next(name for name in _CODECS if name in self._av.codecs_available)
        self._size = image.size
        self._stream = self._out.add_stream(codec, rate=self._rate)
        self._stream.width, self._stream.height = (side + side % 2 for side in image.size)
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = TIME_BASE
        if codec == "libx264":
            self._stream.options = {"crf": _QUALITY, "preset": "veryfast"}
        else:
            self._stream.bit_rate = int(0.2 * image.width * image.height * float(self._rate))

    def _mux(self, packets: Any) -> None:
        try:
            self._out.mux(packets)
        except (self._av.FFmpegError, OSError) as error:
            raise WriteError(f"cannot write {self._path}: {error}") from error

    def _open_sound(self, source: Path) -> None:
        """Open the source once more and make a stream for its sound, if an .mp4 can hold it."""
        container = self._stack.enter_context(self._av.open(str(source)))
        if not container.streams.audio:
            return
        stream = container.streams.audio[0]
        name = stream.codec_context.name if stream.codec_context is not None else "unknown"
        try:
            if self._av.Codec(name, "r").name not in _SOUND:
                raise ValueError("not a codec of .mp4")
            self._sound = self._out.add_stream_from_template(stream)
        except (self._av.FFmpegError, ValueError) as error:
            self.silent = f"its sound ({name}) is left out: {error}"
            return
        start = container.streams.video[0].start_time or 0
        self._offset = float(start * container.streams.video[0].time_base)
        self._packets = iter(container.demux(stream))

    def _copy_sound(self, until: float | None) -> None:
        """Copy the sound up to a time in seconds; None: all that is left."""
        while self._sound is not None:
            packet = next(self._packets, None) if self._waiting is None else self._waiting
            self._waiting = None
            if packet is None:
                self._sound = None
                return
            if packet.dts is None:
                continue
            if until is not None and float(packet.dts * packet.time_base) - self._offset > until:
                self._waiting = packet
                return
            shift = round(self._offset / packet.time_base)
            if (packet.dts - shift) * packet.time_base < -_PRIMING_SECONDS:  # of a cut before the first frame
                continue
            packet.dts, packet.pts = packet.dts - shift, (packet.dts if packet.pts is None else packet.pts) - shift
            packet.stream = self._sound
            self._mux(packet)


_SOUND = frozenset({"aac", "mp3", "mp3float", "ac3", "eac3", "alac", "opus", "libopus", "flac"})


def _even(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) pixels with even sides, which the video's colors need; the last row or column is repeated."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    return np.ascontiguousarray(pixels)


def check_video_name(path: Path) -> None:
    """Check the name of a video to write.

    Raises:
        DetrkitError: it does not end in .mp4.
    """
    if path.suffix.lower() != ".mp4":
        raise DetrkitError(f"{path}: videos are written as .mp4, give a name that ends so")
