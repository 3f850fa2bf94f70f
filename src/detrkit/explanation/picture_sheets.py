"""Pictures of several parts: all layers, all heads, and what several pixels attend to (DETR, Fig. 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from PIL import Image

from detrkit.explanation.maps import Head
from detrkit.explanation.picture_parts import default_show, draw_subject, heads_words, layer_words, level_items, where
from detrkit.explanation.subjects import DetectionSubject, PixelSubject, Show, Subject
from detrkit.visualize.attention import draw_cross, object_color
from detrkit.visualize.colors import Color
from detrkit.visualize.draw import enlarged
from detrkit.visualize.legend import LegendItem, with_legend
from detrkit.visualize.sheet import grid
from detrkit.visualize.tags import Tag, paint_tag, place_tag

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

All = Literal["all"]
_TILE = 256, 320  # (width, height) in pixels that a tile of a sheet has at most
_MIDDLE = 640, 640  # likewise of the image between the maps of several pixels
_MAX_COLUMNS = 4  # of a sheet of one detection or pixel
_MAX_ROWS = 20  # detections in a sheet, the best ones
SHEET_LETTERS = 15  # pixels of the caption
_PAGE_COLOR: Color = (255, 255, 255)


def draw_sheet(
    explanation: Explanation,
    subjects: Sequence[Subject],
    layer: int | All,
    head: Head | All,
    show: Show | None,
    *,
    scale: float | None,
) -> Image.Image:
    """Draw all layers, or all heads of one, side by side: a row for each detection or pixel.

    With both, the rows are the heads of the only subject. Each tile has its own scale of colors.

    Args:
        explanation: of the image.
        subjects: detections or pixels; of many detections the first `_MAX_ROWS` are drawn.
        layer: a layer, or "all".
        head: a head, "mean" or "all".
        show: "map" or "points"; None: as the model has it.
        scale: of the tiles, of the image's size; None: 256 pixels wide at most.

    Raises:
        ValueError: nothing to draw, several subjects with all layers and all heads; no such layer or head.
    """
    if not subjects:
        raise ValueError("there are no detections to draw: explain with a lower threshold")
    if layer == "all" and head == "all" and len(subjects) > 1:
        raise ValueError("all layers and all heads are a picture of one detection (i), or of one pixel")
    subjects = subjects[:_MAX_ROWS]
    layers: list[int] = list(range(subjects[0].layers)) if layer == "all" else [layer]
    heads: list[Head] = list(range(explanation.heads)) if head == "all" else [head]
    if layer == "all" and head == "all":
        rows = [(subjects[0], f"head {one}", [(k, one) for k in layers]) for one in heads]
    else:
        rows = [(subject, _name(subject), [(k, one) for k in layers for one in heads]) for subject in subjects]
    # the canvas is made once, at the final size, so that marks are alike on all tiles
    canvas, factor = enlarged(explanation.image, _fitting(explanation.image.size, _TILE) if scale is None else scale)
    tiles, titles = [], []
    for subject, name, cells in rows:
        for number, (in_layer, in_head) in enumerate(cells):
            tiles.append(draw_subject(subject, canvas, factor, in_layer, in_head, show, label=False))
            parts = [name if number == 0 and len(rows) > 1 else "", subject.note(in_layer, in_head)]
            titles.append(", ".join(filter(None, parts)))
    if layer == "all":
        headings = [f"{subjects[0].part} layer {k}" for k in layers]
    else:
        headings = [f"head {one}" for one in heads]
    if len(rows) == 1 and len(headings) > _MAX_COLUMNS:  # one long row becomes several
        titles = [", ".join(filter(None, pair)) for pair in zip(headings, titles, strict=True)]
        sheet = grid(tiles, _MAX_COLUMNS, titles, tile=canvas.size)
    else:
        sheet = grid(tiles, len(headings), titles, tile=canvas.size, headings=headings)
    points = (show or default_show(subjects[0])) == "points"
    items = [*level_items(explanation), LegendItem("cross", subjects[0].cross)] if points else []
    return with_legend(sheet, _sheet_caption(subjects, layer, head, show), items, letters=SHEET_LETTERS)


def _name(subject: Subject) -> str:
    """Return the name of a row."""
    return subject.name if isinstance(subject, DetectionSubject) else subject.title


def _sheet_caption(subjects: Sequence[Subject], layer: int | All, head: Head | All, show: Show | None) -> str:
    """Say what a sheet shows."""
    first = subjects[0]
    parts = [first.title] if len(subjects) == 1 else []
    if layer != "all":
        parts.append(layer_words(first, layer))
    elif head != "all":
        parts.append(heads_words(first, head, show))
    points = (show or default_show(first)) == "points"
    parts.append(f"every tile has its own scale: the largest {'weight' if points else 'attention'} is the brightest")
    return ", ".join(parts)


def _fitting(size: tuple[int, int], room: tuple[int, int]) -> float:
    """Return the factor by which an image of (width, height) fits into a room."""
    return min(room[0] / size[0], room[1] / size[1])


def draw_around(
    explanation: Explanation,
    subjects: Sequence[PixelSubject],
    layer: int,
    head: Head,
    show: Show | None,
    *,
    scale: float | None,
) -> Image.Image:
    """Draw the image with several pixels marked, and around it what the encoder attends to from each (DETR, Fig. 3).

    Args:
        explanation: of the image.
        subjects: the pixels.
        layer: encoder layer.
        head: a head, or "mean".
        show: "map" or "points"; None: as the model has it.
        scale: of the image in the middle; None: 640 pixels wide at most.
    """
    middle, factor = enlarged(explanation.image, _fitting(explanation.image.size, _MIDDLE) if scale is None else scale)
    tile, tile_factor = enlarged(explanation.image, factor * (0.5 if len(subjects) > 2 else 0.75))
    letters = min(max(round(middle.width / 24), 14), 36)
    _mark(middle, [(subject.x * factor, subject.y * factor) for subject in subjects], letters)
    framed = []
    for number, subject in enumerate(subjects):
        drawn = draw_subject(subject, tile, tile_factor, layer, head, show, label=False)
        framed.append(_framed(drawn, number, (subject.x * tile_factor, subject.y * tile_factor), letters))
    left, right = framed[: (len(framed) + 1) // 2], framed[(len(framed) + 1) // 2 :]
    gap = max(6, middle.width // 60)
    height = max(middle.height, *((len(side) * (framed[0].height + gap) - gap) for side in (left, right)))
    page = Image.new("RGB", (middle.width + 2 * framed[0].width + 4 * gap, height + 2 * gap), _PAGE_COLOR)
    page.paste(middle, (framed[0].width + 2 * gap, gap + (height - middle.height) // 2))
    for side, x in ((left, gap), (right, framed[0].width + middle.width + 3 * gap)):
        top = gap + (height - (len(side) * (framed[0].height + gap) - gap)) // 2
        for k, one in enumerate(side):
            page.paste(one, (x, top + k * (one.height + gap)))
    caption = f"what the encoder attends to from each of the marked pixels: {where(subjects[0], layer, head, show)}"
    points = (show or default_show(subjects[0])) == "points"
    items = level_items(explanation) if points else []
    what = "weight" if points else "attention"
    return with_legend(
        page,
        caption,
        [*items, LegendItem("none", f"the largest {what} of each is the brightest")],
        letters=SHEET_LETTERS,
    )


def _mark(canvas: Image.Image, centers: Sequence[tuple[float, float]], letters: int) -> None:
    """Mark pixels with crosses, and beside each a tag with its number that covers no cross."""
    taken = [_around(center, letters) for center in centers]
    for number, cross in enumerate(taken[:]):
        draw_cross(canvas, centers[number], color=object_color(number))
        box = (cross.left, cross.top, cross.left + cross.width, cross.top + cross.height)
        tag = place_tag(str(number + 1), box, canvas.size, letters, taken)
        if tag is not None:
            paint_tag(canvas, tag, object_color(number), letters)
            taken.append(tag)


def _around(center: tuple[float, float], letters: int) -> Tag:
    """Return the place of a cross, which no tag should cover."""
    reach = max(6, letters // 2)
    return Tag(round(center[0]) - reach, round(center[1]) - reach, 2 * reach, 2 * reach, "")


def _framed(image: Image.Image, number: int, center: tuple[float, float], letters: int) -> Image.Image:
    """Return an image in a frame of a marker's color, with its number in a corner without the cross at `center`."""
    color, width = object_color(number), max(3, letters // 6)
    page = Image.new("RGB", (image.width + 2 * width, image.height + 2 * width), color)
    page.paste(image, (width, width))
    cross = _around((center[0] + width, center[1] + width), letters)
    tag = place_tag(str(number + 1), (0, 0, *page.size), page.size, letters, [cross])
    if tag is not None:
        paint_tag(page, tag, color, letters)
    return page
