"""Measures what an explanation takes beside a prediction: peak memory and seconds, on one image of noise.

    python benchmarks/explaining.py --json docs/measurements/explaining.json
    python benchmarks/explaining.py --models detr-r50-dc5 --size 800x1199

Models have random weights, of seed 0, and a threshold that ten detections pass. "explain" is `detrkit.explain`, the
cross-attention of the first detection in all decoder layers and heads, the attention of the encoder at one pixel in all
its layers, and the boxes of all layers. "page" is `detrkit.explain` and `save_page`. "all weights" is what explaining
would cost if every layer handed over its whole attention weights, as hooks on the layers do.

Memory is the peak resident size of a process that does one of these, after a prediction, with freed pages given back to
the system (DETRKIT_RETAIN_FREED_MEMORY=0); "loaded" is the model alone. Seconds are measured apart, in one process by
turns. The processes are forked from one that has imported everything and computed nothing, so this needs Linux.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import detrkit
from detrkit.detector import Detector
from detrkit.explanation import Explanation
from detrkit.weights.checkpoint import published_spec
from side_by_side import Report, add_options, by_turns, peak_memory

MODELS = ("detr-r50", "detr-r50-dc5", "deformable-detr-r50")
DETECTIONS = 10
LOADED, PREDICT, EXPLAIN, PAGE, ALL = "loaded", "predict", "explain", "page", "all weights"
PARTS = (LOADED, PREDICT, EXPLAIN, PAGE, ALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="names (default: %(default)s)")
    parser.add_argument("--size", default="800x1199", help="HEIGHTxWIDTH in pixels (default %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add_options(parser, repeats=3)
    args = parser.parse_args()
    height, width = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        report = Report(f"Explanations beside predictions, an image of {args.size} pixels")
        for model in args.models:
            measure(report, model, (height, width), page, args)
        report.write(args.json)


def measure(report: Report, model: str, size: tuple[int, int], page: Path, args: argparse.Namespace) -> None:
    """Add a row for each part of one model."""
    memory = {part: in_a_process(lambda part=part: peak(turns(model, size, page)[part])) for part in args.parts}
    timed = [part for part in args.parts if part != LOADED]
    seconds = in_a_process(lambda: times(turns(model, size, page), timed, args.repeats))
    for part in args.parts:
        row: dict[str, Any] = {"": f"{model}, {part}", "peak memory, MiB": round(memory[part])}
        row["of predict's memory"] = ratio(memory, part)
        row["s"] = seconds.get(part, "")
        row["of predict's time"] = ratio(seconds, part)
        report.add(**row)


def peak(turn: Callable[[], Any]) -> float:
    """MiB that this process holds at most in a second turn."""
    os.environ["DETRKIT_RETAIN_FREED_MEMORY"] = "0"  # read by the first forward pass
    turn()
    return peak_memory(turn)


def times(every: dict[str, Callable[[], Any]], parts: list[str], repeats: int) -> dict[str, float]:
    """Median seconds of each part, by turns."""
    return by_turns({part: every[part] for part in parts}, repeats=repeats)


def in_a_process(work: Callable[[], Any]) -> Any:
    """The result of a function that runs in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def ratio(values: dict[str, float], part: str) -> float | str:
    """A value as a share of that of `predict`, where both were measured."""
    return values[part] / values[PREDICT] if part in values and PREDICT in values else ""


def turns(model: str, size: tuple[int, int], page: Path) -> dict[str, Callable[[], Any]]:
    """What is measured, by the name of the part."""
    torch.manual_seed(0)
    detector = Detector(detrkit.build_model(model), published_spec(model), device="cpu")
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    def threshold() -> float:
        if not found:
            found.append(float(detector.predict(image, threshold=0.0).scores.sort(descending=True).values[DETECTIONS]))
        return found[0]

    found: list[float] = []
    return {
        LOADED: lambda: None,
        PREDICT: lambda: detector.predict(image, threshold=threshold()),
        EXPLAIN: lambda: maps(detrkit.explain(detector, image, threshold=threshold())),
        PAGE: lambda: detrkit.explain(detector, image, threshold=threshold()).save_page(page),
        ALL: lambda: all_weights(detector, image),
    }


def maps(explanation: Explanation) -> None:
    """What a reader of the pictures looks at: one detection in all layers and heads, one pixel in all layers."""
    x, y = explanation.image.width / 2, explanation.image.height / 2
    for layer in range(explanation.decoder_layers):
        for head in ("mean", *range(explanation.heads)):
            explanation.cross_attention(0, layer, head)  # type: ignore[arg-type]
    for layer in range(explanation.encoder_layers):
        explanation.self_attention(x, y, layer)
    explanation.reference_boxes(0)
    explanation.layer_boxes(0)


def all_weights(detector: Detector, image: Image.Image) -> None:
    """Every attention weight of every layer, held at once."""
    outputs = detector.outputs([image], capture=True).outputs
    assert outputs.capture is not None
    kept = outputs.capture.encoder_attention, outputs.capture.decoder_attention, outputs.capture.query_attention
    assert all(len(layers) for layers in kept)


if __name__ == "__main__":
    main()
