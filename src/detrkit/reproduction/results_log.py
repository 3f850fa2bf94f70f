"""`ResultsLog`: the results of each image, a line per batch, from which an interrupted evaluation continues."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detrkit.engine.evaluation_loop import EvaluationAccumulator
from detrkit.evaluation.evaluator import ImageResults
from detrkit.evaluation.panoptic_matching import ImageMatches
from detrkit.utils.atomic import append, write_atomic
from detrkit.utils.errors import DetrkitError

FOLDER, SETTINGS = "journal", "settings.json"
# fields of `ImageMatches` -> key in the files and type of the numbers
_MATCHES = {
    "matched": ("matched", np.int64),
    "iou": ("iou", np.float64),
    "false_positives": ("invented", np.int64),
    "false_negatives": ("missed", np.int64),
}


class ResultsLog:
    """Log of results; every process appends to its own file and reads the files of all.

    Numbers are stored with all digits, so that metrics do not change by writing and reading.

    Args:
        folder: of the evaluation; the log is the folder "journal" in it.
        settings: that the results depend on.

    Raises:
        DetrkitError: the folder holds an evaluation with other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder = folder / FOLDER
        self.settings = dict(settings)
        file = self.folder / SETTINGS
        if not file.is_file():
            return
        try:
            stored_settings = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DetrkitError(f"{file}: damaged; delete {self.folder} to begin anew") from error
        for name in self.settings | stored_settings:
            stored, current = stored_settings.get(name), self.settings.get(name)
            if stored != current:
                raise DetrkitError(
                    f"{folder}: an evaluation with {name} {stored} was begun here, now it is {current}; give another "
                    f"--out, or delete {self.folder}"
                )

    def begin(self) -> None:
        """Write the settings; one process calls this after all have compared theirs."""
        write_atomic(self.folder / SETTINGS, json.dumps(self.settings, indent=2) + "\n")

    def read(self, evaluation: EvaluationAccumulator) -> float:
        """Add the images that are done to an evaluation.

        Returns:
            The seconds that these images took, summed over processes.
        """
        seconds = 0.0
        objects: dict[int | str, ImageResults] = {}
        segments: dict[int | str, ImageMatches] = {}
        for file in sorted(self.folder.glob("process-*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    content = json.loads(line)
                except ValueError:
                    continue  # the process was stopped while it wrote this line: the batch is evaluated again
                seconds += content["seconds"]
                for image in content["images"]:
                    objects.setdefault(image["id"], _results(image["objects"]))
                    if "segments" in image:
                        segments.setdefault(image["id"], _matches(image["segments"]))
        evaluation.objects.merge(objects)
        if evaluation.segments is not None:
            evaluation.segments.merge(segments)
        return seconds

    def append(
        self, evaluation: EvaluationAccumulator, image_ids: Sequence[int | str], *, rank: int, seconds: float
    ) -> None:
        """Append the images of a batch.

        Args:
            evaluation: to which the images have been added.
            image_ids: of the batch.
            rank: of this process.
            seconds: that the batch took.

        Raises:
            DetrkitError: the log cannot be written.
        """
        objects = evaluation.objects.state()
        matches = {} if evaluation.segments is None else evaluation.segments.state()
        images = []
        for image_id in image_ids:
            image: dict[str, Any] = {"id": image_id, "objects": _plain(objects[image_id])}
            if image_id in matches:
                image["segments"] = _plain(matches[image_id])
            images.append(image)
        line = json.dumps({"seconds": round(seconds, 4), "images": images}) + "\n"
        file = self.folder / f"process-{rank}.jsonl"
        append(file, line.encode(), lines=True)


def _plain(row: ImageResults | ImageMatches) -> dict[str, Any]:
    """Convert the fields to JSON values."""
    keys = {name: key for name, (key, _) in _MATCHES.items()}
    fields = ((keys.get(name, name), value) for name, value in row._asdict().items())
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in fields}


def _results(plain: Mapping[str, Any]) -> ImageResults:
    return ImageResults(
        np.array(plain["category"], np.int64),
        np.array(plain["boxes"], np.float64).reshape(-1, 4),
        np.array(plain["scores"], np.float64),
        plain["segmentations"],
    )


def _matches(plain: Mapping[str, Any]) -> ImageMatches:
    arrays = {name: np.array(plain[key], kind) for name, (key, kind) in _MATCHES.items()}
    return ImageMatches(**arrays, segments_info=plain["segments_info"])
