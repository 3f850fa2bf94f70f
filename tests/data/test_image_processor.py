"""Images become batches in one way: the bits of evaluation's loader, whatever kind of image they come from."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from detrkit.data import ImageProcessor, eval_transform, make_loader, open_dataset
from detrkit.data.tools.shapes import write_shapes
from detrkit.data.transforms import IMAGENET_MEAN, IMAGENET_STD, train_transform
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import ModelSpec

SPEC = ModelSpec("detr-r50", num_classes=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), size=96, max_size=150)


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_processor_of_a_checkpoint():
    assert ImageProcessor.of(SPEC) == ImageProcessor(size=96, max_size=150, mean=SPEC.mean, std=SPEC.std)
    assert ImageProcessor() == ImageProcessor.of(ModelSpec("detr-r50"))  # the published one


def test_numbers_of_the_formula():
    processor = ImageProcessor(size=4, max_size=None)
    image = random_image(4, 6)
    prepared = processor.prepare(Image.fromarray(image))
    assert prepared.dtype == torch.uint8 and np.array_equal(prepared.permute(1, 2, 0).numpy(), image)
    batch = processor.batch([prepared])
    expected = (image.astype(np.float32) / 255 - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    assert batch.images.dtype == torch.float32 and batch.images.is_contiguous() and batch.sizes == [(4, 6)]
    assert np.array_equal(batch.images[0].permute(1, 2, 0).numpy(), expected)
    plain = replace(processor, mean=(0, 0, 0), std=(1, 1, 1)).batch([prepared])
    assert torch.equal(plain.images[0], prepared.float() / 255)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(100, 130, (96, 124)), (130, 260, (75, 150)), (96, 96, (96, 96)), (2, 900, (1, 150))],
)
def test_sizes_follow_the_published_rule(height, width, expected):
    processor = ImageProcessor.of(SPEC)
    assert processor.input_size(height, width) == expected
    assert processor.prepare(Image.fromarray(random_image(height, width))).shape == (3, *expected)


def test_the_bits_of_the_loader(tmp_path):
    write_shapes(tmp_path, images={"train": 1, "val": 4}, seed=1)
    dataset = open_dataset(tmp_path, split="val")
    options = {"batch_size": 2, "training": False, "workers": 0, "mean": SPEC.mean, "std": SPEC.std}
    loader = make_loader(dataset, transform=eval_transform(SPEC.size, SPEC.max_size), **options)
    processor = ImageProcessor.of(SPEC)
    files = [record.file for record in dataset.records]
    for k, (batch, _) in enumerate(loader):
        made = processor(files[2 * k : 2 * k + 2])
        assert torch.equal(made.images, batch.images) and made.sizes == batch.sizes


def test_images_of_all_kinds_in_one_batch(tmp_path):
    array = random_image(50, 70)
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    kinds = [tmp_path / "a.png", array, tensor, (tmp_path / "a.png").read_bytes(), Image.fromarray(array)]
    batch = ImageProcessor.of(SPEC)(kinds)
    assert len(batch) == 5 and all(torch.equal(image, batch.images[0]) for image in batch.images)


def test_smaller_images_are_padded_with_zeros():
    processor = ImageProcessor.of(SPEC)
    batch = processor([random_image(100, 130), random_image(130, 100, seed=1)])
    assert batch.sizes == [(96, 124), (124, 96)] and batch.images.shape == (2, 3, 124, 124)
    assert (batch.images[0, :, 96:] == 0).all() and (batch.images[1, :, :, 96:] == 0).all()
    assert torch.equal(batch.images[1, :, :, :96], processor([random_image(130, 100, seed=1)]).images[0])
    assert processor.batch([torch.zeros(3, 5, 6, dtype=torch.uint8)], device="meta").images.device.type == "meta"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "^a batch needs at least one image$"),
        ([torch.zeros(3, 4, 5)], r"^image 0 of the batch is \(3, 4, 5\) torch.float32: a \(3, h, w\) uint8 tensor is"),
        ([torch.zeros(3, 4, 5, dtype=torch.uint8), torch.zeros(4, 5, dtype=torch.uint8)], r"^image 1 .* \(4, 5\)"),
    ],
)
def test_what_is_no_image(images, message):
    with pytest.raises(ValueError, match=message):
        ImageProcessor().batch(images)


def test_models_whose_images_are_squares():
    """Every image is squashed, in training too; a longest side makes no sense then."""
    spec = replace(SPEC, size=64, max_size=None, square=True)
    processor = ImageProcessor.of(spec)
    batch = processor([random_image(100, 130), random_image(130, 30, seed=1)])
    assert batch.sizes == [(64, 64)] * 2 and not batch.padded
    generator = torch.Generator().manual_seed(0)
    assert eval_transform(64, square=True).make_params(30, 500).size == (64, 64)
    for augment in ("detr", "flip", "none"):
        transform = train_transform(64, square=True, augment=augment)
        sizes = {transform.make_params(100, 300, generator).size for _ in range(40)}
        assert all(h == w for h, w in sizes) and len(sizes) == (11 if augment == "detr" else 1)
    assert spec.input_words == "squashed to 64 x 64 pixels"
    assert ModelSpec.from_json(spec.to_json()) == spec and "square" not in SPEC.to_json()
    with pytest.raises(DetrkitError, match="max_size=90: detr-r50 squashes every image to a square: give size alone"):
        spec.check_max_size(90)
