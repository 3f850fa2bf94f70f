from __future__ import annotations

import pytest
import torch

from detrkit.data.collate import PixelBatch, collate
from detrkit.data.sample import Sample
from detrkit.data.transforms import Normalization, to_target
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.errors import DetrkitError
from helpers.datasets import generator, make_sample


def normalized(sample: Sample, *statistics: tuple[float, ...]) -> torch.Tensor:
    """The image of a sample as float32, normalized by itself."""
    pixels = sample.image.as_subclass(torch.Tensor)
    out = torch.empty(pixels.shape)
    Normalization(*statistics).write(pixels, out)
    return out


SIZES = [(5, 9), (8, 4), (8, 9)]


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1], SIZES[:2]])
def test_equals_normalizing_each_image_and_padding_it(sizes: list[tuple[int, int]]) -> None:
    samples = [make_sample(h, w, [], seed=k) for k, (h, w) in enumerate(sizes)]
    expected = Batch.from_images([normalized(s) for s in samples])
    pixels = PixelBatch.from_images([s.image.as_subclass(torch.Tensor) for s in samples])
    assert pixels.pixels.dtype == torch.uint8 and pixels.sizes == sizes
    for row, (h, w) in zip(pixels.pixels, sizes, strict=True):  # padding may hold anything
        row[:, h:] = 200
        row[:, :, w:] = 100
    batch = pixels.normalized(Normalization())
    assert torch.equal(batch.images, expected.images) and batch.sizes == expected.sizes
    assert batch.images.is_contiguous()


def test_another_mean_and_deviation() -> None:
    sample = make_sample(3, 4, [])
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    batch = PixelBatch.from_images([sample.image.as_subclass(torch.Tensor)]).normalized(Normalization(mean, std))
    assert torch.equal(batch.images[0], normalized(sample, mean, std))


def test_normalised_where_the_normalisation_is() -> None:
    """The meta device stands for a GPU: nothing is computed there, but everything is placed."""
    pixels = PixelBatch(torch.zeros(2, 3, 6, 7, dtype=torch.uint8), [(6, 7), (4, 5)])
    batch = pixels.normalized(Normalization(device="meta"))
    assert batch.images.device.type == "meta" and batch.images.shape == (2, 3, 6, 7)
    assert batch.images.dtype == torch.float32 and batch.sizes == pixels.sizes


def test_collate_gives_the_first_error() -> None:
    sample = make_sample(4, 4, [[0, 0, 2, 2]])
    good = sample.image.as_subclass(torch.Tensor), to_target(sample)
    found = collate([good, DetrkitError("first"), DetrkitError("second")])
    assert isinstance(found, DetrkitError) and str(found) == "first"
    pair = collate([good, good])
    assert not isinstance(pair, DetrkitError)
    assert len(pair[1]) == 2 and pair[0].sizes == [(4, 4)] * 2


def pinned(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The tensors that are pinned from now on; without a GPU they cannot be, so they are only counted."""
    seen: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    return seen


@pytest.mark.parametrize("with_masks", [True, False])
def test_everything_that_goes_to_the_device_is_pinned(monkeypatch: pytest.MonkeyPatch, with_masks: bool) -> None:
    from torch.utils.data._utils.pin_memory import pin_memory  # what DataLoader calls

    seen = pinned(monkeypatch)
    masks = torch.rand(2, 6, 7, generator=generator(1)) < 0.5 if with_masks else None
    target = Target(torch.tensor([1, 2]), torch.rand(2, 4), masks=masks, image_id=5, size=(6, 7), orig_size=(12, 14))
    pixels = torch.randint(0, 256, (1, 3, 6, 7), dtype=torch.uint8, generator=generator(2))
    batch, (moved,) = pin_memory((PixelBatch(pixels, [(6, 7)]), [target]))
    assert isinstance(batch, PixelBatch) and torch.equal(batch.pixels, pixels) and batch.sizes == [(6, 7)]
    assert {id(t) for t in seen} == {id(t) for t in (pixels, target.labels, target.boxes, masks) if t is not None}
    assert torch.equal(moved.labels, target.labels) and torch.equal(moved.boxes, target.boxes)
    assert (moved.image_id, moved.size, moved.orig_size) == (5, (6, 7), (12, 14))
    assert moved.masks is None if masks is None else torch.equal(moved.masks, masks)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_bits_on_a_gpu() -> None:
    pixels = PixelBatch(torch.arange(256, dtype=torch.uint8).expand(2, 3, 2, 256).contiguous(), [(2, 256), (1, 100)])
    there = pixels.pin_memory().normalized(Normalization(device="cuda"))
    assert torch.equal(there.images.cpu(), pixels.normalized(Normalization()).images)
