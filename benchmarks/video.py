"""Measures frames a second of a generated video: read, predicted, drawn, written, with tracks and without.

    python benchmarks/video.py                   the tour's DETR (examples/tour), 100 frames of 640 x 360 pixels

The video shows shapes that move over a ground with texture. Decoding alone, and prediction without a video, are rows of
their own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av

import detrkit
from detrkit.data.tools.shapes import ShapesOptions, shapes_image
from detrkit.video.reading import VideoReader
from side_by_side import Report

WIDTH, HEIGHT, RATE = 640, 360, 25
TOUR = Path(__file__).parents[1] / "examples" / "tour" / "detr.safetensors"


def write_video(path: Path, frames: int) -> None:
    """A video of two generated images that slide over a third one."""
    ground, *moving = (
        shapes_image(3, "test", index, ShapesOptions(sides=(side, side), object_size=(0.3, 0.5))).pixels
        for index, side in enumerate((WIDTH, 160, 160))
    )
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for number in range(frames):
            pixels = ground[:HEIGHT].copy()
            for k, patch in enumerate(moving):
                x = (number * (3 + k)) % (WIDTH - 160)
                pixels[20 + 170 * k : 180 + 170 * k, x : x + 160] = patch
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100, help="of the video (default %(default)s)")
    parser.add_argument("--out", type=Path, help="folder in which the last video stays")
    parser.add_argument("--json", type=Path, help="also write the rows there, for docs/video.md")
    options = parser.parse_args()
    detector = detrkit.load(TOUR, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        clip, out = Path(folder) / "clip.mp4", (options.out or Path(folder)) / "found.mp4"
        write_video(clip, options.frames)
        report = Report(f"{options.frames} frames of {WIDTH} x {HEIGHT} pixels, the tour's DETR")

        def decode() -> None:
            with VideoReader(clip) as reader:
                for _ in reader.frames():
                    pass

        ways = {
            "decoded alone": decode,
            "predicted, JSON alone": lambda: detrkit.predict_video(detector, clip, out, pictures=False),
            "predicted, drawn, written": lambda: detrkit.predict_video(detector, clip, out),
            "every 5th predicted": lambda: detrkit.predict_video(detector, clip, out, every=5),
            "tracked": lambda: detrkit.predict_video(detector, clip, out, track=True),
        }
        for name, call in ways.items():
            began = time.perf_counter()
            call()
            report.add(way=name, **{"frames/s": options.frames / (time.perf_counter() - began)})
    report.write(options.json)


if __name__ == "__main__":
    main()
