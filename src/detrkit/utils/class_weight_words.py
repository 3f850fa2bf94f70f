"""Weights of classes on the command line: `--class-weights WBC=2 "stop sign=0.5"`, or `--class-weights balanced`."""

from __future__ import annotations

import tyro

BALANCED = "balanced"


def weights_from_words(words: list[str]) -> dict[str, float] | str | None:
    """Read words such as `WBC=2`; a class name may hold any character, the last = separates it from its weight.

    Raises:
        ValueError: no word, one without a name or a number, or a class twice.
    """
    if words in ([BALANCED], ["None"]):
        return BALANCED if words == [BALANCED] else None
    weights: dict[str, float] = {}
    for word in words:
        name, equals, text = word.rpartition("=")
        if not equals or not name:
            raise ValueError(f"{word} is no CLASS=WEIGHT; or give the one word {BALANCED}")
        try:
            weight = float(text)
        except ValueError:
            raise ValueError(f"{word}: {text!r} is no number") from None
        if name in weights:
            raise ValueError(f"{name} has two weights")
        weights[name] = weight
    if not weights:
        raise ValueError(f"give CLASS=WEIGHT ..., or {BALANCED}")
    return weights


def words_from_weights(weights: dict[str, float] | str | None) -> list[str]:
    """Write weights as `weights_from_words` reads them."""
    if weights is None or isinstance(weights, str):
        return [str(weights)]
    return [f"{name}={weight:g}" for name, weight in weights.items()]


CLASS_WEIGHTS = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",
    metavar="CLASS=WEIGHT|balanced",
    instance_from_str=weights_from_words,
    is_instance=lambda value: value is None or isinstance(value, (dict, str)),
    str_from_instance=words_from_weights,
)
