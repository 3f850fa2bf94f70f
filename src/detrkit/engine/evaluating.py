"""`evaluate`: evaluation of a model on a dataset, in one process or many; every image counts once."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from detrkit.data import Dataset, eval_transform, make_loader, open_dataset, order_by_aspect
from detrkit.data.loader import Loader
from detrkit.data.parts import divided
from detrkit.data.readers.common import UnknownSplit
from detrkit.detector import Detector, as_device, default_device, has_masks, is_panoptic
from detrkit.engine.agreement import check_agreement
from detrkit.engine.evaluation_loop import EvaluationAccumulator, run_evaluation
from detrkit.engine.evaluation_targets import EvaluationTargets, without_masks
from detrkit.engine.examples import display_threshold, example_sheet
from detrkit.engine.fingerprint import fingerprint_of
from detrkit.engine.processes import StopSignals, join_processes
from detrkit.engine.tiled_evaluation import run_tiled_evaluation
from detrkit.evaluation import Metrics, report_folder, write_report
from detrkit.models.base import DetectionModel
from detrkit.models.precision import Precision, in_precision, usable_precision
from detrkit.models.registry import architecture_of
from detrkit.structures.coco_classes import coco_classes
from detrkit.tiling.predicting import refuse_segments
from detrkit.tiling.tiles import DEFAULT_OVERLAP, Tiling
from detrkit.utils.console import console, track
from detrkit.utils.errors import DetrkitError
from detrkit.utils.layouts import Layout
from detrkit.utils.memory import check_batch
from detrkit.utils.ranges import BatchSize, Count, InputSize, Overlap, Share, TileSide, Workers, check_arguments
from detrkit.weights.checkpoint import ModelSpec, load_any
from detrkit.weights.describe import input_rule


def eval_loader(dataset: Dataset, spec: ModelSpec, *, batch_size: int, workers: int | None, **process: Any) -> Loader:
    """Make the loader of an evaluation with a checkpoint's own settings; images of similar shape share a batch."""
    return make_loader(
        without_masks(dataset),  # they are part of the ground truth
        transform=eval_transform(spec.size, spec.max_size, square=spec.square),
        batch_size=batch_size,
        training=False,
        workers=workers,
        order=order_by_aspect(dataset),
        mean=spec.mean,
        std=spec.std,
        **process,
    )


def evaluate(
    model: str | Path | Detector | DetectionModel | tuple[DetectionModel, ModelSpec],
    data: str | Path | Dataset | Any,
    *,
    split: str | None = "val",
    layout: Layout | None = None,
    masks: bool = True,
    batch_size: BatchSize = 2,
    size: InputSize | None = None,
    max_size: InputSize | None = None,
    max_dets: Count = 100,
    threshold: Share | None = None,
    device: str | None = None,
    precision: Precision = "fp32",
    workers: Workers | None = None,
    limit: Count | None = None,
    tile: TileSide | None = None,
    overlap: Overlap = DEFAULT_OVERLAP,
    num_queries: Count | None = None,
    out: str | Path | None = None,
    timeout: Count | None = None,
    stop: StopSignals | None = None,
    quiet: bool = True,
) -> Metrics:
    """Compute the average precision of a checkpoint on a dataset; with masks, also that of masks, or panoptic quality.

    Under torchrun every process evaluates its share, and all return the same numbers.

    A class of the dataset that has objects but is unknown to the model counts with AP 0, as in pycocotools; a warning
    and the report name it. Classes of the model that the dataset does not annotate are left out.

    Args:
        model: a model name (its published weights), a checkpoint, a run directory, a Detector, a model with its spec,
            or a bare model, whose labels are then taken for the dataset's (or COCO's, if it has 91 or 250).
        data: a dataset's path, an open dataset, or data in memory that `open_dataset` takes. Classes are matched by
            name.
        split: of the dataset, unless it is an open one.
        layout: likewise: "coco-panoptic" or "coco" of a folder with both. By default models with masks are evaluated
            on the panoptic files.
        masks: False evaluates only the boxes of a model with masks.
        batch_size: images per step; it does not change the result (padding-exact batches).
        size: short side of the input in pixels; by default the checkpoint's.
        max_size: longest side of the input in pixels; by default the checkpoint's.
        max_dets: detections counted per image.
        threshold: panoptic: score above which a query becomes a segment; by default that of `Detector`.
        device: "cuda", "cpu", ...; by default CUDA where there is one.
        precision: "fp32" for the model's own, or "bf16": as of `Detector.in_precision`.
        workers: processes that load images.
        limit: evaluate only this many images, the first ones.
        tile: side in pixels of the tiles that larger images are cut into, as of `Detector.predict`; by default as the
            Detector, where `model` is one. `batch_size` tiles share a forward pass then, and images are read by the
            process itself.
        overlap: share of its side that a tile has in common with its neighbor.
        num_queries: tokens that the model chooses as its queries, as of `Detector.with_num_queries`.
        out: a folder for report.md, metrics.json, images and results.json (COCO format); of a panoptic evaluation
            also panoptic.json with its PNGs in panoptic/.
        timeout: under torchrun or Slurm: seconds that a process waits for another one before it gives up; by default
            300 for all to join, 1800 later.
        stop: stop signals, checked between batches.
        quiet: print neither notes nor progress.

    Returns:
        The numbers of the boxes (on panoptic data, of things), with `masks` or `panoptic` for what else was evaluated.

    Raises:
        Stopped: a stop signal came.
        DetrkitError: a number out of range, a missing or foreign file, no class in common, an unknown split.
    """
    check_arguments(
        evaluate,
        {
            "batch_size": batch_size,
            "size": size,
            "max_size": max_size,
            "max_dets": max_dets,
            "threshold": threshold,
            "workers": workers,
            "limit": limit,
            "num_queries": num_queries,
            "timeout": timeout,
        },
    )
    rank, world = join_processes(timeout)
    evaluated = _resolve(model, size, max_size, num_queries)
    tiling = _tiling(model, evaluated, tile, overlap, max_dets=max_dets)
    check_batch(evaluated.spec.size, evaluated.spec.max_size, batch_size)
    masks = masks and has_masks(evaluated.model)
    dataset = data if isinstance(data, Dataset) else _opened(data, split, layout, masks)
    dataset = _restricted(dataset, masks=masks, limit=limit, quiet=quiet)
    if world > 1:
        check_agreement(fingerprint_of(dataset), str(dataset.path))
    where = default_device() if device is None else as_device(device)
    evaluated.model.to(where)
    precision = usable_precision(precision, where)
    if precision == "bf16":
        evaluated = evaluated._replace(model=in_precision(evaluated.model, precision, where))
    process = {"rank": rank, "world_size": world, "device": where}
    folder = None if out is None else Path(out)
    with ExitStack() as written:
        if folder is not None and rank == 0:  # checked before hours of work, not when the results are written
            segments = ("panoptic.json", "panoptic") if masks and dataset.panoptic else ()
            written.enter_context(report_folder(folder, "results.json", *segments))
        ground_truth = EvaluationTargets.of(dataset, evaluated.spec, evaluated.model)
        note = _unknown_classes(ground_truth, dataset)
        if note and rank == 0:
            warnings.warn(note, stacklevel=2)
        evaluation = EvaluationAccumulator(
            ground_truth,
            evaluated.spec,
            max_dets=max_dets,
            threshold=threshold,
            panoptic_out=None if folder is None else folder / "panoptic.json",
        )
        began = time.perf_counter()
        if tiling is None:
            loader = eval_loader(dataset, evaluated.spec, batch_size=batch_size, workers=workers, **process)
            loader.timeout = timeout or loader.timeout
            progress = track(loader, "evaluate", len(loader), quiet=quiet or rank != 0)
            run_evaluation(evaluated.model, progress, evaluation, stop=stop)
        else:
            detector = Detector(evaluated.model, evaluated.spec, device=where)
            detector.tiling = tiling
            indices = range(rank, len(dataset), world)
            images = track(indices, "evaluate", len(indices), quiet=quiet or rank != 0)
            run_tiled_evaluation(detector, dataset, images, evaluation, batch_size=batch_size, stop=stop)
        seconds = time.perf_counter() - began
        metrics = evaluation.compute()
        reason = evaluation.objects.reason_for_zero(metrics)
        if reason and rank == 0 and not quiet:
            console.print(f"warning: {reason}")
        if folder is not None and rank == 0:
            settings = {
                "batch size": f"{batch_size} x {world} process(es), padding {evaluated.spec.padding}",
                "precision": precision,
                "max detections": max_dets,
                **({} if tiling is None else {"tiles": f"{tiling}, with the whole image"}),
                **({} if num_queries is None else {"queries": num_queries}),
            }
            timing = {"images per second": round(len(dataset) / seconds, 2), "device": str(where)}
            _write(
                folder,
                evaluated,
                dataset,
                evaluation,
                metrics,
                settings,
                timing,
                tiling=tiling,
                notes=[n for n in (note, reason) if n],
            )
    return metrics


class _EvaluatedModel(NamedTuple):
    """Model to evaluate, its spec with the size of the input, and a name of its weights for the report."""

    model: DetectionModel
    spec: ModelSpec
    source: str


def _opened(data: str | Path | Any, split: str | None, layout: Layout | None, masks: bool) -> Dataset:
    """Open the dataset to evaluate on.

    Raises:
        DetrkitError: nothing recognized, or no such split; of an undivided dataset the part to choose is named.
    """
    try:
        return open_dataset(data, split=split, layout=layout, masks=masks)
    except UnknownSplit as error:
        if len(error.names) != 1:
            raise
        part = divided(error.names[0])[1]
        raise DetrkitError(f"{error}; the part that a training keeps to evaluate on is --split '{part}'") from error


def _resolve(
    model: str | Path | Detector | DetectionModel | tuple[DetectionModel, ModelSpec],
    size: int | None,
    max_size: int | None,
    num_queries: int | None,
) -> _EvaluatedModel:
    """Return the model that `model` stands for; `max_size` scales with `size` unless it is given.

    Raises:
        SettingError: `max_size` of a model whose images are squares, or a number of queries that it cannot have.
    """
    net, spec, source = _model_and_spec(model)
    if num_queries is not None and num_queries != net.num_queries:
        net = net.with_num_queries(num_queries)
        spec = spec.of_queries(net)
    spec.check_max_size(max_size)
    if size is not None and max_size is None and spec.max_size is not None:
        max_size = round(spec.max_size * size / spec.size)
    return _EvaluatedModel(net, replace(spec, size=size or spec.size, max_size=max_size or spec.max_size), source)


def _tiling(
    model: Any, evaluated: _EvaluatedModel, tile: int | None, overlap: float, *, max_dets: int
) -> Tiling | None:
    """Return how images are cut: as the arguments say, or the Detector.

    As many detections of an image are kept as of one that is not cut.

    Raises:
        SettingError: a number out of range, or a panoptic model.
    """
    tiling = model.tiling if isinstance(model, Detector) else None
    if tile is not None:
        tiling = Tiling(tile, overlap)
    if tiling is None:
        return None
    refuse_segments(is_panoptic(evaluated.model, evaluated.spec.classes))
    return replace(tiling, max_detections=max(100, max_dets, evaluated.model.num_queries))


def _restricted(dataset: Dataset, *, masks: bool, limit: int | None, quiet: bool) -> Dataset:
    """Return the dataset without masks unless they are evaluated, with the first images if there is a limit.

    Notes on what the evaluation leaves out are printed unless `quiet`.
    """
    if not quiet:
        for note in dataset.evaluation_notes:
            console.print(note, markup=False)
    if not masks:
        dataset = without_masks(dataset)
    return dataset if limit is None else dataset.subset(range(min(limit, len(dataset))))


def _unknown_classes(ground_truth: EvaluationTargets, dataset: Dataset) -> str:
    """Return a sentence on the annotated classes that the model cannot predict, or ""."""
    if not ground_truth.unknown:
        return ""
    metrics = "AP" if ground_truth.panoptic is None else "AP and PQ"
    return ground_truth.unknown.sentence(dataset.path.name, metrics)


def _write(
    folder: Path,
    evaluated: _EvaluatedModel,
    dataset: Dataset,
    evaluation: EvaluationAccumulator,
    metrics: Metrics,
    settings: Mapping[str, Any],
    timing: Mapping[str, Any],
    *,
    tiling: Tiling | None,
    notes: Sequence[str],
) -> None:
    """Write the results and the report of an evaluation into a folder."""
    model, spec, source = evaluated
    evaluation.objects.save(folder / "results.json")
    segments: dict[str, str] = {}
    if evaluation.segments is not None:
        evaluation.segments.save()
        segments["segments"] = f"queries with a score above {evaluation.threshold:g}"
    write_report(
        folder,
        metrics=metrics,
        masks=metrics.masks,
        panoptic=metrics.panoptic,
        title=f"{Path(source).name} on {dataset.path.name} {dataset.split or ''}".strip(),
        settings={
            "model": spec.name,
            "weights": source,
            "dataset": f"{dataset.path.name}, split {dataset.split}, {len(dataset)} images",
            "input": spec.input_words,
            **settings,
            **segments,
        },
        confusion=evaluation.objects.confusion(score=display_threshold(spec)),
        sheet=example_sheet(model, spec, dataset, tiling=tiling),
        notes=notes,
        timing=timing,
    )


def _model_and_spec(
    model: str | Path | Detector | DetectionModel | tuple[DetectionModel, ModelSpec],
) -> tuple[DetectionModel, ModelSpec, str]:
    """Return the model that `model` stands for, its spec and a name for the report."""
    if isinstance(model, tuple):
        return *model, model[1].name
    if isinstance(model, Detector):
        return model.model, model.spec, model.spec.name
    if isinstance(model, nn.Module):
        arch = architecture_of(model)
        name = "detr-r50" if arch is None else arch.name  # an unregistered module: its logits are taken for DETR's
        rule = {} if arch is None else input_rule(arch)
        spec = ModelSpec(name, num_classes=model.num_classes, classes=coco_classes(model.num_classes), **rule)
        return model, spec, type(model).__name__
    return *load_any(model), str(model)
