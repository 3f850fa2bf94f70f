"""Color changes against torchvision's functions and against the standard library's YIQ."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from detrkit.data.color import ColorChange, draw_color_change
from detrkit.data.image_mix import ImagePart
from detrkit.data.samplers import SampleKey
from detrkit.data.transformed import TransformedDataset
from detrkit.data.transforms import train_transform
from helpers.datasets import generator, picture
from helpers.painted import painted_dataset


def image(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.array(picture(height, width, seed))).permute(2, 0, 1)


@pytest.mark.parametrize("seed", range(4))
def test_factors_are_those_of_torchvision(seed: int) -> None:
    pixels = image(70, 93, seed) // 4 + 90  # nothing leaves 0 to 255 on the way
    change = draw_color_change(0.8, generator(seed))
    ours = ColorChange(brightness=change.brightness, contrast=change.contrast, saturation=change.saturation, hue=0.0)
    expected = functional.adjust_brightness(pixels, change.brightness)
    expected = functional.adjust_contrast(expected, change.contrast)
    expected = functional.adjust_saturation(expected, change.saturation)
    assert (ours(pixels).int() - expected.int()).abs().max() <= 3  # which rounds three times, and takes another mean
    assert (ours(pixels).int() - pixels.int()).abs().max() > 3


@pytest.mark.parametrize("hue", [0.05, -0.03])
def test_hue_turns_in_yiq(hue: float) -> None:
    pixels = image(5, 7) // 2 + 60
    changed = ColorChange(brightness=1.0, contrast=1.0, saturation=1.0, hue=hue)(pixels)
    towards = functional.adjust_hue(pixels, hue).int() - pixels.int()
    assert ((changed.int() - pixels.int()) * towards).sum() > 0  # red becomes yellow, and not magenta
    for before, after in zip(pixels.flatten(1).T.tolist(), changed.flatten(1).T.tolist(), strict=True):
        (y0, i0, q0), (y1, i1, q1) = (colorsys.rgb_to_yiq(*(v / 255 for v in rgb)) for rgb in (before, after))
        assert abs(y0 - y1) < 0.01
        assert abs(math.hypot(i0, q0) - math.hypot(i1, q1)) < 0.03
        turn = (math.atan2(q0, i0) - math.atan2(q1, i1) + math.pi) % (2 * math.pi) - math.pi
        if math.hypot(i0, q0) > 0.1:
            assert abs(turn - 2 * math.pi * hue) < 0.1


def test_gray_stays_gray_and_values_stay_in_range() -> None:
    gray = torch.arange(256, dtype=torch.uint8).expand(3, 40, 256).contiguous()
    for seed in range(20):
        changed = draw_color_change(1.0, generator(seed))(gray).int()
        assert (changed.max(0).values - changed.min(0).values).max() <= 1  # rounding
        assert (changed[0].diff(dim=1) >= 0).all()
    dark, bright = (ColorChange(brightness=b, contrast=1.5, saturation=1.5, hue=0.05) for b in (0.5, 1.5))
    noise = torch.randint(0, 256, (3, 50, 60), generator=generator(0), dtype=torch.uint8)
    assert dark(noise).float().mean() < noise.float().mean() < bright(noise).float().mean()


def test_bands_and_memory_order_change_nothing() -> None:
    large = image(300, 400, 2)  # several bands
    change = draw_color_change(1.0, generator(4))
    assert torch.equal(change(large), change(large.contiguous()))
    few = large[:, ::4, ::4].double().mean((1, 2))
    gray = float(torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64) @ few)
    plain = ColorChange(brightness=1.0, contrast=0.6, saturation=1.0, hue=0.0)
    assert (plain(large).double() - (0.6 * large + 0.4 * gray)).abs().max() < 0.51


def test_strength_limits_what_is_drawn() -> None:
    for strength in (0.2, 1.0):
        drawn = [draw_color_change(strength, generator(seed)) for seed in range(200)]
        factors = np.array([[c.brightness, c.contrast, c.saturation] for c in drawn])
        assert abs(factors.min() - (1 - strength / 2)) < 0.02 and abs(factors.max() - (1 + strength / 2)) < 0.02
        assert 0.8 < np.abs([c.hue for c in drawn]).max() / (0.05 * strength) <= 1


def test_color_changes_pixels_alone(tmp_path) -> None:
    dataset = painted_dataset(tmp_path, [(60, 90), (80, 64)])
    plain, colored = (TransformedDataset(dataset, train_transform(48), 3, color=color) for color in (0.0, 1.0))
    for key in (SampleKey(0, 0), SampleKey(4, 1)):
        before, after = plain.sample(key), colored.sample(key)
        (part,) = colored.plan(key).tiles
        assert part.color is not None and plain.plan(key).tiles == (ImagePart(index=key.image, geometry=part.geometry),)
        assert torch.equal(after.image, part.color(before.image.as_subclass(torch.Tensor)))
        assert not torch.equal(after.image, before.image)
        assert torch.equal(after.boxes, before.boxes) and torch.equal(after.masks, before.masks)
