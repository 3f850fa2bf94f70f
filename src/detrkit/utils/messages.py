"""Parts of messages: long texts and long lists, shortened."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def shortened(text: str, most: int = 80) -> str:
    """Shorten a text in the middle if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def counted(count: int, noun: str) -> str:
    """Write a number with its noun: "1 step", "2 steps", "3 classes"."""
    return f"{count} {noun}{'' if count == 1 else 'es' if noun.endswith('s') else 's'}"


def first_names(names: Iterable[object], most: int = 5) -> str:
    """Join the first names of a list: "a, b, ..."."""
    texts = [str(name) for name in names]
    return ", ".join([*texts[:most], *(["..."] if len(texts) > most else [])])


def names_and_more(names: Sequence[str], most: int | None) -> str:
    """Join the first names of a list, and count the others: "a, b and 3 more"; all names if `most` is None."""
    rest = 0 if most is None else len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
