from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from detrkit.data import Dataset, open_dataset
from detrkit.data import loader as loader_module
from detrkit.data.geometry import Geometry
from detrkit.data.loader import make_loader
from detrkit.data.samplers import EvalSampler, SampleKey, TrainSampler, derived_seed, order_by_aspect
from detrkit.data.tools.shapes import write_shapes
from detrkit.data.transforms import Transform, eval_transform, train_transform
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("loader") / "shapes", images={"train": 11}, sides=(32, 64))


@pytest.fixture
def dataset(shapes: Path) -> Dataset:
    return open_dataset(shapes, masks=True)


def batches(sampler: TrainSampler | EvalSampler) -> list[list[SampleKey]]:
    return list(sampler)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("length", [103, 5])
def test_more_processes_see_the_same_global_batches(seed: int, world: int, length: int) -> None:
    one = TrainSampler(length, batch_size=8, seed=seed)
    many = [TrainSampler(length, batch_size=8 // world, seed=seed, rank=r, world_size=world) for r in range(world)]
    for epoch in (0, 1, 7):
        for sampler in (one, *many):
            sampler.set_epoch(epoch)
        whole = batches(one)
        parts = [batches(s) for s in many]
        assert whole == [[item for part in parts for item in part[k]] for k in range(len(whole))]


def test_train_epoch_is_a_permutation_without_the_last_incomplete_batch() -> None:
    sampler = TrainSampler(103, batch_size=8, seed=1)
    items = [item for batch in batches(sampler) for item in batch]
    assert len(sampler) == 12 and len(items) == 96
    assert len({item.image for item in items}) == 96
    first = items
    sampler.set_epoch(1)
    second = [item for batch in batches(sampler) for item in batch]
    assert [i.image for i in first] != [i.image for i in second]
    assert {i.epoch for i in second} == {1}
    other = TrainSampler(103, batch_size=8, seed=2)
    assert batches(other)[0] != first[:8]


def test_resume_within_an_epoch() -> None:
    sampler = TrainSampler(50, batch_size=4, seed=3)
    sampler.set_epoch(2)
    whole = batches(sampler)
    sampler.set_epoch(2, start_batch=5)
    assert batches(sampler) == whole[5:]
    assert len(sampler) == 12
    sampler.set_epoch(2, start_batch=12)
    assert batches(sampler) == []
    with pytest.raises(ValueError, match="start_batch 13"):
        sampler.set_epoch(2, start_batch=13)


def test_small_dataset_fills_one_global_batch() -> None:
    sampler = TrainSampler(3, batch_size=8)
    (batch,) = batches(sampler)
    assert len(sampler) == 1
    assert sorted((i.copy, i.image) for i in batch[:6]) == [(c, i) for c in range(2) for i in range(3)]
    assert len(set(batch)) == 8  # the copies are augmented differently
    order = [i.image for i in batch]
    assert order == (order[:3] * 3)[:8]


@pytest.mark.parametrize(("length", "world", "batch"), [(10, 1, 4), (10, 3, 2), (2, 4, 2), (7, 2, 8)])
def test_evaluation_takes_every_image_once(length: int, world: int, batch: int) -> None:
    samplers = [EvalSampler(length, batch_size=batch, rank=r, world_size=world) for r in range(world)]
    indices = [[item.image for b in s for item in b] for s in samplers]
    assert sorted(i for part in indices for i in part) == list(range(length))
    assert indices == [list(range(length))[r::world] for r in range(world)]
    assert all(len(list(s)) == len(s) for s in samplers)
    assert all(len(b) == batch for s in samplers for b in list(s)[:-1])


def test_impossible_processes() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2"):
        TrainSampler(5, batch_size=1, rank=2, world_size=2)


def test_derived_seed_depends_on_every_part() -> None:
    seeds = {derived_seed(s, e, i) for s in range(5) for e in range(5) for i in range(40)}
    assert len(seeds) == 1000
    assert derived_seed(1, 2, 3) == derived_seed(1, 2, 3)


def run(
    dataset: Dataset, *, workers: int, epochs: tuple[int, ...] = (0,), **options: object
) -> list[tuple[Batch, list[Target]]]:
    loader = make_loader(
        dataset,
        transform=train_transform(48),
        batch_size=4,
        training=True,
        seed=9,
        workers=workers,
        **options,  # type: ignore[arg-type]
    )
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        found += list(loader)
    return found


def same(a: list[tuple[Batch, list[Target]]], b: list[tuple[Batch, list[Target]]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.images, y.images)
        and x.sizes == y.sizes
        and all(torch.equal(s.boxes, t.boxes) and s.image_id == t.image_id for s, t in zip(xs, ys, strict=True))
        for (x, xs), (y, ys) in zip(a, b, strict=True)
    )


def test_workers_and_cache_change_nothing(dataset: Dataset, shapes: Path) -> None:
    epochs = (0, 1)
    plain = run(dataset, workers=0, epochs=epochs, cache="none")
    assert len(plain) == 4
    assert not same(plain[:2], plain[2:])
    with_workers = run(open_dataset(shapes, masks=True), workers=2, epochs=epochs, cache="none")  # persistent
    assert same(plain, with_workers)
    cached = open_dataset(shapes, masks=True)
    assert same(plain, run(cached, workers=2, epochs=epochs, cache="ram"))
    assert same(plain, run(cached, workers=0, epochs=epochs, cache="ram"))


def test_batches_are_padded_and_targets_fit(dataset: Dataset) -> None:
    for batch, targets in run(dataset, workers=0):
        assert batch.images.dtype == torch.float32 and batch.images.shape[:2] == (4, 3)
        assert not batch.images.isnan().any()
        for image, size, target in zip(batch.images, batch.sizes, targets, strict=True):
            assert target.size == size
            assert target.masks is not None and target.masks.shape == (len(target), *size)
            assert ((target.boxes >= 0) & (target.boxes <= 1)).all()
            assert (image[:, size[0] :] == 0).all() and (image[:, :, size[1] :] == 0).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_segments_partition_the_image(tmp_path: Path, workers: int) -> None:
    """No void in the shapes, so none after crops and resizes; and a batch holds masks of several sizes."""
    write_shapes(tmp_path / "shapes", images={"train": 12}, panoptic=True, sides=(32, 64), objects=(2, 6))
    panoptic = open_dataset(tmp_path / "shapes", masks=True)
    sizes = set()
    for _, targets in run(panoptic, workers=workers, epochs=(0, 1)):
        for target in targets:
            assert target.masks is not None and target.masks.dtype == torch.bool
            assert (target.masks.sum(0) == 1).all() and target.masks.flatten(1).any(1).all()
            assert len(target.masks) == len(target.labels) and target.masks.shape[1:] == target.size
            sizes.add(target.size)
    assert len(sizes) > 5


def test_resume_gives_the_same_pixels(dataset: Dataset) -> None:
    loader = make_loader(dataset, transform=train_transform(48), batch_size=2, training=True, seed=4, workers=0)
    loader.set_epoch(3)
    whole = list(loader)
    loader.set_epoch(3, start_batch=2)
    assert len(whole) == 5 and same(whole[2:], list(loader))


def test_global_generator_is_left_alone(dataset: Dataset) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    run(dataset, workers=0)
    run(dataset, workers=1)
    assert torch.equal(before, torch.get_rng_state())


def test_every_image_is_decoded_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from detrkit.data import dataset as dataset_module

    decoded: list[Path] = []
    real_decode = dataset_module.decode
    monkeypatch.setattr(
        dataset_module,
        "decode",
        lambda file, size=None, **options: (decoded.append(file), real_decode(file, size, **options))[1],
    )
    run(dataset, workers=0, epochs=(0, 1, 2))
    assert sorted(decoded) == sorted(r.file for r in dataset.records)
    decoded.clear()
    monkeypatch.setattr(loader_module, "CACHE_LIMIT_BYTES", 10)  # "auto" now finds it too large
    fresh = dataset.subset(range(11))
    run(fresh, workers=0, epochs=(0, 1))
    assert len(decoded) == 16


def test_cache_is_not_written_by_samples(dataset: Dataset) -> None:
    dataset.cache_images()
    first = dataset[0].image.clone()
    dataset[0].image.zero_()
    assert torch.equal(dataset[0].image, first)
    assert torch.equal(dataset[-1].image, dataset[10].image)


def test_evaluation_loader_ordered_by_aspect(dataset: Dataset) -> None:
    order = order_by_aspect(dataset)
    ratios = [dataset.records[i].height / dataset.records[i].width for i in order]
    assert ratios == sorted(ratios) and sorted(order) == list(range(11))
    loader = make_loader(dataset, transform=eval_transform(32), batch_size=4, training=False, workers=0, order=order)
    seen = [t.image_id for _, targets in loader for t in targets]
    assert seen == [dataset.records[i].image_id for i in order]
    assert [len(batch) for batch, _ in loader] == [4, 4, 3]
    assert all(min(size) == 32 for batch, _ in loader for size in batch.sizes)
    with pytest.raises(ValueError, match="order"):
        make_loader(dataset, transform=eval_transform(32), batch_size=4, training=True, order=order)


def test_default_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert loader_module.default_workers() == 0
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    for usable, expected in [(1, 0), (2, 1), (4, 3), (64, 4)]:
        if hasattr(os, "sched_getaffinity"):
            monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=usable: set(range(n)))
        else:
            monkeypatch.setattr(os, "cpu_count", lambda n=usable: n)
        assert loader_module.default_workers() == expected


def test_images_are_prepared_on_one_thread_and_the_model_keeps_its_own(dataset: Dataset) -> None:
    seen: list[int] = []

    class Watching(Transform):
        def make_params(self, height: int, width: int, generator: torch.Generator | None = None) -> Geometry:
            seen.append(torch.get_num_threads())
            return eval_transform(32).make_params(height, width)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        loader = make_loader(dataset, transform=Watching(), batch_size=4, training=False, workers=0)
        outside = [torch.get_num_threads() for _ in loader]
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1} and len(seen) == 11
    assert outside == [3, 3, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_draft_changes_pixels_a_little_and_nothing_else(tmp_path: Path, workers: int) -> None:
    from PIL import Image

    root = tmp_path / "large"
    write_shapes(root, images={"train": 6}, sides=(200, 260))
    for file in (root / "train").glob("*.jpg"):  # grain is what decoding smaller averages away
        with Image.open(file) as image:
            image.reduce(4).resize(image.size, Image.Resampling.BICUBIC).save(file, quality=90)
    large = open_dataset(root, masks=True)
    whole, draft = (run(large, workers=workers, cache="none", draft=draft) for draft in (False, True))
    assert not same(whole, draft)
    for (x, xs), (y, ys) in zip(whole, draft, strict=True):
        assert x.sizes == y.sizes and (x.images - y.images).abs().mean() < 0.05  # 3 of 255 grey levels
        for s, t in zip(xs, ys, strict=True):
            assert torch.equal(s.boxes, t.boxes) and torch.equal(s.labels, t.labels)
            assert s.masks is not None and t.masks is not None and torch.equal(s.masks, t.masks)
    assert same(whole, run(large, workers=workers, cache="ram", draft=True))  # cached images are whole


def test_draft_leaves_images_alone_that_are_hardly_made_smaller(dataset: Dataset) -> None:
    options = {"transform": train_transform(160), "batch_size": 4, "training": True, "workers": 0, "cache": "none"}
    assert same(*(list(make_loader(dataset, draft=draft, **options)) for draft in (False, True)))


@pytest.mark.parametrize("workers", [0, 2])
def test_grouped_batches_have_the_sizes_that_were_foreseen(shapes: Path, workers: int) -> None:
    """Every image as without grouping, to the pixel, in batches of less padding."""
    dataset = open_dataset(shapes, masks=True)
    epochs = tuple(range(4))
    found = [run(dataset, workers=workers, epochs=epochs, group_by_size=group) for group in (False, True)]
    by_image = [
        {
            (k // 2, target.image_id): image[:, : size[0], : size[1]]
            for k, (batch, targets) in enumerate(batches)
            for image, size, target in zip(batch.images, batch.sizes, targets, strict=True)
        }
        for batches in found
    ]
    assert by_image[0].keys() == by_image[1].keys() and len(by_image[0]) == 32
    assert all(torch.equal(image, by_image[1][key]) for key, image in by_image[0].items())
    areas = [sum(batch.images.shape[-1] * batch.images.shape[-2] for batch, _ in batches) for batches in found]
    assert areas[1] < areas[0]


@pytest.mark.parametrize("option", ["draft", "group_by_size"])
def test_evaluation_is_neither_reduced_nor_grouped(dataset: Dataset, option: str) -> None:
    with pytest.raises(ValueError, match=option):
        make_loader(dataset, transform=eval_transform(32), batch_size=4, training=False, **{option: True})


def test_batches_are_on_the_device_of_the_loader(dataset: Dataset) -> None:
    """The meta device stands for a GPU."""
    loader = make_loader(dataset, transform=eval_transform(32), batch_size=4, training=False, workers=0, device="meta")
    for batch, targets in loader:
        assert batch.images.device.type == "meta" and batch.images.dtype == torch.float32
        assert all(t.boxes.device.type == "cpu" for t in targets)


FAILS = """
import sys
from detrkit.data import eval_transform, make_loader, open_dataset
data = open_dataset(sys.argv[1], split="train")
batches = iter(make_loader(data, transform=eval_transform(64, 80), batch_size=1, training=False, workers=1))
next(batches)
raise RuntimeError("an error whose traceback holds the batches")
"""


@pytest.mark.slow
def test_workers_end_with_a_program_that_an_error_ends(shapes: Path) -> None:
    """By themselves they obey a SIGTERM after 300 seconds, which the program would wait for."""
    done = subprocess.run([sys.executable, "-c", FAILS, str(shapes)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "DataLoader worker" not in done.stderr
    assert done.stderr.endswith("an error whose traceback holds the batches\n")
