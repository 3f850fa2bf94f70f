"""Names that are nearly the same."""

import time

import pytest

from detrkit.utils.similar import comparable, nearest_names


@pytest.mark.parametrize(
    "name",
    [
        "Traffic Light",
        "traffic  light",
        "traffic_light",
        "traffic-light",
        "\uff34raffic light",
        "traffic lights",
        "trafic light",
    ],
)
def test_what_is_nearly_the_same(name):
    assert nearest_names([name], ["person", "traffic light", "traffic cone"]) == {name: "traffic light"}


@pytest.mark.parametrize(
    ("name", "other"), [("horse", "mouse"), ("class 1", "class 2"), ("cat", "car"), ("", "person")]
)
def test_what_is_not(name, other):
    assert nearest_names([name], [other]) == {}


def test_the_order_is_that_of_the_names_and_the_first_candidate_counts():
    assert nearest_names(["Dog", "x", "CAT"], ["cat", "Cat", "dog"]) == {"Dog": "dog", "CAT": "cat"}
    assert comparable(" A_b-C ") == "abc"


def test_many_names_take_a_moment():
    names = [f"category number {i}" for i in range(3000)]
    began = time.perf_counter()
    assert nearest_names([n.upper() for n in names], names) == {n.upper(): n for n in names}
    assert nearest_names([f"other {n}" for n in names], names) == {}
    assert time.perf_counter() - began < 5
