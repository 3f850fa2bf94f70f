"""Matching of similar names: "Traffic_Light", "traffic  light" and "traffic lights"."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Collection, Iterable

_SIMILARITY = 0.81  # ratio of difflib: "aeroplane" and "airplane" have 0.82, "sheep" and "sleep" 0.8
_COMPARISONS = 100_000  # pairs of names, which take a second; with more, only differences of spelling are matched


def comparable(name: str) -> str:
    """Normalize a name: without case, blanks, hyphens, underscores and the width of letters."""
    return re.sub(r"[\s_\-]+", "", unicodedata.normalize("NFKC", name).casefold())


def nearest_names(names: Iterable[str], candidates: Collection[str]) -> dict[str, str]:
    """Find for each of some names the candidate most similar to it, if there is one.

    Args:
        names: to look for.
        candidates: to choose from; the first of equal ones.

    Returns:
        Name -> candidate, in the order of `names`; names without a similar candidate are left out.
    """
    names = list(names)
    by_form: dict[str, str] = {}
    for candidate in candidates:
        by_form.setdefault(comparable(candidate), candidate)
    search = len(names) * len(by_form) <= _COMPARISONS
    nearest = {}
    for name in names:
        plain = comparable(name)
        for form in (plain, plain + "s", plain.removesuffix("s")):
            if form in by_form:
                nearest[name] = by_form[form]
                break
        else:
            same_digits = (
                [a for a in by_form if _digits(a) == _digits(plain)] if search else []
            )  # "class 1" is not "class 2"
            near = difflib.get_close_matches(plain, same_digits, n=1, cutoff=_SIMILARITY)
            nearest |= {name: by_form[near[0]]} if near else {}
    return nearest


def _digits(name: str) -> str:
    return re.sub(r"\D", "", name)
