"""Small videos by PyAV: moving rectangles that `helpers.seeing` finds, with sound, turned or of a variable rate."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from helpers.seeing import picture

SIZE = (96, 64)  # (width, height) in pixels


def places(number: int) -> list[tuple[int, int, int, int]]:
    """Boxes of the two objects in frame `number`: one goes to the right, one comes back."""
    return [(4 + 3 * number, 8, 24 + 3 * number, 28), (70 - 3 * number, 36, 90 - 3 * number, 56)]


def write_video(
    path: Path,
    *,
    frames: int = 12,
    rate: int = 10,
    times: Sequence[float] | None = None,
    sound: bool = False,
    size: tuple[int, int] = SIZE,
    objects: bool = True,
) -> Path:
    """Write a video of H.264 at high quality; with `times` in seconds, of a variable rate."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv444p"
        stream.options = {"crf": "1"}
        stream.codec_context.time_base = Fraction(1, 1000)
        audio = out.add_stream("aac", rate=8000) if sound else None
        for number in range(frames):
            pixels = np.asarray(picture(*size, places(number) if objects else []))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = round(1000 * (number / rate if times is None else times[number]))
            frame.time_base = Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio is not None:
            wave = np.sin(np.arange(int(8000 * frames / rate)) / 5).astype(np.float32)[None]
            for start in range(0, wave.shape[1], 1024):
                part = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, start : start + 1024]), "fltp", "mono")
                part.sample_rate, part.pts = 8000, start
                out.mux(audio.encode(part))
            out.mux(audio.encode())
    return path


def turn(path: Path) -> Path:
    """Mark the video of an .mp4 as one that players turn by a quarter clockwise, as phones do."""
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    fixed = lambda value: int(value * 65536).to_bytes(4, "big", signed=True)  # noqa: E731
    data[matrix : matrix + 20] = b"".join(map(fixed, (0, 1, 0, -1, 0)))
    path.write_bytes(bytes(data))
    return path


def decoded(path: Path) -> list[tuple[float, np.ndarray]]:
    """Time in seconds and (H, W, 3) pixels of every frame, as stored."""
    import av

    with av.open(str(path)) as video:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
