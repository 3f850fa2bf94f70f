"""`detrkit predict`."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from detrkit.console import Terminal
from detrkit.errors import DetrkitError
from detrkit.utils.atomic import make_folder, write_atomic
from detrkit.utils.ranges import BatchSize, InputSize, Share
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from PIL import Image

    from detrkit.results import Detections, PanopticResult

MAPS = "panoptic"  # the folder of the id maps in that of the pictures


@dataclass(frozen=True)
class Predict:
    """Find the objects in pictures; write them drawn, and as JSON.

    Every picture is written under its own name into OUT, with boxes, names and scores; predictions.json lists for every
    file the label, name, score and box (x0, y0, x1, y1 in pixels of the picture), of models with masks also the
    segmentation (COCO's RLE). A panoptic model gives every pixel to a segment: these are drawn, predictions.json lists
    the id, label, name, score, area in pixels and kind of each, and OUT/panoptic has the ids of the pixels as PNGs
    (id = R + 256 G + 65536 B, 0 is void). A picture that cannot be read is reported and left out; the exit status is
    then 1.
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Weights: a run directory, a .safetensors or official .pth file, or a model name such as detr-r50 (published)."""
    inputs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE|FOLDER|GLOB")]
    """Pictures: files, folders (searched one level deep) and quoted patterns such as 'photos/**/*.jpg'."""
    out: Path = Path("predictions")
    """Folder to write into; it is made."""
    threshold: Share | None = None
    """Keep what has a greater score, 0 to 1; by default 0.5, of panoptic models 0.85 as published (Deformable DETR,
    whose scores are lower: 0.4). The DETR notebooks use 0.7 for objects."""
    size: InputSize | None = None
    """Short side in pixels to resize pictures to; by default the checkpoint's (800 for published weights)."""
    batch_size: BatchSize = 4
    """Pictures in one forward pass. Results do not depend on it."""
    device: str | None = None
    """Such as cpu, cuda or cuda:1; by default an accelerator if there is one."""
    model: str | None = None
    """Model name, for official .pth files that do not say what they are of."""

    def run(self) -> int:
        """Predicts, draws, writes and prints; 1 if a picture could not be read."""
        from PIL import Image

        from detrkit.detector import load
        from detrkit.results import PanopticResult

        files = find_images(self.inputs)
        names, maps = output_names(files), output_names(files, suffix=".png")
        detector = load(self.checkpoint, name=self.model, device=self.device)
        if self.size is not None:
            detector = detector.resized(self.size)

        console, errors = Terminal(), Terminal(stderr=True)
        found: dict[str, list[dict[str, Any]]] = {}
        written: dict[str, Any] = {}
        failed: list[Path] = []
        make_folder(self.out / MAPS if detector.panoptic else self.out)
        with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
            bar = progress.add_task("predicting", total=len(files))
            readable = _Readable(files, failed, errors)
            for result in detector.stream(readable, threshold=self.threshold, batch_size=self.batch_size):
                file = readable.yielded.pop(0)
                write_picture(result.draw(), self.out / names[file])
                found[str(file)] = written[str(file)] = entries(result)
                if isinstance(result, PanopticResult):
                    write_picture(Image.fromarray(result.to_coco()[0]), self.out / MAPS / maps[file])
                    written[str(file)] = {"ids": f"{MAPS}/{maps[file]}", "segments": entries(result)}
                progress.advance(bar)
        if not found:
            raise DetrkitError(f"none of the {len(files)} pictures could be read")
        target = self.out / "predictions.json"
        write_atomic(target, json.dumps(written, indent=1) + "\n")
        _print(found, console, panoptic=detector.panoptic)
        console.print(f"{len(found)} pictures in {self.out}", soft_wrap=True)
        console.print(str(target), soft_wrap=True)
        return 1 if failed else 0


class _Readable:
    """The pictures that can be read; the others are reported and noted.

    Attributes:
        yielded: the files handed out and not yet taken off by the caller, oldest first.
    """

    def __init__(self, files: list[Path], failed: list[Path], errors: Console) -> None:
        self.files, self.failed, self.errors = files, failed, errors
        self.yielded: list[Path] = []

    def __iter__(self) -> Iterator[Any]:
        from detrkit.data.images import read_rgb

        for file in self.files:
            try:
                picture = read_rgb(file)
            except DetrkitError as error:
                self.failed.append(file)
                self.errors.print(Text.assemble(("error", "red"), " ", one_line(str(error))), soft_wrap=True)
                continue
            self.yielded.append(file)
            yield picture


def find_images(inputs: tuple[str, ...]) -> list[Path]:
    """The picture files that files, folders and patterns stand for, each once, in the order given.

    Raises:
        DetrkitError: an input that stands for nothing.
    """
    from detrkit.data.images import SUFFIXES
    from detrkit.detector import image_files

    files: dict[Path, None] = {}
    for text in inputs:
        path = Path(text).expanduser()
        if path.is_dir():
            matches = image_files(path)
        elif path.exists():
            matches = [path]
        else:
            hits = sorted(Path(hit) for hit in glob.glob(os.path.expanduser(text), recursive=True))
            matches = [hit for hit in hits if hit.is_file() and hit.suffix.lower() in SUFFIXES]
            if not matches:
                raise DetrkitError(f"{text}: no such file or folder, and no picture matches it as a pattern")
        files.update(dict.fromkeys(matches))
    if not files:
        raise DetrkitError("no pictures given: name files, folders or patterns")
    return list(files)


def output_names(files: list[Path], *, suffix: str | None = None) -> dict[Path, str]:
    """A file name for every picture; equal names from different folders are numbered.

    Args:
        files: the pictures.
        suffix: of all names; by default .png of PNG files, else .jpg.
    """
    taken: Counter[str] = Counter()
    names = {}
    for file in files:
        ending = suffix or (".png" if file.suffix.lower() == ".png" else ".jpg")
        name = file.stem + ending
        while taken[name]:
            name = f"{file.stem}-{taken[file.stem + ending]}{ending}"
            taken[file.stem + ending] += 1
        taken[name] += 1
        names[file] = name
    return names


def entries(found: Detections | PanopticResult) -> list[dict[str, Any]]:
    """The detections or segments of one picture as plain values."""
    from detrkit.results import PanopticResult, encode_masks

    if isinstance(found, PanopticResult):
        return [
            {
                "id": segment.id,
                "label": segment.label,
                "name": name,
                "score": round(segment.score, 4),
                "area": segment.area,
                "kind": "thing" if segment.thing else "stuff",
            }
            for segment, name in zip(found.segments, found.names, strict=True)
        ]
    rows: list[dict[str, Any]] = [
        {"label": label, "name": name, "score": round(score, 4), "box": [round(v, 2) for v in box]}
        for label, name, score, box in zip(
            found.labels.tolist(), found.names, found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]
    if found.masks is not None:
        for row, rle in zip(rows, encode_masks(found.masks), strict=True):
            row["segmentation"] = rle
    return rows


def write_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture under its name only when it is whole."""
    from detrkit.utils.image_files import image_bytes

    write_atomic(path, image_bytes(picture, path.suffix, quality=92), durable=False)


def _print(found: dict[str, list[dict[str, Any]]], console: Console, most: int = 20, *, panoptic: bool = False) -> None:
    """A table of the pictures; on a pipe all of them, on a terminal the first."""
    table = Table(title="Segments" if panoptic else "Detections", title_justify="left")
    table.add_column("picture", overflow="fold")
    table.add_column("segments" if panoptic else "objects", justify="right")
    table.add_column("what", overflow="fold")
    shown = list(found.items())[: most if sys.stdout.isatty() else None]
    for file, objects in shown:
        counts = Counter(o["name"] for o in objects)
        what = ", ".join(f"{count} {name}" if count > 1 else name for name, count in counts.most_common())
        table.add_row(one_line(file), str(len(objects)), one_line(what))
    console.print(table)
    if len(shown) < len(found):
        console.print(f"... and {len(found) - len(shown)} more")
