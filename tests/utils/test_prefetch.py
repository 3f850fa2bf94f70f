"""Work beside work: in order, bounded, and gone at the end."""

from __future__ import annotations

import threading
import time

import pytest

from detrkit.utils.prefetch import Prefetcher


def wait_until(true) -> None:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    assert true()


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "detrkit prefetch"]


def test_stages_keep_the_order_and_end():
    with Prefetcher() as prefetcher:
        first = prefetcher.prefetch(range(100), max_items=3)
        second = prefetcher.prefetch((n * n for n in first), max_items=2)
        assert list(second) == [n * n for n in range(100)]
    assert not names()


@pytest.mark.parametrize(("most", "weight", "waiting"), [(3, 0, 3), (9, 10, 3), (9, 1000, 1)])
def test_so_much_is_made_ahead_and_no_more(most, weight, waiting):
    made = []

    def source():
        for n in range(50):
            made.append(n)
            yield n

    with Prefetcher() as prefetcher:
        items = prefetcher.prefetch(source(), max_items=most, weight=lambda _: weight, max_weight=25)
        for taken in range(5):
            wait_until(lambda taken=taken: len(made) == taken + waiting + 1)  # one is in the thread's hand
            time.sleep(0.02)
            assert len(made) == taken + waiting + 1
            assert next(items) == taken
    assert not names()


def test_errors_come_after_the_items_before_them():
    def source():
        yield 1
        raise KeyError("two")

    with Prefetcher() as prefetcher:
        passed_on = prefetcher.prefetch((item for item in prefetcher.prefetch(source(), max_items=4)), max_items=4)
        assert next(passed_on) == 1
        with pytest.raises(KeyError, match="two"):
            next(passed_on)
    assert not names()


def test_threads_end_wherever_they_are():
    """One waits to give, one waits to get, and one waits for a file system that does not answer."""
    answer = threading.Event()

    def hanging():
        yield 1
        answer.wait()
        yield 2

    with pytest.raises(KeyboardInterrupt), Prefetcher() as prefetcher:
        read = prefetcher.prefetch(hanging(), max_items=1, abandoned=True)
        passed_on = prefetcher.prefetch((item for item in read), max_items=1)
        prefetcher.prefetch(iter(range(9)), max_items=1)
        assert next(passed_on) == 1
        raise KeyboardInterrupt
    assert len(names()) == 1  # the one that hangs; it ends with the program
    answer.set()
    wait_until(lambda: not names())
