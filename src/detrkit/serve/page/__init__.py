"""The page of a service: one HTML file, which asks nothing but the service itself."""

from __future__ import annotations

import html

from detrkit.explanation.page.build import page_code
from detrkit.utils.pages import asset, code_hash, filled, json_in_html, script_of

# in the order in which they need each other; colors are those of the page of an explanation
_SCRIPTS = ("masks.js", "paint.js", "main.js")


def page(model: dict[str, str], *, lowest: float | None, threshold: float, tile: int | None) -> tuple[str, str]:
    """Return the page and its content security policy.

    Args:
        model: name and digest.
        lowest: threshold that the page asks for, so that its slider needs no further request; None: the service's own.
        threshold: at which the slider begins.
        tile: side in pixels of the tiles that the page asks for at first; None: no tiles.
    """
    explanation_style, explanation_script = page_code()
    style = explanation_style + asset(__name__, "serve.css")
    colors = asset("detrkit.explanation.page", "colors.js")
    script = script_of(colors, *(asset(__name__, name) for name in _SCRIPTS))
    values = {
        "TITLE": html.escape(f"detrkit: {model['name']}"),
        "STYLE": style,
        "DATA": json_in_html({"model": model, "lowest": lowest, "threshold": threshold, "tile": tile}),
        "SCRIPT": script,
    }
    # an explanation is shown in a frame, whose document inherits this policy beside its own
    scripts = " ".join(f"'{code_hash(text)}'" for text in (script, explanation_script))
    styles = " ".join(f"'{code_hash(text)}'" for text in (style, explanation_style))
    policy = (
        f"default-src 'none'; script-src {scripts}; style-src {styles}; img-src blob: data:; connect-src 'self'; "
        "frame-src blob:; base-uri 'none'; form-action 'none'"
    )
    return filled(asset(__name__, "serve.html"), values), policy
