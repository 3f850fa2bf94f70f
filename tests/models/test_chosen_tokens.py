"""The choice of tokens, observed and replaced; and the images that have as many as queries."""

from __future__ import annotations

import pytest
import torch

from detrkit.models.proposals import best_tokens, least_side, observed_choice
from helpers.small_models import small_model

SCORES = torch.tensor([[0.1, 0.9, 0.5, 0.7]])


def test_the_choice_is_observed_and_replaced_within_the_block_alone():
    with observed_choice() as choice:
        assert best_tokens(SCORES, 2, None).tolist() == [[1, 3]]
    assert choice.indices.tolist() == [[1, 3]] and torch.equal(choice.scores, SCORES)
    other = torch.tensor([[0, 2]])
    with observed_choice(other) as choice:
        assert best_tokens(SCORES, 2, None) is other
    assert choice.indices.tolist() == [[1, 3]]  # what it would have chosen
    assert best_tokens(SCORES, 2, None).tolist() == [[1, 3]]


@pytest.mark.parametrize("name", ["deformable-detr-r50-two-stage", "dino-r50-4scale", "rtdetr-r18"])
def test_two_stage_models_take_the_tokens_that_they_are_given(name):
    model, _ = small_model(name)
    images = [torch.randn(3, 96, 96)]
    with torch.no_grad():
        with observed_choice() as choice:
            expected = model(images)
        with observed_choice(choice.indices):
            again = model(images)
        with observed_choice(choice.indices[:, :1].expand_as(choice.indices)):
            first_alone = model(images)
    torch.testing.assert_close(again.boxes, expected.boxes, atol=1e-5, rtol=0)
    if name.startswith(("dino", "rtdetr")):  # whose first stage returns the chosen tokens alone
        first = expected.encoder.logits[:, 0]
        torch.testing.assert_close(first_alone.encoder.logits[:, 3], first, atol=1e-4, rtol=0)
    assert (first_alone.boxes - expected.boxes).abs().max() > 1e-2


def test_the_least_side_has_as_many_tokens_as_queries():
    assert least_side([8, 16, 32, 64], 900) == 201  # 26 * 26 + 13 * 13 + 7 * 7 + 4 * 4 = 910; at 200: 859
    assert least_side([32], 1) == 1
    assert least_side([8, 16, 32], 300) == 113  # 15 * 15 + 8 * 8 + 4 * 4 = 305; at 112: 196 + 49 + 16 = 261
