"""Dataset formats: a `Reader` each, found by name in `READERS` or by the files of a dataset with `find_layout`."""

from __future__ import annotations

from pathlib import Path

# imported in the order in which the formats are tried
from detrkit.data.readers import coco, coco_panoptic, voc, yolo, parquet, csv_boxes  # isort: skip
from detrkit.data.readers.base import READERS, Reader, Reading, register_reader
from detrkit.data.readers.common import Fault, Findings, match_split
from detrkit.data.readers.unrecognized import describe
from detrkit.data.readers.yolo_files import has_labels
from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import missing
from detrkit.utils.layouts import Layout

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_BOTH_COCO = [coco.CocoReader.name, coco_panoptic.CocoPanopticReader.name]

__all__ = [
    "READERS",
    "Fault",
    "Findings",
    "Reader",
    "Reading",
    "coco",
    "coco_panoptic",
    "csv_boxes",
    "find_layout",
    "match_split",
    "parquet",
    "register_reader",
    "voc",
    "yolo",
]


def find_layout(path: Path, layout: Layout | None = None, *, masks: bool = False) -> str:
    """Return the name of the reader for `path`: `layout` if given, else the one that recognizes it.

    A folder may have COCO instances and COCO panoptic: with `masks` it is taken for panoptic, else for instances.
    Files called panoptic_*.json are panoptic. A folder with images/, classes.txt and a table of boxes is CSV, unless it
    has YOLO's label files.

    Raises:
        DetrkitError: nothing there, an unknown layout, or none that fits.
    """
    if layout is not None:
        READERS.find(layout)
    try:
        path.stat()
        if path.is_dir():
            next(path.iterdir(), None)
    except FileNotFoundError as error:
        raise missing(path) from error
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be read ({error.strerror})") from error
    if path.is_file() and path.name.endswith(_ARCHIVES):
        raise DetrkitError(f"{path} is an archive: unpack it and open its folder (CPPE-5: `detrkit data download`)")
    readers = READERS if layout is None else {layout: READERS[layout]}
    fits = [name for name, reader in readers.items() if reader.recognize(path)]
    if fits[:2] == _BOTH_COCO:
        panoptic = path.name.startswith("panoptic_") if path.is_file() else masks
        return fits[panoptic]
    if {yolo.YoloReader.name, csv_boxes.CsvReader.name} <= {*fits} and not has_labels(path):
        fits.remove(yolo.YoloReader.name)  # images/ and classes.txt are also beside a table of boxes
    if fits:
        return fits[0]
    if layout is not None:
        raise DetrkitError(f"{path} does not have the layout {layout}")
    inside = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    nested = next((folder for folder in inside if any(r.recognize(folder) for r in READERS.values())), None)
    if nested is not None:
        raise DetrkitError(f"{path}: no layout recognized, but {nested} has one: open that")
    *expected, last = [reader.expects for reader in READERS.values()]
    raise DetrkitError(f"{path}: no layout recognized{describe(path)}; expected {', '.join(expected)} or {last}")
