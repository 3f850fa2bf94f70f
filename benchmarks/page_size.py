"""Measures how large the page of an explanation is, how long it takes to write, and what it leaves out.

    python benchmarks/page_size.py --json docs/measurements/page-size.json

One image of noise that was enlarged eight times, so that it takes about as many bytes as a photograph; models with
random weights of seed 0, also where an untrained model has zeros and all its points would be alike; a threshold that 20
detections pass. Seconds are those of `save_page` alone, after
`detrkit.explain`.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import detrkit
from detrkit.detector import Detector
from detrkit.weights.checkpoint import published_spec
from side_by_side import Report, add_options, by_turns

MODELS = ("detr-r50", "detr-r50-dc5", "deformable-detr-r50", "deformable-detr-r50-two-stage")
DETECTIONS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names (default: %(default)s)")
    parser.add_argument("--size", default="800x1199", help="HEIGHTxWIDTH in pixels (default %(default)s)")
    add_options(parser, repeats=3)
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    report = Report(f"The page of an explanation, an image of {args.size} pixels, {DETECTIONS} detections")
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            measure(report, model, (height, width), Path(folder) / "page.html", args.repeats)
    report.write(args.json)


def measure(report: Report, model: str, size: tuple[int, int], page: Path, repeats: int) -> None:
    """Add the row of one model."""
    torch.manual_seed(0)
    built = detrkit.build_model(model)
    for name, values in built.named_parameters():
        if name.endswith(("sampling_offsets.weight", "attention_weights.weight")):
            torch.nn.init.xavier_uniform_(values)
    detector = Detector(built, published_spec(model), device="cpu")
    noise = np.random.default_rng(1).integers(0, 256, (size[0] // 8, size[1] // 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    scores = detector.predict(image, threshold=0.0).scores.sort(descending=True).values
    explanation = detrkit.explain(detector, image, threshold=float(scores[DETECTIONS]))
    seconds = by_turns({"page": lambda: explanation.save_page(page)}, repeats=repeats)["page"]
    left_out = data_of(page.read_text(encoding="utf-8"))["leftOut"]
    report.add(
        **{
            "": model,
            "file, MB": f"{page.stat().st_size / 1e6:.2f}",
            "s": seconds,
            "detections": len(explanation),
            "left out": "; ".join(left_out),
        }
    )


def data_of(text: str) -> dict:
    """The values that a page's script reads."""
    match = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


if __name__ == "__main__":
    main()
