"""YOLO: images/ and labels/*.txt with a data.yaml as Ultralytics writes it, or with a classes.txt.

- Labels are text files, see `yolo_lines` for their columns; `yolo_files` finds them and the images.
- An image without label file is one without objects; a split without any label file is an error.
- Labels and category ids are the class numbers of the files. An image's id is its position in the sorted list of
  files, from 1; annotations are numbered in the same order.
- Image sizes come from the headers of the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from detrkit.data.readers import yolo_files
from detrkit.data.readers.base import Reader, Reading, register_reader
from detrkit.data.readers.common import Findings, make_record, size_or_error
from detrkit.data.readers.yolo_files import Labels
from detrkit.data.readers.yolo_lines import Columns, Row, keypoint_count, read_rows
from detrkit.data.sample import Record
from detrkit.utils.errors import DetrkitError
from detrkit.utils.names import not_hidden


@dataclass
class _Image:
    """Image whose label file has been read, if it has one."""

    position: int
    file: Path
    size: tuple[int, int]
    label: Path
    rows: list[Row]
    first_id: int


@register_reader
class YoloReader(Reader):
    """Reader of YOLO's label files."""

    name = "yolo"
    expects = "YOLO (data.yaml, or images/, labels/ and classes.txt)"
    no_objects_cause = "no label file (.txt) belongs to any image: they are looked for in labels/ beside images/"
    divided_by = "folders train and val in images/ and in labels/, which data.yaml names as train and val"

    def recognize(self, path: Path) -> bool:
        """Tell whether `path` is a data.yaml, a folder with one, or a folder with images/, labels/ and classes.txt."""
        if path.is_file():
            return path.suffix in (".yaml", ".yml")
        if not path.is_dir():
            return False
        return yolo_files.yaml_file(path) is not None or (
            (path / "images").is_dir() and yolo_files.classes_file(path) is not None
        )

    def splits(self, path: Path) -> list[str]:
        """List the splits named in the yaml; without one, the folders in images/, or "all".

        Raises:
            DetrkitError: a bad yaml, or a name of a split that cannot be used.
        """
        return yolo_files.splits(path)

    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split, as `Reader.read`.

        Raises:
            DetrkitError: malformed yaml, no images, no label file, or (strict findings) any error in the label files.
        """
        findings = findings if findings is not None else Findings()
        path = path.absolute()
        file, config = yolo_files.load_config(path)
        classes = yolo_files.read_classes(path, file, config, findings)
        images = yolo_files.images_of(path, split, file, config, findings)
        labels = _find_labels(images, file if config else path, split, findings)
        with ThreadPoolExecutor(8) as pool:  # headers of thousands of files, often on a network disk
            sizes = list(pool.map(size_or_error, images))
        findings.measured.update(images)
        columns = Columns(classes.label_of, masks, keypoint_count(config, file, findings), findings)
        records: list[Record | None] = []
        waiting: list[tuple[int, _Image]] = []
        next_id = 1
        for position, (image, size, label) in enumerate(zip(images, sizes, labels, strict=True), 1):
            if isinstance(size, DetrkitError):
                findings.add("error", image, "", str(size).removeprefix(f"{image}: "))
                continue
            rows = read_rows(label, findings) if label is not None else []
            read_image = _Image(position, image, size, label or image, rows, next_id)
            next_id += len(rows)
            if columns.note(rows):  # all lines of the split decide what its lines mean
                waiting.append((len(records), read_image))
                records.append(None)
            else:
                records.append(_record(read_image, columns))
        for index, read_image in waiting:
            records[index] = _record(read_image, columns)
        columns.report()
        return Reading(classes, [record for record in records if record is not None], findings)

    def find_unused(self, path: Path, images: Sequence[Path], findings: Findings) -> None:
        """Note label files without image."""
        finder = Labels()
        labels = {finder.expected(file) for file in images}
        for folder in sorted({file.parent for file in labels}):
            for extra in sorted(set(not_hidden(folder, "*.txt")) - labels):
                if extra.name not in ("classes.txt", "labels.txt"):
                    findings.add("warning", extra, "", "label file without image: left out")


def _record(image: _Image, columns: Columns) -> Record:
    """Make the record of an image."""
    objects = columns.objects(image.rows, image.label, image.size, image.first_id)
    return make_record(image.position, image.file, image.size, objects, image.label, columns.findings)


def _find_labels(images: list[Path], source: Path, split: str, findings: Findings) -> list[Path | None]:
    """Find the label file of each image, or None where there is none.

    Raises:
        DetrkitError: no image has one (strict findings only).
    """
    finder = Labels()
    labels = [finder.of(image) for image in images]
    first: dict[Path, Path] = {}
    for image, label in zip(images, labels, strict=True):
        if label is not None and first.setdefault(label, image) != image:
            findings.add("warning", image, "", f"has the label file of {first[label].name}, {label}: rename one")
    if not first:
        root = source if source.is_dir() else source.parent
        reason = (
            f"no label file for any of the {len(images)} images: looked for {finder.expected(images[0])} and in "
            f"{images[0].parent}; {yolo_files.where_labels_are(root, images)} (if no image has an object, write one "
            "empty label file)"
        )
        findings.add("error", source, f"split {split}", reason)
    return labels
