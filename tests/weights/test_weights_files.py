"""What a weights file begins with tells whether it is one."""

from __future__ import annotations

import json
import struct

import pytest

from detrkit.utils.errors import DetrkitError
from detrkit.weights.files import find_weights


def test_a_header_whose_size_looks_like_text(tmp_path):
    """15,392 bytes are 0x3c20: the file begins with a blank and "<"."""
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 0x3C20) + json.dumps({"__metadata__": {}}).encode().ljust(0x3C20))
    assert path.read_bytes().startswith(b" <")
    assert find_weights(path) == path


@pytest.mark.parametrize(
    "page", [b"<!DOCTYPE html><title>Log in", b"\n <html><body>404", b"<?xml version='1'?><Error>"]
)
def test_web_pages(tmp_path, page):
    path = tmp_path / "a.pth"
    path.write_bytes(page)
    with pytest.raises(DetrkitError, match=r"a\.pth: a web page"):
        find_weights(path)
