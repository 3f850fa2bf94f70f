"""How a dataset gets wrong: values, bytes and files changed as hypothesis draws them, which then shrinks what fails."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from helpers.corpus import Files

# What files really hold where a number, a name or a list belongs, and what only an enemy writes.
ODD_TEXTS = [
    "",
    " ",
    "x",
    "nan",
    "inf",
    "-1",
    "1e999",
    "0x10",
    "1_0",
    "n/a",
    "[/x]",
    "\x1b[31m",
    "a\x00b",
    "\ud800",
    "a\nb",
    "../../secret",
    "/etc/passwd",
    "~nosuchuser/x",
    "..",
    ".",
    "C:\\x",
    "x" * 300,
    "é" * 200,
    "a.png",
    "b.png",
    "train",
    "%61.png",
    "A.PNG",
    "<b>",
    "&lt;",
    "&x;",
    "\uff11\uff12",
    "9" * 400,
    "9" * 5000,
]
ODD_NUMBERS = [
    0,
    -0.0,
    -1,
    1,
    2,
    0.5,
    40.0,
    7,
    9,
    2**31,
    2**53 + 1,
    2**63,
    -(2**63),
    2**64,
    10**30,
    10**308,
    10**400,
    -(10**400),
    1e-320,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    True,
    False,
]


# what changing a file raises that an earlier change has made unreadable; pyarrow's errors are ValueErrors and OSErrors
Unreadable = (ValueError, OSError, RecursionError, KeyError, TypeError, AttributeError, yaml.YAMLError)


odd_scalars = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.sampled_from(ODD_NUMBERS),
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)
odd_values = st.one_of(
    odd_scalars,
    # as texts: a list that is put into a value, and then changed there, is another one each time
    st.sampled_from(
        [
            *("[]", "{}", "[[]]", "[null]", '{"": null}', "[1, 2]", "[1, 2, 3, 4]", "[[1, 1, 2, 2]]"),
            *("[[1, 1, 2, 2, 3]]", "[" * 40 + "1" + "]" * 40, "[" * 900 + "1" + "]" * 900),
        ]
    ).map(json.loads),
    st.lists(odd_scalars, max_size=5),
    st.dictionaries(st.sampled_from(["id", "bbox", "counts", "size", "name"]), odd_scalars, max_size=3),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in nested lists and dicts."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*at, key))
    return found


def change_value(draw: Callable[[Any], Any], value: Any) -> Any:
    """One value replaced, removed, repeated, moved or renamed, in place; returns the whole, which may be another."""
    everywhere = places(value)
    if not everywhere:
        return draw(odd_values)
    *front, last = draw(st.sampled_from(everywhere))
    parent = value
    for key in front:
        parent = parent[key]
    kind = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat", "move", "rename"]))
    if kind == "remove":
        del parent[last]
    elif kind == "repeat" and isinstance(parent, list):
        parent.insert(last, json.loads(json.dumps(parent[last], default=str)))
    elif kind == "move":
        other = value
        for key in draw(st.sampled_from(everywhere)):
            other = other[key]
        parent[last] = json.loads(json.dumps(other, default=str))
    elif kind == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from([*ODD_TEXTS, "id", "segments_info", "iscrowd"]))] = parent.pop(last)
    else:
        parent[last] = draw(odd_values)
    return value


def change_json(draw: Callable[[Any], Any], data: bytes) -> bytes:
    value = json.loads(data)
    for _ in range(draw(st.integers(1, 3))):
        value = change_value(draw, value)
    return json.dumps(value).encode()


def change_yaml(draw: Callable[[Any], Any], data: bytes) -> bytes:
    value = yaml.safe_load(data)
    for _ in range(draw(st.integers(1, 3))):
        value = change_value(draw, value)
    try:
        return yaml.safe_dump(value, sort_keys=False).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, RecursionError, ValueError):
        return json.dumps(value).encode()


def change_words(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """Words of an xml or a label file, or whole lines of it, replaced, removed and repeated."""
    parts = re.split(rb"(\s+|[<>])", data)
    for _ in range(draw(st.integers(1, 3))):
        k = draw(st.integers(0, len(parts) - 1))
        odd = str(draw(odd_scalars)).encode("utf-8", "surrogatepass")
        kind = draw(st.sampled_from(["replace", "replace", "remove", "repeat", "many"]))
        parts[k : k + 1] = {
            "replace": [odd],
            "remove": [],
            "repeat": [parts[k]] * 2,
            "many": [parts[k], b" ", odd] * 200,
        }[kind]
        parts = parts or [b""]
    return b"".join(parts)


def change_bytes(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """Bytes replaced, cut out and put in; or all of it in another encoding."""
    if draw(st.integers(0, 3)) == 0:
        encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig", "cp037"]))
        return data.decode("latin-1").encode(encoding, "replace")
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(changed)))
        stop = min(len(changed), start + draw(st.sampled_from([0, 1, 1, 4, 100, 10**6])))
        changed[start:stop] = draw(
            st.one_of(
                st.binary(max_size=8), st.sampled_from([b"\xff" * 8, b"[" * 2000, b"<a>" * 2000, b"\r\n", b"&" * 50])
            )
        )
    return bytes(changed)


BY_SUFFIX = {
    ".json": [change_json] * 4,
    ".yaml": [change_yaml] * 3 + [change_words],
    ".xml": [change_words] * 3,
    ".txt": [change_words] * 3,
}


def change_parquet(draw: Callable[[Any], Any], data: bytes) -> bytes:
    """The table with one column's values changed, whatever type they then have."""
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = pq.read_table(io.BytesIO(data)).to_pylist()
    for row in rows:  # bytes have no JSON
        row["image"]["bytes"] = row["image"]["bytes"].decode("latin-1")
    rows = change_value(draw, rows)
    try:
        for row in rows:
            if isinstance(row.get("image"), dict) and isinstance(row["image"].get("bytes"), str):
                row["image"]["bytes"] = row["image"]["bytes"].encode("latin-1")
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), stream)
        return stream.getvalue()
    except Exception:  # a table that pyarrow does not make is no case
        return data


@st.composite
def changed_files(draw: Callable[[Any], Any], files: Files) -> tuple[Files, list[tuple[str, str]]]:
    """The files with one to three of them changed, and what to do to them on the disk once they are written."""
    files = dict(files)
    on_disk: list[tuple[str, str]] = []
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(files)))
        suffix = Path(name).suffix
        kind = draw(
            st.sampled_from(["content"] * 6 + ["bytes", "bytes", "rename", "remove", "folder", "loop", "empty", "pipe"])
        )
        if kind == "content":
            how = [change_parquet] if suffix == ".parquet" else BY_SUFFIX.get(suffix, [change_bytes])
            try:
                files[name] = draw(st.sampled_from(how))(draw, files[name])
            except Unreadable:  # it had been changed to what cannot be read
                files[name] = change_bytes(draw, files[name])
        elif kind == "bytes":
            files[name] = change_bytes(draw, files[name])
        elif kind == "rename":
            files[f"{Path(name).parent}/{draw(st.sampled_from(ODD_TEXTS))}{suffix}"] = files.pop(name)
        elif kind == "remove" and len(files) > 1:
            del files[name]
        elif kind == "empty":
            files[name] = b""
        else:
            on_disk.append((kind, name))
    return files, on_disk


def change_disk(root: Path, on_disk: list[tuple[str, str]]) -> None:
    """Puts folders, links to themselves and pipes in the places of files."""
    for kind, name in on_disk:
        target = root / name
        try:
            target.unlink()
        except (OSError, ValueError):  # a name that the disk does not hold, so nothing was written
            continue
        if kind == "folder":
            target.mkdir()
        elif kind == "pipe":
            os.mkfifo(target)
        else:
            target.symlink_to(target)
