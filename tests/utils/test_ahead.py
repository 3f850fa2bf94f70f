"""Work beside work: in order, bounded, and gone at the end."""

from __future__ import annotations

import threading
import time

import pytest

from detrkit.utils.ahead import Stages


def wait_until(true) -> None:
    end = time.monotonic() + 10
    while not true() and time.monotonic() < end:
        time.sleep(0.002)
    assert true()


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "detrkit ahead"]


def test_stages_keep_the_order_and_end():
    with Stages() as stages:
        first = stages.ahead(range(100), most=3)
        second = stages.ahead((n * n for n in first), most=2)
        assert list(second) == [n * n for n in range(100)]
    assert not names()


@pytest.mark.parametrize(("most", "weight", "waiting"), [(3, 0, 3), (9, 10, 3), (9, 1000, 1)])
def test_so_much_is_made_ahead_and_no_more(most, weight, waiting):
    made = []

    def source():
        for n in range(50):
            made.append(n)
            yield n

    with Stages() as stages:
        items = stages.ahead(source(), most=most, weight=lambda _: weight, heaviest=25)
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

    with Stages() as stages:
        passed_on = stages.ahead((item for item in stages.ahead(source(), most=4)), most=4)
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

    with pytest.raises(KeyboardInterrupt), Stages() as stages:
        read = stages.ahead(hanging(), most=1, abandoned=True)
        passed_on = stages.ahead((item for item in read), most=1)
        stages.ahead(iter(range(9)), most=1)
        assert next(passed_on) == 1
        raise KeyboardInterrupt
    assert len(names()) == 1  # the one that hangs; it ends with the program
    answer.set()
    wait_until(lambda: not names())
