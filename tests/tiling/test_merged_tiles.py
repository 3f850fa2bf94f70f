"""The rule by which detections of tiles and of the whole image become those of the image."""

import numpy as np
import pytest

from detrkit.tiling.merging import merge, touches_edge

WINDOWS = [(0, 0, 180, 100), (0, 0, 100, 100), (80, 0, 180, 100)]  # the whole image, two tiles


def merged(*rows):
    """Merge rows of (piece, box, score, label); return the rows' numbers that remain, and the boxes."""
    pieces = np.array([row[0] for row in rows])
    boxes = np.array([row[1] for row in rows], np.float32)
    cut = np.zeros(len(rows), bool)
    for piece in (1, 2):
        some = pieces == piece
        cut[some] = touches_edge(boxes[some], WINDOWS[piece], 100, 180)
    result = merge(boxes, np.array([row[2] for row in rows]), np.array([row[3] for row in rows]), pieces, cut, WINDOWS)
    return result.members, result.boxes.tolist()


def test_the_better_of_two_pieces_boxes_of_one_object_stays():
    box, shifted = (85, 20, 95, 40), (86, 21, 96, 41)
    assert merged((1, box, 0.7, 0), (2, shifted, 0.9, 0))[0] == [[1]]
    assert merged((1, box, 0.9, 0), (2, shifted, 0.9, 0))[0] == [[0]]  # equal scores: the first


def test_objects_of_other_classes_and_of_other_places_stay():
    box = (85, 20, 95, 40)
    assert len(merged((1, box, 0.7, 0), (2, box, 0.9, 1))[0]) == 2
    assert len(merged((1, box, 0.7, 0), (2, (85, 50, 95, 70), 0.9, 0))[0]) == 2


def test_a_box_that_a_tile_repeats_is_dropped_too():
    first, second = (20, 20, 60, 60), (20, 20, 60, 62)
    assert merged((1, first, 0.9, 0), (1, second, 0.8, 0))[0] == [[0]]
    assert merged((1, (70, 20, 100, 40), 0.9, 0), (1, (71, 20, 100, 40), 0.8, 0))[0] == [[0]]  # parts


def test_a_part_is_dropped_for_the_whole_box_of_another_tile_also_for_a_lower_score():
    whole, part = (85, 20, 130, 40), (85, 20, 99, 40)
    assert merged((1, part, 0.9, 0), (2, whole, 0.5, 0))[0] == [[1]]
    assert merged((0, whole, 0.5, 0), (1, part, 0.9, 0))[0] == [[0]]
    assert merged((1, part, 0.9, 0), (2, whole, 0.4, 0))[0] == [[0], [1]]  # no more than a guess


def test_a_part_stays_where_the_whole_box_is_of_another_class_or_covers_little_of_it():
    part = (70, 20, 100, 40)
    assert len(merged((1, part, 0.9, 0), (2, (85, 20, 130, 40), 0.8, 1))[0]) == 2
    assert len(merged((1, part, 0.9, 0), (2, (90, 20, 130, 40), 0.8, 0))[0]) == 2  # 10 of 30 columns


def test_parts_that_agree_on_what_both_tiles_saw_are_one_object():
    members, boxes = merged((1, (40, 20, 100, 40), 0.7, 0), (2, (80, 21, 150, 40), 0.9, 0))
    assert members == [[1, 0]]
    assert boxes == [[40, 20, 150, 40]]


def test_parts_of_objects_above_each_other_are_not_joined():
    members, _ = merged((1, (40, 20, 100, 40), 0.7, 0), (2, (80, 60, 150, 80), 0.9, 0))
    assert members == [[1], [0]]


def test_parts_are_joined_along_a_row_of_tiles_in_any_order():
    windows = [(0, 0, 260, 100), (0, 0, 100, 100), (80, 0, 180, 100), (160, 0, 260, 100)]
    boxes = np.array([(10, 20, 100, 40), (160, 20, 250, 40), (80, 20, 180, 40)], np.float32)
    scores = np.array([0.9, 0.8, 0.7])
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        pieces = np.array([1, 3, 2])[order]
        result = merge(boxes[order], scores[order], np.zeros(3, int), pieces, np.ones(3, bool), windows)
        assert result.boxes.tolist() == [[10, 20, 250, 40]]
        assert sorted(result.members[0]) == [0, 1, 2] and scores[order][result.members[0][0]] == 0.9


def test_without_overlap_tiles_have_nothing_in_common_to_agree_on():
    windows = [(0, 0, 200, 100), (0, 0, 100, 100), (100, 0, 200, 100)]
    boxes = np.array([(40, 20, 100, 40), (100, 20, 150, 40)], np.float32)
    result = merge(boxes, np.array([0.9, 0.8]), np.zeros(2, int), np.array([1, 2]), np.ones(2, bool), windows)
    assert result.members == [[0], [1]]


@pytest.mark.parametrize(
    ("box", "touches"),
    [
        ((82, 20, 100, 40), True),  # within 2 pixels of the tile's left edge
        ((83, 20, 100, 40), False),
        ((120, 0, 140, 40), False),  # the image's own edges cut nothing
        ((120, 20, 180, 100), False),
    ],
)
def test_only_edges_inside_the_image_cut(box, touches):
    assert touches_edge(np.array([box], float), WINDOWS[2], 100, 180).tolist() == [touches]


def test_nothing_is_merged_to_nothing():
    none = np.zeros(0, int)
    result = merge(np.zeros((0, 4), np.float32), np.zeros(0), none, none, none.astype(bool), WINDOWS)
    assert result.members == [] and result.boxes.shape == (0, 4)


@pytest.mark.parametrize("seed", range(3))
def test_what_remains_follows_the_rule(seed):
    """Against a plain statement of rules 1 and 2, pair by pair: no two that remain are one object's."""
    rng = np.random.default_rng(seed)
    count = 60
    corner, sides = rng.uniform(0, 140, (count, 2)) * [1, 0.5], rng.uniform(5, 35, (count, 2))
    boxes = np.concatenate([corner, corner + sides], 1).astype(np.float32)
    pieces, labels = rng.integers(0, 3, count), rng.integers(0, 2, count)
    for piece in (1, 2):
        x0, y0, x1, y1 = WINDOWS[piece]
        some = pieces == piece
        boxes[some] = np.clip(boxes[some], [x0, y0, x0 + 5, y0 + 5], [x1 - 5, y1 - 5, x1, y1])
    cut = np.zeros(count, bool)
    for piece in (1, 2):
        cut[pieces == piece] = touches_edge(boxes[pieces == piece], WINDOWS[piece], 100, 180)
    scores = rng.random(count)
    result = merge(boxes, scores, labels, pieces, cut, WINDOWS)
    members = [i for m in result.members for i in m]
    assert len(members) == len(set(members))
    first = [m[0] for m in result.members]
    assert [scores[i] for i in first] == sorted(scores[first], reverse=True)

    def overlap(i, j):
        low, high = np.maximum(boxes[i, :2], boxes[j, :2]), np.minimum(boxes[i, 2:], boxes[j, 2:])
        return float(np.prod(np.clip(high - low, 0, None)))

    def area(i):
        return float(np.prod(boxes[i, 2:] - boxes[i, :2]))

    def iou(i, j):
        return overlap(i, j) / (area(i) + area(j) - overlap(i, j))

    def others(i):
        return [j for j in range(count) if labels[j] == labels[i] and j != i]

    order = sorted(range(count), key=lambda i: -scores[i])
    left: list[int] = []  # by rule 1
    for i in order:
        rivals = [j for j in left if j in others(i) and cut[i] == cut[j] and (not cut[i] or pieces[i] == pieces[j])]
        if all(iou(i, j) <= 0.5 for j in rivals):
            left.append(i)
    whole = [i for i in left if not cut[i]]
    for i in range(count):
        expected = i in left
        if cut[i]:
            over = [j for j in others(i) if j in whole and pieces[j] != pieces[i] and scores[j] >= 0.5 * scores[i]]
            expected &= not any(overlap(i, j) / area(i) >= 0.5 for j in over)
        assert (i in members) == expected
