"""How often images are shown: LVIS's repeat factors, weights of datasets, the share of images without objects."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from detrkit.data import Dataset
from detrkit.data.merging import merge_datasets
from detrkit.data.sample import Record
from detrkit.data.sampling import Sampling, plan_sampling
from detrkit.data.sampling_report import class_rows, sampling_cells, sampling_lines, source_rows, trap_lines
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError

NAMES = ("car", "bus", "tram", "bike")


def dataset(labels: list[list[int]], *, crowd: int | None = None, names: tuple[str, ...] = NAMES) -> Dataset:
    """Images with objects of these labels; those of the label `crowd` are crowd regions."""
    records = [
        Record(
            image_id=k,
            file=Path(f"{k}.jpg"),
            height=10,
            width=10,
            boxes=np.tile([0.0, 0.0, 5.0, 5.0], (len(image), 1)),
            labels=np.array(image, np.int64),
            crowd=np.array([label == crowd for label in image], bool),
            areas=np.full(len(image), 25.0),
            annotation_ids=np.zeros(len(image), np.int64),
        )
        for k, image in enumerate(labels)
    ]
    classes = ClassList.contiguous(dict(enumerate(names)))
    return Dataset(records, classes, name="streets", split="train", path=Path("streets"), layout="coco")


def random_labels(seed: int, images: int = 60) -> list[list[int]]:
    """Labels that are rarer the higher they are; some images have none."""
    random = np.random.default_rng(seed)
    return [random.choice(4, random.integers(0, 4), p=[0.7, 0.2, 0.08, 0.02]).tolist() for _ in range(images)]


def lvis_factors(images: list[list[int]], threshold: float) -> list[float]:
    """Repeat factors by the paper's text, in plain loops."""
    found = []
    for image in images:
        factors = [1.0]
        for c in image:
            f = sum(c in other for other in images) / len(images)
            factors.append(max(1.0, math.sqrt(threshold / f)))
        found.append(max(factors))
    return found


def epoch_share(sampling: Sampling, chosen: np.ndarray) -> float:
    return float(sampling.image_rates[chosen].sum() / sampling.image_rates.sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("threshold", [0.05, 0.3, 1.0])
def test_repeat_factors_are_those_of_the_paper(seed, threshold):
    labels = random_labels(seed)
    sampling = plan_sampling(dataset(labels), repeat_rare=threshold)
    np.testing.assert_allclose(sampling.rates, lvis_factors(labels, threshold), rtol=1e-12)


@pytest.mark.parametrize("settings", [{"weights": (0, 1)}, {"weights": (1e-9, 1), "repeat_rare": 0.5}])
def test_an_epoch_without_objects_is_refused(settings):
    sources = [dataset([[0], [0, 1], [1]]), dataset([[], []])]
    with pytest.raises(DetrkitError, match="no image with an object is left in an epoch: give other weights or data"):
        plan_sampling(merge_datasets(sources), sources=sources, **settings)
    with pytest.raises(DetrkitError, match="no image with an object is left"):
        plan_sampling(sources[1], empty_share=0.0)
    sampling = plan_sampling(merge_datasets(sources), sources=sources)
    assert "warning: streets has no object: its 2 images count as background (40 % of an epoch)" in trap_lines(sampling)


def test_crowd_regions_do_not_make_an_image_one_of_a_class():
    sampling = plan_sampling(dataset([[0], [0], [0], [1]], crowd=1), repeat_rare=1.0)
    assert sampling.frequencies.tolist() == [0.75, 0, 0, 0] and sampling.factors[1] == 1
    assert sampling.without_objects.tolist() == [False, False, False, True]


def test_without_settings_there_are_no_rates():
    sampling = plan_sampling(dataset(random_labels(0)))
    assert (
        sampling.rates is None
        and sampling.epoch_images == 60
        and not sampling_lines(sampling)
        and not sampling_cells(sampling)
    )


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6])
def test_images_without_objects_get_their_share_and_others_stay(share):
    labels = random_labels(1)
    sampling = plan_sampling(dataset(labels), empty_share=share)
    empty = np.array([not image for image in labels])
    assert epoch_share(sampling, empty) == pytest.approx(share)
    assert (sampling.rates[~empty] == 1).all() and len(set(sampling.rates[empty])) == 1
    assert sampling.epoch_images == round((~empty).sum() / (1 - share))


def parts(*sizes: int) -> np.ndarray:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.2, 0), (1, 1e-3)])
def test_weights_are_shares_of_an_epoch_with_and_without_repeats(weights):
    first, second = random_labels(1, 50), random_labels(2, 10)
    whole, sources = dataset(first + second), [dataset(first), dataset(second)]
    for repeat_rare in (None, 0.3):
        sampling = plan_sampling(whole, sources=sources, weights=weights, repeat_rare=repeat_rare)
        assert epoch_share(sampling, parts(50, 10) == 0) == pytest.approx(weights[0] / sum(weights))
        if repeat_rare is None:
            assert sampling.epoch_images == 60
            assert len(set(np.round(sampling.rates[:50], 12))) == 1  # images of a dataset count alike


def test_with_weights_a_class_is_rare_by_the_images_that_are_seen():
    # bus is in one of two images of the second dataset, which has 1 % of an epoch: f = 0.005
    first, second = [[0]] * 98, [[1], [0]]
    sampling = plan_sampling(
        dataset(first + second), sources=[dataset(first), dataset(second)], weights=(99, 1), repeat_rare=0.02
    )
    assert sampling.frequencies[1] == pytest.approx(0.005) and sampling.factors[1] == pytest.approx(2)


@pytest.mark.parametrize("repeat_rare", [None, 0.3])
@pytest.mark.parametrize("share", [0.2, 0.5])
def test_weights_and_the_share_of_empty_images_hold_together(share, repeat_rare):
    first, second, third = random_labels(3, 40), random_labels(4, 20), [[]] * 10  # the last has no object at all
    labels, sources = first + second + third, [dataset(first), dataset(second), dataset(third)]
    sampling = plan_sampling(
        dataset(labels), sources=sources, weights=(6, 3, 1), repeat_rare=repeat_rare, empty_share=share
    )
    for k, expected in enumerate((0.6, 0.3, 0.1)):
        assert epoch_share(sampling, parts(40, 20, 10) == k) == pytest.approx(expected)
    empty = np.array([not image for image in labels])
    assert epoch_share(sampling, empty) == pytest.approx(share)
    within = [sampling.rates[empty & (parts(40, 20, 10) == k)].sum() / (6, 3)[k] for k in (0, 1)]
    assert within[0] == pytest.approx(within[1])  # the same share of both datasets that have such images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": (1, 2, 3)}, "3 for 2 datasets: give one for each"),
        ({"weights": (0, 0)}, "all are 0"),
        ({"weights": (1, 1), "empty_share": 0.4}, "50 to 50 % of an epoch can be images without objects"),
    ],
)
def test_a_mix_that_cannot_be(options, message):
    full, empty = [[0]] * 4, [[]] * 6
    with pytest.raises(DetrkitError, match=message):
        plan_sampling(dataset(full + empty), sources=[dataset(full), dataset(empty)], **options)


def test_a_share_of_images_that_do_not_exist():
    with pytest.raises(DetrkitError, match=r"empty_share is 0\.1, but every image has an object"):
        plan_sampling(dataset([[0], [1]]), empty_share=0.1)
    assert plan_sampling(dataset([[0], [1]]), empty_share=0).rates.tolist() == [1, 1]


def test_the_rows_of_a_mix_count_what_an_epoch_has():
    first, second = [[0, 0], [0], [], [1]], [[0], [2, 2, 2]]
    whole = dataset(first + second)
    narrow = dataset([[0], [1]], names=("car", "tram"))  # no bus and no bike
    sampling = plan_sampling(whole, sources=[dataset(first), narrow], weights=(1, 1), repeat_rare=1.0)
    car, bus, tram, bike = class_rows(sampling)
    assert (car.images, car.objects, car.objects_by_source) == (3, 4, (3, 1))
    assert (bus.objects_by_source, bike.objects_by_source) == ((1, None), (0, None))
    assert tram.objects == 3 and bike.factor == 1
    # an image of the first dataset counts 0.75, of the second 1.5: f(tram) = 1.5 / 6
    assert tram.share == pytest.approx(0.25) and tram.factor == pytest.approx(2)
    assert tram.objects_per_epoch == pytest.approx(3 * sampling.rates[5])
    assert car.objects_per_epoch == pytest.approx(2 * sampling.rates[0] + sampling.rates[1] + sampling.rates[4])
    one, two = source_rows(sampling)
    assert (one.images, one.empty, one.objects, one.share) == (4, 1, 4, pytest.approx(0.5))
    assert two.missing == ("bus", "bike") and one.missing == ()
    assert two.per_epoch == pytest.approx(sampling.rates[4:].sum()) and two.times == pytest.approx(two.per_epoch / 2)
    text = "\n".join(sampling_lines(sampling))
    assert "does not have bus, bike (2 of 4 classes): such objects in its 2 images count as background (50 %" in text
    assert "car 3 + 1" in text and "bus 1 + -" in text
    assert set(sampling_cells(sampling)) == {"datasets", "classes of the datasets", "rare classes"}


def test_the_line_of_the_rare_classes():
    sampling = plan_sampling(dataset([[0]] * 98 + [[0, 1], [2]]), repeat_rare=0.04)
    assert (
        sampling_lines(sampling)[0] == "repeat_rare 0.04: bus x2 (in 1 % of the images), tram x2 (in 1 % of the images)"
    )
    assert sampling_lines(sampling)[1] == "an epoch has 102 images instead of 100"
    assert sampling_lines(plan_sampling(dataset([[0]]), repeat_rare=0.04)) == [
        "repeat_rare 0.04: no class is in so small a share of the images: nothing is repeated"
    ]
