"""No document makes the machine hang, and none ends in a traceback."""

import time

import pytest

from detrkit.utils.documents import decoded, parse_json, parse_yaml, read_bytes
from detrkit.utils.errors import DetrkitError

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {k0: 1}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join(['*' + old] * 10)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
BAD_YAML = {
    "aliases": BOMB,
    "merges": MERGES,
    "self": "a: &a [*a]\n",
    "deep lists": "[" * 500,
    "deep mappings": "".join(" " * k + f"k{k}:\n" for k in range(500)),
    "large": "x" * (1 << 21),
    "tab": "optim:\n\tepochs: 1\n",
    "object": "!!python/object/apply:os.system [ls]",
    "digits": "1" * 5000,
    "date": "2001-99-99",
    "list as key": "? [1]\n: 2\n",
    "control": "a: \x01",
    "int": "!!int x",
    "float": "!!float x",
    "empty int": "!!int ''",
}


@pytest.mark.parametrize("text", BAD_YAML.values(), ids=BAD_YAML)
def test_bad_yaml_is_one_line_at_once(text):
    began = time.monotonic()
    with pytest.raises(DetrkitError, match=r"^data\.yaml") as caught:
        parse_yaml(text, "data.yaml")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 20


def test_yaml():
    assert parse_yaml("a: &a [1, yes]\nb: *a\n", "x") == {"a": [1, True], "b": [1, True]}
    assert parse_yaml("names: [no, yes, 1.0]", "x", scalars=False) == {"names": ["no", "yes", "1.0"]}
    assert parse_yaml("", "x") is None


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "1" * 5000, b"\xff\xfe\xfd", "nope"])
def test_bad_json_is_one_line(text):
    with pytest.raises(DetrkitError, match=r"^a\.json: ") as caught:
        parse_json(text, "a.json")
    assert "\n" not in str(caught.value)


def test_text_of_any_editor():
    text = "Größe\r\nb\rc\n"
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        assert decoded(data, "x") == "Größe\nb\nc\n"
    with pytest.raises(DetrkitError, match=r"^x: not UTF-8 text \(byte 2\)"):
        decoded("Größe".encode("latin-1"), "x")


def test_only_regular_files(tmp_path):
    for file in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with pytest.raises(DetrkitError):
            read_bytes(file)
