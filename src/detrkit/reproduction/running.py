"""`reproduce`: evaluation of published checkpoints on COCO; it continues after an interruption."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from detrkit.backbones.base import Padding
from detrkit.data import Dataset, eval_transform, make_loader, order_by_aspect
from detrkit.detector import as_device, default_device
from detrkit.engine.evaluation_loop import EvaluationAccumulator, iter_outputs
from detrkit.engine.evaluation_targets import without_masks
from detrkit.engine.examples import display_threshold, example_sheet
from detrkit.engine.processes import join_processes
from detrkit.evaluation import write_report
from detrkit.models.base import DetectionModel
from detrkit.models.pretrained import Published
from detrkit.reproduction.checkpoints import chosen_rows, load_published, weights_file, with_padding
from detrkit.reproduction.data import DatasetPaths, EvaluationData
from detrkit.reproduction.pictures import segments_sheet
from detrkit.reproduction.results_log import ResultsLog
from detrkit.reproduction.tables import ReproductionResult, settings_that_differ, summary_folder, write_summary
from detrkit.utils.console import progress_bar
from detrkit.utils.download import sha256
from detrkit.utils.errors import DetrkitError
from detrkit.utils.lock import FolderLock
from detrkit.utils.names import expanded_path
from detrkit.utils.ranges import BatchSize, Count, InputSize, Workers, check_arguments
from detrkit.weights.checkpoint import ModelSpec

EXAMPLE_IMAGES = 8  # on a sheet


def reproduce(
    names: str | Sequence[str] | None = None,
    *,
    coco: str | Path | None = None,
    panoptic: str | Path | None = None,
    weights: str | Path | None = None,
    out: str | Path = "reproduction",
    split: str = "val2017",
    batch_size: BatchSize | None = None,
    size: InputSize | None = None,
    max_size: InputSize | None = None,
    padding: Padding = "exact",
    device: str | None = None,
    workers: Workers | None = None,
    limit: Count | None = None,
    quiet: bool = True,
) -> list[ReproductionResult]:
    """Evaluate published checkpoints with the published settings, and compare the metrics with the published ones.

    Results are stored batch by batch: after an interruption, the same call continues with the images that are left.
    Under torchrun the processes share the batches, which are the same for any number of processes; so are the results.

    Args:
        names: of models, or one name; by default all models with given data and available weights.
        coco: folder with val2017/ and annotations/instances_val2017.json.
        panoptic: folder with panoptic_val2017/ and annotations/panoptic_val2017.json, for the panoptic models.
        weights: a folder with files of the published names, which are used instead of downloads; for a single name
            also the file itself.
        out: folder for the report, with a folder for each model.
        split: of both datasets.
        batch_size: images per process and forward pass; by default as published, or 2 if that is unknown.
        size: short side of the input in pixels; by default as published.
        max_size: longest side of the input in pixels; by default as published, in proportion to `size`.
        padding: "exact": the results do not depend on the batch; "official": as published, the results depend on it.
        device: "cuda", "cpu", ...; by default CUDA if available.
        workers: number of processes that load images.
        limit: evaluate only the first `limit` images.
        quiet: show no progress bar.

    Returns:
        The results, in the order of `names`.

    Raises:
        DetrkitError: an unknown name, no data for a model, weights that are not available or not the published ones, an
            evaluation with other settings in `out`, or another process that writes there.
    """
    numbers = {"batch_size": batch_size, "size": size, "max_size": max_size, "workers": workers, "limit": limit}
    check_arguments(reproduce, numbers)
    rank, _ = join_processes()
    if device is not None:
        as_device(device)
    paths = DatasetPaths.expanded(coco, panoptic, split=split)
    weights_path = None if weights is None else expanded_path(weights)
    rows = chosen_rows(names, paths, weights_path)
    # the input is checked before downloads and hours of work
    kinds = dict.fromkeys(row.evaluation.data for row in rows)
    data = {kind: EvaluationData.open(paths, panoptic=kind == "panoptic", limit=limit) for kind in kinds}
    files = {row.name: weights_file(row, weights_path, alone=len(rows) == 1) for row in rows}
    results = []
    with ExitStack() as stack:
        if rank == 0:
            stack.enter_context(FolderLock(out))
            stack.enter_context(summary_folder(Path(out)))
        for row in rows:
            model, spec = load_published(row, files[row.name], size=size, max_size=max_size)
            results.append(
                run(
                    with_padding(model, spec, padding),
                    replace(spec, padding=padding),
                    data[row.evaluation.data],
                    Path(out) / row.name,
                    weights=files[row.name],
                    row=row,
                    batch_size=batch_size or row.evaluation.batch_size or 2,
                    threshold=row.evaluation.threshold,
                    device=device,
                    workers=workers,
                    quiet=quiet,
                )
            )
        if rank == 0:
            write_summary(Path(out), results)
    return results


def run(
    model: DetectionModel,
    spec: ModelSpec,
    data: EvaluationData,
    folder: Path,
    *,
    weights: Path,
    row: Published | None,
    batch_size: int,
    threshold: float | None = None,
    device: str | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> ReproductionResult:
    """Evaluate one checkpoint, or continue its evaluation, and write its report.

    Args:
        model: with its weights.
        spec: of the model, with the input size and padding of the evaluation.
        data: to evaluate on.
        folder: of the log of results and the report.
        weights: the file, for the report.
        row: the published checkpoint, or None.
        batch_size: images per process and forward pass.
        threshold: score above which a query becomes a segment.
        device: see `reproduce`.
        workers: see `reproduce`.
        quiet: show no progress bar.

    Raises:
        DetrkitError: the folder holds an evaluation with other settings, or data cannot be read.
    """
    if batch_size < 1:
        raise DetrkitError(f"--batch-size {batch_size}: at least 1")
    rank, world = join_processes()
    torch_device = default_device() if device is None else as_device(device)
    model = model.eval().to(torch_device)
    results = folder / "panoptic.json"
    evaluation = EvaluationAccumulator(
        data.ground_truth(spec, model), spec, threshold=threshold, panoptic_out=results, duplicates="published"
    )
    images = data.images
    log = ResultsLog(folder, _result_settings(weights, spec, images, batch_size, evaluation))
    wait()
    if rank == 0:
        log.begin()
    wait()
    log.read(evaluation)
    batches = _remaining_batches(images, batch_size, evaluation)[rank::world]
    wait()  # all processes have read the log before any of them writes to it
    with progress_bar(spec.name, len(batches), quiet=quiet or rank != 0) as progress:
        for seconds, ids in _evaluate_batches(
            model, spec, images, batches, evaluation, torch_device, batch_size, workers
        ):
            log.append(evaluation, ids, rank=rank, seconds=seconds)
            progress.advance()
    evaluation.all_gather()
    metrics = evaluation.compute()
    wait()
    settings: dict[str, Any] = {
        "images": len(images),
        "size": spec.size,
        "max_size": spec.max_size,
        "batch_size": batch_size,
        "padding": spec.padding,
        "threshold": evaluation.threshold if evaluation.segments is not None else None,
    }
    differences = [] if row is None else settings_that_differ(row, settings)
    seconds = log.read(evaluation) / max(1, len(images))
    result = ReproductionResult(spec.name if row is None else row.name, metrics, row, differences, seconds, folder)
    if rank == 0:
        evaluation.objects.save(folder / "results.json")
        if evaluation.segments is not None:
            evaluation.segments.save()
        _write_report(result, model, spec, data, evaluation, weights, settings | {"processes": world}, torch_device)
    wait()
    return result


def _remaining_batches(images: Dataset, batch_size: int, evaluation: EvaluationAccumulator) -> list[list[int]]:
    """Return the batches, as indices of images, that have not been evaluated yet.

    The batches depend only on the dataset, and each goes to one process: any number of processes, interrupted at any
    point, computes the same batches, so that the metrics agree to the last digit.
    """
    order = order_by_aspect(images)
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    done = evaluation.objects.state()
    return [batch for batch in batches if any(images.records[i].image_id not in done for i in batch)]


def _result_settings(
    weights: Path, spec: ModelSpec, images: Dataset, batch_size: int, evaluation: EvaluationAccumulator
) -> dict[str, Any]:
    """Return the settings that results depend on, so that a log is not continued with other settings."""
    settings: dict[str, Any] = {
        "model": spec.name,
        "weights": sha256(weights)[:16],
        "dataset": f"{images.name} {images.split}, {len(images)} images",
        "size": spec.size,
        "max size": spec.max_size,
        "padding": spec.padding,
    }
    if spec.padding == "official":
        settings["batch size"] = batch_size
    if evaluation.segments is not None:
        settings["threshold"] = evaluation.threshold
    return settings


def _evaluate_batches(
    model: DetectionModel,
    spec: ModelSpec,
    images: Dataset,
    batches: Sequence[Sequence[int]],
    evaluation: EvaluationAccumulator,
    device: torch.device,
    batch_size: int,
    workers: int | None,
) -> Iterator[tuple[float, list[int | str]]]:
    """Run the model on batches of indices; yield the seconds that each took and the ids of its images."""
    if not batches:
        return
    loader = make_loader(
        without_masks(images).subset([index for batch in batches for index in batch]),
        transform=eval_transform(spec.size, spec.max_size, square=spec.square),
        batch_size=batch_size,
        training=False,
        workers=workers,
        mean=spec.mean,
        std=spec.std,
        device=device,
    )
    began = time.perf_counter()
    for one in iter_outputs(model, loader):
        evaluation.add(*one)
        now = time.perf_counter()
        yield now - began, [t.image_id for t in one.targets if t.image_id is not None]
        began = now


def wait() -> None:
    """Wait for all processes."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def _write_report(
    result: ReproductionResult,
    model: DetectionModel,
    spec: ModelSpec,
    data: EvaluationData,
    evaluation: EvaluationAccumulator,
    weights: Path,
    evaluated: dict[str, Any],
    device: torch.device,
) -> None:
    """Write the report of one checkpoint: metrics, settings and differences in them, curves, images, speed."""
    settings: dict[str, Any] = {
        "model": spec.name,
        "weights": weights.name,
        "dataset": f"{data.images.name}, split {data.images.split}",
        **{name.replace("_", " "): value for name, value in evaluated.items() if value is not None},
        "precision": "fp32",
    }
    if data.note:
        settings["objects"] = data.note
    row = result.row
    if row is not None:
        settings["published figures"] = row.source
        settings["published evaluation"] = _published_evaluation(row)
        if row.note:
            settings["note"] = row.note
    for difference in result.differences:
        settings[f"differs: {difference.setting}"] = str(difference)
    timing: dict[str, Any] = {
        "seconds per image and process, with loading": round(result.seconds, 4),
        "device": str(device),
    }
    if row is not None and row.speed:
        timing["published speed (V100, one image at a time)"] = row.speed
    panoptic = evaluation.segments is not None
    sheet = segments_sheet(model, spec, data.images, EXAMPLE_IMAGES) if panoptic else None
    write_report(
        result.folder,
        metrics=result.metrics,
        masks=result.metrics.masks,
        panoptic=result.metrics.panoptic,
        title=f"{spec.name} on {data.images.name} {data.images.split}",
        settings=settings,
        confusion=evaluation.objects.confusion(score=display_threshold(spec)),
        sheet=sheet or example_sheet(model, spec, data.images, count=EXAMPLE_IMAGES),
        timing=timing,
    )


def _published_evaluation(row: Published) -> str:
    """Describe the settings of the published evaluation."""
    e = row.evaluation
    batch = "batch size not stated" if e.batch_size is None else f"batch size {e.batch_size}"
    segments = "" if e.threshold is None else f", segments above {e.threshold:g}"
    size = f"short side {e.size}, longest side {e.max_size}"
    if e.max_size is None:
        size = f"squashed to {e.size} x {e.size}"
    return (
        f"{e.images:,} images, {size}, {batch}, padding {e.padding}{segments}, "
        f"the best {e.detections} detections of an image"
    )
