"""Checks of panoptic datasets only: whether every PNG holds the segments that its json describes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detrkit.data.panoptic import measure_segments, read_id_map
from detrkit.data.readers import Fault, Findings
from detrkit.data.sample import Record
from detrkit.utils.errors import DetrkitError
from detrkit.utils.messages import first_names
from detrkit.utils.names import not_hidden


class _Examined(NamedTuple):
    """Result of examining a PNG: its faults, and the share of its pixels that is void, None if it cannot be read."""

    faults: list[Fault]
    void: float | None


def check_panoptic(records: Sequence[Record], path: Path, split: str, findings: Findings) -> None:
    """Compare every PNG of a split with the segments of its record; decode them all.

    Errors: a missing or unreadable PNG, one of another size than its image, segments that no pixel has, areas that are
    not the number of pixels. Warnings: boxes that are not the bounds of the pixels, pixels of no segment. Infos: the
    share of void, PNGs that belong to no image.

    Args:
        records: of the split, as its reader gives them.
        path: of the dataset, for messages.
        split: name.
        findings: takes the faults.
    """
    with ThreadPoolExecutor(8) as pool:
        examined = list(pool.map(_examine, records))
    findings.faults += [fault for one in examined for fault in one.faults]
    void = [(one.void, record) for one, record in zip(examined, records, strict=True) if one.void is not None]
    if void:
        pixels = np.array([record.height * record.width for _, record in void])
        share = float(pixels @ np.array([v for v, _ in void]) / pixels.sum())
        most, where = max(void, key=lambda item: item[0])
        text = f"{share:.1%} of the pixels are void, at most {most:.1%} of an image ({where.file.name})"
        findings.add("info", path, f"split {split}", text if most else "no pixel is void")
    files = {record.panoptic_file for record in records if record.panoptic_file is not None}
    for folder in sorted({file.parent for file in files}):
        unused = sorted(file.name for file in not_hidden(folder, "*.png") if file not in files)
        if unused:
            reason = f"{len(unused)} panoptic PNGs belong to no image: {first_names(unused)}"
            findings.add("info", folder, "", reason)


def _examine(record: Record) -> _Examined:
    """Compare the PNG of an image with its record."""
    file = record.panoptic_file
    assert file is not None  # records of a panoptic reader have one
    image = f"image {record.image_id}"
    try:
        ids = read_id_map(file, (record.height, record.width))
    except DetrkitError as error:
        return _Examined([Fault("error", file, image, str(error).removeprefix(f"{file}: "))], None)
    measured = measure_segments(ids)
    position = {segment: k for k, segment in enumerate(measured.ids.tolist())}
    faults = []
    columns = (record.segment_ids, record.areas, record.annotated)
    for segment, area, box in zip(*(column.tolist() for column in columns), strict=True):
        k = position.pop(segment, None)
        where = f"{image}, segment {segment}"
        if k is None:
            faults.append(Fault("error", file, where, "is in segments_info, but no pixel has its id"))
            continue
        if area != measured.areas[k]:
            reason = f"area {area:g} in segments_info, but {measured.areas[k]} pixels have its id"
            faults.append(Fault("error", file, where, reason))
        bounds = measured.boxes[k].tolist()
        if box != bounds:
            text = ", ".join(f"{v:g}" for v in box)
            reason = f"bbox [{text}] is not the bounds of its pixels {bounds} (xywh): taken as it stands"
            faults.append(Fault("warning", file, where, reason))
    if position:
        pixels = sum(int(measured.areas[k]) for k in position.values())
        reason = f"{pixels} pixels have ids that segments_info has not ({first_names(position)}): taken as void"
        faults.append(Fault("warning", file, image, reason))
    described = int(measured.areas.sum()) - sum(int(measured.areas[k]) for k in position.values())
    return _Examined(faults, 1 - described / ids.size)
