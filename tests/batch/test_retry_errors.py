"""`--retry-errors`: images with errors are predicted anew, these alone; every other row stays to the byte."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.batch import reading, retrying, shard
from detrkit.batch.leases import Leases
from detrkit.batch.shard import ShardWork
from detrkit.cli import main
from detrkit.detector import Detector
from detrkit.structures.classes import ClassList
from detrkit.utils.errors import DetrkitError, WriteError
from detrkit.weights.checkpoint import ModelSpec, save_model
from helpers.disk import full_disk
from helpers.tiny import SMALLEST

SPEC = ModelSpec("detr-r50", SMALLEST, num_classes=2, classes=ClassList(("cat", "dog"), (1, 2)), size=32, max_size=64)
NAMES = [f"{number:02}.jpg" for number in range(16)]
BROKEN = ["03.jpg", "04.jpg", "11.jpg", "12.jpg"]
REPAIRED = BROKEN[:3]


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return Detector(SPEC.build(), SPEC, device="cpu")


def write(file: Path, *, broken: bool) -> None:
    seed = int(file.stem)
    if broken:
        file.write_text("no image")
    else:
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 40 + seed, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with broken images; `whole` is what is found in it once three of the four are repaired."""
    monkeypatch.chdir(tmp_path)
    return fill(tmp_path / "photos")


def fill(folder: Path) -> Path:
    folder.mkdir()
    for name in NAMES:
        write(folder / name, broken=name in BROKEN)
    return folder


def repair(photos: Path) -> None:
    for name in REPAIRED:
        write(photos / name, broken=False)


def predict(detector, out="out", **more):
    # one image a batch: those of a retry are batches of their own, too, so that even the last bits are equal
    return detrkit.predict_folder(
        detector, "photos", out, **{"shards": 4, "threshold": 0.1, "batch_size": 1, "merged": True, **more}
    )


def files(out="out") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in [*Path(out, "shards").iterdir(), Path(out, "merged.jsonl")]}


def rows(out="out") -> dict[str, dict]:
    lines = Path(out, "merged.jsonl").read_bytes().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def reports(out="out") -> dict[str, int]:
    """Images and errors of the reports and the summary."""
    found = [json.loads(file.read_bytes()) for file in Path(out, "reports").iterdir()]
    total = Counter(images=sum(report["images"] for report in found))
    for report in found:
        total.update(report["errors"])
    return total


@pytest.fixture(scope="module")
def whole(detector, tmp_path_factory):
    """Files of a folder that was predicted when three images were repaired already."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        fill(place / "photos")
        repair(place / "photos")
        predict(detector)
        return files()


def counted_reads(monkeypatch) -> list[str]:
    read: list[str] = []
    as_rgb = reading.as_rgb
    monkeypatch.setattr(reading, "as_rgb", lambda file: read.append(file.name) or as_rgb(file))
    return read


def test_the_images_with_errors_are_predicted_and_no_others(detector, photos, whole, monkeypatch):
    assert predict(detector).errors == {"not an image": 4}
    before = {file.name: file.read_bytes().splitlines() for file in Path("out/shards").iterdir()}
    repair(photos)
    read, done = counted_reads(monkeypatch), {}
    summary = predict(detector, retry_errors=True, on_shard=lambda shard, report: done.update({shard: report}))
    assert sorted(read) == BROKEN
    assert files() == whole
    for name, lines in before.items():
        for old, new in zip(lines, Path("out/shards", name).read_bytes().splitlines(), strict=True):
            assert old == new or json.loads(old)["error"] is not None
    assert summary.errors == {"not an image": 1} and summary.images == len(NAMES)
    assert json.loads(Path("out/summary.json").read_text())["images with errors"] == 1
    assert reports() == {"images": len(NAMES), "not an image": 1}
    tried = [report for report in done.values() if report is not None]
    assert sum(report.images for report in tried) == 4 and sum(report.errors.total() for report in tried) == 1
    left = {path.name for path in Path("out").iterdir()}
    assert left == {"manifest.jsonl", "merged.jsonl", "plan.json", "reports", "shards", "summary.json"}


def test_the_time_of_a_retry_is_added_to_that_of_its_shard(detector, photos):
    predict(detector)
    before = {file.name: json.loads(file.read_bytes())["seconds"] for file in Path("out/reports").iterdir()}
    repair(photos)
    summary = predict(detector, retry_errors=True)
    after = {file.name: json.loads(file.read_bytes())["seconds"] for file in Path("out/reports").iterdir()}
    retried = {json.loads(line)["id"]: file.stem for file in Path("out/shards").iterdir() for line in file.open("rb")}
    for name in after:
        assert after[name] > before[name] if name[:5] in {retried[k] for k in BROKEN} else after[name] == before[name]
    assert summary.seconds == pytest.approx(sum(after.values()))


def test_without_the_option_errors_stay_and_a_merged_file_is_made_anew_with_it(detector, photos, whole):
    predict(detector)
    before = files()
    repair(photos)
    predict(detector)
    assert files() == before
    predict(detector, merged=False, retry_errors=True)
    assert files() == whole


def test_chosen_and_missing_shards(detector, photos, whole):
    """Those that are chosen are tried again; one that is missing is predicted as always, and once."""
    predict(detector)
    before = files()
    shards = {
        row: file.name
        for file in Path("out/shards").iterdir()
        for row in map(json.loads, file.open("rb"))
        for row in [row["id"]]
    }
    chosen = shards[BROKEN[0]]
    repair(photos)
    predict(detector, shard=[int(chosen[:5])], retry_errors=True)
    expected = {**before, chosen: whole[chosen]}
    assert {k: v for k, v in files().items() if k != "merged.jsonl"} == {
        k: v for k, v in expected.items() if k != "merged.jsonl"
    }
    Path("out/shards", shards[BROKEN[3]]).unlink()
    predict(detector, retry_errors=True)
    assert files() == whole


def test_parquet_keeps_the_values_of_good_rows(detector, photos):
    parquet = pytest.importorskip("pyarrow.parquet")
    predict(detector, format="parquet")
    before = parquet.read_table("out/merged.parquet").to_pylist()
    repair(photos)
    predict(detector, format="parquet", retry_errors=True)
    after = parquet.read_table("out/merged.parquet").to_pylist()
    assert [row["id"] for row in after] == NAMES and [row["id"] for row in after if row["error"]] == BROKEN[3:]
    assert all(old == new for old, new in zip(before, after, strict=True) if old["error"] is None)
    assert all(len(row["detections"]) > 0 for row in after if row["id"] in REPAIRED)


def status_of(call) -> int:
    """The end of a process that was forked for a call: no handler and no `finally` runs when it is killed."""
    pid = os.fork()
    if pid == 0:
        try:
            torch.set_num_threads(1)  # those of this process are not in the forked one
            call()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


STEPS = [
    ("replace", 0),  # the finished part, before it takes its place
    ("replace", 1),  # the shard's file
    ("replace", 2),  # its report
    ("replace", 3),
    ("replace", 4),
    ("replace", 5),
    ("unlink", 0),
    ("unlink", 1),
    ("unlink", 2),
    ("merge", 0),
    ("summarize", 0),
]


@pytest.mark.parametrize(
    ("step", "number", "option"),
    [(*step, True) for step in STEPS] + [("replace", 2, False), ("replace", 3, False), ("merge", 0, False)],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_step_nothing_is_lost_and_the_next_command_is_right(
    detector, photos, whole, monkeypatch, step, number, option
):
    """Also without the option: it leaves errors that are left, but counts and merged rows are those of the shards."""
    predict(detector)
    before = {file.name: file.read_bytes() for file in Path("out/shards").iterdir()}
    repair(photos)
    calls = Counter()

    def stops(function):
        def stop(*args, **options):
            calls[step] += 1
            if calls[step] > number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return stop

    with monkeypatch.context() as patch:
        if step in ("merge", "summarize"):
            from detrkit.batch import folder

            patch.setattr(folder, step, stops(getattr(folder, step)))
        elif step == "unlink":
            unlink = Path.unlink
            ours = {"summary.json", *(f"{k:05}.json" for k in range(4))}
            patch.setattr(
                Path, "unlink", lambda self, **more: (stops(unlink) if self.name in ours else unlink)(self, **more)
            )
        else:
            patch.setattr(shard.os, "replace", stops(os.replace))
        assert status_of(lambda: predict(detector, retry_errors=True)) == -signal.SIGKILL
    for name, content in before.items():
        assert Path("out/shards", name).read_bytes() in (content, whole[name])
    summary = predict(detector, merged=False, retry_errors=option)
    if option:
        assert files() == whole and summary.errors == {"not an image": 1}
    found = rows()
    assert list(found) == NAMES
    assert summary.errors.get("not an image", 0) == sum(row["error"] is not None for row in found.values())
    lines = sorted(line for name, text in files().items() if name != "merged.jsonl" for line in text.splitlines())
    assert lines == sorted(Path("out/merged.jsonl").read_bytes().splitlines())


def test_two_workers_share_the_shards(detector, photos, whole, monkeypatch):
    """Each shard is tried by one of them, as long as none begins later."""
    predict(detector)
    repair(photos)
    both, tried = threading.Barrier(2), []
    once = retrying.retry_errors

    def noted(work, shard, stamp, *, check):
        if not tried:
            both.wait(timeout=30)
        tried.append(shard)
        return once(work, shard, stamp, check=check)

    monkeypatch.setattr("detrkit.batch.worker.retry_errors", noted)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            predict(detector, retry_errors=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and files() == whole
    assert len(tried) == len(set(tried)) >= 2
    assert reports() == {"images": len(NAMES), "not an image": 1}


def test_what_another_worker_wrote_meanwhile_is_kept(detector, photos, whole):
    """A worker that was suspended comes back with its older rows: in a retry, and in the first prediction."""
    predict(detector)
    old = {file.name: file.read_bytes() for file in Path("out/shards").iterdir()}
    name = next(name for name in old if old[name] != whole[name])
    number = int(name[:5])
    repair(photos)
    write_file = ShardWork.write

    def suspended(self, shard, rows, **options):
        listed = list(rows)  # before the other worker
        if shard == number:
            with pytest.MonkeyPatch.context() as other:
                other.setattr(ShardWork, "write", write_file)
                Path("out/leases", f"{shard:05}").unlink()
                predict(detector, retry_errors=True)
            listed = [{**row, "model": "older"} for row in listed]
        return write_file(self, shard, (row for row in listed), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWork, "write", suspended)
        predict(detector, retry_errors=True)
    assert files() == whole and reports() == {"images": len(NAMES), "not an image": 1}
    Path("out/shards", name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardWork, "write", suspended)
        predict(detector)
    assert files() == whole and reports() == {"images": len(NAMES), "not an image": 1}


def test_leases_of_a_worker_that_tries_again_stay_when_another_has_ended(detector, photos):
    predict(detector)
    leases = Leases(Path("out/leases"))
    lease = leases.acquire("00001")
    with lease:
        predict(detector)
        assert Path("out/leases/00001").exists()
    leases.close()
    predict(detector)
    assert not Path("out/leases").exists()


def test_leases_that_are_removed_all_the_same_cost_only_time(detector, photos, whole, monkeypatch):
    """Another worker's end comes between a look for leases and a new one."""
    import shutil

    predict(detector)
    repair(photos)
    rows_of, removed = ShardWork.rows, []

    def swept(self, entries, check=None):
        if not removed:
            removed.append(True)
            shutil.rmtree("out/work")
            shutil.rmtree("out/leases")
        return rows_of(self, entries, check)

    monkeypatch.setattr(ShardWork, "rows", swept)
    predict(detector, retry_errors=True)
    assert removed and files() == whole


def test_rows_replaced_while_they_are_merged_are_merged_again(detector, photos, whole, monkeypatch):
    """One worker ends slowly, another tries images again and ends meanwhile."""
    from detrkit.batch import folder

    predict(detector)
    repair(photos)
    merge, calls = folder.merge, []

    def slow(plan, out):
        calls.append(True)
        if len(calls) > 1:
            return merge(plan, out)
        old = {file: file.read_bytes() for file in Path("out/shards").iterdir()}
        predict(detector, retry_errors=True)
        file = merge(plan, out)
        lines = [json.loads(line) for content in old.values() for line in content.splitlines()]
        lines.sort(key=lambda row: row["id"])
        file.write_text("".join(json.dumps(row) + "\n" for row in lines))  # as it had read them before
        return file

    monkeypatch.setattr(folder, "merge", slow)
    assert predict(detector).errors == {"not an image": 1}
    assert files() == whole and len(calls) == 3


def test_a_full_disk_leaves_the_rows_of_before(detector, photos, whole):
    predict(detector)
    before = files()
    repair(photos)
    smallest = min(len(content) for content in before.values())
    with full_disk(smallest // 2), pytest.raises(WriteError, match="File too large"):
        predict(detector, retry_errors=True)
    assert files() == before and [p for p in Path("out").rglob("*.tmp")] == []
    predict(detector, retry_errors=True)
    assert files() == whole


def test_a_file_that_was_changed_is_one_line(detector, photos):
    predict(detector)
    file = next(file for file in Path("out/shards").iterdir() if b"not an image" in file.read_bytes())
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(DetrkitError, match=r"row 1: is not that of .*: it was changed: remove it"):
        predict(detector, retry_errors=True)


def test_the_command_says_what_it_tries_again(detector, photos, whole, capsys):
    weights = save_model(Path("a.safetensors"), detector.model, SPEC)
    words = ["predict", str(weights), "photos", "--shards", "4", "--out", "out", "--device", "cpu"]
    words += ["--threshold", "0.1", "--batch-size", "1", "--merge"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "4 images could not be predicted: 4 not an image; --retry-errors tries them again" in printed
    repair(photos)
    assert main([*words, "--retry-errors"]) == 0
    printed = capsys.readouterr().out
    assert "4 images with errors in" in printed and "1 images could not be predicted: 1 not an image" in printed
    assert files() == whole
    repair(photos)
    write(photos / BROKEN[3], broken=False)
    assert main([*words, "--retry-errors"]) == 0
    assert "1 image with errors in 1 shard: trying again" in capsys.readouterr().out
    assert main([*words, "--retry-errors"]) == 0
    assert "no images with errors" in capsys.readouterr().out
    assert main([*words[:3], "--retry-errors"]) == 2
    assert "--retry-errors is for many images: it needs --shards N" in capsys.readouterr().err
