"""Epochs that are a part of the training split, or several turns of it."""

from __future__ import annotations

from collections import Counter

import pytest

from detrkit.data.samplers import SampleKey, TrainSampler


def keys(sampler: TrainSampler, epochs: int) -> list[list[SampleKey]]:
    """The keys of each epoch, batches joined."""
    found = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        found.append([key for batch in sampler for key in batch])
    return found


def test_parts_walk_through_the_whole_split():
    epochs = keys(TrainSampler(10, batch_size=2, seed=3, epoch_images=4), 5)
    assert [len(epoch) for epoch in epochs] == [4] * 5
    together = [key for epoch in epochs for key in epoch]
    assert sorted(key.image for key in together[:10]) == sorted(key.image for key in together[10:]) == list(range(10))
    assert [key.epoch for key in together] == [0] * 10 + [1] * 10
    assert [key.image for key in together[:10]] != [key.image for key in together[10:]]


def test_the_turns_have_the_order_of_whole_epochs():
    whole = keys(TrainSampler(10, batch_size=2, seed=3), 2)
    parts = keys(TrainSampler(10, batch_size=2, seed=3, epoch_images=4), 5)
    assert [key for epoch in parts for key in epoch] == [key for epoch in whole for key in epoch]


def test_an_epoch_of_more_images_has_several_turns():
    (epoch,) = keys(TrainSampler(3, batch_size=2, seed=1, epoch_images=8), 1)
    assert Counter(key.image for key in epoch) in (Counter({a: 3, b: 3, c: 2}) for a, b, c in _orders())
    assert len(set(epoch)) == 8  # each with an augmentation of its own


def _orders() -> list[tuple[int, int, int]]:
    return [(0, 1, 2), (0, 2, 1), (1, 2, 0)]


@pytest.mark.parametrize("grouped", [False, True])
def test_processes_share_the_parts(grouped):
    size_of = (lambda key: (key.image + 1, 5)) if grouped else None
    one = TrainSampler(11, batch_size=4, seed=2, epoch_images=8, size_of=size_of)
    two = [
        TrainSampler(11, batch_size=2, seed=2, epoch_images=8, rank=rank, world_size=2, size_of=size_of)
        for rank in range(2)
    ]
    for epoch in range(4):
        for sampler in (one, *two):
            sampler.set_epoch(epoch)
        shared = [first + second for first, second in zip(*two, strict=True)]
        assert [sorted(batch) for batch in one] == [sorted(batch) for batch in shared]


def test_an_epoch_resumes_within_it():
    sampler = TrainSampler(11, batch_size=2, seed=2, epoch_images=6)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, 2)
    assert list(sampler) == whole[2:] and len(sampler) == 3


def test_a_part_smaller_than_a_step_is_one_step():
    assert len(TrainSampler(11, batch_size=4, accumulate=2, epoch_images=1)) == 2
    with pytest.raises(ValueError, match="at least one image"):
        TrainSampler(11, batch_size=4, epoch_images=0)
