"""Many images on one page: contact sheets, and image | ground truth | prediction as in a paper's figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw

from detrkit.structures.classes import ClassList
from detrkit.structures.detections import Detections, decimals
from detrkit.structures.panoptic import PanopticResult, Prediction
from detrkit.utils.visible import one_line
from detrkit.visualize.colors import Color
from detrkit.visualize.draw import as_boxes, draw_detections
from detrkit.visualize.panoptic import draw_panoptic
from detrkit.visualize.sizes import tile_sizes
from detrkit.visualize.tags import font_for, shortened

_PAGE_COLOR, _TEXT_COLOR, _CAPTION_COLOR, _TILE_COLOR = (255, 255, 255), (28, 28, 30), (105, 105, 112), (238, 238, 241)
TILE = 320, 240  # (width, height) of a tile of a contact sheet, in pixels


@dataclass(frozen=True)
class SheetRow:
    """One image of a comparison.

    Attributes:
        image: the image.
        ground_truth: the annotated objects (see `as_detections`) or segments; None leaves the tile empty.
        prediction: detections or segments of a model, or None.
        caption: a line below the image, usually the file's name.
        below: where no detection is above the threshold, the best ones below it: drawn dashed.
    """

    image: Image.Image
    ground_truth: Prediction | None = None
    prediction: Prediction | None = None
    caption: str = ""
    below: Detections | None = None


def as_detections(
    boxes: object, labels: object, classes: ClassList | None = None, *, image_id: int | str | None = None
) -> Detections:
    """Convert annotated objects to detections with a score of 1, so that they can be drawn.

    Args:
        boxes: (N, 4) xyxy pixels: tensor, array or list.
        labels: (N,) positions in `classes`.
        classes: names of the labels.
        image_id: the dataset's id.
    """
    array = torch.from_numpy(as_boxes(boxes))
    label = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
    return Detections(array, torch.ones(len(array)), label, classes=classes, image_id=image_id)


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to fit into `size` (width, height), and center it on a plain background."""
    factor = min(size[0] / image.width, size[1] / image.height)
    if abs(factor - 1) * max(image.size) < 1:  # drawn for this tile: resizing by less than a pixel would only blur it
        factor = 1.0
    inner = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    rgb = image.convert("RGB")
    if inner != image.size:
        rgb = rgb.resize(inner, Image.Resampling.LANCZOS)
    tile = Image.new("RGB", size, _TILE_COLOR)
    tile.paste(rgb, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return tile


def draw_in_tile(
    image: Image.Image, results: Prediction, width: int, height: int, *, scores: bool, dashed: bool = False
) -> Image.Image:
    """Draw objects at the final size of a tile, so that lines and letters are alike on every tile.

    Args:
        image: the image.
        results: detections or segments of it.
        width: of the tile in pixels.
        height: of the tile in pixels.
        scores: whether to write scores.
        dashed: draw dashed lines.
    """
    factor = min(width / image.width, height / image.height)
    line, letters = tile_sizes(width)
    if isinstance(results, PanopticResult):
        return draw_panoptic(image, results, scale=factor, font_size=letters)
    return draw_detections(image, results, scores=scores, scale=factor, width=line, font_size=letters, dashed=dashed)


def grid(
    images: Sequence[Image.Image],
    columns: int = 4,
    titles: Sequence[str] | None = None,
    *,
    tile: tuple[int, int] = TILE,
    headings: Sequence[str] | None = None,
    bars: Sequence[Color | None] | None = None,
) -> Image.Image:
    """Make a contact sheet: images in rows, each fitted into a tile of the same size.

    Args:
        images: PIL images of any sizes; small ones are enlarged.
        columns: images per row (fewer images make a narrower sheet).
        titles: one line below each image; shortened to the tile's width.
        tile: (width, height) of a tile in pixels.
        headings: one line above each column.
        bars: colors (0..255) of bars below the headings, None for none.

    Raises:
        ValueError: no images, no columns, or the number of titles or headings is not that of images or columns.
    """
    if not images or columns < 1:
        raise ValueError(f"a sheet needs images and columns, got {len(images)} and {columns}")
    columns = min(columns, len(images))
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles for {len(images)} images")
    if headings is not None and len(headings) != columns:
        raise ValueError(f"{len(headings)} headings for {columns} columns")
    width, height = tile
    gap = max(6, width // 32)
    letters = max(12, round(width / 24))
    below = round(letters * 1.7) if titles is not None else 0
    above = round(letters * 2.2) if headings is not None else 0
    rows = math.ceil(len(images) / columns)
    sheet = Image.new("RGB", (gap + columns * (width + gap), gap + above + rows * (height + below + gap)), _PAGE_COLOR)
    draw = ImageDraw.Draw(sheet)

    def write(text: str, left: int, middle: int, size: int, color: tuple[int, int, int]) -> None:
        font = font_for(text, size)
        text = shortened(one_line(text), font, width)
        draw.text((left + width / 2, middle), text, fill=color, font=font, anchor="mm")

    for column, text in enumerate(headings or []):
        write(text, gap + column * (width + gap), gap + above // 2, round(letters * 1.2), _TEXT_COLOR)
    for column, color in enumerate(bars or []):
        left, bottom, thick = gap + column * (width + gap), gap + above - 2, max(4, letters // 4)
        if color is not None:
            draw.rectangle((left, bottom - thick, left + width - 1, bottom - 1), fill=color)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        left, top = gap + column * (width + gap), gap + above + row * (height + below + gap)
        sheet.paste(_fitted(image, tile), (left, top))
        if titles is not None:
            write(titles[index], left, top + height + below // 2, letters, _CAPTION_COLOR)
    return sheet


def comparison_sheet(
    rows: Sequence[SheetRow],
    *,
    threshold: float = 0.0,
    tile: tuple[int, int] | None = None,
    headings: tuple[str, str, str] = ("image", "ground truth", "prediction"),
) -> Image.Image:
    """Make a sheet with one row per image: the image, its ground truth, the prediction, with captions and counts.

    Args:
        rows: the images with their ground truth and predictions.
        threshold: only detections with a greater score are drawn and counted; panoptic results are drawn whole.
        tile: (width, height) of a tile in pixels; by default 480 wide, with the rows' median shape.
        headings: of the three columns.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a comparison needs at least one image")
    tile = tile or _common_tile(rows, 480)
    predictions = [
        r.prediction.above(threshold) if isinstance(r.prediction, Detections) else r.prediction for r in rows
    ]
    if threshold > 0 and not any(isinstance(prediction, PanopticResult) for prediction in predictions):
        headings = (*headings[:2], f"{headings[2]} (score > {threshold:g})")
    return grid(*_tiles(rows, [predictions], tile), tile=tile, headings=headings)


def models_sheet(
    rows: Sequence[SheetRow],
    results: Mapping[str, Sequence[Prediction]],
    colors: Sequence[Color],
    *,
    tile: tuple[int, int] | None = None,
) -> Image.Image:
    """Make a sheet with one row per image: the image, its ground truth, and the results of each of several models.

    Args:
        rows: images with ground truth and caption.
        results: name of a model -> its results, one for each row.
        colors: of the models (0..255), for bars below their headings.
        tile: (width, height) of a tile in pixels; by default 320 wide, with the rows' median shape.

    Raises:
        ValueError: no rows, or a model has results of another number of images.
    """
    if not rows:
        raise ValueError("a comparison needs at least one image")
    tile = tile or _common_tile(rows, 320)
    headings = ["image", "ground truth", *results]
    return grid(*_tiles(rows, list(results.values()), tile), tile=tile, headings=headings, bars=[None, None, *colors])


def panoptic_sheet(
    rows: Sequence[tuple[Image.Image, PanopticResult, str]], *, tile: tuple[int, int] | None = None
) -> Image.Image:
    """Make a sheet with one row per image: the image, the masks of its segments over it, and the map with their names.

    Args:
        rows: image, result and caption.
        tile: (width, height) of a tile in pixels; by default 480 wide, with the rows' median shape.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a sheet needs at least one image")
    tile = tile or _common_tile([SheetRow(image) for image, _, _ in rows], 480)
    tiles: list[Image.Image] = []
    titles: list[str] = []
    for image, result, caption in rows:
        factor = min(tile[0] / image.width, tile[1] / image.height)
        tiles.append(image)
        tiles.append(draw_panoptic(image, result, names=False, opacity=0.5, scale=factor))
        letters = tile_sizes(tile[0]).letters
        tiles.append(draw_panoptic(image, result, opacity=0.9, scale=factor, font_size=letters))
        things = sum(segment.thing for segment in result.segments)
        titles += [caption, f"{things} things, {len(result) - things} stuff", ""]
    return grid(tiles, 3, titles, tile=tile, headings=["image", "masks", "panoptic"])


def _common_tile(rows: Sequence[SheetRow], width: int) -> tuple[int, int]:
    """Return (width, height) of a tile with the rows' median aspect ratio."""
    shapes = sorted(r.image.height / r.image.width for r in rows)
    return width, round(width * min(max(shapes[len(shapes) // 2], 0.5), 1.25))


def _tiles(
    rows: Sequence[SheetRow], results: Sequence[Sequence[Prediction | None]], tile: tuple[int, int]
) -> tuple[list[Image.Image], int, list[str]]:
    """Return the tiles row by row, their number per row, and the line below each: a caption or a count of objects."""
    tiles: list[Image.Image] = []
    titles: list[str] = []
    for row, *predictions in zip(rows, *results, strict=True):
        tiles.append(row.image)
        titles.append(row.caption)
        for objects, what in ((row.ground_truth, "object"), *((p, "detection") for p in predictions)):
            if objects is None:
                tiles.append(Image.new("RGB", tile, _TILE_COLOR))
                titles.append("")
                continue
            noun = "segment" if isinstance(objects, PanopticResult) else what
            title = f"{len(objects)} {noun}{'' if len(objects) == 1 else 's'}"
            if what == "detection" and not len(objects):
                title += _reason(row, objects)
                if row.below is not None and len(row.below):
                    tiles.append(draw_in_tile(row.image, row.below, *tile, scores=True, dashed=True))
                    titles.append(title)
                    continue
            tiles.append(draw_in_tile(row.image, objects, *tile, scores=what == "detection"))
            titles.append(title)
    return tiles, 2 + len(results), titles


def _reason(row: SheetRow, objects: Prediction) -> str:
    """Say below a tile without detections what the best one has."""
    miss = objects.near_miss
    if row.below is not None and len(row.below):
        best = decimals(float(row.below.scores.max()))
        return f"; dashed: the best {len(row.below)}, up to {best}"
    return "" if miss is None else f"; best score {miss.decimals} ({miss.name})"
