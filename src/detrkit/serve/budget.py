"""Budgets: a bound on what all requests together hold, whatever each of them may have."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Budget:
    """An amount, of bytes or pixels, that requests share. Used from one thread, that of the event loop.

    Args:
        total: the amount.

    Attributes:
        total: the amount.
        used: what is taken of it.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0

    def lease(self) -> Lease:
        """Return a context in which a share can be taken; its end gives the share back."""
        return Lease(self)


class Lease:
    """A share of a budget, taken piece by piece, given back at the end of the context.

    Args:
        budget: to take from.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._budget.used -= self._taken
        self._taken = 0

    def take(self, amount: int) -> bool:
        """Take an amount; return whether that much was left."""
        if self._budget.used + amount > self._budget.total:
            return False
        self._budget.used += amount
        self._taken += amount
        return True
