"""`TracedBatch` answers as `Batch` does, from the mask alone."""

from __future__ import annotations

import pytest
import torch

from detrkit.structures.batch import Batch, TracedBatch, rounded_up

SIZES = [(61, 97), (64, 50), (1, 97), (33, 1)]


def both() -> tuple[Batch, TracedBatch]:
    batch = Batch.from_images([torch.ones(3, h, w) for h, w in SIZES])
    return batch, TracedBatch(batch.images, padding=batch.mask())


@pytest.mark.parametrize("stride", [1, 2, 4, 16, 32, 64])
def test_masks_of_maps_are_those_of_the_sizes(stride):
    batch, traced = both()
    assert torch.equal(traced.padding_mask(stride), batch.padding_mask(stride))
    assert batch.cells(stride) == [(rounded_up(h, stride), rounded_up(w, stride)) for h, w in SIZES]


def test_sizes_come_from_the_mask():
    batch, traced = both()
    like = batch.images
    assert torch.equal(traced.wh(like), batch.wh(like))
    assert traced.wh(like).tolist() == [[w, h] for h, w in SIZES]
    assert traced.count == batch.count == 4 and traced.padded
    with pytest.raises(TypeError, match="use `count`"):
        len(traced)


def test_without_a_mask_nothing_is_padded():
    traced = TracedBatch(torch.ones(2, 3, 40, 50))
    assert not traced.padded and not traced.mask().any() and not traced.padding_mask(32).any()
    assert traced.padding_mask(32).shape == (2, 2, 2)


def test_cells_are_rounded_up():
    assert [rounded_up(n, 32) for n in (1, 31, 32, 33, 64, 65)] == [1, 1, 1, 2, 2, 3]
