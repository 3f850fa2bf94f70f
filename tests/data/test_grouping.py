from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pytest
import torch

from detrkit.data.grouping import order_by_size, split_by_shape
from detrkit.data.samplers import SampleKey, TrainSampler
from detrkit.data.transforms import train_transform


def random_sizes(count: int, seed: int) -> list[tuple[int, int]]:
    return [(int(h), int(w)) for h, w in np.random.default_rng(seed).integers(20, 90, (count, 2))]


def padding(sizes: Sequence[tuple[int, int]], batch: int) -> float:
    """Share of padding, batches cut off in order."""
    filled = area = 0
    for first in range(0, len(sizes), batch):
        each = sizes[first : first + batch]
        filled += sum(h * w for h, w in each)
        area += len(each) * max(h for h, _ in each) * max(w for _, w in each)
    return 1 - filled / area


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("count", "unit"), [(64, 4), (61, 4), (48, 6), (3, 4), (1, 1), (0, 2)])
def test_order_by_size_is_a_permutation_with_the_rest_last(count: int, unit: int, seed: int) -> None:
    order = order_by_size(random_sizes(count, seed), unit)
    assert sorted(order) == list(range(count))
    whole = count // unit * unit
    assert order[whole:] == list(range(whole, count))


def test_halves_where_sizes_differ_most() -> None:
    sizes = [(10, 90), (12, 50), (11, 91), (10, 51), (14, 20), (13, 21), (12, 70), (10, 71)]
    for given in (sizes, [(w, h) for h, w in sizes]):
        order = order_by_size(given, 2)  # by the side that differs, as the other is about the same in all
        assert [set(order[k : k + 2]) for k in (0, 2, 4, 6)] == [{4, 5}, {1, 3}, {6, 7}, {0, 2}]


@pytest.mark.parametrize("seed", range(3))
def test_steps_of_like_size_have_little_padding(seed: int) -> None:
    sizes = random_sizes(256, seed)
    ordered = [sizes[k] for k in order_by_size(sizes, 4)]
    assert padding(sizes, 4) > 0.3 and padding(ordered, 4) < 0.13
    assert padding(ordered, 2) < padding(ordered, 4)  # neighbours within a step are alike, too


def size_of(item: SampleKey) -> tuple[int, int]:
    """What an augmented image of one of four shapes would have."""
    generator = torch.Generator().manual_seed(item.epoch * 1000 + item.image)
    return train_transform(64).make_params(*((48, 64), (64, 48), (40, 80), (64, 64))[item.image % 4], generator).size


def flat(batches: Iterable[list[SampleKey]]) -> list[SampleKey]:
    return [item for batch in batches for item in batch]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3])
def test_grouped_batches_are_the_same_on_any_number_of_processes_and_accumulated(seed: int) -> None:
    options = {"seed": seed, "size_of": size_of}
    whole = TrainSampler(1203, batch_size=8, **options)
    for epoch in (0, 4):
        whole.set_epoch(epoch)
        expected = list(whole)
        assert len(expected) == len(whole) == 150
        for world in (2, 4):
            parts = [
                TrainSampler(1203, batch_size=8 // world, rank=r, world_size=world, **options) for r in range(world)
            ]
            for part in parts:
                part.set_epoch(epoch)
            assert expected == [flat(slices) for slices in zip(*parts, strict=True)]
        accumulated = TrainSampler(1203, batch_size=4, accumulate=2, **options)
        accumulated.set_epoch(epoch)
        assert flat(expected) == flat(accumulated)[: 8 * len(expected)]


def test_grouping_only_reorders_the_images_of_a_window() -> None:
    plain, grouped = TrainSampler(700, batch_size=4), TrainSampler(700, batch_size=4, size_of=size_of)
    before, after = flat(plain), flat(grouped)
    assert before != after and len(after) == 700
    for first in range(0, 700, 256):  # 64 steps of 4
        assert sorted(before[first : first + 256]) == sorted(after[first : first + 256])
    sizes = [[size_of(item) for item in items] for items in (before, after)]
    assert padding(sizes[0], 4) > 0.25 and padding(sizes[1], 4) < 0.1
    areas = [h * w for h, w in sizes[1][:256:4]]
    assert areas != sorted(areas) and np.corrcoef(areas, range(64))[0, 1] < 0.5  # steps of a window are shuffled


def test_grouped_epochs_differ_and_resume() -> None:
    sampler = TrainSampler(900, batch_size=2, seed=1, size_of=size_of)
    epochs = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        for start in (1, 127, 128, 300, 450):
            sampler.set_epoch(epoch, start)
            assert list(sampler) == epochs[-1][start:]
    assert [item.image for item in flat(epochs[0])] != [item.image for item in flat(epochs[1])]


def test_a_small_dataset_is_grouped_with_its_copies() -> None:
    (plain,), (grouped,) = TrainSampler(3, batch_size=8), TrainSampler(3, batch_size=8, size_of=size_of)
    assert plain != grouped and sorted(plain) == sorted(grouped)


def test_no_step_without_a_batch() -> None:
    with pytest.raises(ValueError, match="accumulate 0"):
        TrainSampler(5, batch_size=1, accumulate=0)


def padded_area(sizes: Sequence[tuple[int, int]]) -> int:
    return len(sizes) * max(h for h, _ in sizes) * max(w for _, w in sizes)


@pytest.mark.parametrize("seed", range(20))
def test_a_split_batch_has_every_image_once_and_no_large_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(h), int(w)) for h, w in np.exp(rng.uniform(0, 7, (int(rng.integers(1, 12)), 2)))]
    own, most = sum(h * w for h, w in sizes), float(rng.choice([1, 1e4, 1e6]))
    groups = split_by_shape(sizes, most)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    for group in groups:
        assert len(group) == 1 or padded_area([sizes[i] for i in group]) <= max(most, 1.5 * own)
    if padded_area(sizes) <= max(most, 1.5 * own):
        assert groups == [list(range(len(sizes)))]


def test_strips_are_split_and_photographs_are_not() -> None:
    assert split_by_shape([(32750, 1), (1, 32750), (800, 1066), (30000, 1)], 1e7) == [[1], [2], [3, 0]]
    assert split_by_shape([(800, 1066), (1066, 800)] * 32, 1.0) == [list(range(64))]  # 25 % of it is padding
    assert split_by_shape([], 1.0) == [[]]
