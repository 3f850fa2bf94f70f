"""Zoom-out, IoU crop and a size for each step: against torchvision, against the pixels, and when they rest."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from detrkit.data import Dataset, make_loader
from detrkit.data.image_mix import ImageMix
from detrkit.data.samplers import STEP_SIZES, SampleKey, TrainSampler, step_scale
from detrkit.data.transformed import TransformedDataset
from detrkit.data.transforms import Transform, eval_transform, train_transform
from detrkit.data.window import Window, draw_window
from detrkit.utils.errors import DetrkitError
from helpers.datasets import panoptic_map, write_panoptic
from helpers.painted import bounds, painted_dataset, painted_regions

SIZES = [(90, 120), (120, 80), (64, 64), (70, 150), (150, 100), (100, 100)]
BOTH = ImageMix(zoom_out=0.5, iou_crop=0.8)  # as published


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return painted_dataset(tmp_path_factory.mktemp("painted"), SIZES)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def windows(dataset: Dataset, count: int, **chances: float) -> list[tuple[int, Window | None]]:
    """The images and windows of some draws."""
    drawn = []
    for seed in range(count):
        index = seed % len(dataset)
        r = dataset.records[index]
        drawn.append((index, draw_window(r.height, r.width, r.boxes, generator=generator(seed), **chances)))
    return drawn


def test_windows_keep_what_is_published(painted: Dataset) -> None:
    kinds: Counter[tuple[bool, bool]] = Counter()
    for index, window in windows(painted, 300, zoom_out=0.5, iou_crop=0.8):
        record = painted.records[index]
        kinds[(False, False) if window is None else (window.zoomed, window.cropped)] += 1
        if window is None:
            continue
        top, left, height, width, zoomed, cropped = window
        assert height <= 4 * record.height and width <= 4 * record.width
        if not zoomed:
            assert top >= 0 and left >= 0 and top + height <= record.height and left + width <= record.width
        if not cropped:  # the whole image is in it
            assert top <= 0 and left <= 0 and top + height >= record.height and left + width >= record.width
            assert height * record.width == pytest.approx(width * record.height, rel=0.05)
        else:
            assert 0.5 <= width / height <= 2
            centers = (record.boxes[:, :2] + record.boxes[:, 2:]) / 2
            assert ((centers > [left, top]) & (centers < [left + width, top + height])).all(1).any()
    assert len(kinds) == 4 and min(kinds.values()) >= 15
    assert all(window is None for _, window in windows(painted, 20, zoom_out=0.0, iou_crop=0.0))
    # a seventh of the crops leaves the image whole
    assert {window is None or window.cropped for _, window in windows(painted, 20, zoom_out=0.0, iou_crop=1.0)} == {
        True
    }
    empty = draw_window(50, 60, np.zeros((0, 4)), zoom_out=0.0, iou_crop=1.0, generator=generator(0))
    assert empty is None


def test_crops_are_distributed_as_torchvisions() -> None:
    """Share of images left whole, mean area and mean shape of the others, within four standard errors of the means."""
    height, width, draws = 120, 160, 400
    boxes = np.array([[10.0, 20, 90, 70], [100, 60, 150, 110], [60, 5, 75, 15]])
    wrapped = tv_tensors.BoundingBoxes(torch.tensor(boxes), format="XYXY", canvas_size=(height, width))
    theirs, ours = [], []
    transform = v2.RandomIoUCrop()
    torch.manual_seed(0)
    for seed in range(draws):
        params = transform.make_params([torch.empty(3, height, width), wrapped])
        theirs.append((params["top"], params["left"], params["height"], params["width"]) if params else None)
        window = draw_window(height, width, boxes, zoom_out=0.0, iou_crop=1.0, generator=generator(seed))
        ours.append(None if window is None else window[:4])
    for measure in (
        lambda w: float(w is None),
        lambda w: np.nan if w is None else w[2] * w[3],
        lambda w: np.nan if w is None else w[3] / w[2],
        lambda w: np.nan if w is None else w[0] + w[2] / 2,
        lambda w: np.nan if w is None else w[1] + w[3] / 2,
    ):
        a, b = (np.array([measure(w) for w in found], float) for found in (theirs, ours))
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        error = np.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error


def by_torchvision(
    dataset: Dataset, index: int, window: Window, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """The image, boxes and labels of a window by torchvision's pad, crop and resize, one after the other."""
    sample = dataset[index]
    height, width = sample.boxes.canvas_size
    centers = (sample.boxes.as_subclass(Tensor)[:, :2] + sample.boxes.as_subclass(Tensor)[:, 2:]) / 2
    low = torch.tensor([window.left, window.top])
    inside = ((centers > low) & (centers < low + torch.tensor([window.width, window.height]))).all(1)
    pad = [max(0, -window.left), max(0, -window.top)]
    pad += [max(0, window.left + window.width - width), max(0, window.top + window.height - height)]
    top, left = window.top + pad[1], window.left + pad[0]
    boxes = tv_tensors.BoundingBoxes(
        sample.boxes.as_subclass(Tensor)[inside], format="XYXY", canvas_size=(height, width)
    )
    made = []
    for value in (sample.image, boxes):
        padded = functional.pad(value, pad, fill=0)
        cut = functional.crop(padded, top, left, window.height, window.width)
        made.append(functional.resize(cut, list(size), antialias=True).as_subclass(Tensor))
    return made[0], made[1], sample.labels[inside]


@pytest.mark.parametrize("transform", [eval_transform(96, 200), train_transform(64, augment="none")])
def test_images_and_boxes_are_those_of_pad_crop_and_resize(painted: Dataset, transform: Transform) -> None:
    seen = 0
    prepared = TransformedDataset(painted, transform, 5, mix=BOTH)
    for epoch in range(12):
        for index in range(len(painted)):
            key = SampleKey(epoch, index, mixed=True)
            window = prepared.geometry(key).window
            if window is None:
                continue
            seen += 1
            sample = prepared.sample(key)
            image, boxes, labels = by_torchvision(painted, index, window, sample.boxes.canvas_size)
            keep = (boxes[:, 2:] - boxes[:, :2] >= 3).all(1)  # of smaller ones rounding decides
            kept = [label in labels[keep] for label in sample.labels]
            assert set(labels[keep].tolist()) <= set(sample.labels.tolist()) <= set(labels.tolist())
            torch.testing.assert_close(sample.boxes.as_subclass(Tensor)[kept], boxes[keep], rtol=0, atol=1.0)
            difference = (sample.image.as_subclass(Tensor).float() - image.float()).abs().mean()
            assert float(difference) < 6  # of 255: edges, by at most half a pixel
            assert sample.image.shape == image.shape and len(sample.masks) == len(sample.labels)
            assert prepared.plan(key).objects(painted) == len(sample.labels)
    assert seen > 40


def test_boxes_and_masks_are_where_the_pixels_are(painted: Dataset) -> None:
    """Objects are found again by their colors."""
    found = 0
    prepared = TransformedDataset(painted, train_transform(128, augment="flip"), 7, mix=BOTH)
    for epoch in range(8):
        for index in range(len(painted)):
            sample = prepared.sample(SampleKey(epoch, index, mixed=True))
            pixels = sample.image.permute(1, 2, 0).numpy()
            for label, box, mask in zip(sample.labels, sample.boxes.as_subclass(Tensor), sample.masks, strict=True):
                regions = painted_regions(pixels, int(label))
                if float((box[2:] - box[:2]).min()) < 8 or not regions:
                    continue
                largest = max(regions, key=np.sum)
                np.testing.assert_allclose(bounds(largest), box.numpy(), atol=2.5)
                np.testing.assert_allclose(bounds(mask.numpy()), box.numpy(), atol=2.5)
                found += 1
    assert found > 50


def batches(dataset: Dataset, epochs: tuple[int, ...] = (0,), start: int = 0, **options: Any) -> list[Any]:
    arguments = {"transform": train_transform(64, augment="flip"), "batch_size": 2, "training": True, "seed": 9}
    loader = make_loader(dataset, **{**arguments, "workers": 0, **options})
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch, start)
        found += list(loader)
    return found


def same(first: list[Any], second: list[Any]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x.images, y.images) and all(torch.equal(s.boxes, t.boxes) for s, t in zip(xs, ys, strict=True))
        for (x, xs), (y, ys) in zip(first, second, strict=True)
    )


def test_all_of_it_rests_in_plain_epochs_and_resumes_exactly(painted: Dataset) -> None:
    mix = ImageMix(zoom_out=0.5, iou_crop=0.8, multi_scale=True, epochs=2)
    assert mix.first_epochs == 2
    assert same(batches(painted, (2,), mix=mix), batches(painted, (2,)))
    changed = batches(painted, (1,), mix=mix)
    assert not same(changed, batches(painted, (1,)))
    assert same(changed, batches(painted, (1,), mix=mix))
    assert same(changed[1:], batches(painted, (1,), 1, mix=mix))
    assert same(changed, batches(painted, (1,), mix=mix, draft=True, cache="none"))


def test_every_step_has_a_size_of_its_own() -> None:
    """It follows from seed, epoch and step: not from the process, the batch of a step, or where the epoch began."""

    def scales(batch_size: int, rank: int = 0, world: int = 1, accumulate: int = 1, start: int = 0) -> list[set[float]]:
        sampler = TrainSampler(
            96,
            batch_size=batch_size,
            seed=3,
            rank=rank,
            world_size=world,
            accumulate=accumulate,
            mixed_epochs=6,
            multi_scale=True,
        )
        sampler.set_epoch(5, start)
        return [{key.scale for key in batch} for batch in sampler]

    whole = scales(8)
    assert whole == [{step_scale(3, 5, step)} for step in range(12)] and len(set.union(*whole)) > 4
    assert scales(4, 0, 2) == scales(4, 1, 2) == whole
    assert scales(4, accumulate=2) == [scale for scale in whole for _ in range(2)]
    assert scales(8, start=7) == whole[7:]
    drawn = Counter(640 * step_scale(0, epoch, step) for epoch in range(10) for step in range(130))
    assert sorted(drawn) == pytest.approx(sorted(set(STEP_SIZES)))
    assert drawn[640] == pytest.approx(300, abs=60) and all(60 < n < 150 for size, n in drawn.items() if size != 640)
    plain = TrainSampler(8, batch_size=2, mixed_epochs=6, multi_scale=True)
    plain.set_epoch(6)
    assert {key.scale for batch in plain for key in batch} == {1.0}


def test_the_scale_changes_the_size_and_no_box(painted: Dataset) -> None:
    transform = eval_transform(64, 200)
    prepared = TransformedDataset(painted, transform, 0, mix=ImageMix(multi_scale=True, mosaic=0.5, copy_paste=0.5))
    for index, record in enumerate(painted.records):
        base = transform.make_params(record.height, record.width).size
        for scale in (0.75, 1.25):
            key = SampleKey(0, index, mixed=True, scale=scale)
            sample = prepared.sample(key)
            assert sample.boxes.canvas_size == tuple(round(side * scale) for side in base)
            if prepared.plan(key).words:
                continue
            plain = transform(painted[index])
            torch.testing.assert_close(
                sample.boxes.as_subclass(Tensor) / torch.tensor([*sample.boxes.canvas_size[::-1]] * 2),
                plain.boxes.as_subclass(Tensor) / torch.tensor([*plain.boxes.canvas_size[::-1]] * 2),
            )


def test_panoptic_data_are_refused(tmp_path: Path) -> None:
    from detrkit.data import open_dataset

    write_panoptic(tmp_path, "train", {1: panoptic_map()})
    panoptic = open_dataset(tmp_path, split="train", masks=True)
    for name in ("zoom_out", "iou_crop"):
        with pytest.raises(DetrkitError, match=rf"^data.{name}: .* is panoptic: stuff whose center is not shown"):
            ImageMix(**{name: 0.5}).check(panoptic)
    ImageMix(multi_scale=True).check(panoptic)
