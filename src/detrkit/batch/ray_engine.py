"""The same shards on Ray: an actor a worker loads the model once and takes shards, as `work_through` does elsewhere."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detrkit.batch.retrying import shard_errors
from detrkit.batch.shard import ShardReport, ShardWork
from detrkit.batch.worker import OnShard, work_through
from detrkit.utils.errors import DetrkitError

_CPUS = 2  # of a worker without a GPU
_FIELDS = ("plan", "sources", "out", "threshold", "batch_size", "masks")  # of the work that every actor is given


def check_ray() -> None:
    """Check that Ray is installed.

    Raises:
        DetrkitError: it is not.
    """
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise DetrkitError("--engine ray needs Ray: pip install 'detrkit[ray]'") from error


class _Worker:
    """What an actor of Ray does: it loads the model once, and predicts the shards that it is given.

    Args:
        work: without its detector.
        weights: as of `detrkit.load`.
        name: of the model, for official files that do not name it.
        device: where to run; by default the GPU that Ray gave, or the CPU.
        options: more arguments of `work_through`.
    """

    def __init__(
        self, work: dict[str, Any], weights: str, name: str | None, device: str | None, options: dict[str, Any]
    ) -> None:
        from detrkit.detector import load

        detector = load(weights, name=name, device=device)
        size, queries, tiling, precision = (work.pop(name) for name in ("size", "num_queries", "tiling", "precision"))
        detector = (detector.resized(size) if size != detector.spec.size else detector).with_num_queries(queries)
        detector = detector.in_precision(precision)
        detector.tiling = tiling
        self._work = ShardWork(detector=detector, **work)
        self._options = options

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Predict shards.

        Args:
            batch: "shard" with their numbers.

        Returns:
            The numbers, whether each was done by this actor, and its report.
        """
        rows: dict[str, list[Any]] = {"shard": [], "report": []}
        for shard in batch["shard"]:
            report = work_through(self._work, [int(shard)], **self._options)
            rows["shard"].append(int(shard))
            rows["report"].append([report.images, report.objects, report.seconds])
        return rows


def run_on_ray(
    work: ShardWork,
    weights: str | Path,
    shards: Sequence[int],
    *,
    name: str | None = None,
    device: str | None = None,
    workers: int | None = None,
    lease_seconds: float = 60.0,
    on_shard: OnShard | None = None,
    retry_errors: bool = False,
) -> None:
    """Predict the shards that are not done, by actors of Ray Data; the folder must be one that all its nodes see.

    Args:
        work: how a shard is predicted; its detector stays here, each actor loads its own.
        weights: as of `detrkit.load`: a path that all nodes see, or a name.
        shards: their numbers.
        name: of the model, for official files that do not name it.
        device: where to run; by default the GPU that Ray gives an actor, or the CPU.
        workers: actors; by default one for each GPU of the cluster, without GPUs one for each two CPUs.
        lease_seconds: as of `work_through`.
        on_shard: as of `work_through`.
        retry_errors: as of `work_through`.

    Raises:
        DetrkitError: Ray is not installed, or a shard cannot be predicted; what is done is kept.
    """
    check_ray()
    ray: Any = importlib.import_module("ray")
    data: Any = importlib.import_module("ray.data")
    again = shard_errors(work.plan, work.out, shards) if retry_errors else {}
    left = [shard for shard in shards if shard in again or not work.is_done(shard)]
    options = {"lease_seconds": lease_seconds, "retry_errors": retry_errors}
    for shard in sorted(set(shards) - set(left)):
        if on_shard is not None:
            on_shard(shard, None)
    if not left:
        return
    started = not ray.is_initialized()
    if started:
        # the actors import detrkit as this process does
        environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, include_dashboard=False)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0)) if device in (None, "auto", "cuda") else 0
        cpus = int(resources.get("CPU", 1))
        count = workers or gpus or max(1, cpus // _CPUS)
        data.DataContext.get_current().enable_progress_bars = False
        detector = work.detector
        plain = {field: getattr(work, field) for field in _FIELDS} | {
            "size": detector.spec.size,
            "num_queries": detector.model.num_queries,
            "tiling": detector.tiling,
            "precision": "bf16" if detector.dtype == torch.bfloat16 else "fp32",
        }
        rows = data.from_items([{"shard": shard} for shard in left], override_num_blocks=len(left)).map_batches(
            _Worker,
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(count, len(left))),
            fn_constructor_args=[plain, str(weights), name, device, options],
            num_gpus=1 if gpus else 0,
            num_cpus=max(1, min(_CPUS, cpus // count)),  # also the threads that Ray lets an actor have
        )
        for row in rows.iter_rows():
            images, objects, seconds = row["report"]
            if on_shard is not None:
                on_shard(int(row["shard"]), ShardReport(int(images), int(objects), Counter(), float(seconds)))
    except ray.exceptions.RayError as error:
        raise _of_ray(error) from error
    finally:
        if started:
            ray.shutdown()


def _of_ray(error: Exception) -> DetrkitError:
    """Return the error of an actor in one line: detrkit's own, or what Ray says."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DetrkitError):
            return cause
        cause = getattr(cause, "cause", None) or cause.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return DetrkitError(f"Ray: {lines[-1].strip() if lines else type(error).__name__}")
