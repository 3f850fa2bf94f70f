"""Finds objects in images, draws them, and works with the numbers.

python examples/predict.py runs/first photo.jpg another.png        a run, a checkpoint, or the name of a published model
"""

from __future__ import annotations

import argparse
from pathlib import Path

import detrkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a run directory, a weights file, or a model name such as detr-r50")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--threshold", type=float, default=0.5, help="least score, 0 to 1")
    parser.add_argument("--out", type=Path, default=Path("found"), help="folder of the drawn images")
    args = parser.parse_args()

    detector = detrkit.load(args.checkpoint)
    args.out.mkdir(parents=True, exist_ok=True)
    # `stream` holds one batch in memory at a time, however many images there are
    for path, found in zip(args.images, detector.stream(args.images, threshold=args.threshold), strict=True):
        for name, score, box in zip(found.names, found.scores.tolist(), found.boxes.tolist(), strict=True):
            x0, y0, x1, y1 = box  # pixels of the image as one sees it
            print(f"{path}: {name} {score:.2f} at ({x0:.0f}, {y0:.0f}) to ({x1:.0f}, {y1:.0f})")
        found.draw().save(args.out / f"{Path(path).stem}.png")


if __name__ == "__main__":
    main()
