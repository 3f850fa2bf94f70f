"""The loader: batches of images and targets, prepared in worker processes or in this one."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader

from detrkit.backbones.base import IMAGENET_MEAN, IMAGENET_STD
from detrkit.data._workers import begin_worker, end_with_program, give_up
from detrkit.data.dataset import Dataset
from detrkit.data.handing import SHARED_FROM_BYTES, Collate, Packed, shared_from, usable_workers
from detrkit.data.image_mix import NO_MIX, ImageMix
from detrkit.data.samplers import LARGEST_SCALE, EvalSampler, SampleKey, TrainSampler
from detrkit.data.transformed import TransformedDataset
from detrkit.data.transforms import Normalization, Transform
from detrkit.structures.batch import Batch
from detrkit.structures.outputs import Target
from detrkit.utils.console import console
from detrkit.utils.errors import DetrkitError
from detrkit.utils.workers import loading_failure

# Below this, decoding everything once costs less memory than a worker process.
CACHE_LIMIT_BYTES = 2**30
NOTICE_SECONDS = 10  # without a batch, until a notice is printed
WAIT_SECONDS = 1800.0  # without a batch, until the loading processes are given up
PREFETCHED = 2  # batches that each worker prepares ahead
_LOOK_SECONDS = 1
MEASURED_IMAGES = 256  # spread over the dataset, whose largest size or number of objects is taken


def default_workers() -> int:
    """Return min(4, usable CPUs - 1) beside an accelerator; 0 without one, where the model needs every CPU.

    Measured on two CPU cores with small cached images: 2800 images per second without workers, 740 with one.
    """
    if not torch.accelerator.is_available():
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(0, min(4, usable - 1))


class Loader:
    """Iterable of (Batch, list[Target]); made by `make_loader`.

    Attributes:
        dataset: what is loaded.
        sampler: which images are in which batch.
        timeout: seconds without a batch after which the loading processes are given up.
        while_waiting: called every second or so that passes without a batch, with the seconds so far; may raise.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: TrainSampler | EvalSampler,
        loader: DataLoader[Any],
        normalization: Normalization,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self._loader = loader
        self._normalization = normalization
        self.timeout = WAIT_SECONDS
        self.while_waiting: Callable[[float], None] = lambda seconds: None

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Start the next iteration at batch `start_batch` of `epoch`."""
        self.sampler.set_epoch(epoch, start_batch)

    def most_mixed_objects(self) -> int | None:
        """Return the objects of the fullest of `MEASURED_IMAGES` mixed images; None where no epoch mixes."""
        prepared = self._loader.dataset
        assert isinstance(prepared, TransformedDataset)
        return prepared.most_objects(MEASURED_IMAGES) if prepared.mix.first_epochs else None

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[Batch, list[Target]]]:
        """Yield the batches: images on the device of the loader; targets on the host, pinned if that device is CUDA.

        Raises:
            DetrkitError: an image cannot be read.
        """
        try:
            batches = iter(self._loader)
        except (RuntimeError, OSError) as error:
            _explain(error)
            raise
        end_with_program(batches)
        if hasattr(batches, "_workers"):
            batches._timeout = _LOOK_SECONDS  # private: as an option it would also limit the start of an epoch
        try:
            while (made := self._next(batches)) is not None:
                if isinstance(made, DetrkitError):
                    raise made
                pixels, targets = made.unpacked() if isinstance(made, Packed) else made
                yield pixels.normalized(self._normalization), targets
        finally:
            if hasattr(batches, "_workers"):
                batches._timeout = 0

    def _next(self, batches: Iterator[Any]) -> Any:
        """Return the next batch; None after the last one.

        Raises:
            DetrkitError: a loading process has failed, or gives nothing.
        """
        began, notified = time.monotonic(), False
        while True:
            try:
                return next(batches, None)
            except (RuntimeError, OSError) as error:
                if not str(error).startswith("DataLoader timed out"):
                    _explain(error)
                    raise
            seconds = time.monotonic() - began
            self.while_waiting(seconds)
            if seconds >= self.timeout:
                give_up(batches)
                raise DetrkitError(
                    f"{self.dataset.path}: the processes that load images have given nothing for {seconds:.0f} s: is "
                    "the disk or network still there? --workers 0 loads without them"
                )
            if seconds >= NOTICE_SECONDS and not notified:
                notified = True
                print(
                    f"detrkit: waiting for the processes that load images, at most {self.timeout:.0f} s",
                    file=sys.stderr,
                    flush=True,
                )


def _explain(error: Exception) -> None:
    """Raise the failure of a loading process anew, in one line."""
    failure = loading_failure(error)
    if failure is not None:
        raise DetrkitError(failure) from error


def _shared_from(prepared: TransformedDataset, batch_size: int, workers: int) -> int:
    """Return the size in bytes from which tensors travel in shared memory, which may be small."""
    count = len(prepared)
    if not workers or not count:
        return SHARED_FROM_BYTES
    chosen = range(0, count, max(1, count // MEASURED_IMAGES))
    sizes = [prepared.geometry(SampleKey(0, i)).size for i in chosen]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    largest = LARGEST_SCALE if prepared.mix.multi_scale else 1.0
    masks = 0.0
    if prepared.dataset.with_masks:
        masks = sum(len(prepared.dataset.records[i].labels) for i in chosen) / len(sizes) * prepared.mix.mean_objects
    ahead = PREFETCHED * workers + 1
    least, why = shared_from(
        round(batch_size * height * width * largest**2 * (3 + masks)),
        batches=ahead * int(os.environ.get("LOCAL_WORLD_SIZE") or 1),
        handles=ahead * (1 + batch_size * (masks > 0)),
    )
    if why is not None:
        console.print(why)
    return least


def make_loader(
    dataset: Dataset,
    *,
    transform: Transform,
    batch_size: int,
    training: bool,
    seed: int = 0,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    cache: Literal["auto", "none", "ram"] = "auto",
    draft: bool = False,
    color: float = 0.0,
    mix: ImageMix = NO_MIX,
    group_by_size: bool = False,
    accumulate: int = 1,
    epoch_images: int | None = None,
    rates: np.ndarray | None = None,
    order: Sequence[int] | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    device: torch.device | str = "cpu",
) -> Loader:
    """Make the loader of one process.

    It draws nothing from torch's global generator.

    Args:
        dataset: what to load.
        transform: from `train_transform` or `eval_transform`.
        batch_size: images per process and step.
        training: shuffled whole batches (`TrainSampler`), or every image once (`EvalSampler`).
        seed: of the order and of the augmentation.
        workers: worker processes, 0 for none; by default as `default_workers`.
        rank: number of this process, from 0.
        world_size: number of processes.
        cache: "ram": decode every image once, now, and keep it; "none": decode at each use; "auto": "ram" for
            training when that takes less than 1 GiB (in each process). Saves 1.7 of the 6.5 ms that an augmented
            COCO image takes, and most of the time of small ones.
        draft: for training, decode a JPEG at a half, a quarter or an eighth of its size where the augmented image
            is smaller still (`read_rgb`). Boxes and masks stay the same, pixels do not. Cached images are whole.
        color: for training, strength of changes of brightness, contrast, saturation and hue, 0 to 1
            (`draw_color_change`).
        mix: for training, how often images are mixed with others (mosaic, mixup, copy-paste) or changed as strongly
            (zoom-out, IoU crop, a size for each step), and in which epochs.
        group_by_size: for training, put images of similar size into one step, to reduce padding (`TrainSampler`).
        accumulate: batches per optimizer step, which `group_by_size` fills together; an epoch has at least that many.
        epoch_images: for training, images per epoch where it is not the whole dataset (`TrainSampler`).
        rates: for training, how often each image is expected per epoch; by default once (`TrainSampler`).
        order: for evaluation, a permutation of the indices such as `order_by_aspect(dataset)`.
        mean: of the normalization, per channel of an image in [0, 1].
        std: likewise.
        device: where the model is. Images go there as bytes, out of pinned memory if it is a CUDA device, and are
            normalized there, to the same bits as on the host.

    Raises:
        DetrkitError: an unknown cache, or (while caching) an image that cannot be decoded; images that cannot be
            mixed (`ImageMix.check`).
        ValueError: impossible batch size, rank or number of processes; `order` with training, or `draft`,
            `group_by_size`, `color` or `mix` without.
    """
    if cache not in ("auto", "none", "ram"):
        raise DetrkitError(f'cache={cache!r}: choose "auto", "none" or "ram"')
    if training and order is not None:
        raise ValueError("training shuffles: an order is for evaluation")
    if not training and (draft or group_by_size or color or mix):
        raise ValueError("draft, group_by_size, color and mix are for training: an evaluation's images are fixed")
    mix.check(dataset)
    if cache == "ram" or (cache == "auto" and training and dataset.decoded_bytes < CACHE_LIMIT_BYTES):
        dataset.cache_images()
    process: dict[str, Any] = {"batch_size": batch_size, "rank": rank, "world_size": world_size}
    sampler: TrainSampler | EvalSampler
    seen = None if rates is None else np.cumsum(rates)
    prepared = TransformedDataset(dataset, transform, seed, draft, color, mix, seen)
    if training:
        size_of = (lambda item: prepared.geometry(item).size) if group_by_size else None
        process |= {"accumulate": accumulate, "epoch_images": epoch_images, "rates": rates}
        process |= {"mixed_epochs": mix.first_epochs, "multi_scale": mix.multi_scale}
        sampler = TrainSampler(len(dataset), seed=seed, size_of=size_of, **process)
    else:
        sampler = EvalSampler(len(dataset), order=order, **process)
    workers, why = usable_workers(default_workers() if workers is None else workers)
    if why is not None:
        console.print(why)
    loader: DataLoader[Any] = DataLoader(
        prepared,  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        collate_fn=Collate(_shared_from(prepared, batch_size, workers)),
        pin_memory=torch.device(device).type == "cuda",
        persistent_workers=workers > 0,
        worker_init_fn=partial(
            begin_worker, parent=os.getpid(), lasts=threading.current_thread() is threading.main_thread()
        ),
        generator=torch.Generator().manual_seed(seed),  # DataLoader draws a seed for workers: not from the global one
    )
    return Loader(dataset, sampler, loader, Normalization(mean, std, device))
