"""The plan: images cut into shards alike everywhere, and a folder that was begun with something else refused."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator

import pytest

from detrkit.batch import plan as plans
from detrkit.batch.plan import (
    MANIFEST,
    PLAN,
    check_model,
    check_plan,
    check_sources,
    make_plan,
    read_plan,
    shard_of,
)
from detrkit.batch.sources import Item, Source
from detrkit.utils.errors import DetrkitError


class Names(Source):
    """A source of names; `ordered` as asked for."""

    def __init__(self, names, *, ordered=False, name="names"):
        super().__init__(name)
        self.names, self.ordered = list(names), ordered

    def items(self) -> Iterator[Item]:
        return (Item(name, name) for name in self.names)


def made(out, *sources, shards=4, **more):
    return make_plan(out, sources, shards=shards, rows="jsonl", model="m-1", settings={"threshold": 0.5}, **more)


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_the_shard_of_an_id_is_its_sha256():
    """By `printf a.jpg | sha256sum`: 509b0d4641a7c3ba...; the numbers must never change."""
    assert [shard_of(name, 7) for name in ("a.jpg", "\u00e9\n.jpg", "")] == [
        int(digits, 16) % 7 for digits in ("509b0d4641a7c3ba", "3958ba6b2a2a6f0d", "e3b0c44298fc1c14")
    ]


def test_shards_are_of_about_one_size():
    counts = [0] * 64
    for k in range(20_000):
        counts[shard_of(f"{k:06}.jpg", 64)] += 1
    assert min(counts) > 230 and max(counts) < 400  # 312 +- 17.5


@pytest.mark.parametrize("buffered", [2**24, 40])
def test_every_image_is_in_one_shard_in_its_order(out, monkeypatch, buffered):
    monkeypatch.setattr(plans, "_BUFFERED", buffered)
    listed = [f"z{k:03}" for k in reversed(range(50))]
    plan = made(out, Names(listed, ordered=True), Names(["b", "a", "\u00e9", "n\nl", "u\u2028v"]))
    assert plan.images == 55 and read_plan(out) == plan
    entries = [(shard, entry) for shard in range(4) for entry in plan.entries(out, shard)]
    assert all(shard_of(entry.id, 4) == shard for shard, entry in entries)
    assert sorted(entry.id for _, entry in entries) == sorted([*listed, "b", "a", "\u00e9", "n\nl", "u\u2028v"])
    for shard in range(4):
        keys = [entry[:3] for one, entry in entries if one == shard]
        assert keys == sorted(keys)
    assert {path.name for path in out.iterdir()} == {MANIFEST, PLAN}


def test_the_order_in_which_a_folder_is_listed_makes_no_difference(tmp_path):
    texts = []
    for number, names in enumerate((["a", "b", "c"], ["c", "a", "b"])):
        out = tmp_path / str(number)
        out.mkdir()
        made(out, Names(names), shards=2)
        texts.append((out / MANIFEST).read_bytes() + (out / PLAN).read_bytes())
    assert texts[0] == texts[1]


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    """Four times the images in four times the shards take the memory of one shard and of the buffer."""
    monkeypatch.setattr(plans, "_BUFFERED", 2**16)
    peaks = []
    for images, shards in ((2_000, 8), (8_000, 32)):
        out = tmp_path / str(images)
        out.mkdir()
        source = Names((), name="generated")
        source.items = lambda images=images: (Item(f"{k:012}.jpg", f"{k:012}.jpg") for k in range(images))
        tracemalloc.start()
        plan = made(out, source, shards=shards)
        assert sum(1 for shard in range(shards) for _ in plan.entries(out, shard)) == images
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0] and peaks[1] < 2**20, peaks


def test_two_images_of_one_id_are_refused(out):
    with pytest.raises(DetrkitError, match=r"two images have the id 'x': in list \(image 2\) and in list \(image 4\)"):
        made(out, Names(["a", "x", "b", "x"], ordered=True, name="list"))
    with pytest.raises(DetrkitError, match="two images have the id 'x': in a and in b"):
        made(out, Names(["x"], name="a"), Names(["x"], name="b"))
    assert not (out / PLAN).exists() and not (out / MANIFEST).exists()


def test_a_pattern_that_matches_a_file_twice_has_it_once(out):
    assert made(out, Names(["x", "y", "x"])).images == 2


def test_no_images_is_one_line(out):
    source = Names([])
    source.left_out = 3
    with pytest.raises(DetrkitError, match=r"names: no images \(3 files in it are no images by their names\)"):
        made(out, source)


def test_other_shards_images_models_or_settings_are_refused(out):
    plan = made(out, Names(["a", "b"]))
    check_plan(plan, out, shards=4, rows="jsonl")
    check_sources(plan, out, [Names(["b", "a"])])
    check_model(plan, out, "m-1", {"threshold": 0.5})
    with pytest.raises(DetrkitError, match="was begun with --shards 4, not with --shards 5: choose another folder"):
        check_plan(plan, out, shards=5, rows="jsonl")
    with pytest.raises(DetrkitError, match="--format jsonl, not with --format parquet"):
        check_plan(plan, out, shards=4, rows="parquet")
    with pytest.raises(DetrkitError, match="2 images of names, not with 3 of names:"):
        check_sources(plan, out, [Names(["a", "b", "c"])])
    with pytest.raises(DetrkitError, match="2 images of names, not with 2 of names, which are others"):
        check_sources(plan, out, [Names(["a", "c"])])
    with pytest.raises(DetrkitError, match="1 source, not with 2 sources"):
        check_sources(plan, out, [Names(["a"]), Names(["b"])])
    with pytest.raises(DetrkitError, match="the model m-1, not with the model m-2"):
        check_model(plan, out, "m-2", {"threshold": 0.5})
    with pytest.raises(DetrkitError, match=r"threshold 0\.5, not with threshold 0\.3"):
        check_model(plan, out, "m-1", {"threshold": 0.3})


def test_a_folder_of_something_else_is_refused(out):
    (out / "thesis.pdf").touch()
    with pytest.raises(DetrkitError, match=r"holds 'thesis\.pdf', which is of no prediction in shards"):
        read_plan(out)
    with pytest.raises(DetrkitError, match="is a file"):
        read_plan(out / "thesis.pdf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"written by": "me"}, "was not written by detrkit"),
        ({"format": 2}, "is of another version"),
        ({"counts": [1, 2]}, "do not fit"),
        ({"offsets": [9, 1, 2, 3, 4]}, "do not fit"),
        ({"offsets": "x"}, "damaged"),
        ({"counts": [-1, 0, 0, 0]}, "damaged"),
        ({"rows": "xml"}, "damaged"),
    ],
)
def test_a_plan_that_was_changed_is_one_line(out, change, message):
    made(out, Names(["a", "b"]))
    content = json.loads((out / PLAN).read_text()) | change
    (out / PLAN).write_text(json.dumps(content))
    with pytest.raises(DetrkitError, match=message) as raised:
        read_plan(out)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "nonsense", "[1]\n" * 10, '{"a": 1}\n' * 10, "[" * 100_000])
def test_a_manifest_that_was_changed_is_one_line(out, text):
    plan = made(out, Names([f"{k}" for k in range(20)]))
    (out / MANIFEST).write_text(text)
    with pytest.raises(DetrkitError, match="was changed"):
        [entry for shard in range(4) for entry in plan.entries(out, shard)]
