"""Times panoptic quality against panopticapi's, from files and from maps in memory.

    python benchmarks/panoptic.py --panopticapi PATH --ways files --json docs/measurements/panoptic-files.json

Both evaluate the same generated set: distinct maps of 640 x 480 pixels and some 11 segments, repeated under as many
names as `--images` asks for. Three ways:

- files: two jsons and two folders of PNGs, to the numbers;
- from a model: maps as a model gives them and the ground truth's PNGs. panopticapi knows files alone, so the original
  code writes a PNG for each map first; we write none;
- matching: both maps are in memory; panopticapi's loop over images gets them in place of what it reads.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from detrkit.data.panoptic import write_id_map
from detrkit.evaluation import PanopticEvaluator, PanopticGroundTruth, PanopticMetrics, evaluate_panoptic
from detrkit.structures.panoptic import PanopticResult
from side_by_side import Report, add_options, by_turns, checkout, peak_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from helpers.panoptic_sets import perturbed, random_categories

Map = tuple[np.ndarray, list[dict[str, Any]]]  # (H, W) ids and segments_info
WIDTH, HEIGHT = 640, 480


def scene(rng: np.random.Generator, categories: list[dict[str, Any]], segments: int = 12) -> Map:
    """A map whose segments have outlines as wavy as COCO's: each pixel goes to one of some random centres.

    One in ten is void; those of one class of stuff are one segment; one in 12 things is crowd.
    """
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    for waves, scale in ((rows, 20), (columns, 20), (rows, 4), (columns, 4)):
        other = columns if waves is rows else rows
        waves += scale * np.sin(other / rng.uniform(2, 5) / scale + rng.uniform(0, 6)).astype(np.float32)
    centres = rng.uniform((0, 0), (HEIGHT, WIDTH), (segments, 2))
    sizes = rng.uniform(0.3, 1, segments)  # near centres of large segments count as nearer
    distances = [((rows - y) ** 2 + (columns - x) ** 2) / s for (y, x), s in zip(centres, sizes, strict=True)]
    nearest = np.argmin(distances, 0)
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    info: dict[int, dict[str, Any]] = {}
    for k in range(segments):
        if rng.random() < 0.1:
            continue
        category = categories[int(rng.integers(len(categories)))]
        key = k if category["isthing"] else -category["id"]
        crowd = int(category["isthing"] and rng.random() < 1 / 12)
        entry = info.setdefault(
            key, {"id": int(rng.integers(1, 2**24)), "category_id": category["id"], "iscrowd": crowd}
        )
        ids[nearest == k] = entry["id"]
    present, areas = np.unique(ids, return_counts=True)
    area = dict(zip(present.tolist(), areas.tolist(), strict=True))
    # panopticapi takes the ground truth's areas from the json
    return ids, [entry | {"area": area[entry["id"]]} for entry in info.values() if entry["id"] in area]


class PanopticSet:
    """Ground truth and results as files in a folder, and their maps.

    Args:
        folder: gets truth.json, found.json and their folders of PNGs.
        images: how many there are.
        distinct: how many of them differ.
        seed: of everything.
    """

    def __init__(self, folder: Path, images: int, distinct: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.folder = folder
        self.images = images
        categories = random_categories(rng, 80, 53)
        truths = [scene(rng, categories) for _ in range(min(distinct, images))]
        found = [perturbed(rng, truth, categories) for truth in truths]
        self.truth = self._write("truth", truths) | {"categories": categories}
        self.found = self._write("found", found)
        self.truth_maps = {image: truths[(image - 1) % len(truths)][0] for image in range(1, images + 1)}
        self.found_maps = {image: found[(image - 1) % len(found)][0] for image in range(1, images + 1)}
        for name, content in (("truth", self.truth), ("found", self.found)):
            (folder / f"{name}.json").write_text(json.dumps(content))

    def _write(self, name: str, maps: list[Map]) -> dict[str, Any]:
        """Writes the PNGs, the repeated ones as copies, and gives the json."""
        (self.folder / name).mkdir()
        for k, (ids, _) in enumerate(maps):
            write_id_map(self.folder / name / f"{k + 1:06}.png", ids)
        annotations = []
        for image in range(1, self.images + 1):
            k = (image - 1) % len(maps)
            file = f"{image:06}.png"
            if image > len(maps):
                (self.folder / name / file).write_bytes((self.folder / name / f"{k + 1:06}.png").read_bytes())
            annotations.append({"image_id": image, "file_name": file, "segments_info": maps[k][1]})
        return {"images": [], "annotations": annotations}


def panopticapi(path: Path) -> ModuleType:
    """The module of a checkout."""
    sys.path.insert(0, str(path))
    import panopticapi.evaluation

    return panopticapi.evaluation


def quiet(call: Callable[[], Any]) -> Any:
    """The result of what prints its progress."""
    with contextlib.redirect_stdout(io.StringIO()):
        return call()


def single_core(api: ModuleType, data: PanopticSet, folder: str = "found") -> Any:
    """The counts of panopticapi in one process, from the jsons on."""
    truth, found = (json.loads((data.folder / f"{name}.json").read_text()) for name in ("truth", "found"))
    pairs = list(zip(truth["annotations"], found["annotations"], strict=True))
    folders = str(data.folder / "truth"), str(data.folder / folder)
    return quiet(lambda: api.pq_compute_single_core(0, pairs, *folders, {c["id"]: c for c in truth["categories"]}))


def many_cores(api: ModuleType, data: PanopticSet, folder: str = "found") -> Any:
    """The results of panopticapi, a process a core."""
    truth, found = (str(data.folder / f"{name}.json") for name in ("truth", "found"))
    return quiet(lambda: api.pq_compute(truth, found, str(data.folder / "truth"), str(data.folder / folder)))


def writing(api: ModuleType, data: PanopticSet) -> Any:
    """What the original DETR does with its maps: a PNG each, in memory, then as a file, then panopticapi."""
    from panopticapi.utils import id2rgb

    folder = data.folder / "written"
    folder.mkdir(exist_ok=True)
    for image, ids in data.found_maps.items():
        buffer = io.BytesIO()
        Image.fromarray(id2rgb(ids).astype(np.uint8)).save(buffer, format="PNG")
        (folder / f"{image:06}.png").write_bytes(buffer.getvalue())
    return many_cores(api, data, "written")


def matching(api: ModuleType, data: PanopticSet) -> Any:
    """The counts of panopticapi from maps in memory: its loop gets them for pictures, and its rgb2id leaves them."""

    def opened(path: str) -> np.ndarray:
        maps = data.truth_maps if Path(path).parent.name == "truth" else data.found_maps
        return maps[int(Path(path).stem)]

    kept = api.Image, api.rgb2id
    api.Image, api.rgb2id = SimpleNamespace(open=opened), lambda ids: ids
    try:
        return single_core(api, data)
    finally:
        api.Image, api.rgb2id = kept


def in_memory(data: PanopticSet, truth: PanopticGroundTruth, results: dict[int, PanopticResult]) -> PanopticMetrics:
    """Ours, an image after the other, as `detrkit eval` adds them."""
    evaluator = PanopticEvaluator(truth)
    for image in data.found_maps:
        evaluator.add(image, results[image])
    return evaluator.compute()


def difference(metrics: PanopticMetrics, theirs: dict[str, Any], data: PanopticSet) -> float:
    """The largest one of all numbers, with those of the classes."""
    ours = {name: metrics[name] for name in ("PQ", "SQ", "RQ")}
    found = [abs(ours[name] - theirs["All"][name.lower()]) for name in ours]
    for group, suffix in (("Things", "_th"), ("Stuff", "_st")):
        found += [abs(metrics[name + suffix] - theirs[group][name.lower()]) for name in ours]
    for category in data.truth["categories"]:
        row, other = metrics.per_class[category["name"]], theirs["per_class"][category["id"]]
        found += [abs(row[name] - other[name.lower()]) for name in ours if row["PQ"] >= 0]
    return max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    checkout(parser, "--panopticapi", "panopticapi")
    parser.add_argument("--images", type=int, default=5000, help="number of images (default %(default)s)")
    parser.add_argument("--distinct", type=int, default=200, help="of them differ (default %(default)s)")
    parser.add_argument(
        "--ways", nargs="+", choices=["files", "model", "matching"], default=["files", "model", "matching"]
    )
    parser.add_argument("--seed", type=int, default=0)
    add_options(parser, repeats=3)
    args = parser.parse_args()
    if args.panopticapi is None:
        parser.error("give --panopticapi PATH, a checkout of it")

    api = panopticapi(args.panopticapi)
    report = Report(f"Panoptic quality of {args.images:,} images")
    with tempfile.TemporaryDirectory() as temporary:
        data = PanopticSet(Path(temporary), args.images, args.distinct, args.seed)
        files = data.folder / "truth.json", None, data.folder / "found.json"
        truth = PanopticGroundTruth.load(data.truth, data.folder / "truth")
        loaded = PanopticGroundTruth.load(data.truth, data.truth_maps.__getitem__)
        kinds = {
            k: PanopticResult.from_coco(data.found_maps[k], a["segments_info"], truth.classes)
            for k, a in enumerate(data.found["annotations"][: args.distinct], 1)
        }
        results = {image: kinds[(image - 1) % len(kinds) + 1] for image in data.found_maps}
        ours = {
            "files": lambda: evaluate_panoptic(*files),
            "model": lambda: in_memory(data, truth, results),
            "matching": lambda: in_memory(data, loaded, results),
        }
        peers = {
            "files": {"one process": lambda: single_core(api, data), "all cores": lambda: many_cores(api, data)},
            "model": {"all cores, through PNGs": lambda: writing(api, data)},
            "matching": {"one process": lambda: matching(api, data)},
        }
        expected = many_cores(api, data)
        for way in args.ways:
            apart = difference(ours[way](), expected, data)
            assert apart < 1e-9, f"{way}: the numbers differ by {apart}"
            times = by_turns({"detrkit": ours[way], **peers[way]}, repeats=args.repeats, warmup=0)
            for peer in peers[way]:
                row = {"way": way, "panopticapi": peer, "panopticapi, s": times[peer], "detrkit, s": times["detrkit"]}
                report.add(**row, **{"times panopticapi": times[peer] / times["detrkit"], "difference": f"{apart:.0e}"})
        if "files" in args.ways:
            grown = peak_memory(ours["files"]) - peak_memory(lambda: None)
            print(f"\nfrom files, detrkit needs {grown:.0f} MiB at most")
    report.write(args.json)


if __name__ == "__main__":
    main()
