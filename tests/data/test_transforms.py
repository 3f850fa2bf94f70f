from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from detrkit.data.draws import random_crop
from detrkit.data.geometry import crop, hflip, resize, resized_size
from detrkit.data.transforms import (
    DetrTransform,
    EvalTransform,
    FlipTransform,
    Normalization,
    eval_transform,
    to_target,
    train_transform,
)
from detrkit.utils.augments import Augment
from detrkit.utils.errors import DetrkitError
from helpers.datasets import generator, make_sample, picture

# (height, width, size, max_size) -> (height, width), worked out by hand from the published rule.
RULE = [
    ((480, 640, 800, 1333), (800, 1066)),  # 800 * 640 / 480 = 1066.67, truncated
    ((640, 480, 800, 1333), (1066, 800)),
    ((427, 640, 800, 1333), (800, 1199)),  # 1199.06
    ((426, 640, 800, 1333), (800, 1201)),  # 1201.88
    ((375, 500, 800, 1333), (800, 1066)),
    ((333, 500, 480, 1333), (480, 720)),  # 720.72
    ((300, 600, 800, 1333), (666, 1332)),  # short side round(666.5) = 666 (to even), long 1332
    ((230, 640, 800, 1333), (479, 1332)),  # round(479.05) = 479, long int(479 * 640 / 230) = int(1332.87)
    ((640, 230, 800, 1333), (1332, 479)),
    ((800, 1000, 800, 1333), (800, 1000)),  # already there
    ((500, 500, 512, 1333), (512, 512)),
    ((300, 900, 600, None), (600, 1800)),  # no maximum before the crop
    ((2, 3000, 800, 1333), (1, 1500)),  # short side round(0.89) = 1
    ((2, 6000, 800, 1333), (1, 1333)),  # round(0.44) = 0: the long side has the limit
    ((65501, 2, 800, 1333), (1333, 1)),
]


@pytest.mark.parametrize(("given", "expected"), RULE)
def test_resize_rule(given: tuple[int, int, int, int | None], expected: tuple[int, int]) -> None:
    assert resized_size(*given) == expected


@pytest.mark.parametrize(
    ("height", "width", "size"), [(427, 640, (800, 1199)), (230, 333, (120, 173)), (50, 40, (50, 97))]
)
def test_resize_equals_pil(height: int, width: int, size: tuple[int, int]) -> None:
    sample = make_sample(height, width, [])
    array = sample.image.permute(1, 2, 0).numpy()
    pil = np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling.BILINEAR)).astype(int)
    ours = resize(sample, size).image.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(pil - ours).max() <= 1
    assert np.mean(pil != ours) < 0.2  # noise is the hardest input; most pixels are the same


def test_resize_boxes_and_masks() -> None:
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, 1:3, 2:5] = True
    out = resize(make_sample(4, 6, [[2, 1, 5, 3]], masks=masks), (8, 18))
    assert out.boxes.tolist() == [[6, 2, 15, 6]]
    assert out.boxes.canvas_size == (8, 18)
    assert out.masks is not None and out.masks.dtype == torch.bool
    assert torch.equal(out.masks[0], masks[0].repeat_interleave(2, 0).repeat_interleave(3, 1))
    # The middles of the new rows are at 0.8, 2.4 and 4: of five rows, the first, third and fifth.
    tall = torch.arange(5)[:, None].expand(5, 6) != 2
    down = resize(make_sample(5, 6, [[2, 1, 5, 3]], masks=tall[None]), (3, 6))
    assert down.masks is not None
    assert torch.equal(down.masks[0], tall[[0, 2, 4]])
    empty = resize(make_sample(4, 6, [], masks=torch.zeros(0, 4, 6, dtype=torch.bool)), (8, 12))
    assert empty.masks is not None and empty.masks.shape == (0, 8, 12) and empty.boxes.shape == (0, 4)


def test_hflip() -> None:
    masks = torch.zeros(1, 3, 5, dtype=torch.bool)
    masks[0, 0, 0] = True
    sample = make_sample(3, 5, [[0, 0, 2, 1]], masks=masks)
    out = hflip(sample)
    assert out.boxes.tolist() == [[3, 0, 5, 1]]
    assert torch.equal(out.image, sample.image.flip(2))
    assert out.masks is not None and out.masks[0].nonzero().tolist() == [[0, 4]]
    assert torch.equal(hflip(out).boxes, sample.boxes)


def test_crop_shifts_clamps_and_drops() -> None:
    boxes = [
        [0, 0, 4, 4],  # cut to the upper left corner
        [0, 0, 2, 8],  # ends exactly at the left edge: zero width, goes
        [3, 4, 6, 7],  # inside
        [6, 5, 10, 10],  # cut at right and bottom
        [7, 0, 9, 9],  # starts exactly at the right edge: goes
    ]
    sample = make_sample(10, 10, boxes)
    out = crop(sample, 3, 2, 6, 5)  # rows 3..9, columns 2..7
    assert out.boxes.tolist() == [[0, 0, 2, 1], [1, 1, 4, 4], [4, 2, 5, 6]]
    assert out.labels.tolist() == [0, 2, 3]
    assert torch.equal(out.image, sample.image[:, 3:9, 2:7])
    assert len(sample.boxes) == 5 and sample.image.shape == (3, 10, 10)  # the original is untouched


def test_crop_of_masks_drops_what_is_not_seen() -> None:
    masks = torch.zeros(4, 10, 10, dtype=torch.bool)
    masks[0, :, :2] = masks[0, :2] = True  # an L around the crop, whose box encloses it
    masks[1, 2:, 2:] = True
    masks[2, 0:4, 3:5] = True  # two of its four rows are seen
    masks[3, 9, 9] = True  # wholly outside
    sample = make_sample(10, 10, [[0, 0, 10, 10], [2, 2, 10, 10], [3, 0, 5, 4], [9, 9, 10, 10]], masks=masks)
    out = crop(sample, 2, 2, 6, 7)
    assert out.labels.tolist() == [1, 2] and out.boxes.tolist() == [[0, 0, 7, 6], [1, 0, 3, 2]]
    assert out.masks is not None and torch.equal(out.masks, masks[1:3, 2:8, 2:9])
    nothing = crop(make_sample(10, 10, [], masks=masks[:0]), 2, 2, 6, 7)
    assert nothing.masks is not None and nothing.masks.shape == (0, 6, 7)


@pytest.mark.parametrize("seed", range(6))
def test_resized_masks_equal_pil(seed: int) -> None:
    """Where a new pixel's middle is on the edge of two old ones, either may be taken."""
    height, width, new_height, new_width = torch.randint(5, 90, (4,), generator=generator(seed)).tolist()
    masks = torch.rand(3, height, width, generator=generator(seed)) < 0.4
    out = resize(make_sample(height, width, [[0, 0, 2, 2]] * 3, masks=masks), (new_height, new_width)).masks
    assert out is not None and out.dtype == torch.bool
    rows, columns = (
        np.flatnonzero((2 * np.arange(new) + 1) * old % (2 * new) != 0)
        for new, old in ((new_height, height), (new_width, width))
    )
    assert len(rows) > new_height / 2 and len(columns) > new_width / 2
    for ours, mask in zip(out, masks, strict=True):
        pil = Image.fromarray(mask.numpy()).resize((new_width, new_height), Image.Resampling.NEAREST)
        assert np.array_equal(ours.numpy()[np.ix_(rows, columns)], np.asarray(pil)[np.ix_(rows, columns)])


def test_masks_stay_on_their_objects() -> None:
    """Through the whole augmentation: a mask is where the picture is white, and its box encloses it."""
    y, x = torch.meshgrid(torch.arange(90), torch.arange(120), indexing="ij")
    masks = torch.stack([(x - 40) ** 2 + (y - 50) ** 2 < 30**2, (x > 85) & (y < 60)])
    sample = make_sample(90, 120, [[11, 21, 70, 80], [86, 0, 120, 60]], masks=masks)
    sample.image = tv_tensors.Image(masks.any(0).expand(3, -1, -1).to(torch.uint8) * 255)
    shown = 0
    for seed in range(20):
        out = train_transform(80)(sample, generator(seed))
        assert out.masks is not None and len(out.masks) == len(out.boxes)
        white = out.image[0] > 127
        union = out.masks.any(0)
        assert (white ^ union).float().mean() < 0.02  # pixels along the edges
        for mask, box in zip(out.masks, out.boxes.tolist(), strict=True):
            rows, columns = mask.nonzero().unbind(1)
            bounds = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
            # to a pixel of the coarser size between; a crop may cut a circle where its box is wider
            assert all(b >= a - 1.5 for a, b in zip(box[:2], bounds[:2], strict=True))
            assert all(b <= a + 1.5 for a, b in zip(box[2:], bounds[2:], strict=True))
            shown += 1
    assert shown >= 30


def test_random_crop_draws_width_first_inclusive_and_capped() -> None:
    seen = set()
    for seed in range(300):
        top, left, h, w = random_crop(500, 450, (448, 600), generator(seed))
        again = generator(seed)
        assert w == int(torch.randint(448, 451, (), generator=again))
        assert h == int(torch.randint(448, 501, (), generator=again))
        assert top == int(torch.randint(0, 501 - h, (), generator=again))
        assert left == int(torch.randint(0, 451 - w, (), generator=again))
        seen.add((h, w))
    assert {w for _, w in seen} == {448, 449, 450}
    assert {h for h, _ in seen} >= {448, 500} and max(h for h, _ in seen) == 500
    assert random_crop(10, 20, (384, 600), generator(0)) == (0, 0, 10, 20)  # smaller than the smallest: stays whole


@pytest.mark.parametrize("augment", get_args(Augment))
def test_what_is_drawn_is_what_is_done(augment: Augment) -> None:
    transform = train_transform(64, augment=augment)
    sample = make_sample(90, 70, [[5, 5, 50, 40]])
    cropped = 0
    for seed in range(20):
        geometry = transform.make_params(90, 70, generator(seed))
        out = transform(sample, generator(seed))
        assert out.image.shape[-2:] == geometry.size == out.boxes.canvas_size
        steps = hflip(sample) if geometry.hflip else sample
        if geometry.pre_crop_size is not None and geometry.crop is not None:
            steps = crop(resize(steps, geometry.pre_crop_size), *geometry.crop)
            cropped += 1
        assert geometry.decoded_size == (geometry.pre_crop_size or geometry.size)
        assert torch.equal(out.image, resize(steps, geometry.size).image)
    assert cropped == 0 if augment in ("flip", "none") else 4 <= cropped <= 16


def test_an_image_decoded_smaller_fits_its_boxes_and_masks_after_the_first_resize() -> None:
    """As `Dataset.load` gives it: half the pixels, boxes and masks of the whole."""
    masks = torch.zeros(1, 96, 120, dtype=torch.bool)
    masks[0, 20:70, 30:90] = True
    whole = make_sample(96, 120, [[30, 20, 90, 70]], masks=masks)
    whole.image = tv_tensors.Image(torch.from_numpy(np.array(picture(96, 120, 3))).permute(2, 0, 1))
    small = replace(whole, image=resize(whole, (48, 60)).image)
    for seed in range(8):
        expected, out = (train_transform(40)(sample, generator(seed)) for sample in (whole, small))
        assert torch.equal(out.boxes, expected.boxes) and out.boxes.canvas_size == expected.image.shape[-2:]
        assert out.masks is not None and expected.masks is not None and torch.equal(out.masks, expected.masks)
        assert (out.image.float() - expected.image.float()).abs().mean() < 3


def test_published_numbers_and_scaling() -> None:
    published = train_transform()
    assert published == DetrTransform(
        scales=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        max_size=1333,
        crop_resize=(400, 500, 600),
        crop_range=(384, 600),
    )
    assert eval_transform() == EvalTransform(size=800, max_size=1333)
    # 128 / 800 = 0.16: 480 -> 76.8, 512 -> 81.92, ...; 1333 -> 213.28
    small = train_transform(128)
    assert isinstance(small, DetrTransform)
    assert small.scales == (77, 82, 87, 92, 97, 102, 108, 113, 118, 123, 128)
    assert (small.max_size, small.crop_resize, small.crop_range) == (213, (64, 80, 96), (61, 96))
    tiny = train_transform(32)
    assert isinstance(tiny, DetrTransform) and tiny.scales == (19, 20, 22, 23, 24, 26, 27, 28, 29, 31, 32)
    custom = train_transform(128, 200, scales=[96, 128])
    assert isinstance(custom, DetrTransform) and (custom.scales, custom.max_size) == ((96, 128), 200)
    assert train_transform(augment="none") == eval_transform()
    assert train_transform(augment="flip") == FlipTransform(resize=eval_transform())


def test_scale_jitter() -> None:
    """Scales of 0.1 to 2, alike often; a large image is cut to the size of evaluation, a small one stays small."""
    transform = train_transform(400, augment="lsj")
    scales, places = [], set()
    for seed in range(400):
        geometry = transform.make_params(300, 450, generator(seed))
        scaled = geometry.pre_crop_size or geometry.size
        assert abs(scaled[1] / scaled[0] - 1.5) < 0.03
        scales.append(scaled[0] / 400)
        if geometry.crop is None:
            assert scaled[0] <= 400
        else:
            top, left, h, w = geometry.crop
            assert (h, w) == geometry.size == (400, 600)
            assert 0 <= top <= scaled[0] - 400 and 0 <= left <= scaled[1] - 600
            places.add((top, left))
    quantiles = np.quantile(scales, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(quantiles, [0.1, 0.575, 1.05, 1.525, 2], atol=0.1)
    assert len(places) > 150
    # never below a cell of the coarsest map, unless the image is
    assert min(min(train_transform(64, augment="lsj").make_params(64, 64, generator(s)).size) for s in range(50)) == 32


def test_scale_jitter_drops_what_is_too_small_to_learn() -> None:
    boxes = [[10, 10, 100, 100], [50, 50, 53, 90], [0, 0, 300, 300]]
    masks = torch.zeros(3, 300, 300, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    sample = make_sample(300, 300, boxes, masks=masks)
    for seed in range(40):
        geometry = train_transform(300, augment="lsj").make_params(300, 300, generator(seed))
        height, width = geometry.pre_crop_size or geometry.size
        top, left, h, w = geometry.crop or (0, 0, *geometry.size)
        kept = []
        for label, (x0, y0, x1, y1) in enumerate(boxes):
            if geometry.hflip:
                x0, x1 = 300 - x1, 300 - x0
            x = np.clip(np.array([x0, x1]) * width / 300 - left, 0, w)
            y = np.clip(np.array([y0, y1]) * height / 300 - top, 0, h)
            area = np.ptp(x) * np.ptp(y)
            if min(np.ptp(x), np.ptp(y)) >= 2 and area >= 0.1 * (x1 - x0) * (y1 - y0) * width * height / 300**2:
                kept.append(label)
        assert geometry(replace(sample, masks=None)).labels.tolist() == kept
        with_masks = geometry(sample)
        assert set(with_masks.labels.tolist()) <= {0, 1, 2} and with_masks.masks is not None
        assert with_masks.masks.flatten(1).any(1).all()


def test_published_augmentation_statistics() -> None:
    sample = make_sample(96, 128, [[0, 0, 64, 96]])
    transform = train_transform(64)
    assert isinstance(transform, DetrTransform)
    flips = whole = 0
    shorts = set()
    for seed in range(600):
        out = transform(sample, generator(seed))
        h, w = out.image.shape[-2:]
        shorts.add(min(h, w))
        if (
            abs(w / h - 4 / 3) < 0.03
            and len(out.boxes)
            and abs(float(out.boxes[0, 2] - out.boxes[0, 0]) / w - 0.5) < 1e-5
        ):
            whole += 1
            flips += float(out.boxes[0, 0]) > 1
    assert shorts == set(transform.scales)
    assert abs(whole / 600 - 0.5) < 0.08  # branch A half of the time, and few crops look like it
    assert abs(flips / whole - 0.5) < 0.1


def published_by_pil(image: Image.Image, boxes: np.ndarray, seed: int) -> tuple[Image.Image, np.ndarray, bool]:
    """The published pipeline written out with PIL and numpy; only the draws come from our generator, in its order."""
    g = generator(seed)

    def chance() -> float:
        return float(torch.rand((), generator=g))

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=g))

    def resize_to(image: Image.Image, boxes: np.ndarray, size: int, most: float) -> tuple[Image.Image, np.ndarray]:
        w, h = image.size
        if max(w, h) / min(w, h) * size > most:
            size = round(most * min(w, h) / max(w, h))
        new = (size, int(size * h / w)) if w < h else (int(size * w / h), size)
        out = image if min(w, h) == size else image.resize(new, Image.Resampling.BILINEAR)
        return out, boxes * np.tile([out.width / w, out.height / h], 2)

    if chance() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        boxes = np.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], 1)
    cropped = chance() >= 0.5
    if cropped:
        image, boxes = resize_to(image, boxes, (400, 500, 600)[integer(0, 2)], np.inf)
        w = integer(384, min(image.width, 600))
        h = integer(384, min(image.height, 600))
        top, left = integer(0, image.height - h), integer(0, image.width - w)
        image = image.crop((left, top, left + w, top + h))
        boxes = np.clip(boxes - [left, top, left, top], 0, [w, h, w, h])
        boxes = boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])]
    image, boxes = resize_to(image, boxes, range(480, 801, 32)[integer(0, 10)], 1333)
    return image, boxes, cropped


def test_the_whole_equals_the_published_pipeline_in_pil() -> None:
    source = picture(240, 427, 5)
    boxes = [[3.5, 10, 200.25, 100], [300, 150, 427, 240], [210, 5, 220, 9]]
    sample = make_sample(240, 427, boxes)
    sample.image = tv_tensors.Image(torch.from_numpy(np.array(source)).permute(2, 0, 1))
    crops = 0
    for seed in range(12):
        image, expected, cropped = published_by_pil(source, np.array(boxes), seed)
        out = train_transform()(sample, generator(seed))
        assert out.image.shape == (3, image.height, image.width)
        difference = out.image.permute(1, 2, 0).numpy().astype(int) - np.asarray(image)
        assert np.abs(difference).max() <= 2  # each of at most two resizes rounds to a grey level
        np.testing.assert_allclose(out.boxes.numpy(), expected, rtol=0, atol=1e-3)
        crops += cropped
    assert 2 <= crops <= 10


def test_same_generator_same_sample_and_no_global_randomness() -> None:
    sample = make_sample(60, 80, [[5, 5, 50, 40]])
    transform = train_transform(48)
    before = torch.get_rng_state()
    a, b = (transform(sample, generator(3)) for _ in range(2))
    assert torch.equal(a.image, b.image) and torch.equal(a.boxes, b.boxes)
    assert torch.equal(before, torch.get_rng_state())
    shapes = {tuple(transform(sample, generator(s)).image.shape) for s in range(30)}
    assert len(shapes) > 5
    with pytest.raises(ValueError, match="generator"):
        transform(sample)


@pytest.mark.parametrize("seed", range(3))
def test_normalisation_writes_the_bits_of_the_formula(seed: int) -> None:
    """Into a part of a padded batch, from interleaved and from planar pixels."""
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256)
    mean, std = (torch.rand(3, generator=generator(seed + 10 * k)) + 0.1 for k in range(2))
    expected = (pixels.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    interleaved = pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    for given in (pixels, interleaved):
        batch = torch.full((3, 4, 300), 7.0)
        Normalization(mean.tolist(), std.tolist()).write(given, batch[:, :2, :256])
        assert torch.equal(batch[:, :2, :256], expected)
        assert (batch[:, 2:] == 7).all() and (batch[:, :, 256:] == 7).all()


def test_to_target() -> None:
    target = to_target(make_sample(50, 100, [[10, 20, 30, 40], [0, 0, 100, 50]]))
    torch.testing.assert_close(target.boxes, torch.tensor([[0.2, 0.6, 0.2, 0.4], [0.5, 0.5, 1.0, 1.0]]))
    assert (target.size, target.orig_size, target.image_id) == ((50, 100), (50, 100), 7)
    assert type(target.boxes) is torch.Tensor
    assert to_target(make_sample(5, 5, [])).boxes.shape == (0, 4) and target.masks is None
    masks = torch.rand(1, 5, 6, generator=generator(0)) < 0.5
    with_masks = to_target(make_sample(5, 6, [[0, 0, 6, 5]], masks=masks)).masks
    assert type(with_masks) is torch.Tensor and torch.equal(with_masks, masks)


@pytest.mark.parametrize(
    "arguments", [{"size": 0}, {"max_size": 700}, {"augment": "mosaic"}, {"scales": []}, {"scales": [0, 5]}]
)
def test_bad_arguments(arguments: dict[str, object]) -> None:
    with pytest.raises(DetrkitError, match=next(iter(arguments)).removesuffix("s")):
        train_transform(**arguments)  # type: ignore[arg-type]
