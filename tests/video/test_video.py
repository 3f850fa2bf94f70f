"""Videos: what is found in every frame, what is written, and what is refused."""

from __future__ import annotations

import json
import time
from importlib.util import find_spec

import av
import numpy as np
import pytest

import detrkit
from detrkit.cli import main
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.video.reading import VideoReader
from detrkit.weights.checkpoint import save_model
from helpers.seeing import seeing_detector
from helpers.small_models import small_model
from helpers.videos import SIZE, decoded, places, turn, write_video

tracks = pytest.mark.skipif(find_spec("trackers") is None, reason="the package trackers is not installed")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", sound=True)


def boxes_of(line):
    return sorted(tuple(round(v) for v in one["box"]) for one in line["detections"])


def test_every_frame_is_predicted_in_its_order_and_time(clip):
    results = list(detrkit.iter_video(seeing_detector(), clip, batch_size=5))
    assert [one.number for one in results] == list(range(12))
    assert [one.time for one in results] == pytest.approx([k / 10 for k in range(12)])
    for one in results:
        found = np.array(sorted(one.result.boxes.tolist()))
        assert np.abs(found - np.array(sorted(places(one.number)))).max() <= 1.1, one.number


def test_the_results_do_not_depend_on_the_batch_size(clip):
    one, other = (
        [f.to_json() for f in detrkit.iter_video(seeing_detector(), clip, batch_size=size, every=2)] for size in (1, 4)
    )
    assert one == other


def test_the_video_written_has_the_frames_times_size_and_sound(clip, tmp_path):
    out = tmp_path / "found.mp4"
    report = detrkit.predict_video(seeing_detector(), clip, out)
    assert (report.frames, report.predicted, report.note) == (12, 12, "") and report.objects.total() == 24
    before, after = decoded(clip), decoded(out)
    assert [time for time, _ in after] == pytest.approx([time for time, _ in before], abs=1e-4)
    assert after[0][1].shape == (SIZE[1], SIZE[0], 3)
    assert any(np.abs(a[1].astype(int) - b[1]).max() > 80 for a, b in zip(before, after, strict=True))  # drawn
    with av.open(str(clip)) as source, av.open(str(out)) as written:
        assert written.streams.video[0].average_rate == 10
        packets = [[bytes(p) for p in c.demux(audio=0) if p.size] for c in (source, written)]
    assert packets[0] == packets[1] and len(packets[0]) > 5
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["frame"] for line in lines] == list(range(12)) and len(lines[3]["detections"]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.jsonl", "found.mp4"]


def test_frames_between_the_predicted_ones_show_the_last_result(clip, tmp_path):
    out = tmp_path / "found.mp4"
    report = detrkit.predict_video(seeing_detector(), clip, out, every=5, sound=False)
    assert (report.frames, report.predicted) == (12, 3)
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert [(line["frame"], line["time"]) for line in lines] == [(0, 0.0), (5, 0.5), (10, 1.0)]
    assert len(decoded(out)) == 12
    results = list(detrkit.iter_video(seeing_detector(), clip, every=5))
    assert [one.predicted for one in results] == [k % 5 == 0 for k in range(12)]
    assert results[4].result is results[0].result


def test_a_variable_rate_keeps_its_times(tmp_path):
    times = [0.0, 0.1, 0.15, 0.5, 0.52, 2.0]
    clip = write_video(tmp_path / "vfr.mp4", frames=6, times=times)
    detrkit.predict_video(seeing_detector(), clip, tmp_path / "out.mp4")
    assert [time for time, _ in decoded(tmp_path / "out.mp4")] == pytest.approx(times, abs=2e-3)


def test_a_turned_video_is_written_upright(tmp_path):
    clip = turn(write_video(tmp_path / "phone.mp4", frames=3))
    with VideoReader(clip) as reader:
        images = [frame.image for frame in reader.frames()]
    assert images[0].size == SIZE[::-1]
    plain = decoded(clip)[0][1]
    assert np.abs(np.asarray(images[0]).astype(int) - np.rot90(plain, -1)).max() <= 2  # a quarter clockwise
    detrkit.predict_video(seeing_detector(), clip, tmp_path / "out.mp4")
    assert decoded(tmp_path / "out.mp4")[0][1].shape == (SIZE[0], SIZE[1], 3)


def test_odd_sides_are_filled_up_to_even_ones(tmp_path):
    clip = write_video(tmp_path / "odd.mp4", frames=2, size=(95, 63))
    detrkit.predict_video(seeing_detector(), clip, tmp_path / "out.mp4")
    assert decoded(tmp_path / "out.mp4")[0][1].shape == (64, 96, 3)


@tracks
def test_objects_keep_their_tracks(clip, tmp_path):
    results = list(detrkit.iter_video(seeing_detector(), clip, track=True))
    assert results[0].result.tracks.tolist() == [-1, -1]  # seen for the first time
    for one in results[1:]:
        assert one.result.tracks.tolist() == [0, 1]
        assert one.result.labels.tolist() == [0, 1]
    report = detrkit.predict_video(seeing_detector(), clip, tmp_path / "out.mp4", track=True)
    assert report.tracks == 2
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [one["track"] for one in lines[0]["detections"]] == [None, None]
    assert [one["track"] for one in lines[-1]["detections"]] == [0, 1]


def test_a_track_has_its_number_and_color_in_the_drawing(clip):
    import torch

    from detrkit.structures.detections import Detections
    from detrkit.visualize.colors import color_of

    found = Detections(torch.tensor([[10.0, 10, 60, 50]]), torch.tensor([0.9]), torch.tensor([0]))
    found.tracks = torch.tensor([7])
    image = found.draw(np.zeros((64, 96, 3), np.uint8))
    assert image.getpixel((60 - 1, 30)) == color_of(7)
    found.tracks = torch.tensor([-1])
    assert found.draw(np.zeros((64, 96, 3), np.uint8)).getpixel((60 - 1, 30)) == color_of(0)


def test_what_is_no_video_is_one_line_and_nothing_is_written(clip, tmp_path):
    text, cut, silent = tmp_path / "a.mp4", tmp_path / "cut.mp4", tmp_path / "sound.mp4"
    text.write_text("no video")
    cut.write_bytes(clip.read_bytes()[:-2000])
    with av.open(str(silent), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        part.sample_rate, part.pts = 8000, 0
        out.mux([*stream.encode(part), *stream.encode()])
    out = tmp_path / "out.mp4"
    for video, message in (
        (text, "a.mp4: not a video, or damaged"),
        (cut, "cut.mp4: not a video, or damaged"),
        (silent, "sound.mp4: has no video stream"),
        (tmp_path, "a folder, no video"),
        (tmp_path / "none.mp4", "none.mp4"),
    ):
        with pytest.raises(DetrkitError, match=message):
            detrkit.predict_video(seeing_detector(), video, out)
    assert not out.exists() and not out.with_suffix(".jsonl").exists()


def test_a_damaged_frame_is_named_and_nothing_is_written(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", frames=30)
    data = bytearray(clip.read_bytes())
    start = data.index(b"mdat")
    for at in range(start + 200, data.index(b"moov") - 10, 7):
        data[at] ^= 0xFF
    clip.write_bytes(bytes(data))
    out = tmp_path / "out" / "out.mp4"
    with pytest.raises(DetrkitError, match=r"clip.mp4: (damaged at frame \d+|has no frames)"):
        detrkit.predict_video(seeing_detector(), clip, out)
    assert not out.exists() and not list(tmp_path.rglob("*.tmp"))


def test_an_end_in_the_middle_leaves_no_file(clip, tmp_path, monkeypatch):
    def slowly(image, rotation):
        time.sleep(0.02)  # so that a frame is being decoded when it ends
        return image

    monkeypatch.setattr("detrkit.video.reading.upright", slowly)

    def stop(frame):
        if frame.number == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detrkit.predict_video(seeing_detector(), clip, tmp_path / "out.mp4", on_frame=stop)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every is 0: must be at least 1"), ({"threshold": 2}, "threshold is 2: must be at most 1")],
)
def test_values_out_of_range_are_named(clip, options, message):
    with pytest.raises(SettingError, match=message):
        next(detrkit.iter_video(seeing_detector(), clip, **options))


def test_the_output_is_an_mp4(clip, tmp_path):
    with pytest.raises(DetrkitError, match="videos are written as"):
        detrkit.predict_video(seeing_detector(), clip, tmp_path / "out.avi")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    model, spec = small_model("detr-r50", size=64)
    return str(save_model(tmp_path_factory.mktemp("model") / "a.safetensors", model, spec))


def test_the_command_writes_beside_its_own_files_alone(weights, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["predict", weights, str(clip), "--device", "cpu", "--threshold", "0.2", "--every", "4", "--out", "found"]
    assert main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "12 frames, 1.1 s; 3 frames predicted" in said and "found/clip.mp4" in said
    assert main(words) == 0  # its own files are replaced
    (tmp_path / "found" / "clip.mp4").write_bytes(b"mine")
    assert main(words) == 2
    assert "was not written by detrkit, or was changed since" in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "found" / "clip.mp4").read_bytes() == b"mine"


def test_what_does_not_go_together_is_refused(weights, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "a.png"
    import PIL.Image

    PIL.Image.new("RGB", (32, 32)).save(picture)
    for words, message in (
        ([str(clip), str(picture)], "is a video, " + str(picture) + " is none"),
        ([str(picture), "--track"], "--every, --track and --no-sound are of videos"),
        ([str(clip), "--shards", "2"], "--shards is of images"),
        (["none.mp4"], "none.mp4"),
    ):
        assert main(["predict", weights, *words, "--device", "cpu"]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
