"""The plan of a prediction: its images, cut into shards by a hash of their ids, and all that the results depend on.

The output folder holds `manifest.jsonl`, a line for each image, shard after shard, and `plan.json`, written after it:
where each shard's lines are, and the fingerprint by which another model, other images or settings are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge

from detrkit.batch.sources import Item, Source
from detrkit.utils.atomic import atomic_file, is_temporary, locked_temporary, write_atomic, write_errors
from detrkit.utils.documents import parse_json, read_bytes
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.messages import counted, shortened
from detrkit.utils.ranges import Range

MANIFEST, PLAN = "manifest.jsonl", "plan.json"
RESULTS, REPORTS, LEASES, WORK = "shards", "reports", "leases", "work"  # folders
MERGED, SUMMARY = "merged", "summary.json"
FORMAT = 1  # of the folder
_OURS = {MANIFEST, PLAN, RESULTS, REPORTS, LEASES, WORK, SUMMARY, f"{MERGED}.jsonl", f"{MERGED}.parquet"}
_BUFFERED = 2**24  # bytes of manifest lines before they go to files

ShardCount = Annotated[int, Range(ge=1, le=100_000)]
ShardNumber = Annotated[int, Range(ge=0, le=99_999)]
RowFormat = Literal["jsonl", "parquet"]


class Entry(NamedTuple):
    """An image of the manifest.

    Attributes:
        source: number of its source, from 0.
        at: position in its source where the order counts, else -1. Entries are ordered by source, position and id.
        id: names it in the results.
        ref: for `Source.image`.
    """

    source: int
    at: int
    id: str
    ref: Any


@dataclass(frozen=True)
class SourceRecord:
    """What the plan knows of a source: its name as typed, its number of images, and the digest of what it names."""

    name: str
    images: Annotated[int, Ge(0)]
    digest: str


@dataclass(frozen=True)
class Plan:
    """All that the results depend on.

    Attributes:
        format: of the folder.
        rows: format of the results.
        model: name of the model, and the first digits of its weights' digest; every row of the results has it.
        settings: what else changes the results: threshold, size, version, ...
        sources: of the images.
        offsets: where each shard's lines begin in the manifest, and its end, in bytes: shards + 1 numbers.
        counts: images of each shard.
    """

    format: int
    rows: RowFormat
    model: str
    settings: dict[str, Any]
    sources: list[SourceRecord]
    offsets: list[Annotated[int, Ge(0)]]
    counts: list[Annotated[int, Ge(0)]]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.counts)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.counts)

    def entries(self, out: Path, shard: int) -> Iterator[Entry]:
        """Yield the images of a shard, in their order.

        Args:
            out: the folder with the manifest.
            shard: its number, from 0.

        Raises:
            DetrkitError: the manifest is gone or was changed.
        """
        file, count = out / MANIFEST, 0
        try:
            with file.open("rb") as lines:
                lines.seek(self.offsets[shard])
                while lines.tell() < self.offsets[shard + 1]:
                    yield _entry(lines.readline(), file)
                    count += 1
                whole = lines.tell() == self.offsets[shard + 1]
        except OSError as error:
            raise DetrkitError(f"{file}: cannot be read ({error.strerror or error})") from error
        if count != self.counts[shard] or not whole:
            raise DetrkitError(f"{file}: was changed: it has {count} images of shard {shard}, not {self.counts[shard]}")


def shard_of(name: str, shards: int) -> int:
    """Return the shard of an id: its SHA-256's first 64 bits, modulo the number of shards.

    It depends on nothing else, so that every machine and every version of Python cuts alike.

    Args:
        name: the id.
        shards: their number.
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % shards


def shard_name(shard: int) -> str:
    """Return what a shard's files are called, without suffix."""
    return f"{shard:05}"


def read_plan(out: Path) -> Plan | None:
    """Read the plan of a folder; None if it has none yet.

    Raises:
        DetrkitError: the folder holds something else, or a plan of another version.
    """
    from detrkit.utils.schema import validated_as

    file = out / PLAN
    if not os.path.lexists(file):
        _check_free(out)
        return None
    content = parse_json(read_bytes(file), str(file))
    if not isinstance(content, dict) or content.pop("written by", None) != "detrkit":
        raise DetrkitError(f"{file} was not written by detrkit: choose another folder with --out")
    if content.get("format") != FORMAT:
        raise DetrkitError(f"{file} is of another version of detrkit: choose another folder with --out")
    try:
        plan: Plan = validated_as(Plan, content)
    except SettingError as error:
        raise DetrkitError(f"{file}: damaged ({error}): choose another folder with --out") from error
    rising = all(a <= b for a, b in zip(plan.offsets, plan.offsets[1:], strict=False))
    if len(plan.offsets) != plan.shards + 1 or not plan.shards or not rising:
        raise DetrkitError(f"{file}: damaged (offsets and counts do not fit): choose another folder with --out")
    return plan


def _check_free(out: Path) -> None:
    """Check that a folder without a plan is free, or was left by a command that ended while it made one."""
    try:
        others = [entry.name for entry in os.scandir(out) if entry.name not in _OURS and not is_temporary(entry.name)]
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise DetrkitError(f"{out} is a file: choose another folder with --out") from error
    except OSError as error:
        raise DetrkitError(f"{out}: cannot be looked into ({error.strerror}): choose another folder") from error
    if others:
        first = sorted(others)[0]
        raise DetrkitError(
            f"{out} holds {first!r}, which is of no prediction in shards: choose another folder with --out"
        )


def check_plan(plan: Plan, out: Path, *, shards: int, rows: str) -> None:
    """Check, before a model is loaded, that a folder's plan has the shards and the format that are asked for.

    Raises:
        DetrkitError: it has others.
    """
    if plan.shards != shards:
        raise _other(out, f"--shards {plan.shards}", f"--shards {shards}")
    if plan.rows != rows:
        raise _other(out, f"--format {plan.rows}", f"--format {rows}")


def check_sources(plan: Plan, out: Path, sources: Sequence[Source]) -> None:
    """Check that a folder's plan is for the same images: read again where only names tell, else by their files' digest.

    Raises:
        DetrkitError: it is for others, or a source cannot be read.
    """
    if len(sources) != len(plan.sources):
        raise _other(out, counted(len(plan.sources), "source"), counted(len(sources), "source"))
    for record, source in zip(plan.sources, sources, strict=True):
        digest = source.signature()
        count = record.images
        if digest is None:
            names = _NameDigest()
            for item in source.items():
                names.add(item)
            digest, count = names.hexdigest(), names.count
        if digest != record.digest:
            before, now = f"{record.images:,} images of {record.name}", f"{count:,} of {source.name}"
            raise _other(out, before, now if count != record.images else f"{now}, which are others")


def check_model(plan: Plan, out: Path, model: str, settings: Mapping[str, Any]) -> None:
    """Check that a folder's plan is for the same model and settings.

    Raises:
        DetrkitError: it is for another; names the first difference.
    """
    if plan.model != model:
        raise _other(out, f"the model {plan.model}", f"the model {model}")
    now = json.loads(json.dumps(dict(settings)))
    for name in dict.fromkeys([*plan.settings, *now]):
        before, value = plan.settings.get(name), now.get(name)
        if before != value:
            raise _other(out, f"{name} {shortened(str(before))}", f"{name} {shortened(str(value))}")


def _other(out: Path, before: str, now: str) -> DetrkitError:
    return DetrkitError(f"{out} was begun with {before}, not with {now}: choose another folder with --out")


def make_plan(
    out: Path, sources: Sequence[Source], *, shards: int, rows: RowFormat, model: str, settings: Mapping[str, Any]
) -> Plan:
    """Read all sources, cut their images into shards, and write the manifest and then the plan.

    Memory holds the lines of one shard, or 16 MiB of lines.

    Args:
        out: the folder, which exists.
        sources: of the images.
        shards: their number.
        rows: format of the results.
        model: as `Plan.model`.
        settings: as `Plan.settings`.

    Raises:
        DetrkitError: a source cannot be read or has no images, or two images have one id.
        WriteError: the folder cannot be written.
    """
    with write_errors(out), locked_temporary(out / MANIFEST, folder=True) as place:
        parts = _Parts(place, shards)
        records = [_read(number, source, parts) for number, source in enumerate(sources)]
        counts, offsets = [], [0]
        with atomic_file(out / MANIFEST) as part, part.open("wb") as file:
            for shard in range(shards):
                lines = _sorted(parts.lines(shard), sources)
                file.writelines(lines)
                counts.append(len(lines))
                offsets.append(offsets[-1] + sum(map(len, lines)))
    plan = Plan(FORMAT, rows, model, dict(settings), records, offsets, counts)
    write_atomic(out / PLAN, json.dumps({"written by": "detrkit", **asdict(plan)}, indent=1) + "\n")
    return plan


def _read(number: int, source: Source, parts: _Parts) -> SourceRecord:
    """Put the images of a source into their shards."""
    digest, names = source.signature(), _NameDigest()
    for at, item in enumerate(source.items()):
        names.add(item)
        line = json.dumps([number, at if source.ordered else -1, item.id, item.ref], separators=(",", ":"))
        parts.add(shard_of(item.id, parts.shards), line.encode() + b"\n")
    if not names.count:
        left = f" ({source.left_out} files in it are no images by their names)" if source.left_out else ""
        raise DetrkitError(f"{source.name}: no images{left}")
    return SourceRecord(source.name, names.count, names.hexdigest() if digest is None else digest)


def _sorted(lines: list[bytes], sources: Sequence[Source]) -> list[bytes]:
    """Return the lines of a shard in their order, each image once.

    Raises:
        DetrkitError: two images have one id.
    """
    entries = sorted({line: Entry(*json.loads(line)) for line in lines}.items(), key=lambda pair: pair[1][:3])
    seen: dict[str, Entry] = {}
    for _, entry in entries:
        other = seen.setdefault(entry.id, entry)
        if other is not entry:
            raise DetrkitError(_twice(other, entry, sources))
    return [line for line, _ in entries]


def _twice(first: Entry, second: Entry, sources: Sequence[Source]) -> str:
    places = [
        f"{sources[entry.source].name}{f' (image {entry.at + 1})' if entry.at >= 0 else ''}"
        for entry in (first, second)
    ]
    return f"two images have the id {shortened(repr(first.id))}: in {places[0]} and in {places[1]}: ids must be unique"


def _entry(line: bytes, file: Path) -> Entry:
    try:
        source, at, name, ref = json.loads(line)
    except (ValueError, RecursionError, TypeError) as error:
        raise DetrkitError(f"{file}: was changed: a line of it is no image") from error
    if not (isinstance(source, int) and isinstance(at, int) and isinstance(name, str) and source >= 0):
        raise DetrkitError(f"{file}: was changed: a line of it is no image")
    return Entry(source, at, name, ref)


class _NameDigest:
    """A digest of ids that does not depend on their order, in which a file system may give them."""

    def __init__(self) -> None:
        self.count = self._sum = 0

    def add(self, item: Item) -> None:
        self.count += 1
        self._sum += int.from_bytes(hashlib.sha256(item.id.encode()).digest(), "big")

    def hexdigest(self) -> str:
        return f"{self._sum % 2**256:064x}-{self.count}"


class _Parts:
    """The lines of each shard, in memory as long as they are few, then in files of a temporary folder."""

    def __init__(self, place: Path, shards: int) -> None:
        self.place, self.shards = place, shards
        self._lines: dict[int, list[bytes]] = {}
        self._bytes = 0

    def add(self, shard: int, line: bytes) -> None:
        self._lines.setdefault(shard, []).append(line)
        self._bytes += len(line)
        if self._bytes > _BUFFERED:
            self.place.mkdir(exist_ok=True)
            for number, lines in self._lines.items():
                with (self.place / shard_name(number)).open("ab") as file:
                    file.writelines(lines)
            self._lines, self._bytes = {}, 0

    def lines(self, shard: int) -> list[bytes]:
        lines: list[bytes] = []
        with suppress(FileNotFoundError):
            lines = (self.place / shard_name(shard)).read_bytes().splitlines(keepends=True)
        return lines + self._lines.pop(shard, [])
