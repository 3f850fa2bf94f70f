"""`detrkit predict --shards`: many images, in shards, by any number of processes and machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from detrkit.batch.plan import SUMMARY, RowFormat, ShardCount, ShardNumber
from detrkit.batch.preparing import LeaseSeconds, Preparation, check_shards
from detrkit.cli.inference import compiled_lines
from detrkit.cli.preflight import check_model, check_weights
from detrkit.utils.console import console, progress_bar
from detrkit.utils.errors import DetrkitError, UsageError
from detrkit.utils.launch import FIRST_PROCESS
from detrkit.utils.messages import counted
from detrkit.utils.ranges import Range
from detrkit.utils.signals import SignalWatch, Stopped
from detrkit.utils.visible import one_line

if TYPE_CHECKING:
    from detrkit.batch.merging import FolderSummary
    from detrkit.batch.shard import ShardReport, ShardWork
    from detrkit.cli.predict import Predict
    from detrkit.detector import Detector

RayWorkers = Annotated[int, Range(ge=1, le=10_000)]


@dataclass(frozen=True)
class Sharding:
    """Options of a prediction in shards."""

    shards: ShardCount | None = None
    """Many images: write OUT/shards/00000.jsonl and so on, a row for each image, cut into N shards by a hash of the
    image's name; no pictures. Sources are also lists (.txt, .csv, .parquet) and tars, and folders with all in them.
    Started again, the command does the shards that are missing; started on several machines with one OUT, they
    share the work."""
    shard: tuple[ShardNumber, ...] = ()
    """Do these shards alone, from 0, as a task of a Slurm array does; by default all that are free."""
    format: RowFormat = "jsonl"
    """Of the files of a prediction in shards."""
    merge: bool = False
    """When all shards are done, also write all rows, in order, to OUT/merged.jsonl or merged.parquet."""
    lease_seconds: LeaseSeconds = 60.0
    """After so many seconds without a sign of life from its worker, a shard is taken over by another one."""
    retry_errors: bool = False
    """Of shards that are done, predict the images with errors anew: all kinds of errors, since a file may have been
    repaired and a share be there again. Good rows stay as they are, and a merged file is written anew."""
    engine: Literal["local", "ray"] = "local"
    """Who runs the shards: this process, or workers of Ray (extra ray)."""
    ray_workers: RayWorkers | None = None
    """Workers of Ray; by default one for each of its GPUs, or without GPUs one for each two CPUs."""


def check_sharding(command: Predict) -> bool:
    """Return whether a command is for shards, after checking that its options go together.

    Raises:
        UsageError: options of shards without --shards, or others that shards do not have.
    """
    sharding = command.sharding
    if sharding.shards is None:
        given = [name for name, default in vars(Sharding()).items() if getattr(sharding, name) != default]
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} is for many images: it needs --shards N")
        return False
    if command.scale is not None:
        raise UsageError(f"--scale {command.scale:g}: with --shards no images are drawn: leave it out")
    if command.inference.compile and sharding.engine == "ray":
        raise UsageError("--compile: the workers of Ray do not compile: leave it out")
    if sharding.ray_workers is not None and sharding.engine != "ray":
        raise UsageError("--ray-workers needs --engine ray")
    return True


def predict_shards(command: Predict) -> int:
    """Predict in shards, print what it came to, and return the status: 0, also if images could not be read.

    Raises:
        DetrkitError: as of `detrkit.predict_folder`.
    """
    sharding = command.sharding
    assert sharding.shards is not None
    chosen = check_shards(sharding.shard, sharding.shards)
    prepared = Preparation(command.inputs, command.out, shards=sharding.shards, rows=sharding.format)
    check_weights(command.checkpoint)
    check_model(command.model)
    if sharding.engine == "ray":
        from detrkit.batch.ray_engine import check_ray

        check_ray()
    from detrkit.batch.folder import finish
    from detrkit.batch.merging import missing_shards

    detector = _detector(command)
    work = _work(command, prepared, detector)
    total = work.plan.shards
    before = total - len(missing_shards(work.plan, work.out))
    if before:
        _say(f"{before} of {total} shards were done before" + (": going on" if before < total else ""))
    if sharding.retry_errors:
        _say_retried(work, chosen)
    try:
        _run(command, work, chosen)
        # a process that began late may have replaced files after the first one had ended
        finishes = FIRST_PROCESS or (sharding.retry_errors and not (work.out / SUMMARY).exists())
        seconds = sharding.lease_seconds
        summary = finish(work, merged=sharding.merge, lease_seconds=seconds) if finishes else None
    except (DetrkitError, KeyboardInterrupt) as error:
        left = len(missing_shards(work.plan, work.out))
        advice = f"{total - left} of {total} shards are done: run the same command again to go on"
        if isinstance(error, DetrkitError):
            raise type(error)(f"{error}; {advice}") from error
        _say(advice)
        raise
    for line in compiled_lines(detector):
        _say(line)
    if summary is not None:
        _print(summary, command.out)
    elif FIRST_PROCESS:
        left = len(missing_shards(work.plan, work.out))
        _say(f"{total - left} of {total} shards are done, in {command.out}")
    return 0


def _detector(command: Predict) -> Detector:
    """Load the weights, on the GPU of this process where a launcher started several."""
    import torch

    from detrkit.detector import load
    from detrkit.utils.launch import launched

    launch = launched()
    if launch is not None and torch.cuda.is_available():
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    detector = load(command.checkpoint, name=command.model, device=command.device)
    detector = detector if command.size is None else detector.resized(command.size)
    return command.inference.applied(detector)


def _work(command: Predict, prepared: Preparation, detector: Detector) -> ShardWork:
    from detrkit.batch.shard import ShardWork

    lease_seconds = command.sharding.lease_seconds
    plan = prepared.plan(detector, threshold=command.threshold, masks=True, lease_seconds=lease_seconds)
    left_out = sum(source.left_out for source in prepared.sources)
    if left_out and prepared.is_new:
        _say("1 file is no image" if left_out == 1 else f"{left_out:,} files are no images")
    return ShardWork(detector, plan, prepared.sources, prepared.out, command.threshold, command.batch_size)


def _run(command: Predict, work: ShardWork, chosen: Sequence[int]) -> None:
    from detrkit.batch.worker import work_through

    sharding = command.sharding
    with progress_bar("shards", len(chosen)) as progress:

        def on_shard(shard: int, report: ShardReport | None) -> None:
            progress.advance("" if report is None else f"{counted(report.images, 'image')} of shard {shard}")

        if sharding.engine == "ray":
            from detrkit.batch.ray_engine import run_on_ray

            run_on_ray(
                work,
                command.checkpoint,
                chosen,
                name=command.model,
                device=command.device,
                workers=sharding.ray_workers,
                lease_seconds=sharding.lease_seconds,
                on_shard=on_shard,
                retry_errors=sharding.retry_errors,
            )
            return
        # a signal is noted, and obeyed between two batches, so that the lease is released
        with SignalWatch() as watch, watch.waiting():

            def check() -> None:
                if watch.asked:
                    raise Stopped(watch.asked)

            work_through(
                work,
                chosen,
                lease_seconds=sharding.lease_seconds,
                on_shard=on_shard,
                check=check,
                retry_errors=sharding.retry_errors,
            )


def _say_retried(work: ShardWork, chosen: Sequence[int]) -> None:
    """Print how many images are tried again."""
    from detrkit.batch.retrying import shard_errors

    errors = shard_errors(work.plan, work.out, chosen)
    images = counted(sum(errors.values()), "image")
    _say(
        f"{images} with errors in {counted(len(errors), 'shard')}: trying again" if errors else "no images with errors"
    )


def _print(summary: FolderSummary, out: Path) -> None:
    """Print what a prediction has come to."""
    objects = f"{summary.objects:,} object{'' if summary.objects == 1 else 's'}"
    _say(f"{objects} in {summary.images:,} images, {summary.images_per_second:.3g} images per second of a worker")
    if summary.errors:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in summary.errors.items())
        _say(
            f"{sum(summary.errors.values()):,} images could not be predicted: {kinds}; --retry-errors tries them again"
        )
    _say(str(out / "shards") if summary.merged is None else str(out / summary.merged.name))


def _say(text: Any) -> None:
    console.print(one_line(str(text)))
