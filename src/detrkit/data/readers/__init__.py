"""Dataset layouts: each reader has `recognise(path)`, `splits(path)` and `read(path, split)`."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from detrkit.data.readers import coco, coco_panoptic, parquet, voc, yolo
from detrkit.data.readers.common import Fault, Findings, match_split
from detrkit.utils.errors import DetrkitError

# In the order in which they are tried.
READERS: dict[str, ModuleType] = {
    "coco": coco,
    "coco-panoptic": coco_panoptic,
    "voc": voc,
    "yolo": yolo,
    "parquet": parquet,
}

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")

__all__ = ["READERS", "Fault", "Findings", "find_layout", "match_split"]


def find_layout(path: Path, layout: str | None = None, *, masks: bool = False) -> str:
    """Return the name of the reader for `path`: `layout` if given, else the one that recognizes it.

    A folder may have COCO instances and COCO panoptic: with `masks` it is taken for panoptic, else for instances.
    Files called panoptic_*.json are panoptic.

    Raises:
        DetrkitError: nothing there, an unknown layout, or none that fits.
    """
    try:
        path.stat()
        if path.is_dir():
            next(path.iterdir(), None)
    except FileNotFoundError as error:
        raise DetrkitError(f"{path}: no such file or folder") from error
    except OSError as error:
        raise DetrkitError(f"{path}: cannot be read ({error.strerror})") from error
    if layout is not None and layout not in READERS:
        raise DetrkitError(f"layout {layout!r} is not known; choose {', '.join(READERS)}")
    if path.is_file() and path.name.endswith(_ARCHIVES):
        raise DetrkitError(f"{path} is an archive: unpack it and open its folder (CPPE-5: `detrkit data download`)")
    fits = [name for name in READERS if layout in (None, name) and READERS[name].recognise(path)]
    if fits[:2] == ["coco", "coco-panoptic"]:
        panoptic = path.name.startswith("panoptic_") if path.is_file() else masks
        return fits[panoptic]
    if fits:
        return fits[0]
    if layout is not None:
        raise DetrkitError(f"{path} does not have the layout {layout}")
    inside = sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []
    nested = next((folder for folder in inside if any(reader.recognise(folder) for reader in READERS.values())), None)
    if nested is not None:
        raise DetrkitError(f"{path}: no layout recognised, but {nested} has one: open that")
    raise DetrkitError(
        f"{path}: no layout recognised; expected COCO (annotations/instances_*.json or panoptic_*.json, "
        "_annotations.coco.json or a json file), Pascal VOC (Annotations/*.xml, JPEGImages/), YOLO (data.yaml, or "
        "images/, labels/ and classes.txt) or "
        "parquet (data/train-*.parquet)"
    )
