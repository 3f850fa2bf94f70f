"""What `detrkit predict` prints at its end: totals first, then images; and a reason where nothing was found."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from detrkit.utils.messages import names_and_more
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from detrkit.cli.predict_journal import Record
    from detrkit.detector import Detector
    from detrkit.structures.detections import NearMiss

MAX_IMAGES = 12  # rows of the table without --verbose
_MAX_PATH = 40  # letters in the table
_MAX_CLASSES = 8  # in a line
_LOW_F1 = 0.3  # more wrong and missed objects than right ones by far


@dataclass
class Summary:
    """The results of a command, image by image.

    Attributes:
        counts: file -> number of its objects or segments by class, in the order of the command.
        near_misses: file without any -> its best score that was left out.
    """

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    near_misses: dict[str, NearMiss] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.counts)

    @classmethod
    def of(cls, records: Mapping[Path, Record]) -> Summary:
        """Return the summary of the images that are done."""
        from detrkit.structures.detections import NearMiss

        summary = cls()
        for file, record in records.items():
            miss = None if record.near_miss is None else NearMiss(*record.near_miss)
            summary.add(str(file), record.objects, miss)
        return summary

    def add(self, file: str, names: Sequence[str], near_miss: NearMiss | None) -> None:
        """Add an image.

        Args:
            file: its path.
            names: class of every object or segment in it.
            near_miss: the best result that was left out, if all were.
        """
        self.counts[file] = Counter(names)
        if near_miss is not None and not names:
            self.near_misses[file] = near_miss

    def lines(self, detector: Detector, threshold: float | str | None) -> list[str]:
        """Return sentences on all images together.

        Args:
            detector: that predicted.
            threshold: of the command, None for the default.
        """
        noun = "segment" if detector.panoptic else "object"
        total: Counter[str] = sum(self.counts.values(), Counter())
        number, images = total.total(), len(self.counts)
        what = names_and_more([f"{count:,} {name}" for name, count in total.most_common()], _MAX_CLASSES)
        lines = [f"{_plural(number, noun)} in {_plural(images, 'image')}{': ' + what if what else ''}"]
        empty = sum(not counts for counts in self.counts.values())
        suggested = detector.suggested_thresholds
        if suggested is not None and threshold in (None, "auto"):
            classes = detector.spec.classes
            names = frozenset[str]() if classes is None else frozenset(classes.used_names)
            own = [f"{name} {value:g}" for name, value in suggested.classes.items() if name in names]
            rest = "" if len(own) == len(names) else f", others {suggested.general:g}"
            shown = names_and_more(own, _MAX_CLASSES) + rest if own else f"{suggested.general:g}"
            lines.append(f"score above the suggested thresholds (--threshold auto): {shown}")
            if suggested.f1 < _LOW_F1:
                lines.append(
                    f"F1 was {suggested.f1:.0%} where they were measured: expect many wrong and many missed {noun}s; "
                    "the model has learned little so far"
                )
        else:
            value = detector.threshold if threshold is None else threshold
            lines.append(f"score above {value:g}" if isinstance(value, float) else f"score above {value}")
        if empty:
            lines.append(self._reason(detector, threshold, empty, noun))
        return [one_line(line) for line in lines]

    def _reason(self, detector: Detector, threshold: float | str | None, empty: int, noun: str) -> str:
        """Say why images have no objects, and what to try."""
        everywhere = empty == len(self.counts)
        which = "nothing was found" if everywhere else f"{_plural(empty, 'image')} without {noun}s"
        best = max(self.near_misses.values(), key=lambda miss: miss.score, default=None)
        if best is None:
            return f"{which}: the model has no score for any {noun} there"
        text = f"{which}: nothing above {best.threshold:g}; best score {best.decimals} ({best.name})"
        suggested = detector.suggested_thresholds
        if suggested is not None and threshold not in (None, "auto"):
            return f"{text}; suggested threshold {suggested.general:g}: --threshold auto"
        if not everywhere:
            return f"{text}; a lower --threshold shows more"
        lower = min(best.score * 0.9, best.threshold * 0.5) if best.score < best.threshold else best.score * 0.9
        advice = f"; look with --threshold {lower:.1g}" if lower >= 0.001 else ""
        return f"{text}{advice}; if that is no {noun}, the model has not learned these images yet"

    def table(self, *, segments: bool, verbose: bool) -> Table:
        """Return the table of the images: all of them, or the first ones."""
        table = Table(box=None, pad_edge=False)
        table.add_column("image", overflow="fold")
        table.add_column("segments" if segments else "objects", justify="right")
        table.add_column("what", overflow="fold")
        folder = _common_folder(self.counts)
        for file in list(self.counts)[: None if verbose else MAX_IMAGES]:
            counts = self.counts[file]
            names = [f"{count} {name}" if count > 1 else name for name, count in counts.most_common()]
            miss = self.near_misses.get(file)
            what = names_and_more(names, None if verbose else _MAX_CLASSES) if names else str(miss or "")
            table.add_row(
                one_line(os.path.relpath(file, folder) if folder else file), str(counts.total()), one_line(what)
            )
        return table

    def print(self, console: Console, detector: Detector, threshold: float | str | None, *, verbose: bool) -> None:
        """Print the sentences and the table."""
        console.print(self.table(segments=detector.panoptic, verbose=verbose))
        rest = 0 if verbose else len(self.counts) - MAX_IMAGES
        if rest > 0:
            console.print(f"... and {rest:,} more (--verbose lists all)", highlight=False)
        for line in self.lines(detector, threshold):
            console.print(line, soft_wrap=True, highlight=False, markup=False)


def _common_folder(files: Collection[str]) -> str:
    """Return the folder that all files are in, which the table leaves out where paths are long; "" if there is none."""
    if max(map(len, files), default=0) <= _MAX_PATH:
        return ""
    try:
        return os.path.commonpath([os.path.dirname(file) for file in files])
    except ValueError:  # no file, or absolute and relative ones
        return ""


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
