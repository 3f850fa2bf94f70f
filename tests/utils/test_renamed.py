"""Earlier names of keywords are taken, with a warning."""

from __future__ import annotations

import inspect

import pytest

from detrkit.models.postprocess import panoptic, postprocess
from detrkit.utils.renamed import renamed_keywords


@renamed_keywords(sizes="target_sizes", scores="activation")
def function(outputs, target_sizes, *, activation="softmax"):
    return outputs, target_sizes, activation


def test_an_earlier_name_is_the_present_one():
    with pytest.warns(DeprecationWarning, match=r"^function: sizes is now target_sizes$"):
        assert function(1, sizes=2) == (1, 2, "softmax")
    with pytest.warns(DeprecationWarning, match=r"^function: scores is now activation$"):
        assert function(1, 2, scores="sigmoid") == (1, 2, "sigmoid")
    assert list(inspect.signature(function).parameters) == ["outputs", "target_sizes", "activation"]


def test_a_name_given_twice_is_an_error():
    with pytest.raises(TypeError, match=r"^function takes activation or its earlier name scores, not both$"):
        function(1, 2, scores="sigmoid", activation="sigmoid")
    with (
        pytest.raises(TypeError, match="multiple values for argument 'target_sizes'"),
        pytest.warns(DeprecationWarning),
    ):
        function(1, 2, sizes=3)


@pytest.mark.parametrize("public", [panoptic, postprocess])
def test_post_processing_takes_its_earlier_names(public):
    parameters = inspect.signature(public).parameters
    assert {"target_sizes", "input_sizes", "activation"} <= parameters.keys()
    for earlier in ("sizes", "image_sizes", "scores"):
        with pytest.warns(DeprecationWarning, match=f": {earlier} is now "), pytest.raises(TypeError, match="required"):
            public(**{earlier: "sigmoid"})
