"""Checks of a command line that need no torch: importing it takes five to nine seconds, also for a mistyped path.

Whatever is refused here the code behind a command refuses too, in the same words. What needs reading a file is left to
that code.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from detrkit.utils.errors import DetrkitError
from detrkit.utils.existing import check_exists
from detrkit.utils.names import expanded_path
from detrkit.utils.settings_files import shipped
from detrkit.utils.similar import nearest_names

# the models of detrkit: a test compares them with those that are registered when torch is there
MODELS = (
    "detr-r50",
    "detr-r50-dc5",
    "detr-r101",
    "detr-r101-dc5",
    "detr-r50-panoptic",
    "detr-r50-dc5-panoptic",
    "detr-r101-panoptic",
    "deformable-detr-r50-single-scale",
    "deformable-detr-r50-single-scale-dc5",
    "deformable-detr-r50",
    "deformable-detr-r50-refine",
    "deformable-detr-r50-two-stage",
    "h-deformable-detr-r50",
    "dino-r50-4scale",
    "dino-r50-5scale",
    *(f"{kind}-{size}" for kind in ("rtdetr", "rtdetrv2") for size in ("r18", "r34", "r50-m", "r50", "r101")),
    "detr-demo",
)
# names of published files beside those that stand for a model; compared with published.yaml likewise
FURTHER_FILES = (
    *(f"deformable-detr-r50-two-stage-{kind}-{epochs}ep" for kind in ("ffn2048", "tricks") for epochs in (12, 36)),
    "h-deformable-detr-r50-36ep",
    *(f"dino-r50-{scales}scale-{epochs}ep" for scales in (4, 5) for epochs in (24, 36)),
)
_SEEDED = re.compile(r"([\w.-]+):(\d+)")


def check_dataset(path: str | Path | None) -> None:
    """Check that a dataset is there; None passes.

    Raises:
        DetrkitError: nothing is there.
    """
    if path:
        check_exists(path)


def check_model(name: str | None) -> None:
    """Check the name of a model; None passes.

    Raises:
        DetrkitError: no such model.
    """
    if name is None or _is_model(name) or _has_plugins():
        return
    similar = nearest_names([name], MODELS).get(name)
    hint = f"; did you mean {similar}?" if similar else ""
    raise DetrkitError(f"unknown model {name[:80]!r}: choose one of {', '.join(MODELS)}{hint}")


def check_published(name: str) -> None:
    """Check the name of a published file: a model's, or that of a further file.

    Raises:
        DetrkitError: no such file.
    """
    if name not in FURTHER_FILES:
        check_model(name)


def check_weights(source: str | Path | None, *, seeded: bool = False) -> None:
    """Check what is given as weights: a path, the name of a model, or of a repository on the Hugging Face Hub.

    Args:
        source: as it was given; None passes.
        seeded: whether a name with a seed, "detr-r50:0", counts.

    Raises:
        DetrkitError: nothing is there, and no model has that name.
    """
    if source is None:
        return
    text = str(source)
    path = expanded_path(text)
    if _is_model(text) or text in FURTHER_FILES or os.path.lexists(path):
        return
    if seeded and (match := _SEEDED.fullmatch(text)):
        if _is_model(match[1]) or _has_plugins():
            return
        raise DetrkitError(f"{source}: no model of that name; models are {', '.join(MODELS)}")
    if path.suffix == "" and path.name == text:
        if _has_plugins():
            return
        similar = nearest_names([text], MODELS).get(text)
        hint = f"; did you mean {similar}?" if similar else ""
        raise DetrkitError(f"{source}: neither a file nor a model; models are {', '.join(MODELS)}{hint}")
    from detrkit.weights.hub import hub_name

    if hub_name(text) is not None:  # which only the network can tell
        return
    check_exists(text, "weights file")


def check_recipe(source: str, folder: str = "recipes") -> None:
    """Check that a recipe is there, as a file or under its name.

    Raises:
        DetrkitError: neither.
    """
    names = shipped(folder)
    if source not in names and not os.path.exists(source):
        similar = nearest_names([source], names).get(source)
        hint = f"did you mean {similar}? " if similar else ""
        raise DetrkitError(f"{source}: no such file, and no recipe of that name ({hint}there are {', '.join(names)})")


def check_folders(paths: Iterable[str | Path | None]) -> None:
    """Check that folders or files are there; None passes.

    Raises:
        DetrkitError: one is not.
    """
    for path in paths:
        if path is not None:
            check_exists(path)


def _is_model(name: str) -> bool:
    """Return whether a model has this name: of detrkit, or registered in this process."""
    registry = sys.modules.get("detrkit.models.registry")
    return name in MODELS or (registry is not None and name in registry.ARCHITECTURES)


def _has_plugins() -> bool:
    """Return whether other packages may have registered models, which only importing them shows."""
    from importlib.metadata import entry_points

    from detrkit.utils.registry import GROUP, VARIABLE

    return bool(os.environ.get(VARIABLE, "").strip()) or bool(entry_points(group=GROUP))
