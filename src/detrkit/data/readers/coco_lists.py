"""Lists of a COCO json: its images and its categories, every entry checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from detrkit.data.readers.class_names import check_class_names
from detrkit.data.readers.common import Findings, is_int, is_one_of, size_fault
from detrkit.utils.documents import parse_json, read_bytes, shown
from detrkit.utils.errors import DetrkitError

T = TypeVar("T")


class Listed(NamedTuple, Generic[T]):
    """Entries of a list by id.

    Attributes:
        entries: id -> entry, of those that can be used.
        refused: ids of the others, which an error explains; references to them are not reported again.
    """

    entries: dict[int, T]
    refused: set[int]


def load_json(file: Path) -> dict[str, Any]:
    """Read the json object in `file`.

    Raises:
        DetrkitError: not readable, malformed, or not an object with `images` and `categories`.
    """
    value = parse_json(read_bytes(file), str(file))
    keys = ("images", "categories")
    if not isinstance(value, dict) or not all(isinstance(value.get(k), list) for k in keys):
        raise DetrkitError(
            f"{file}: not a COCO json: expected an object with the lists images, annotations, categories"
        )
    if not isinstance(value.get("annotations", []), list):
        raise DetrkitError(f"{file}: field annotations is not a list")
    return value


def read_categories(entries: Sequence[Any], file: Path, findings: Findings) -> dict[int, str]:
    """Read the categories: id -> name.

    Raises:
        DetrkitError: no category, or (strict findings) one without a usable id and name.
    """
    categories: dict[int, str] = {}
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_int(entry.get("id")) or not isinstance(entry.get("name"), str):
            findings.add("error", file, f"categories[{k}]", "needs an integer id and a name")
            continue
        if entry["id"] in categories:
            findings.add("error", file, f"category {entry['id']}", "id is used twice")
        else:
            categories[entry["id"]] = entry["name"]
    if not categories:
        raise DetrkitError(f"{file}: field categories lists no class")
    return categories


def distinct_categories(
    categories: Mapping[int, str], entries: Sequence[Any], annotations: Sequence[Any], file: Path, findings: Findings
) -> dict[int, str]:
    """Return the categories without those that only group others (Roboflow's), so that every name is there once.

    Roboflow's exports begin with a category that no object has: it is the supercategory of all others, and may have
    the name of one of them.

    Args:
        categories: id -> name.
        entries: of the json, for their supercategories.
        annotations: of the json.
        file: the json.
        findings: takes what is left out.

    Raises:
        DetrkitError: a name that cannot be used, or is there twice and both have objects (strict findings).
    """
    names = Counter(categories.values())
    parents = {
        e["id"]: e.get("supercategory") for e in entries if isinstance(e, dict) and is_one_of(e.get("id"), categories)
    }
    grouping = [
        i
        for i, name in categories.items()
        if parents.get(i) == "none"
        and len(categories) > 1
        and all(parents.get(j) == name for j in categories if j != i)
    ]
    if not grouping and len(names) == len(categories):
        _check_names(categories, file, findings)
        return dict(categories)
    used = {
        a["category_id"] for a in annotations if isinstance(a, dict) and is_one_of(a.get("category_id"), categories)
    }
    distinct = dict(categories)
    for category_id in grouping:
        if category_id not in used:
            name = distinct.pop(category_id)
            reason = f"{shown(name)} is the supercategory of all others and no object has it: no class"
            findings.note("info", file, f"category {category_id}", reason)
    for name, count in names.items():
        ids = [i for i, other in distinct.items() if other == name]
        if count < 2 or len(ids) < 2:
            continue
        with_objects = [i for i in ids if i in used] or ids[:1]
        for category_id in set(ids) - set(with_objects):
            del distinct[category_id]
            reason = f"{shown(name)} is also category {with_objects[0]}, and no object has this one: no class"
            findings.note("warning", file, f"category {category_id}", reason)
    _check_names(distinct, file, findings)
    return distinct


def _check_names(categories: Mapping[int, str], file: Path, findings: Findings) -> None:
    check_class_names(((f"category {i}", name) for i, name in sorted(categories.items())), file, findings)


def read_images(entries: Sequence[Any], file: Path, findings: Findings) -> Listed[dict[str, Any]]:
    """Read the images: id -> entry, the entries having a file_name, and height and width as positive integers."""
    images: dict[int, dict[str, Any]] = {}
    refused: set[int] = set()
    seen: dict[str, int] = {}
    for k, entry in enumerate(entries):
        if not isinstance(entry, dict) or not is_int(entry.get("id")):
            findings.add("error", file, f"images[{k}]", "needs an integer id")
            continue
        image_id = entry["id"]
        where = f"image {image_id}"
        if image_id in images or image_id in refused:
            findings.add("error", file, where, "image id is used twice")
            continue
        if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
            reason: str | None = "needs a file_name"
        else:
            reason = size_fault(entry.get("height"), entry.get("width"))
        if reason is not None:
            refused.add(image_id)
            findings.add("error", file, where, reason)
            continue
        if type(entry["height"]) is not int or type(entry["width"]) is not int:  # such as 40.0
            entry = {**entry, "height": int(entry["height"]), "width": int(entry["width"])}
        images[image_id] = entry
        other = seen.setdefault(entry["file_name"], image_id)
        if other != image_id:
            findings.add("warning", file, where, f"same file_name {shown(entry['file_name'])} as image {other}")
    return Listed(images, refused)
