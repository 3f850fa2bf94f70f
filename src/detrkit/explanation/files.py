"""The folder of an explanation: its pictures, its numbers, its page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from detrkit.explanation.numbers import explanation_numbers
from detrkit.utils.errors import SettingError
from detrkit.utils.folders import new_directory
from detrkit.utils.image_files import image_bytes
from detrkit.utils.names import full_path

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

NUMBERS, PAGE = "explanation.json", "page.html"
_QUALITY = 90  # of JPEG: edges of marks stay sharp
_PIXELS = 4  # in the picture of the encoder, as in the paper's


def save_explanation(
    explanation: Explanation,
    folder: str | Path,
    *,
    pixels: Sequence[tuple[float, float]] | None = None,
    objects: int = 10,
    page: bool = False,
) -> list[Path]:
    """Write an explanation into a folder: see `Explanation.save`, which has the arguments and errors."""
    if objects < 0:
        raise SettingError(f"objects is {objects}: must be at least 0")
    folder = full_path(folder)
    points = central_pixels(explanation) if pixels is None else _chosen(pixels)
    points = points if explanation.encoder_layers else []
    names = []
    with new_directory(folder, force=True) as part:
        for name, image in _pictures(explanation, points, objects):
            (part / name).write_bytes(image_bytes(image, ".jpg", quality=_QUALITY, subsampling=0))
            names.append(name)
        text = json.dumps(explanation_numbers(explanation, points), ensure_ascii=False, allow_nan=False)
        (part / NUMBERS).write_bytes(text.encode("utf-8", "replace") + b"\n")
        names.append(NUMBERS)
        if page:
            explanation.save_page(part / PAGE, title=folder.name)
            names.append(PAGE)
    return [folder / name for name in names]


def _chosen(pixels: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the pixels that a caller names, also a single (x, y), as a list; none are none.

    Raises:
        ValueError: they are no pixels.
    """
    from detrkit.explanation.pictures import pixel_list

    return pixel_list(pixels) if len(pixels) else []


def central_pixels(explanation: Explanation) -> list[tuple[float, float]]:
    """Return (x, y) of the pixels whose attention is drawn by default.

    They are the centers of the best boxes; without detections they are spread over the image.
    """
    height, width = explanation.image_size
    if not len(explanation):
        return [(width * x, height * y) for y in (1 / 3, 2 / 3) for x in (1 / 3, 2 / 3)]
    centers = (explanation.detections.boxes[:_PIXELS, :2] + explanation.detections.boxes[:_PIXELS, 2:]) / 2
    # boxes reach over the image's border, and so may their centers
    return [(min(max(x, 0.0), width - 0.01), min(max(y, 0.0), height - 0.01)) for x, y in centers.tolist()]


def _pictures(
    explanation: Explanation, pixels: Sequence[tuple[float, float]], objects: int
) -> Iterator[tuple[str, Image.Image]]:
    """Yield name and image of each picture, one at a time."""
    yield "objects.jpg", explanation.draw()
    if pixels:
        yield "encoder.jpg", explanation.draw(pixel=pixels)
    if len(explanation) and objects:
        yield "layers.jpg", explanation.draw(range(min(objects, len(explanation))), layer="all")
    for i in range(min(objects, len(explanation))):
        name = f"object-{i:02d}"
        yield f"{name}-map.jpg", explanation.draw(i, show="map")
        if explanation.deformable:
            yield f"{name}-points.jpg", explanation.draw(i, show="points")
        yield f"{name}-heads.jpg", explanation.draw(i, head="all")
        yield f"{name}-boxes.jpg", explanation.draw(i, show="boxes")
