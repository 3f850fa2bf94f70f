"""`predict_folder`: many images predicted in shards, by any number of workers on any number of machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from detrkit.batch.merging import FolderSummary, merge, merged_file, missing_shards, summarize
from detrkit.batch.plan import SUMMARY, RowFormat, ShardCount
from detrkit.batch.preparing import LeaseSeconds, Preparation, check_shards
from detrkit.batch.shard import ShardWork
from detrkit.batch.worker import OnShard, tidy, work_through
from detrkit.detector import Detector, load
from detrkit.utils.ranges import BatchSize, InputSize, ScoreThreshold, check_arguments


def predict_folder(
    model: Detector | str | Path,
    source: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    shards: ShardCount,
    shard: Sequence[int] = (),
    threshold: ScoreThreshold | None = None,
    size: InputSize | None = None,
    batch_size: BatchSize = 8,
    masks: bool = True,
    format: RowFormat = "jsonl",
    merged: bool = False,
    lease_seconds: LeaseSeconds = 60.0,
    retry_errors: bool = False,
    device: str | None = None,
    on_shard: OnShard | None = None,
) -> FolderSummary | None:
    """Predict many images and write a file of results a shard; begun again, go on with the shards that are missing.

    Any number of workers may call this with the same arguments and the same folder, also on several machines: each
    takes free shards, and those of a worker that has died. An image that cannot be read has a row with its error.

    Args:
        model: a detector, or weights as `detrkit.load` takes them.
        source: a folder with all in it, an image, a pattern, a list of paths (.txt), a table with a column of paths
            (.csv, .parquet), a parquet file of images, or a tar of images (WebDataset); or several of these.
        out: the folder for the results: shards/00000.jsonl and so on, a row for each image with its id, width, height
            (pixels), detections (boxes xyxy in pixels of the upright image), error and model.
        shards: number of shards; an image's is the SHA-256 of its id, first 64 bits, modulo this number.
        shard: predict these shards alone, from 0; by default all of them.
        threshold: as of `Detector.predict`.
        size: short side in pixels to resize images to; by default the checkpoint's.
        batch_size: images in one forward pass.
        masks: write the masks of models that have them, as COCO's RLE.
        format: of the results, "jsonl" or "parquet".
        merged: when all shards are done, also write merged.jsonl (or .parquet): all rows in the order of the lists, or
            of the ids where folders and patterns are given.
        lease_seconds: after which a shard is taken over from a worker that gives no sign of life.
        retry_errors: of shards that are done, predict the images with errors anew, and leave all other rows as they
            are. A merged file that is there is written anew, too.
        device: for weights that are loaded here.
        on_shard: is called with the number of each shard that is done, and its report if it was done here.

    Returns:
        The summary of all shards, or None if some are not done because `shard` left them out.

    Raises:
        DetrkitError: the source cannot be read or has two images of one id; the folder was begun with other images,
            another model or other settings; or nothing can be written. What is done is kept.
        SettingError: an argument that is out of its range.
    """
    check_arguments(predict_folder, {"shards": shards, "threshold": threshold, "size": size, "batch_size": batch_size})
    check_arguments(predict_folder, {"format": format, "lease_seconds": lease_seconds})
    chosen = check_shards(shard, shards)
    names = [source] if isinstance(source, str | Path) else list(source)
    prepared = Preparation([str(name) for name in names], out, shards=shards, rows=format)
    detector = model if isinstance(model, Detector) else load(model, device=device)
    if size is not None:
        detector = detector.resized(size)
    plan = prepared.plan(detector, threshold=threshold, masks=masks, lease_seconds=lease_seconds)
    work = ShardWork(detector, plan, prepared.sources, prepared.out, threshold, batch_size, masks)
    work_through(work, chosen, lease_seconds=lease_seconds, on_shard=on_shard, retry_errors=retry_errors)
    return finish(work, merged=merged, lease_seconds=lease_seconds)


def finish(work: ShardWork, *, merged: bool, lease_seconds: float = 60.0) -> FolderSummary | None:
    """Write the summary, and the merged file if it is asked for, if all shards are done; else return None.

    A merged file that is there without a summary is of rows that were replaced since (`ShardWork.write`): it is written
    anew in any case. If another worker replaces rows while they are read, they are read again.

    Args:
        work: how shards were predicted.
        merged: whether the merged file is asked for.
        lease_seconds: as of `predict_folder`.

    Raises:
        DetrkitError: a shard's file was changed.
        WriteError: a file cannot be written.
    """
    if missing_shards(work.plan, work.out):
        return None
    while True:
        stamps = [work.stamp(shard) for shard in range(work.plan.shards)]
        stale = not (work.out / SUMMARY).exists() and merged_file(work.plan, work.out).exists()
        file = merge(work.plan, work.out) if merged or stale else None
        summary = summarize(work.plan, work.out, file)
        if stamps == [work.stamp(shard) for shard in range(work.plan.shards)]:
            break
        (work.out / SUMMARY).unlink(missing_ok=True)
    tidy(work, lease_seconds=lease_seconds)
    return summary
