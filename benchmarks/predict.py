"""Times `detrkit predict` beside another version of it, by turns: images a second, and the peak of its memory.

    python benchmarks/predict.py IMAGES --before OTHER/src                             a folder of images
    python benchmarks/predict.py IMAGES --before OTHER/src --repeats 1 --images 3000   memory of many images

Models have random weights: a tiny DETR, and one of the size of the quickstart's. The threshold is such that half of
the images have more than five objects. Each run is a process of its own, which first predicts on a few images; loading
is not timed. Ratios are the medians of those of each turn. `--images` repeats the folder's images, as links, until
there are so many. On a machine with other work, OMP_NUM_THREADS=1 keeps torch's threads from waiting for each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from detrkit.config import load_config
from detrkit.detector import Detector, image_files
from detrkit.structures.classes import ClassList
from detrkit.weights.checkpoint import ModelSpec, save_model
from side_by_side import Report, add_options

SHAPES = ClassList(("circle", "square", "triangle", "star", "ring"), (1, 2, 3, 4, 5))
TINY = {
    "backbone": "resnet10",
    "backbone_width": 8,
    "backbone_norm": "group",
    "hidden_dim": 32,
    "nheads": 4,
    "dim_feedforward": 32,
    "enc_layers": 1,
    "dec_layers": 1,
    "num_queries": 20,
}
OBJECTS = 5  # in an image
# in a process of one version: warms up, and says what the rest takes
RUN = """
import json, resource, sys, time
from pathlib import Path
from detrkit.cli.predict import Predict
weights, images, out, threshold, result, *more = sys.argv[1:]
files = sorted(str(file) for file in Path(images).iterdir())
options = {"device": "cpu", "threshold": float(threshold), **json.loads(more[0])}
Predict(weights, tuple(files[:8]), out=Path(out) / "warm", **options).run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
began = time.perf_counter()
Predict(weights, tuple(files), out=Path(out) / "all", **options).run()
seconds = time.perf_counter() - began
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
values = {"rate": len(files) / seconds, "peak": peak / 1024, "growth": (peak - before) / 1024}
Path(result).write_text(json.dumps(values))
"""


def specs() -> dict[str, ModelSpec]:
    quickstart = load_config("quickstart")
    options = {**quickstart.model.overrides(), "backbone_norm": "group"}
    return {
        "tiny": ModelSpec("detr-r50", TINY, num_classes=5, classes=SHAPES, size=104, max_size=120),
        "quickstart": ModelSpec(quickstart.model.name, options, num_classes=5, classes=SHAPES, size=104, max_size=120),
    }


def threshold_of(detector: Detector, files: list[Path]) -> float:
    """The score above which there are `OBJECTS` in an image, in the middle of some images."""
    results = detector.predict(files, threshold=0.0)
    return statistics.median(float(found.scores[OBJECTS]) for found in results)


def measured(source: Path, weights: Path, images: Path, threshold: float, **options: object) -> dict[str, float]:
    """One run of the version whose package is below `source`."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        words = [str(weights), str(images), folder, str(threshold), str(result), json.dumps(options)]
        environment = {**os.environ, "PYTHONPATH": str(source)}
        subprocess.run([sys.executable, "-c", RUN, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
        values: dict[str, float] = json.loads(result.read_text())
        return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, required=True, help="the other version's src/")
    parser.add_argument("--images", type=int, help="repeat those of the folder until there are so many")
    parser.add_argument("--models", nargs="+", default=["tiny", "quickstart"])
    add_options(parser, repeats=5)
    args = parser.parse_args()
    now = Path(__file__).resolve().parents[1] / "src"
    ways = {"before": (args.before, {}), "now": (now, {}), "now, --no-pictures": (now, {"pictures": False})}
    report = Report("detrkit predict, images a second and peak memory")
    with tempfile.TemporaryDirectory() as folder:
        files = image_files(args.folder)
        images = Path(folder) / "images"
        images.mkdir()
        for number in range(args.images or len(files)):
            file = files[number % len(files)].resolve()
            (images / f"{number:06d}{file.suffix}").symlink_to(file)
        for name in args.models:
            spec = specs()[name]
            torch.manual_seed(0)
            model = spec.build()
            weights = save_model(Path(folder) / f"{name}.safetensors", model, spec)
            threshold = threshold_of(Detector(model, spec, device="cpu"), files[:16])
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(args.repeats):
                for way, (source, options) in ways.items():
                    runs[way].append(measured(source, weights, images, threshold, **options))
            for way, results in runs.items():
                ratios = [one["rate"] / first["rate"] for one, first in zip(results, runs["before"], strict=True)]
                rate, peak, growth = (statistics.median(r[key] for r in results) for key in ("rate", "peak", "growth"))
                report.add(
                    model=name,
                    version=way,
                    images=args.images or len(files),
                    **{
                        "images/s": rate,
                        "times before": statistics.median(ratios),
                        "peak, MiB": round(peak),
                        "of it after 8 images, MiB": round(growth),
                    },
                )
    report.write(args.json)


if __name__ == "__main__":
    main()
