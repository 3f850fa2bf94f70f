"""The page of a service: one HTML file, which asks nothing but the service itself."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

from detrkit.explanation.page.build import page_code
from detrkit.utils.pages import code_hash

# in the order in which they need each other; colors are those of the page of an explanation
_SCRIPTS = ("masks.js", "paint.js", "main.js")


def page(model: dict[str, str], *, lowest: float | None, threshold: float) -> tuple[str, str]:
    """Return the page and its content security policy.

    Args:
        model: name and digest.
        lowest: threshold that the page asks for, so that its slider needs no further request; None: the service's own.
        threshold: at which the slider begins.
    """
    explanation_style, explanation_script = page_code()
    style = explanation_style + _asset("serve.css")
    colors = resources.files("detrkit.explanation.page").joinpath("assets", "colors.js").read_text(encoding="utf-8")
    script = "\n".join(['(() => {\n"use strict";', colors, *map(_asset, _SCRIPTS), "})();\n"])
    values = {
        "TITLE": html.escape(f"detrkit: {model['name']}"),
        "STYLE": style,
        "DATA": _json({"model": model, "lowest": lowest, "threshold": threshold}),
        "SCRIPT": script,
    }
    first, *rest = _asset("serve.html").split("{{")
    parts = [first]
    for piece in rest:
        name, after = piece.split("}}", 1)
        parts += [values[name], after]
    # an explanation is shown in a frame, whose document inherits this policy beside its own
    scripts = " ".join(f"'{code_hash(text)}'" for text in (script, explanation_script))
    styles = " ".join(f"'{code_hash(text)}'" for text in (style, explanation_style))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src blob: data:; connect-src 'self'; "
        "frame-src blob:; base-uri 'none'; form-action 'none'"
    )
    return "".join(parts), policy


def _json(data: dict[str, Any]) -> str:
    """Return JSON that cannot end the element around it."""
    return json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return resources.files("detrkit.serve.page").joinpath("assets", name).read_text(encoding="utf-8")
