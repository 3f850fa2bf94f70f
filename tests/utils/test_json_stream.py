"""A JSON object entry by entry: the same bytes as at once, whole at any time."""

from __future__ import annotations

import json

import pytest

from detrkit.utils.errors import WriteError
from detrkit.utils.json_stream import JsonStream
from helpers.disk import full_disk

ENTRIES = {
    "a": [],
    "b": [{"box": [1.5, 2], "name": "é\n"}],
    "c\udc80": {"ids": "x.png", "segments": [{"id": 1}]},
    "d": 1,
}


@pytest.mark.parametrize("count", range(5))
def test_the_bytes_are_those_of_json(tmp_path, count):
    some = dict(list(ENTRIES.items())[:count])
    path = tmp_path / "new" / "a.json"
    with JsonStream(path) as stream:
        for key, value in some.items():
            stream.add(key, value)
            assert not path.exists()
        stream.finish()
    assert path.read_text() == json.dumps(some, indent=1) + "\n"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_published_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with JsonStream(path) as stream:
        seen = {}
        for key, value in ENTRIES.items():
            stream.add(key, value)
            seen[key] = value
            stream.publish()
            assert json.loads(path.read_text()) == seen
        stream.add("e", 1)
    assert json.loads(path.read_text()) == ENTRIES  # as published: what came after was not finished
    assert list(tmp_path.iterdir()) == [path]


def test_an_entry_that_does_not_fit_costs_itself_alone(tmp_path):
    path = tmp_path / "a.json"
    with JsonStream(path) as stream:
        stream.add("a", "x" * 100)
        with full_disk(500), pytest.raises(WriteError, match=r"^cannot write .*a\.json: File too large$"):
            stream.add("b", "y" * 1000)
        stream.add("c", "z")
        stream.finish()
    assert json.loads(path.read_text()) == {"a": "x" * 100, "c": "z"}


def test_an_empty_one_on_a_full_disk_leaves_nothing(tmp_path):
    with full_disk(), pytest.raises(WriteError):
        JsonStream(tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []
