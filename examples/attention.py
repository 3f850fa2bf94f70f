"""Draws where the decoder looks for the best objects of an image: a skeleton for explanations of your own.

python examples/attention.py detr-r50 street.jpg --out attention               published weights, downloaded once
python examples/attention.py runs/first street.jpg --objects 3 --layer -1      your weights

DETR attends to all cells of one map: a heat map. Deformable DETR samples points on maps of several sizes: dots, red
where the weight is large.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

import detrkit
from detrkit.ops.boxes import cxcywh_to_xyxy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model name, a checkpoint, or a run directory")
    parser.add_argument("image", help="an image file")
    parser.add_argument("--objects", type=int, default=5, help="how many queries to draw, best score first")
    parser.add_argument("--layer", type=int, default=-1, help="decoder layer, counted from 0; -1 is the last")
    parser.add_argument("--out", default="attention", help="folder for the images")
    args = parser.parse_args()

    # One forward pass that keeps what it attends to: logits (1, Q, C), boxes (1, Q, 4) cxcywh in [0, 1], and a capture.
    detector = detrkit.load(args.model)
    outputs, _, (image,) = detector.outputs([args.image], capture=True)
    capture = outputs.capture
    softmax = detector.postprocessor.activation == "softmax"
    scores = outputs.logits[0].softmax(-1)[:, :-1] if softmax else outputs.logits[0].sigmoid()
    best, labels = scores.max(-1)  # (Q,) each

    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    scale = torch.tensor([image.width, image.height] * 2)
    for query in best.argsort(descending=True)[: args.objects].tolist():
        weights = capture.decoder_attention[args.layer][0]
        if capture.decoder_locations:  # weights (Q, H, L, P), locations (Q, H, L, P, 2) xy in [0, 1] of the padded map
            drawn = draw_points(image, capture.decoder_locations[args.layer][0, query], weights[query])
        else:  # weights (H, Q, S), S = h * w cells of the map
            drawn = draw_heat(image, weights[:, query].mean(0).unflatten(0, capture.feature_shapes[0]))
        box = (cxcywh_to_xyxy(outputs.boxes[0, query].cpu()) * scale).tolist()
        ImageDraw.Draw(drawn).rectangle(box, outline="white", width=2)
        label = int(labels[query])
        name = detector.classes.names[label] if detector.classes is not None else f"label {label}"
        path = folder / f"query-{query:03d}.png"
        drawn.save(path)
        print(f"{path}: {name} {float(best[query]):.2f}, box {' '.join(f'{side:.0f}' for side in box)}")


def draw_heat(image: Image.Image, weights: torch.Tensor) -> Image.Image:
    """Lay (h, w) weights over an image; of one image alone the map has no padding."""
    heat = Image.fromarray((255 * weights / weights.max()).byte().cpu().numpy()).resize(image.size, Image.BILINEAR)
    red = Image.merge("RGB", (heat, Image.new("L", image.size), Image.new("L", image.size)))
    return Image.blend(image, red, 0.6)


def draw_points(image: Image.Image, locations: torch.Tensor, weights: torch.Tensor) -> Image.Image:
    """Draw sampled points on an image, the heaviest last.

    Args:
        image: the image.
        locations: (H, L, P, 2) xy in [0, 1]; points may lie outside.
        weights: (H, L, P).
    """
    drawn = Image.blend(image, Image.new("RGB", image.size), 0.4)
    canvas = ImageDraw.Draw(drawn)
    points, values = locations.flatten(0, 2).cpu().numpy(), weights.flatten().cpu().numpy()
    for k in np.argsort(values):
        x, y = points[k] * image.size
        shade = int(255 * values[k] / values.max())
        canvas.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(255, 255 - shade, 255 - shade))
    return drawn


if __name__ == "__main__":
    main()
