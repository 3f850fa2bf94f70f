"""Mosaic, mixup and copy-paste: boxes and masks against the pixels, and the same samples whatever loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from detrkit.data import Dataset, make_loader
from detrkit.data.geometry import Geometry
from detrkit.data.image_mix import NO_MIX, ImageMix, SamplePlan
from detrkit.data.sample import Sample
from detrkit.data.samplers import SampleKey, TrainSampler, derived_seed
from detrkit.data.transformed import TransformedDataset
from detrkit.data.transforms import Transform, eval_transform, train_transform
from detrkit.utils.errors import DetrkitError
from helpers.datasets import generator, panoptic_map, write_panoptic
from helpers.painted import bounds, painted_dataset, painted_regions

SIZES = [(60, 90), (80, 64), (64, 64), (90, 120), (70, 60), (60, 100), (96, 72), (66, 88), (60, 60)]
ALL = ImageMix(mosaic=0.6, mixup=0.4, copy_paste=0.5)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return painted_dataset(tmp_path_factory.mktemp("painted"), SIZES)


def made(dataset: Dataset, mix: ImageMix, seed: int, transform: Transform | None = None) -> tuple[SamplePlan, Sample]:
    prepared = TransformedDataset(dataset, transform or train_transform(96), seed, mix=mix)
    key = SampleKey(0, seed % len(dataset), mixed=True)
    plan, sample = prepared.plan(key), prepared.sample(key)
    assert sample.image_id == dataset.records[key.image].image_id
    assert sample.orig_size == SIZES[key.image] and sample.file == dataset.records[key.image].file
    assert sample.image.shape[-2:] == prepared.geometry(key).size == sample.boxes.canvas_size
    return plan, sample


def expected_boxes(dataset: Dataset, index: int, geometry: Geometry, corner: tuple[int, int]) -> dict[int, list[float]]:
    """Label -> box of an image in a mosaic, from its record by hand."""
    record, found = dataset.records[index], {}
    assert geometry.pre_crop_size is not None and geometry.crop is not None
    (tall, wide), (top, left, h, w) = geometry.pre_crop_size, geometry.crop
    for label, (x0, y0, x1, y1) in zip(record.labels.tolist(), record.boxes.tolist(), strict=True):
        if geometry.hflip:
            x0, x1 = record.width - x1, record.width - x0
        across, down = wide / record.width, tall / record.height
        box = [x0 * across - left, y0 * down - top, x1 * across - left, y1 * down - top]
        x0, y0, x1, y1 = max(0, box[0]), max(0, box[1]), min(w, box[2]), min(h, box[3])
        if x1 - x0 >= 2 and y1 - y0 >= 2:
            share = (x1 - x0) * (y1 - y0) / ((box[2] - box[0]) * (box[3] - box[1]))
            if share >= 0.1:
                found[label] = [x0 + corner[1], y0 + corner[0], x1 + corner[1], y1 + corner[0]]
    return found


def test_mosaic_boxes_are_those_of_the_records_moved_by_hand(painted: Dataset) -> None:
    total = 0
    for seed in range(40):
        plan, sample = made(painted.without_masks(), ImageMix(mosaic=1.0), seed)
        (height, width), covered = sample.boxes.canvas_size, np.zeros(sample.boxes.canvas_size, int)
        expected: list[tuple[int, list[float]]] = []
        for tile in plan.tiles:
            (top, left), (h, w) = tile.corner, tile.geometry.size
            covered[top : top + h, left : left + w] += 1
            expected += expected_boxes(painted, tile.index, tile.geometry, tile.corner).items()
        assert (covered == 1).all() and len(plan.tiles) == 4
        center = max(tile.corner for tile in plan.tiles)
        assert height // 4 <= center[0] <= height - height // 4 and width // 4 <= center[1] <= width - width // 4
        assert sample.labels.tolist() == [label for label, _ in expected]
        boxes = np.array([box for _, box in expected]).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes.numpy(), boxes, rtol=0, atol=1e-4)
        total += len(boxes)
    assert total > 150


def test_objects_are_where_their_boxes_and_masks_say(painted: Dataset) -> None:
    """Each object of a mosaic is found again by its color; what is found and large enough is an object."""
    checked = 0
    for seed in range(30):
        plan, sample = made(painted, ImageMix(mosaic=1.0), seed)
        assert sample.masks is not None
        for tile in plan.tiles:  # one by one: two may show the same image
            (top, left), (h, w) = tile.corner, tile.geometry.size
            image = sample.image.permute(1, 2, 0).numpy()[top : top + h, left : left + w]
            masks = sample.masks.numpy()[:, top : top + h, left : left + w]
            here = masks.any((1, 2))
            boxes = sample.boxes.numpy()[here] - [left, top, left, top]
            for label, box, mask in zip(sample.labels[here].tolist(), boxes, masks[here], strict=True):
                if min(box[2:] - box[:2]) < 6:
                    continue  # a pixel of edge is too much of it
                (region,) = painted_regions(image, label)
                # an ellipse whose widest part is cut off is narrower than the rest of its box
                outside = np.array(bounds(region)) - box
                assert (outside[:2] > -1.6).all() and (outside[2:] < 1.6).all()
                assert not (region & ~binary_dilation(mask)).any()
                assert not (mask & ~binary_dilation(region, iterations=2)).any()
                checked += 1
            for label in range(len(painted.classes)):
                for region in painted_regions(image, label):
                    if (np.ptp(np.nonzero(region), axis=1) >= 24).all():
                        assert label in sample.labels[here]
    assert checked > 120


def test_mixup_has_the_pixels_and_objects_of_both(painted: Dataset) -> None:
    for seed in range(10):
        plan, sample = made(painted, ImageMix(mixup=1.0), seed)
        assert plan.blended is not None and 0.4 <= plan.ratio <= 0.6
        load = lambda index, geometry: painted.load(index)  # noqa: E731
        first, second = plan.tiles[0].make(load), plan.blended.make(load)
        assert first.image.shape == second.image.shape == sample.image.shape
        expected = plan.ratio * first.image.numpy().astype(float) + (1 - plan.ratio) * second.image.numpy()
        assert np.abs(sample.image.numpy() - expected).max() < 0.51
        assert torch.equal(sample.boxes, torch.cat([first.boxes, second.boxes]))
        assert torch.equal(sample.labels, torch.cat([first.labels, second.labels]))
        assert sample.masks is not None and first.masks is not None and second.masks is not None
        assert torch.equal(sample.masks, torch.cat([first.masks, second.masks]))


def test_pasted_objects_cover_what_is_below_them(tmp_path: Path) -> None:
    """Without a resize everything is exact: each mask is where its color is, its box around it."""
    sizes = [(60, 90), (60, 72), (60, 60), (60, 101), (60, 80), (60, 66), (60, 75), (60, 120), (60, 88)]
    dataset = painted_dataset(tmp_path, sizes, seed=3)
    gone = smaller = pasted = 0
    for seed in range(60):
        prepared = TransformedDataset(dataset, eval_transform(60, 200), seed, mix=ImageMix(copy_paste=1.0))
        key = SampleKey(0, seed % len(dataset), mixed=True)
        sample, plan, before = prepared.sample(key), prepared.plan(key), dataset[key.image]
        assert plan.pasted is not None and plan.pasted.objects is not None and sample.masks is not None
        if plan.pasted.index == key.image:
            continue  # its colors come twice
        image, masks = sample.image.permute(1, 2, 0).numpy(), sample.masks.numpy()
        source = dataset.records[plan.pasted.index].labels[list(plan.pasted.objects)].tolist()
        for label, box, mask in zip(sample.labels.tolist(), sample.boxes.tolist(), masks, strict=True):
            visible = np.logical_or.reduce(painted_regions(image, label))
            assert np.array_equal(mask, visible)
            around = bounds(visible)
            if label in source and (min(box[:2]) == 0 or box[2] == image.shape[1] or box[3] == image.shape[0]):
                # of an ellipse that the edge cuts, the box may be wider, as after any crop
                assert (np.array(box[:2]) <= around[:2]).all() and (np.array(box[2:]) >= around[2:]).all()
            else:
                assert box == around
        pasted += sum(label in source for label in sample.labels.tolist())
        for label, mask in zip(before.labels.tolist(), before.masks.numpy(), strict=True):
            left = np.logical_or.reduce([np.zeros_like(mask), *painted_regions(image, label)])
            share = left.sum() / mask.sum()
            kept = label in sample.labels.tolist()
            assert kept == (share >= 0.1 and (np.ptp(np.nonzero(left), axis=1) + 1 >= 2).all())
            gone += not kept
            smaller += kept and share < 1
    assert gone >= 2 and smaller >= 10 and pasted >= 50


def test_boxes_stay_inside_and_have_area(painted: Dataset) -> None:
    for seed in range(24):
        _, sample = made(painted, ALL, seed, train_transform(96, augment="lsj" if seed % 2 else "detr"))
        height, width = sample.boxes.canvas_size
        boxes = sample.boxes.as_subclass(torch.Tensor)
        assert (boxes >= 0).all() and (boxes <= torch.tensor([width, height, width, height]) + 1e-4).all()
        assert (boxes[:, 2:] - boxes[:, :2] > 0).all()
        assert sample.masks is not None and sample.masks.shape == (len(boxes), height, width)
        assert sample.masks.flatten(1).any(1).all()


def test_strips_neither_become_longer_than_eight_tiles_nor_fail(tmp_path: Path) -> None:
    dataset = painted_dataset(tmp_path, [(12, 900), (900, 12), (40, 50)])
    for seed in range(12):
        prepared = TransformedDataset(dataset, eval_transform(40, 80), seed, mix=ALL)
        for index in range(3):
            plan = prepared.plan(SampleKey(0, index, mixed=True))
            for part in plan.tiles if len(plan.tiles) > 1 else ():
                scaled = np.array(part.geometry.pre_crop_size)
                assert (scaled <= 8 * np.array(part.geometry.size)).all()
            prepared.sample(SampleKey(0, index, mixed=True))


def batches(dataset: Dataset, epochs: tuple[int, ...] = (0,), start: int = 0, **options: Any) -> list[Any]:
    arguments = {"transform": train_transform(48), "batch_size": 4, "training": True, "seed": 9, "workers": 0}
    loader = make_loader(dataset, **{**arguments, **options})
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch, start)
        found += list(loader)
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x.images, y.images)
        and x.sizes == y.sizes
        and all(
            torch.equal(s.boxes, t.boxes) and torch.equal(s.labels, t.labels) and torch.equal(s.masks, t.masks)
            for s, t in zip(xs, ys, strict=True)
        )
        for (x, xs), (y, ys) in zip(first, second, strict=True)
    )


@pytest.mark.slow
def test_workers_cache_processes_and_grouping_change_no_sample(painted: Dataset) -> None:
    options: dict[str, Any] = {"mix": ALL, "color": 0.7}
    plain = batches(painted, (0, 1), cache="none", **options)
    assert not same(plain, batches(painted, (0, 1), cache="none"))
    assert same(plain, batches(painted, (0, 1), cache="none", workers=2, **options))
    assert same(plain, batches(painted.subset(range(len(painted))), (0, 1), cache="ram", **options))
    images = {(t.image_id, t.size): t.boxes for _, targets in plain[:2] for t in targets}
    split = [batches(painted, batch_size=2, rank=rank, world_size=2, **options) for rank in range(2)]
    grouped = batches(painted, group_by_size=True, **options)
    for found in (split[0] + split[1], grouped):
        targets = [t for _, part in found for t in part]
        assert {(t.image_id, t.size) for t in targets} == images.keys()
        assert all(torch.equal(t.boxes, images[t.image_id, t.size]) for t in targets)


def test_the_last_epochs_are_those_of_a_run_that_never_mixes(painted: Dataset) -> None:
    mix = ImageMix(mosaic=1.0, mixup=0.5, epochs=2)
    never = batches(painted, (2, 3))
    assert same(never, batches(painted, (2, 3), mix=mix))
    assert not same(batches(painted, (1,)), batches(painted, (1,), mix=mix))
    assert same(batches(painted, (1,), mix=mix)[1:], batches(painted, (1,), 1, mix=mix))  # resumed within an epoch
    parts = batches(painted, (1, 2, 3), epoch_images=4, mix=mix)  # the epoch counts, not the turn: both are in turn 0
    assert not same(parts[:1], batches(painted, (1,), epoch_images=4)) and len(parts) == 3
    assert same(parts[1:], batches(painted, (2, 3), epoch_images=4))


def test_keys_say_whether_their_epoch_mixes_and_seeds_do_not_depend_on_it(painted: Dataset) -> None:
    sampler = TrainSampler(9, batch_size=4, mixed_epochs=1)
    assert {key.mixed for batch in sampler for key in batch} == {True}
    sampler.set_epoch(1)
    assert {key.mixed for batch in sampler for key in batch} == {False}
    transform = train_transform(48)
    prepared = TransformedDataset(painted, transform, 9, mix=ALL)
    for key in (SampleKey(3, 5), SampleKey(0, 1, 2)):
        plain = transform(painted[key.image], generator(derived_seed(9, key.epoch, key.image, key.copy)))
        assert torch.equal(prepared.sample(key).image, plain.image)
        assert torch.equal(prepared.sample(key).boxes, plain.boxes)
        assert prepared.geometry(key) == prepared.geometry(key._replace(mixed=True))


@pytest.mark.parametrize("augment", ["detr", "lsj"])
def test_objects_are_counted_without_decoding(painted: Dataset, augment: Any) -> None:
    """The count is that of the sample, from the record alone."""
    counts = []
    for seed in range(60):
        mix, transform = ImageMix(mosaic=0.6, mixup=0.4), train_transform(96, augment=augment)
        plan, sample = made(painted.without_masks(), mix, seed, transform)
        assert plan.objects(painted) == len(sample.boxes)
        counts.append(len(sample.boxes))
    assert len(set(counts)) > 5
    prepared = TransformedDataset(painted.without_masks(), train_transform(96), 7, mix=ImageMix(mosaic=0.5))
    keys = [SampleKey(epoch, image, mixed=True) for epoch in range(3) for image in range(len(painted))]
    assert prepared.most_objects(len(keys)) == max(len(prepared.sample(key).boxes) for key in keys)


def test_one_probability_does_not_change_what_another_draws(painted: Dataset) -> None:
    alone, both = (
        TransformedDataset(painted, train_transform(48), 1, mix=ImageMix(mosaic=0.5, mixup=mixup))
        for mixup in (0.0, 1.0)
    )
    keys = [SampleKey(epoch, 2, mixed=True) for epoch in range(12)]
    tiles = [alone.plan(key).tiles for key in keys]
    assert tiles == [both.plan(key).tiles for key in keys]
    assert {len(part) for part in tiles} == {1, 4}


@pytest.mark.slow
def test_draft_decoding_of_a_mosaic_changes_pixels_alone(tmp_path: Path) -> None:
    from detrkit.data import open_dataset
    from detrkit.data.tools.shapes import write_shapes

    large = open_dataset(write_shapes(tmp_path / "large", images={"train": 6}, sides=(400, 420)), masks=True)
    whole, draft = (batches(large, mix=ALL, draft=draft, cache="none") for draft in (False, True))
    assert not torch.equal(whole[0][0].images, draft[0][0].images)
    for (x, xs), (y, ys) in zip(whole, draft, strict=True):
        assert x.sizes == y.sizes and (x.images - y.images).abs().mean() < 0.1
        for s, t in zip(xs, ys, strict=True):
            assert torch.equal(s.boxes, t.boxes) and torch.equal(s.masks, t.masks)


def test_what_cannot_be_mixed_is_refused(painted: Dataset, tmp_path: Path) -> None:
    from detrkit.data import open_dataset

    write_panoptic(tmp_path, "train", {1: panoptic_map()})
    panoptic = open_dataset(tmp_path, split="train", masks=True)
    for name in ("mosaic", "mixup", "copy_paste"):
        with pytest.raises(DetrkitError, match=rf"data\.{name}: .* is panoptic"):
            ImageMix(**{name: 0.5}).check(panoptic)
    NO_MIX.check(panoptic)
    with pytest.raises(DetrkitError, match=r"data\.copy_paste: .* without masks"):
        batches(painted.without_masks(), mix=ImageMix(copy_paste=0.1))
    for option in ({"mix": ALL}, {"color": 0.5}):
        with pytest.raises(ValueError, match="color and mix are for training"):
            batches(painted, transform=eval_transform(32), training=False, **option)


def test_a_crowd_region_is_never_pasted(tmp_path: Path) -> None:
    dataset = painted_dataset(tmp_path, [(60, 90), (60, 72)])
    crowd = dataset.records[1]
    crowd.crowd[:] = [True, False]
    for seed in range(20):
        prepared = TransformedDataset(dataset, eval_transform(60, 200), seed, mix=ImageMix(copy_paste=1.0))
        plan = prepared.plan(SampleKey(0, 0, mixed=True))
        sample = prepared.sample(SampleKey(0, 0, mixed=True))
        assert plan.pasted is not None
        assert crowd.labels[0] not in sample.labels
        if plan.pasted.index == 1:
            assert plan.pasted.objects == (0,)


def test_others_are_drawn_as_often_as_they_are_seen(painted: Dataset) -> None:
    rates = np.array([0, 1.5, 0, 0.5, 0, 0, 4, 0, 0])
    prepared = TransformedDataset(
        painted, train_transform(48), 5, mix=ImageMix(mosaic=1.0, mixup=1.0, copy_paste=1.0), seen=np.cumsum(rates)
    )
    counts = np.zeros(9)
    for epoch in range(300):
        plan = prepared.plan(SampleKey(epoch, 2, mixed=True))
        assert plan.tiles[0].index == 2 and plan.pasted is not None and plan.blended is not None
        for part in (*plan.tiles[1:], plan.pasted, plan.blended):
            counts[part.index] += 1
    np.testing.assert_allclose(counts / counts.sum(), rates / rates.sum(), atol=0.04)
    assert (counts > 0).tolist() == (rates > 0).tolist()
