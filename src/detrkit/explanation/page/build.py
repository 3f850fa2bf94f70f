"""Builds the file of a page from an explanation."""

from __future__ import annotations

import html
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from detrkit.explanation.page.picture import encoded_image, mask_section, mask_width
from detrkit.explanation.page.plans import CROSS_SHARE, pack_cross, pack_encoder
from detrkit.explanation.page.sections import Section
from detrkit.utils.atomic import write_atomic
from detrkit.utils.errors import SettingError
from detrkit.utils.pages import asset, code_hash, filled, json_in_html, script_of
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from detrkit.explanation.result import Explanation

MAX_MEGABYTES = 4.0  # of a page by default, 10^6 bytes each
IMAGE_SHARE = 0.35  # of the file, at most
# in the order in which they need each other
SCRIPTS = ("decode.js", "attention.js", "colors.js", "paint.js", "words.js", "controls.js", "export.js", "main.js")
_PACKAGE = "detrkit.explanation.page"
_SIZE = "#" * 12  # stands for the size of the file until that is known


def save_page(
    explanation: Explanation, path: str | Path, *, title: str | None = None, max_megabytes: float = MAX_MEGABYTES
) -> Path:
    """Write an explanation as one HTML file. See `Explanation.save_page`."""
    return write_atomic(path, page_html(explanation, title=title, max_megabytes=max_megabytes))


def page_html(explanation: Explanation, *, title: str | None = None, max_megabytes: float = MAX_MEGABYTES) -> str:
    """Return the text of the page. See `Explanation.save_page`."""
    if not (max_megabytes > 0 and math.isfinite(max_megabytes)):
        raise SettingError(f"max_megabytes is {max_megabytes}: give a size in MB above 0, such as {MAX_MEGABYTES:g}")
    limit = int(max_megabytes * 1_000_000)
    title = (
        one_line(title)
        if title
        else f"{explanation.model_name}, {explanation.image.width} x {explanation.image.height} pixels"
    )
    image = encoded_image(explanation.image, int(limit * IMAGE_SHARE))
    total = count = len(explanation)
    while True:
        page = _page_within(limit, _best(explanation, count), title, image, total)
        if isinstance(page, str):
            return page
        if count <= 1:
            raise SettingError(
                f"the page takes at least {math.ceil(page / 10_000) / 100:.2f} MB"
                f"{' with its best detection alone' if total > 1 else ''}, more than max_megabytes={max_megabytes:g}: "
                "allow more"
            )
        # the image and the scripts take the same for fewer detections, hence somewhat less than in proportion
        count = max(1, min(count - 1, int(0.9 * count * limit / page)))


def _best(explanation: Explanation, count: int) -> Explanation:
    """Return an explanation of the detections of the highest scores; a panoptic map stays whole."""
    if count >= len(explanation):
        return explanation
    panoptic = explanation.panoptic
    if panoptic is not None:
        panoptic = replace(panoptic, segments=panoptic.segments[:count])
    return replace(explanation, detections=explanation.detections.select(torch.arange(count)), panoptic=panoptic)


def _page_within(
    limit: int, explanation: Explanation, title: str, image: tuple[str, tuple[int, int]], total: int
) -> str | int:
    """Return the text of the page, or the bytes that it takes at least where these are more than `limit`.

    Args:
        limit: bytes.
        explanation: of the detections in the page.
        title: of the page.
        image: of `encoded_image`.
        total: number of detections before the worst ones were left out.
    """
    address, size = image
    masks = (
        []
        if explanation.detections.masks is None or not len(explanation)
        else [mask_section(explanation.detections.masks)]
    )
    data = {"title": title, "shown": list(size), **_numbers(explanation)}
    fixed = _bytes(_filled(title, data, address, masks)) + 4000  # and what is said of the attention

    cross = pack_cross(explanation.maps, explanation.queries, int((limit - fixed) * CROSS_SHARE))
    room = limit - fixed - cross.size
    if room < 0:
        return fixed + cross.size
    encoder = pack_encoder(explanation.maps, room)
    sections = [*masks, *cross.sections, *encoder.sections]
    left_out = [*_image_sentence(explanation, size), *_detections_sentence(len(explanation), total)]
    data |= {
        "cross": cross.describe,
        "encoder": encoder.describe,
        "bytes": {"image": len(address), "cross": cross.size, "encoder": encoder.size},
        "leftOut": [*left_out, *cross.left_out, *encoder.left_out],
    }
    text = _filled(title, data, address, sections)
    return text.replace(f'"{_SIZE}"', str(_bytes(text)).rjust(len(_SIZE) + 2))


def _detections_sentence(count: int, total: int) -> list[str]:
    if count == total:
        return []
    return [f"{total - count} of the {total} detections, those of the lowest scores"]


def _image_sentence(explanation: Explanation, size: tuple[int, int]) -> list[str]:
    if size == explanation.image.size:
        return []
    full = explanation.image
    return [f"the image's full size: {size[0]} x {size[1]} of its {full.width} x {full.height} pixels"]


def _numbers(explanation: Explanation) -> dict[str, Any]:
    """Return all but the attention and the image, as plain JSON values."""
    detections, panoptic = explanation.detections, explanation.panoptic
    near_miss = None if len(detections) else detections.near_miss
    return {
        "model": one_line(explanation.model_name),
        "width": explanation.image.width,
        "height": explanation.image.height,
        "deformable": explanation.deformable,
        "encoderPoints": explanation.encoder_samples_points,
        "panoptic": panoptic is not None,
        "grid": list(explanation.grid),
        "levels": [list(size) for size in explanation.maps.levels],
        "heads": explanation.heads,
        "encoderLayers": explanation.encoder_layers,
        "decoderLayers": explanation.decoder_layers,
        "nearMiss": None if near_miss is None else one_line(str(near_miss)),
        "maskWidth": None if detections.masks is None else mask_width(detections.masks),
        "fileBytes": _SIZE,
        "detections": [_detection(explanation, i) for i in range(len(detections))],
    }


def _detection(explanation: Explanation, i: int) -> dict[str, Any]:
    """Return the numbers of one detection; boxes xyxy in pixels."""
    detections, proposal = explanation.detections, explanation.proposal(i)
    described: dict[str, Any] = {
        "name": one_line(detections.names[i]),
        "label": int(detections.labels[i]),
        "score": round(float(detections.scores[i]), 4),
        "query": int(explanation.queries[i]),
        "box": _pixels(detections.boxes[i]),
        "layerBoxes": [_pixels(box) for box in explanation.layer_boxes(i)],
        "references": [_pixels(box) for box in explanation.reference_boxes(i)],
        "layerScores": [round(score, 4) for score in torch.nan_to_num(explanation.layer_scores(i)).tolist()],
        "proposal": None,
        "kind": None,
    }
    if proposal is not None:
        described["proposal"] = {"level": proposal.level, "x": round(proposal.x, 1), "y": round(proposal.y, 1)}
    if explanation.panoptic is not None:
        segment = explanation.panoptic.segments[i]
        described |= {"kind": "thing" if segment.thing else "stuff", "area": segment.area}
    return described


def _pixels(values: Tensor) -> list[float]:
    """Return coordinates as plain numbers; what is not finite, which JSON cannot state, as 0."""
    return [round(value, 2) for value in torch.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).tolist()]


def _filled(title: str, data: dict[str, Any], address: str, sections: list[Section]) -> str:
    """Return the page with its style, scripts and data in their places."""
    style, script = page_code()
    described = data | {"sections": [part.describe() for part in sections]}
    arrays = "\n".join(
        f'<script type="text/plain" id="section-{part.name}">{part.payload}</script>' for part in sections
    )
    values = {
        "POLICY": f"default-src 'none'; img-src data: blob:; style-src '{code_hash(style)}'; "
        f"script-src '{code_hash(script)}'; base-uri 'none'; form-action 'none'",
        "TITLE": html.escape(title),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": json_in_html(described),
        "IMAGE": address,
        "ARRAYS": arrays,
    }
    return filled(asset(_PACKAGE, "page.html"), values)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))


def page_code() -> tuple[str, str]:
    """Return the style and the script of every page: they do not depend on the explanation."""
    return asset(_PACKAGE, "page.css"), script_of(*(asset(_PACKAGE, name) for name in SCRIPTS))
