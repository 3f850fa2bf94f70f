"""HTML pages that detrkit writes: a template with places, data that cannot become markup, and a strict policy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any


def asset(package: str, name: str) -> str:
    """Return the text of a file of a package's folder `assets`."""
    return resources.files(package).joinpath("assets", name).read_text(encoding="utf-8")


def script_of(*parts: str) -> str:
    """Join scripts within a function: they share their names with each other and with nothing else."""
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "\n})();\n"


def filled(template: str, values: Mapping[str, str]) -> str:
    """Fill the places of a template, such as {{TITLE}}, in one pass: what is filled in is never searched for places."""
    first, *rest = template.split("{{")
    parts = [first]
    for piece in rest:
        name, after = piece.split("}}", 1)
        parts += [values[name], after]
    return "".join(parts)


def json_in_html(data: Any) -> str:
    """Return JSON that cannot end the element around it, whatever the names in it are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def code_hash(text: str) -> str:
    """Return the hash by which a content security policy knows a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
