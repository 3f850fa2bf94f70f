"""How strictly settings are read from a file: no unknown field, no number that is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ConfigDict

STRICT: ConfigDict = {"extra": "forbid", "allow_inf_nan": False}
