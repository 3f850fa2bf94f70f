"""`detrkit reproduce` from download to report, on real pictures with formula weights."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.cli import main
from detrkit.engine.evaluation_loop import EvaluationAccumulator
from detrkit.models.pretrained import PUBLISHED
from detrkit.reproduction import MetricComparison
from detrkit.reproduction.checkpoints import chosen_rows, weights_file
from detrkit.reproduction.data import DatasetPaths
from detrkit.reproduction.results_log import ResultsLog
from detrkit.reproduction.tables import settings_that_differ
from detrkit.utils.errors import DetrkitError
from helpers.file_server import serving
from helpers.layout import coco_2017, instances_of_panoptic, needs_data, panoptic_2017, publish, write_checkpoint

HERE = Path(__file__).parent
MODELS = ("detr-r50", "detr-r50-panoptic")
SMALL = {"size": 96, "device": "cpu", "workers": 0, "batch_size": 2}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name in (*MODELS, "detr-r50-dc5", "deformable-detr-r50"):
        write_checkpoint(name, folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Options for the places of COCO and COCO panoptic; the pictures of the latter are in a folder of the former."""
    if "DETRKIT_DATA" not in os.environ:
        pytest.skip("DETRKIT_DATA is not set")
    folder = tmp_path_factory.mktemp("data")
    return {"coco": instances_of_panoptic(folder / "here", 5), "panoptic": panoptic_2017(folder / "there", 5)}


@pytest.fixture
def published(weights, monkeypatch):
    for name in (*MODELS, "detr-r50-dc5"):
        publish(monkeypatch, name, weights / PUBLISHED[name].file)


@pytest.fixture
def no_reports(monkeypatch):
    """Figures and results alone: pictures and curves take longer than all the rest, and have tests of their own."""
    monkeypatch.setattr("detrkit.reproduction.running._write_report", lambda *_: None)


def results(folder: Path) -> dict[str, bytes]:
    """The content of what an evaluation found, by file."""
    files = [folder / "results.json", *folder.glob("panoptic.json"), *sorted(folder.glob("panoptic/*.png"))]
    return {file.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(weights, data, tmp_path_factory):
    """An evaluation without interruption, in one process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in MODELS:
            publish(patch, name, weights / PUBLISHED[name].file)
        out = tmp_path_factory.mktemp("whole")
        return out, detrkit.reproduce(MODELS, **data, weights=weights, out=out, **SMALL)


@pytest.mark.slow
@needs_data
def test_from_download_to_report(weights, tmp_path, monkeypatch, capsys):
    """The command, with a file that a server cuts off in the middle, on images of COCO-MINI."""
    coco = coco_2017(tmp_path / "coco", 4)
    file = weights / PUBLISHED["detr-r50"].file
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with serving(file.read_bytes(), f"/detr/{file.name}") as server:
        server.cut = [10_000_000]
        publish(monkeypatch, "detr-r50", file, server.url)
        words = ["reproduce", "detr-r50", "--coco", str(coco), "--size", "96", "--device", "cpu"]
        assert main(words) == 1  # formula weights do not reach 42.0
    assert server.requests == [None, "bytes=10000000-"]
    assert (tmp_path / "home" / "weights" / "detr-r50-e632da11.pth").read_bytes() == file.read_bytes()
    printed = capsys.readouterr().out
    assert re.search(r"\| detr-r50 \| AP +\| +42\.0 \| +42\.0 \| .*\| no ", printed)
    for said in ("images 4 (published: 5000)", "size 96 (published: 800)", "padding exact (published: official)"):
        assert f"detr-r50: {said}" in printed and said in (tmp_path / "reproduction" / "report.md").read_text()
    folder = tmp_path / "reproduction" / "detr-r50"
    report = (folder / "report.md").read_text()
    for part in ("42.0", "short side 800", "batch size 2, padding official", "0.036 s an image", "| person "):
        assert part in report or part in printed, part
    assert Image.open(folder / "examples.png").size[0] > 1000 and (folder / "precision_recall.png").is_file()
    truth = coco / "annotations" / "instances_val2017.json"
    measured = detrkit.evaluate_detections(truth, folder / "results.json")
    [figures] = json.loads((tmp_path / "reproduction" / "figures.json").read_text())
    assert [f["measured"] for f in figures["figures"]] == [
        100 * measured[name] if measured[name] >= 0 else None for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    ]
    assert measured.detections == 400


@pytest.mark.slow
@needs_data
def test_panoptic_report(whole):
    """Boxes, masks and segments of one pass, in the table and in the report."""
    out, (boxes, segments) = whole
    assert boxes.metrics.panoptic is None and segments.metrics.masks is not None
    names = [figure.name for figure in segments.figures]
    assert names == ["PQ", "SQ", "RQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st", "SQ_st", "RQ_st", "AP", "AP_segm"]
    assert [f.published for f in segments.figures if f.published] == [43.4, 38.8, 31.1]
    found = json.loads((out / "detr-r50-panoptic" / "panoptic.json").read_text())["annotations"]
    assert sum(len(image["segments_info"]) for image in found) > 50  # the figures are of something
    report = (out / "detr-r50-panoptic" / "report.md").read_text()
    assert "**PQ " in report and "(masks) on 5 images" in report and "Classes: segments" in report
    # image | ground truth | masks | panoptic
    assert Image.open(out / "detr-r50-panoptic" / "examples.png").width == 5 * 10 + 4 * 320


@pytest.mark.slow
@needs_data
def test_truth_from_its_own_results(whole, data, weights, published, no_reports, tmp_path):
    """What the model finds, taken for the truth, has PQ 100, and the difference is said."""
    out, _ = whole
    source = data["panoptic"]
    truth = json.loads((source / "annotations" / "panoptic_val2017.json").read_text())
    found = json.loads((out / "detr-r50-panoptic" / "panoptic.json").read_text())["annotations"]
    for image in found:
        png = np.array(Image.open(out / "detr-r50-panoptic" / "panoptic" / image["file_name"])).astype(int)
        ids = png @ [1, 256, 65536]
        for segment in image["segments_info"]:
            y, x = np.nonzero(ids == segment["id"])
            box = [x.min(), y.min(), x.max() + 1 - x.min(), y.max() + 1 - y.min()]
            segment |= {"bbox": [int(v) for v in box], "iscrowd": 0}
    place = tmp_path / "own"
    (place / "annotations").mkdir(parents=True)
    (place / "panoptic_val2017").symlink_to(out / "detr-r50-panoptic" / "panoptic")
    (place / "annotations" / "panoptic_val2017.json").write_text(json.dumps(truth | {"annotations": found}))
    options = {"coco": data["coco"], "panoptic": place, "weights": weights, "out": tmp_path / "out"}
    [result] = detrkit.reproduce("detr-r50-panoptic", **options, **SMALL)
    figures = {figure.name: figure for figure in result.figures}
    assert figures["PQ"].measured == pytest.approx(100) and figures["PQ"].difference == pytest.approx(56.6)
    assert figures["SQ_th"].measured == pytest.approx(100) and figures["SQ_th"].difference == pytest.approx(20.1)
    assert figures["PQ"].within is False and not result.within


@pytest.mark.slow
@needs_data
def test_interrupted_and_resumed(whole, data, weights, published, no_reports, tmp_path, monkeypatch):
    """Stopped after the first batch and in the middle of a line: the rest is evaluated once, with the same results."""
    out, expected = whole
    append, add = ResultsLog.append, EvaluationAccumulator.add
    written, evaluated = [], []

    def interrupted(self, *args, **options):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(append(self, *args, **options))

    def counted(self, outputs, batch, targets):
        evaluated.extend(t.image_id for t in targets)
        add(self, outputs, batch, targets)

    monkeypatch.setattr(EvaluationAccumulator, "add", counted)
    options = {**data, "weights": weights, "out": tmp_path, **SMALL}
    with monkeypatch.context() as stop:
        stop.setattr(ResultsLog, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            detrkit.reproduce("detr-r50-panoptic", **options)
    journal = tmp_path / "detr-r50-panoptic" / "journal" / "process-0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    journal.write_bytes(lines[0] + lines[1][:1000])  # the power went off while the second was written
    first = {image["id"] for image in json.loads(lines[0])["images"]}
    evaluated.clear()
    [result] = detrkit.reproduce("detr-r50-panoptic", **options)
    assert len(first) == 2 and len(evaluated) == 3 and first.isdisjoint(evaluated)
    assert result.metrics == expected[1].metrics
    assert results(tmp_path / "detr-r50-panoptic") == results(out / "detr-r50-panoptic")
    evaluated.clear()
    [again] = detrkit.reproduce("detr-r50-panoptic", **options)  # all is done: only the report is written anew
    assert not evaluated and again.metrics == result.metrics
    with pytest.raises(DetrkitError, match=r"with size 96 was begun here, now it is 64; give another --out"):
        detrkit.reproduce("detr-r50-panoptic", **{**options, "size": 64})


@needs_data
def test_a_second_one_into_the_same_folder_is_refused(data, weights, published, tmp_path):
    code = "from detrkit.utils.lock import FolderLock as L; "
    code += f"held = L({str(tmp_path)!r}); held.__enter__(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        with pytest.raises(DetrkitError, match=f"is being written by process {other.pid} "):
            detrkit.reproduce("detr-r50-panoptic", **data, weights=weights, out=tmp_path, **SMALL)
        other.kill()
    assert not (tmp_path / "detr-r50-panoptic").exists()


@pytest.mark.slow
@needs_data
def test_two_processes_equal_one(whole, data, weights, tmp_path):
    """Under torchrun, 5 images in batches of 2: the same detections, masks, segments and figures."""
    name, (out, _) = "detr-r50-panoptic", whole
    places = [word for place, folder in data.items() for word in (f"--{place}", str(folder))]
    words = ["reproduce", name, *places, "--weights", str(weights), "--out", str(tmp_path / "two"), "--size", "96"]
    words += ["--device", "cpu", "--workers", "0", "--batch-size", "2"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(HERE / "published_command.py"), str(weights), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (tmp_path / "two" / "figures.json").is_file(), done.stdout + done.stderr
    shares = [len(f.read_text().splitlines()) for f in (tmp_path / "two" / name / "journal").glob("process-*.jsonl")]
    assert sorted(shares) == [1, 2]  # of three batches
    one, two = results(out / name), results(tmp_path / "two" / name)
    assert one.keys() == two.keys() and len(one) == 7
    if torch.get_num_threads() == 1:  # more threads add up in another order
        assert one == two
    mine, theirs = (json.loads(r["results.json"]) for r in (one, two))
    assert [r["category_id"] for r in mine] == [r["category_id"] for r in theirs]
    values = [[v for r in rows for v in (*r["bbox"], r["score"])] for rows in (mine, theirs)]
    np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-3)
    figures = [json.loads((folder / "figures.json").read_text()) for folder in (out, tmp_path / "two")]
    first, [second] = next(row for row in figures[0] if row["model"] == name), figures[1]
    assert first["figures"] == second["figures"] and first["differences"] == second["differences"]


@pytest.mark.slow
@needs_data
def test_deformable_by_path(data, weights, no_reports, tmp_path, monkeypatch):
    """A file without address or hash, found by its usual name; its classes are COCO's."""
    options = {"coco": data["coco"], "out": tmp_path / "out", "limit": 2, **SMALL}
    [result] = detrkit.reproduce("deformable-detr-r50", weights=weights, **options)
    assert result.metrics.images == 2 and 50 < result.metrics.detections <= 200  # unused ids are no detections
    file = weights / PUBLISHED["deformable-detr-r50"].file
    [same] = detrkit.reproduce(["deformable-detr-r50"], weights=file, **options | {"out": tmp_path / "again"})
    assert same.metrics == result.metrics
    with pytest.raises(DetrkitError, match="deformable-detr-r50-refine"):
        other = tmp_path / PUBLISHED["deformable-detr-r50-refine"].file
        other.symlink_to(file)
        detrkit.reproduce("deformable-detr-r50-refine", weights=other, **options)


@pytest.mark.slow
@needs_data
def test_objects_of_other_images(data, weights, published, tmp_path):
    """Without instances of the panoptic images boxes and masks are compared with their things, and that is said."""
    other = coco_2017(tmp_path / "mini", 2)
    for picture in (data["coco"] / "val2017").iterdir():
        (other / "val2017" / picture.name).symlink_to(picture.resolve())
    options = {"panoptic": data["panoptic"], "weights": weights, "out": tmp_path / "out", "limit": 1, **SMALL}
    [result] = detrkit.reproduce("detr-r50-panoptic", coco=other, **options)
    assert result.metrics.objects > 0
    report = (tmp_path / "out" / "detr-r50-panoptic" / "report.md").read_text()
    assert "of the panoptic annotations (mini has other images)" in report


def test_files_that_are_not_the_published_ones(weights, published, tmp_path):
    rows = PUBLISHED["detr-r50"], PUBLISHED["detr-r50-dc5"]
    (tmp_path / rows[0].file).symlink_to(weights / rows[1].file)  # DC5 without dilation: same shapes, 20 AP less
    with pytest.raises(
        DetrkitError, match=r"is not the published file of detr-r50: that is detr-r50-dc5-f0fb7ef5\.pth"
    ):
        weights_file(rows[0], tmp_path)
    (tmp_path / rows[1].file).write_bytes(b"damaged")
    with pytest.raises(DetrkitError, match=r"its SHA-256 starts with [0-9a-f]{8}, not with " + rows[1].sha256):
        weights_file(rows[1], tmp_path)
    with pytest.raises(DetrkitError, match="is a file: name the one model that it belongs to"):
        weights_file(rows[0], weights / rows[0].file)
    assert weights_file(rows[0], weights / rows[0].file, alone=True) == weights / rows[0].file
    with pytest.raises(DetrkitError, match="no such file or folder of weights"):
        weights_file(rows[0], tmp_path / "nowhere")
    with pytest.raises(DetrkitError, match=r"get its file from https://github\.com/fundamentalvision.*FOLDER/r50_def"):
        weights_file(PUBLISHED["deformable-detr-r50"], None)


def test_input_is_checked_before_downloads(data, tmp_path, monkeypatch, capsys):
    """What is wrong costs neither a download nor the hours of the models before."""
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path / "home"))
    words = ["reproduce", "detr-r50", "detr-r50-panoptic", "--coco", str(data["coco"])]
    with serving(b"never asked for", "/detr/detr-r50-e632da11.pth") as server:
        for name in MODELS:
            monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], url=server.url))
        for extra, message in (
            (["--panoptic", str(tmp_path / "nowhere")], "nowhere: no such file or folder"),
            ([], "give its folder with --panoptic"),
            (["--panoptic", str(data["panoptic"]), "--device", "abacus"], "device abacus: not available"),
            *(
                ([f"--{option}", "0"], f"--{option} 0: must be at least")
                for option in ("batch-size", "size", "max-size", "limit")
            ),
        ):
            assert main([*words, *extra]) == 2
            said = capsys.readouterr().err
            assert message in said and said.count("\n") == 1
        assert server.requests == []


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("detrkit.reproduction.running.reproduce", stopped)
    assert main(["reproduce", "detr-r50", "--coco", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "detrkit: stopped by SIGINT; go on with: the same command\n"


def test_offline(tmp_path, monkeypatch):
    """One line says which file to put where."""
    monkeypatch.setenv("DETRKIT_HOME", str(tmp_path))
    row = PUBLISHED["detr-r101"]
    monkeypatch.setitem(PUBLISHED, row.model, replace(row, url=f"http://127.0.0.1:9/{row.file}"))
    with pytest.raises(DetrkitError, match=f"put the file at {tmp_path / 'weights' / row.file}"):
        weights_file(PUBLISHED[row.model], None)


def test_what_is_evaluated_by_default(tmp_path):
    boxes, both = DatasetPaths(coco=tmp_path), DatasetPaths(coco=tmp_path, panoptic=tmp_path)
    plain = ["detr-r50", "detr-r50-dc5", "detr-r101", "detr-r101-dc5"]
    segments = ["detr-r50-panoptic", "detr-r50-dc5-panoptic", "detr-r101-panoptic"]
    assert [r.model for r in chosen_rows(None, boxes, None)] == [*plain, "detr-demo"]
    assert [r.model for r in chosen_rows((), both, None)] == [*plain, *segments, "detr-demo"]
    (tmp_path / PUBLISHED["deformable-detr-r50-refine"].file).touch()
    found = [r.model for r in chosen_rows(None, boxes, tmp_path)]
    assert found == [*plain, "deformable-detr-r50-refine", "detr-demo"]
    with pytest.raises(DetrkitError, match="--coco FOLDER for boxes, --panoptic FOLDER for panoptic models"):
        chosen_rows(None, DatasetPaths(), None)
    with pytest.raises(DetrkitError, match="detr-r18: no published weights; choose from detr-r50, "):
        chosen_rows(["detr-r18"], boxes, None)


def test_within_a_fifth_of_a_point():
    assert [MetricComparison("AP", value, 42.0).within for value in (42.2, 41.8, 42.21, 41.79)] == [
        True,
        True,
        False,
        False,
    ]
    assert MetricComparison("SQ", 79.0, None, 79.3).difference == pytest.approx(-0.3)
    assert (
        MetricComparison("AP", 39.0, 40.0, approximate=True).within is None
        and MetricComparison("APs", None, 20.0).within is None
    )


def test_settings_as_published_are_not_said():
    row = PUBLISHED["detr-r50-dc5"]
    same = {"images": 5000, "size": 800, "max_size": 1333, "batch_size": 1, "padding": "official", "threshold": None}
    assert settings_that_differ(row, same) == []
    [padding] = settings_that_differ(row, same | {"padding": "exact"})
    assert str(padding).startswith("padding exact (published: official): exact: the results do not depend on the batch")
    [batch] = settings_that_differ(row, same | {"batch_size": 2})
    assert str(batch) == "batch size 2 (published: 1): changes the result: the padding of a batch is seen"
    unsaid = PUBLISHED["deformable-detr-r50"]
    assert settings_that_differ(unsaid, same | {"batch_size": 7}) == []
