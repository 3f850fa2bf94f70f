"""Draws what the model attended to, for the best objects of an image, and prints how much of it lies in their boxes.

python examples/attention.py detr-r50 street.jpg --out attention               published weights, downloaded once
python examples/attention.py runs/first street.jpg --objects 3 --layer -1      your weights

DETR attends to all cells of one map: a heat map. Deformable DETR samples points on maps of several sizes: marks, whose
color and size are their weight. `detrkit explain` draws all of it, for many images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import detrkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model name, a checkpoint, or a run directory")
    parser.add_argument("image", help="an image file")
    parser.add_argument("--objects", type=int, default=5, help="how many objects to draw, best score first")
    parser.add_argument("--layer", type=int, default=-1, help="decoder layer, counted from 0; -1 is the last")
    parser.add_argument("--threshold", type=float, default=0.0, help="score that an object must exceed, 0 to 1")
    parser.add_argument("--out", default="attention", help="folder for the images")
    args = parser.parse_args()

    explanation = detrkit.explain(detrkit.load(args.model), args.image, threshold=args.threshold)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = explanation.image_size
    for i, name in enumerate(explanation.detections.names[: args.objects]):
        path = folder / f"object-{i:02d}.png"
        explanation.draw(i, layer=args.layer).save(path)
        x0, y0, x1, y1 = explanation.detections.boxes[i].tolist()
        area = (min(x1, width) - max(x0, 0)) * (min(y1, height) - max(y0, 0)) / (width * height)  # boxes reach outside
        inside = explanation.attention_inside(i, args.layer)
        score, query = float(explanation.detections.scores[i]), int(explanation.queries[i])
        print(f"{path}: {name} {score:.2f}, query {query}, {inside:.1%} of the attention in {area:.1%} of the image")


if __name__ == "__main__":
    main()
