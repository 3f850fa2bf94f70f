"""Evaluation: a model, a dataset, one process or many; every image counts once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from detrkit.checkpoint import ModelSpec, load_any
from detrkit.classes import ClassList
from detrkit.coco_classes import COCO_91
from detrkit.console import track
from detrkit.data import Dataset, eval_transform, make_loader, open_dataset, order_by_aspect
from detrkit.data.loader import Loader
from detrkit.detector import Detector, as_device, default_device
from detrkit.engine.examples import example_sheet, shown_above
from detrkit.errors import DetrkitError
from detrkit.evaluation import DetectionEvaluator, Metrics, write_report
from detrkit.models.batch import Batch
from detrkit.models.deformable_detr import DeformableDETR
from detrkit.models.outputs import Target
from detrkit.models.postprocess import postprocess
from detrkit.registry import architecture


def dataset_labels(spec: ModelSpec, dataset: Dataset) -> ClassList:
    """The model's labels with the dataset's category ids, matched by class name.

    Labels of classes that the dataset does not annotate are called "N/A": the evaluation leaves them out, as it must,
    since nothing is known of them.

    Raises:
        DetrkitError: not one class in common, or no class list and another number of classes.
    """
    if spec.classes is None:
        if spec.num_classes != len(dataset.classes):
            raise DetrkitError(
                f"the checkpoint has no class list and {spec.num_classes} classes, {dataset.path} has "
                f"{len(dataset.classes)}: they cannot be matched"
            )
        return dataset.classes
    ids = {n: i for n, i in zip(dataset.classes.names, dataset.classes.ids, strict=True) if n != "N/A"}
    common = [n for n in spec.classes.names if n in ids]
    if not common:
        raise DetrkitError(
            f"the model knows none of the classes of {dataset.path} ({', '.join(list(ids)[:5])}, ...): it knows "
            f"{', '.join([n for n in spec.classes.names if n != 'N/A'][:5])}, ..."
        )
    unused = iter(range(max(ids.values()) + 1, max(ids.values()) + 1 + len(spec.classes)))
    names = tuple(n if n in ids else "N/A" for n in spec.classes.names)
    return ClassList(names, tuple(ids[n] if n in ids else next(unused) for n in names))


@torch.no_grad()
def collect(
    model: nn.Module,
    loader: Iterable[tuple[Batch, list[Target]]],
    evaluator: DetectionEvaluator,
    labels: ClassList,
    *,
    scores: str,
    device: torch.device,
    top_k: int = 100,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> None:
    """Runs the model over this process's images and gathers the detections of all processes in every one.

    No process waits for another before the end, so they may have different numbers of images.

    Args:
        model: in any mode; it is evaluated in eval mode and left as it was.
        loader: batches with targets that know image_id and orig_size.
        evaluator: takes the detections.
        labels: the model's labels as the dataset's categories.
        scores: "softmax" or "sigmoid", see `postprocess`.
        device: where the model is.
        top_k: detections kept per image by sigmoid models.
        autocast: context of the forward pass.
    """
    training = model.training
    model.eval()
    try:
        for batch, targets in loader:
            with autocast():
                outputs = model(batch.to(device))
            sizes = [t.orig_size for t in targets if t.orig_size is not None]
            found = postprocess(outputs, sizes, scores=scores, top_k=top_k)
            evaluator.add(
                [replace(d.to("cpu"), image_id=t.image_id, classes=labels) for d, t in zip(found, targets, strict=True)]
            )
    finally:
        model.train(training)
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        states: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(states, evaluator.state())
        for state in states:
            evaluator.merge(state)


def eval_loader(dataset: Dataset, spec: ModelSpec, *, batch_size: int, workers: int | None, **process: Any) -> Loader:
    """The loader of an evaluation with a checkpoint's own settings, images of like shape side by side."""
    return make_loader(
        dataset,
        transform=eval_transform(spec.size, spec.max_size),
        batch_size=batch_size,
        training=False,
        workers=workers,
        order=order_by_aspect(dataset),
        mean=spec.mean,
        std=spec.std,
        **process,
    )


def evaluate(
    model: str | Path | Detector | nn.Module | tuple[nn.Module, ModelSpec],
    data: str | Path | Dataset,
    *,
    split: str | None = "val",
    batch_size: int = 2,
    size: int | None = None,
    max_size: int | None = None,
    max_dets: int = 100,
    device: str | None = None,
    precision: str = "fp32",
    workers: int | None = None,
    limit: int | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
) -> Metrics:
    """Average precision of a checkpoint on a dataset.

    Under torchrun every process evaluates its share, and all return the same numbers.

    Args:
        model: a model name (its published weights), a checkpoint, a run directory, a Detector, a model with its spec,
            or a bare model, whose labels are then taken for the dataset's (or COCO's, if it has 91).
        data: a dataset's path, or an open dataset. Classes are matched by name.
        split: of the dataset, when a path is given.
        batch_size: images per step; it does not change the result (padding-exact batches).
        size: short side of the input in pixels; by default the checkpoint's.
        max_size: longest side of the input in pixels; by default the checkpoint's.
        max_dets: detections counted per image.
        device: "cuda", "cpu", ...; by default CUDA where there is one.
        precision: "fp32", or "bf16" for autocast.
        workers: processes that load images.
        limit: evaluate on the first so many images only.
        out: a folder for report.md, metrics.json, pictures and results.json (COCO format).
        quiet: no progress.

    Raises:
        DetrkitError: a missing or foreign file, no class in common, an unknown split.
    """
    rank, world = _join_processes()
    net, spec, source = _resolved(model)
    if size is not None and max_size is None and spec.max_size is not None:
        max_size = round(spec.max_size * size / spec.size)
    spec = replace(spec, size=size or spec.size, max_size=max_size or spec.max_size)
    dataset = data if isinstance(data, Dataset) else open_dataset(data, split=split)
    if limit is not None:
        dataset = dataset.subset(range(min(limit, len(dataset))))
    labels = dataset_labels(spec, dataset)
    where = default_device() if device is None else as_device(device)
    net = net.to(where)
    loader = eval_loader(dataset, spec, batch_size=batch_size, workers=workers, rank=rank, world_size=world)
    evaluator = DetectionEvaluator(dataset.ground_truth(), max_dets=max_dets)

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16")

    began = time.perf_counter()
    collect(
        net,
        track(loader, "evaluate", len(loader), quiet=quiet or rank != 0),
        evaluator,
        labels,
        scores=architecture(spec.name).scores,
        device=where,
        top_k=max(100, max_dets),
        autocast=autocast,
    )
    seconds = time.perf_counter() - began
    metrics = evaluator.compute()
    if out is not None and rank == 0:
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        evaluator.save(folder / "results.json")
        write_report(
            folder,
            metrics=metrics,
            title=f"{Path(source).name} on {dataset.path.name} {dataset.split or ''}".strip(),
            settings={
                "model": spec.name,
                "weights": source,
                "dataset": f"{dataset.path.name}, split {dataset.split}, {len(dataset)} images",
                "input": f"short side {spec.size}, longest side {spec.max_size}",
                "batch size": f"{batch_size} x {world} process(es), padding {spec.padding}",
                "precision": precision,
                "max detections": max_dets,
            },
            confusion=evaluator.confusion(score=shown_above(spec)),
            sheet=example_sheet(net, spec, dataset),
            timing={"images per second": round(len(dataset) / seconds, 2), "device": str(where)},
        )
    return metrics


def _resolved(
    model: str | Path | Detector | nn.Module | tuple[nn.Module, ModelSpec],
) -> tuple[nn.Module, ModelSpec, str]:
    """Whatever stands for a model, as the model, its spec and a name for the report."""
    if isinstance(model, tuple):
        return *model, model[1].name
    if isinstance(model, Detector):
        return model.model, model.spec, model.spec.name
    if isinstance(model, nn.Module):
        name = "deformable-detr-r50" if isinstance(model, DeformableDETR) else "detr-r50"
        count = int(model.num_classes)  # type: ignore[arg-type]
        classes = COCO_91 if count == len(COCO_91) else None
        return model, ModelSpec(name, num_classes=count, classes=classes), type(model).__name__
    return *load_any(model), str(model)


def _join_processes() -> tuple[int, int]:
    """Rank and number of processes; joins the group that torchrun describes in the environment."""
    import os

    if not dist.is_available():
        return 0, 1
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
