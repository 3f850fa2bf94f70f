"""Images that come more or less often than once per epoch: how often each, in which order, in which process."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from detrkit.data.samplers import SampleKey, TrainSampler, checked_rates, draw_counts


def keys(sampler: TrainSampler, epoch: int) -> list[SampleKey]:
    """The keys of an epoch, batches joined."""
    sampler.set_epoch(epoch)
    return [key for batch in sampler for key in batch]


def rates_of(seed: int, length: int = 37) -> np.ndarray:
    """Rates of which some are whole, some zero and most neither."""
    random = np.random.default_rng(seed)
    rates = random.uniform(0, 3, length)
    rates[::5] = np.floor(rates[::5])
    return rates


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_image_comes_its_rate_rounded_down_or_up(seed):
    rates = rates_of(seed)
    for epoch in range(20):
        counts = draw_counts(checked_rates(rates, len(rates)), torch.Generator().manual_seed(epoch))
        assert counts.sum() == round(rates.sum())
        assert ((counts == np.floor(rates)) | (counts == np.ceil(rates))).all()


def test_over_many_epochs_every_image_comes_as_often_as_its_rate():
    rates = np.array([0.25, 0.5, 1.0, 1.75, 0.0, 2.5, 3.0, 0.5, 0.5])  # the sum is whole: 10
    total, epochs = np.zeros(len(rates)), 4000
    for epoch in range(epochs):
        total += draw_counts(checked_rates(rates, len(rates)), torch.Generator().manual_seed(epoch))
    # a fraction f is drawn with the deviation sqrt(f (1 - f) / epochs), at most 0.008: five of them
    assert np.abs(total / epochs - rates).max() < 0.04
    assert (total[[2, 4, 6]] == epochs * rates[[2, 4, 6]]).all()


def test_chances_above_one_are_certain_and_the_rest_is_shared():
    # the fractions sum to 1.6, two are drawn: 0.9 * 2 / 1.6 is above 1, so the first is certain
    counts = [draw_counts(np.array([0.9, 0.4, 0.3]), torch.Generator().manual_seed(k)) for k in range(3000)]
    assert all(count.sum() == 2 and count[0] == 1 for count in counts)
    assert abs(np.mean([count[1] for count in counts]) - 4 / 7) < 0.05


@pytest.mark.parametrize("options", [{}, {"epoch_images": 8}, {"accumulate": 4}, {"size_of": lambda k: (k.image, 9)}])
def test_rates_of_one_are_the_order_without_rates_to_the_bit(options):
    plain = TrainSampler(11, batch_size=2, seed=4, **options)
    rated = TrainSampler(11, batch_size=2, seed=4, rates=np.ones(11), **options)
    assert len(plain) == len(rated)
    assert all(keys(plain, epoch) == keys(rated, epoch) for epoch in range(5))


def test_the_times_of_an_image_in_an_epoch_have_numbers_of_their_own():
    rates = np.array([3.0, 1.0, 0.5, 2.5, 1.0])
    epoch = keys(TrainSampler(5, batch_size=1, seed=1, rates=rates), 6)
    assert len(set(epoch)) == len(epoch) == 8
    for image, count in Counter(key.image for key in epoch).items():
        assert [key.copy for key in epoch if key.image == image] == list(range(count))


def test_a_step_that_is_larger_than_an_epoch_has_copies_too():
    epoch = keys(TrainSampler(3, batch_size=8, rates=np.array([2.0, 0.0, 1.0])), 0)
    assert len(set(epoch)) == 8 and {key.image for key in epoch} == {0, 2}


def test_epochs_are_parts_of_turns_in_which_every_image_comes_its_rate():
    rates = np.array([2.0, 1.0, 0.5, 0.5, 1.0])  # a turn has 5 images
    sampler = TrainSampler(5, batch_size=2, seed=3, rates=rates, epoch_images=4)
    together = [key for epoch in range(5) for key in keys(sampler, epoch)]
    assert [key.epoch for key in together] == [turn for turn in range(4) for _ in range(5)]
    for turn in range(4):
        counts = Counter(key.image for key in together if key.epoch == turn)
        assert counts[0] == 2 and counts[1] == counts[4] == counts[2] + counts[3] == 1
    whole = TrainSampler(5, batch_size=1, seed=3, rates=rates)
    assert together == [key for turn in range(4) for key in keys(whole, turn)]


@pytest.mark.parametrize("grouped", [False, True])
def test_two_processes_share_what_one_has(grouped):
    options = {"seed": 2, "rates": rates_of(5), "size_of": (lambda key: (key.image + 1, 5)) if grouped else None}
    one = TrainSampler(37, batch_size=4, **options)
    two = [TrainSampler(37, batch_size=2, rank=rank, world_size=2, **options) for rank in range(2)]
    for epoch in range(3):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        assert list(one) == [first + second for first, second in zip(*two, strict=True)]


def test_an_epoch_resumes_within_it():
    sampler = TrainSampler(37, batch_size=2, seed=2, rates=rates_of(1), size_of=lambda key: (key.image, 3))
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, 7)
    assert list(sampler) == whole[7:] and len(sampler) == len(whole) == round(rates_of(1).sum()) // 2


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ([1.0, 1.0], "one for each of the 3 images"),
        ([1.0, -0.1, 1.0], "finite numbers from 0"),
        ([1.0, math.nan, 1.0], "finite numbers from 0"),
        ([0.2, 0.1, 0.1], "at least one image"),
    ],
)
def test_impossible_rates(rates, message):
    with pytest.raises(ValueError, match=message):
        TrainSampler(3, batch_size=1, rates=np.array(rates))
