"""`Reader`: a dataset format; `READERS`: all of them, open to other packages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from detrkit.data.readers.common import Findings
from detrkit.data.sample import Record
from detrkit.structures.classes import ClassList
from detrkit.utils.registry import Registry


class Reading(NamedTuple):
    """Content of a split.

    Attributes:
        classes: of the dataset; the labels of the records are positions in it.
        records: one for each image that can be used, also for those without objects.
        findings: what is wrong, and counts of the boxes that were clamped or left out.
    """

    classes: ClassList
    records: list[Record]
    findings: Findings


class Reader(ABC):
    """Reader of one dataset format.

    `open_dataset`, training, evaluation and the `detrkit data` commands need nothing else of a format. A package adds
    one by a subclass with the decorator `detrkit.register_reader`; `detrkit.data.readers.csv_boxes` is an example.

    Attributes:
        name: name of the format, in `--layout` and `Dataset.layout`.
        expects: the format's name and its files, for the message that none was recognized: "COCO (a json file)".
        no_objects_cause: the likeliest reason why a readable dataset of the format has no object, for a message.
        divided_by: what the splits of the format are, for the message that there is none to evaluate on.
    """

    name: ClassVar[str]
    expects: ClassVar[str]
    no_objects_cause: ClassVar[str] = "the files hold none"
    divided_by: ClassVar[str] = ""

    @abstractmethod
    def recognize(self, path: Path) -> bool:
        """Tell whether a file or folder has this format, from names of files and the beginning of one at most."""

    @abstractmethod
    def splits(self, path: Path) -> list[str]:
        """Return the names of the splits; `["all"]` for a dataset without any.

        Args:
            path: a dataset that `recognize` accepts.

        Raises:
            DetrkitError: the splits cannot be determined, or one has a name that cannot be used.
        """

    @abstractmethod
    def read(self, path: Path, split: str, *, masks: bool | None = False, findings: Findings | None = None) -> Reading:
        """Read one split; no image is decoded.

        Args:
            path: the dataset's folder or file.
            split: one of `splits(path)`.
            masks: keep the segmentations (they take several times the memory of the boxes); None: those that there are.
            findings: takes what is wrong (`Findings.add`); by default a new one, which raises at the first error.

        Raises:
            DetrkitError: files that cannot be read, masks that the format does not have, or (strict findings) any
                error in the files.
        """

    def find_unused(self, path: Path, images: Sequence[Path], findings: Findings) -> None:  # noqa: B027 (optional)
        """Note annotation files that belong to no image; images that no split has are noted by `check` itself.

        Args:
            path: the dataset's folder.
            images: the image files of all splits.
            findings: takes the faults.
        """


READERS: Registry[Reader] = Registry("layout")

R = TypeVar("R", bound=type[Reader])


def register_reader(reader: R, *, replace: bool = False) -> R:
    """Register a dataset format under its `name`; use it as the decorator of a `Reader` class.

    Formats are tried in the order of their registration where no layout is stated.

    Args:
        reader: the class; it is constructed without arguments.
        replace: replace the format of that name, as when a notebook's cell runs again.

    Returns:
        The class itself.

    Raises:
        ValueError: a name that is taken.
    """
    READERS.add(reader.name, reader(), replace=replace)
    return reader
