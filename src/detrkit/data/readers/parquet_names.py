"""Names of classes in parquet's metadata, or in the dataset card (README.md) beside the files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from detrkit.utils.documents import parse_json, parse_yaml, read_text
from detrkit.utils.errors import DetrkitError


def metadata_names(data: bytes, file: Path) -> list[str] | None:
    """Read the names from the metadata that `datasets` writes into the files; None if they are missing or damaged."""
    try:
        value = parse_json(data, str(file))
    except DetrkitError:
        return None
    info = value.get("info") if isinstance(value, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    try:
        return label_names(find_below(find_below(features, "objects"), "category"))
    except (TypeError, ValueError):
        return None


def card_names(path: Path) -> tuple[list[str] | None, Path]:
    """Read the names from the dataset card, the YAML at the top of README.md; also return the path of the card.

    Raises:
        DetrkitError: malformed YAML.
    """
    folder = path if path.is_dir() else path.parent
    card = next((f for f in (folder / "README.md", folder.parent / "README.md") if f.is_file()), None)
    if card is None:
        return None, path
    front = re.match(r"---\n(.*?)\n---", read_text(card), re.DOTALL)
    value = parse_yaml("\n" + front[1], str(card), scalars=False) if front else None
    information = value.get("dataset_info") if isinstance(value, dict) else None
    try:
        return label_names(find_below(find_below(information, "objects"), "category")), card
    except (TypeError, ValueError) as error:
        raise DetrkitError(f"{card}: the names of class_label must be numbered 0, 1, ... ({error})") from error


def _nodes(tree: Any) -> Iterator[Any]:
    """Yield the mappings and lists of a tree, each before what is in it, in the order of the file."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict | list):
            yield node
            waiting.extend(reversed(list(node.values()) if isinstance(node, dict) else node))


def find_below(tree: Any, name: str) -> Any:
    """Find the first entry called `name` in nested mappings ({name: ...}) and lists ([{"name": name, ...}])."""
    for node in _nodes(tree):
        if isinstance(node, dict):
            if node.get(name) is not None:
                return node[name]
            if node.get("name") == name:
                return {key: value for key, value in node.items() if key != "name"}
    return None


def label_names(tree: Any) -> list[str] | None:
    """Find the names of a ClassLabel in the metadata ({"_type": "ClassLabel"}) or the card ("class_label")."""
    for node in _nodes(tree):
        if not isinstance(node, dict):
            continue
        label = node if node.get("_type") == "ClassLabel" else node.get("class_label")
        if label is None and node.get("name") == "class_label":
            label = node
        names = label.get("names") if isinstance(label, dict) else None
        if isinstance(names, dict):  # the card's: {"0": name, ...}
            names = [names[key] for key in sorted(names, key=int)]
        if isinstance(names, list) and names:
            return [str(name) for name in names]
    return None
