"""Density of sampled points, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from detrkit.explanation import density
from detrkit.explanation.maps import DeformableMaps, cell_at
from detrkit.structures.outputs import Capture


def test_a_point_at_the_center_of_a_cell_gives_it_all():
    points, weights = torch.tensor([[30.0, 10.0]]), torch.tensor([0.7])  # cells are 20 x 20 pixels
    got = density(points, weights, image_size=(40, 60), grid=(2, 3))
    assert got.tolist() == [[0, pytest.approx(0.7), 0], [0, 0, 0]]


def test_a_point_between_cells_is_shared_bilinearly():
    points, weights = torch.tensor([[25.0, 20.0]]), torch.ones(1)  # a quarter of the way from cell 1 to cell 0
    got = density(points, weights, image_size=(40, 60), grid=(2, 3))
    assert torch.allclose(got, torch.tensor([[0.125, 0.375, 0], [0.125, 0.375, 0]]))


@pytest.mark.parametrize(("x", "inside"), [(0.0, 0.5), (-10.0, 0.0), (-5.0, 0.25), (60.0, 0.5), (1e6, 0.0)])
def test_what_lies_outside_is_lost(x, inside):
    got = density(torch.tensor([[x, 10.0]]), torch.ones(1), image_size=(40, 60), grid=(2, 3))
    assert float(got.sum()) == pytest.approx(inside)


def two_levels(locations, weights):
    """A capture of one decoder layer, one query, one head, two levels of 2 x 4 and 1 x 2 cells and two points.

    The batch is padded at the right: the image has 3 of the 4 columns of the fine level, 2 of 2 of the coarse one.
    """
    fine = torch.tensor([[False, False, False, True]] * 2)
    padding = torch.cat([fine.flatten(), torch.tensor([False, False])])[None]
    return Capture(
        decoder_weights=[weights[None, None]],
        decoder_locations=[locations[None, None]],
        feature_shapes=[(2, 4), (1, 2)],
        padding=padding,
    )


def test_two_levels_by_hand():
    """An image of 60 x 40 pixels: 3 valid cells of 4, 20 pixels wide, on the fine level, 2 of 2 on the coarse one."""
    locations = torch.tensor(
        [[[[0.375, 0.25], [0.75, 0.75]], [[0.5, 0.5], [0.25, 0.5]]]]
    )  # (H, L, P, 2) = (1, 2, 2, 2)
    weights = torch.tensor([[[0.4, 0.3], [0.2, 0.1]]])
    maps = DeformableMaps(two_levels(locations, weights), 0, (40, 60))
    assert maps.levels == [(2, 3), (1, 2)] and maps.grid == (2, 3)
    points, got = maps.points_of_query(0, 0)
    # fine: x = location * 4 cells * 20 pixels; coarse: location * 2 cells * 30 pixels
    assert torch.allclose(points, torch.tensor([[[[30.0, 10.0], [60.0, 30.0]], [[30.0, 20.0], [15.0, 20.0]]]]))
    assert torch.equal(got, weights)
    # (30, 10): cell (0, 1) alone. (60, 30): the right edge, half of it inside, in cell (1, 2). (30, 20): halves of
    # (0, 1) and (1, 1). (15, 20): a quarter from column 0 to 1: 3/8 of each row in column 0, 1/8 in column 1.
    want = torch.tensor([[0.1 * 3 / 8, 0.4 + 0.2 / 2 + 0.1 / 8, 0.0], [0.1 * 3 / 8, 0.2 / 2 + 0.1 / 8, 0.3 / 2]])
    assert torch.allclose(maps.of_query(0, 0, "mean"), want / want.sum(), atol=1e-6)
    assert torch.allclose(maps.of_query(0, 0, 0), want / want.sum(), atol=1e-6)


def test_all_points_outside_leave_an_empty_map():
    locations = torch.full((1, 2, 2, 2), -3.0)
    maps = DeformableMaps(two_levels(locations, torch.full((1, 2, 2), 0.25)), 0, (40, 60))
    assert not maps.of_query(0, 0, "mean").any()


def test_cells_of_pixels():
    assert cell_at(0, 0, (40, 60), (2, 3)) == (0, 0)
    assert cell_at(59.9, 39.9, (40, 60), (2, 3)) == (2, 1)
    with pytest.raises(ValueError, match=r"pixel \(60, 0\) is outside the image of 60 x 40 pixels"):
        cell_at(60, 0, (40, 60), (2, 3))
