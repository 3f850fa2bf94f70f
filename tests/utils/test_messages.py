"""Long texts and lists are shortened for messages."""

from __future__ import annotations

from detrkit.utils.messages import first_names, names_and_more, shortened


def test_a_text_is_shortened_in_the_middle():
    assert shortened("0123456789", most=10) == "0123456789"
    assert shortened("0123456789a", most=10) == "01234...6789a"


def test_first_names_end_in_dots_if_there_are_more():
    assert first_names([]) == ""
    assert first_names(range(5)) == "0, 1, 2, 3, 4"
    assert first_names(iter("abc"), most=2) == "a, b, ..."


def test_names_that_are_left_out_are_counted():
    assert names_and_more(["a", "b"], 2) == "a, b"
    assert names_and_more(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert names_and_more(["a", "b", "c"], None) == "a, b, c"
