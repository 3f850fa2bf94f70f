"""Each kind of source gives its images one by one, with ids that name them, and one line where it cannot."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detrkit.batch.sources import FolderSource, SourceError, find_sources, unicode_name
from detrkit.data.images import as_rgb
from detrkit.utils.errors import DetrkitError


def jpeg(seed: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(file: Path, members: dict[str, bytes], **options) -> Path:
    with tarfile.open(file, "w", format=tarfile.PAX_FORMAT, **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos"
    (folder / "deep" / "er").mkdir(parents=True)
    for seed, name in enumerate(["a.jpg", "deep/b c.jpg", "deep/er/\u00e9\n.jpg"]):
        (folder / name).write_bytes(jpeg(seed))
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.jpg").write_bytes(jpeg(9))
    (folder / "._a.jpg").write_bytes(b"macOS")
    (folder / "notes.txt").write_text("no image")
    return folder


def ids(*names: str) -> list[str]:
    return [item.id for source in find_sources(names) for item in source.items()]


def test_a_folder_gives_all_in_it_by_relative_path(photos):
    (source,) = find_sources(["photos"])
    items = sorted(source.items())
    assert [item.id for item in items] == ["a.jpg", "deep/b c.jpg", "deep/er/\u00e9\n.jpg"]
    assert source.left_out == 1 and not source.ordered
    assert [as_rgb(source.image(item.ref)).size for item in items] == [(8, 8)] * 3


def test_folders_together_have_their_name_in_the_ids(photos):
    (photos.parent / "more").mkdir()
    (photos.parent / "more" / "a.jpg").write_bytes(jpeg(3))
    assert {"photos/a.jpg", "more/a.jpg"} < set(ids("photos", "more/"))


def test_a_link_in_a_circle_ends_and_a_link_elsewhere_is_followed(photos, tmp_path):
    (photos / "deep" / "circle").symlink_to(photos, target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.jpg").write_bytes(jpeg(4))
    (photos / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert sorted(ids("photos")) == ["a.jpg", "deep/b c.jpg", "deep/er/\u00e9\n.jpg", "link/z.jpg"]


def test_a_pattern_and_single_files(photos):
    assert sorted(ids("photos/**/*.jpg")) == ["photos/a.jpg", "photos/deep/b c.jpg", "photos/deep/er/\u00e9\n.jpg"]
    assert ids("photos/deep/b c.jpg", "photos/a.jpg") == ["photos/deep/b c.jpg", "photos/a.jpg"]
    assert find_sources(["photos/deep/b c.jpg", "photos/a.jpg"])[0].ordered


def test_names_that_are_no_utf8_become_valid_unicode(photos):
    name = os.fsdecode(b"\xff\xe9.jpg")
    (photos / name).write_bytes(jpeg(5))
    (item,) = [item for item in FolderSource("photos").items() if "\\xff" in item.id]
    assert item.id == "\\xff\\xe9.jpg" == unicode_name(name)
    assert as_rgb(FolderSource("photos").image(item.ref)).size == (8, 8)


def test_a_list_is_relative_to_its_folder_and_keeps_its_order(photos, tmp_path):
    elsewhere = tmp_path / "z.jpg"
    elsewhere.write_bytes(jpeg(6))
    (photos / "list.txt").write_text(f"deep/b c.jpg\r\n\na.jpg\n{elsewhere}\n", encoding="utf-8")
    (source,) = find_sources(["photos/list.txt"])
    items = list(source.items())
    assert [item.id for item in items] == ["deep/b c.jpg", "a.jpg", str(elsewhere)]
    assert [as_rgb(source.image(item.ref)).size for item in items] == [(8, 8)] * 3 and source.ordered


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_has_paths_and_perhaps_ids(photos, separator):
    rows = [("n", "image_path", "id"), ("1", "deep/b c.jpg", "second"), ("2", '"deep/er/\u00e9\n.jpg"', "third")]
    (photos / "table.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8-sig")
    (source,) = find_sources(["photos/table.csv"])
    items = list(source.items())
    assert [item.id for item in items] == ["second", "third"]
    assert [as_rgb(source.image(item.ref)).size for item in items] == [(8, 8)] * 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,score\na,1\n", r"t.csv: no column of paths: name one of them path \(its columns are name, score\)"),
        ("", r"t.csv: no column of paths: .*its columns are none"),
        ("path,id\na.jpg,1\nb.jpg\n", "t.csv, line 3: no value in column id"),
        ("path,id\n,1\n", "t.csv, line 2: no value in column path"),
        ('path\n"a.jpg\n', "t.csv, line 2: malformed CSV"),
        ("path\nhttps://example.com/a.jpg\n", "t.csv, line 2: https://example.com/a.jpg is an address"),
        ("path\na\0.jpg\n", "t.csv, line 2"),
    ],
)
def test_a_csv_that_is_wrong_is_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text(text)
    with pytest.raises(DetrkitError, match=message) as raised:
        ids("t.csv")
    assert "\n" not in str(raised.value)


def test_a_list_in_another_encoding_is_one_line(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xff\x00\xe9.jpg\n")
    with pytest.raises(DetrkitError, match="not UTF-8"):
        ids(str(tmp_path / "l.txt"))


def test_a_tar_is_read_in_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = {
        "0/a.jpg": jpeg(1),
        "0/a.json": b"{}",
        "../../evil.jpg": jpeg(2),
        "/abs.jpg": jpeg(3),
        "n\nl.png": jpeg(4),
    }
    write_tar(Path("t.tar"), members)
    (source,) = find_sources(["t.tar"])
    items = list(source.items())
    assert [item.id for item in items] == ["t.tar/0/a.jpg", "t.tar/../../evil.jpg", "t.tar//abs.jpg", "t.tar/n\nl.png"]
    assert [source.image(item.ref) for item in items] == [members[item.id[6:]] for item in items]
    assert source.left_out == 1
    assert sorted(tmp_path.iterdir()) == [tmp_path / "t.tar"]


def test_links_and_devices_in_a_tar_are_left_out(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE), ("d.jpg", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        info = tarfile.TarInfo("a.jpg")
        info.size = len(jpeg(1))
        tar.addfile(info, io.BytesIO(jpeg(1)))
    (source,) = find_sources([str(tmp_path / "t.tar")])
    assert [item.id for item in source.items()] == ["t.tar/a.jpg"] and source.left_out == 3


@pytest.mark.parametrize(
    ("cut", "message"), [(100, "damaged or cut"), (2048, "damaged or cut"), (11000, "damaged or cut")]
)
def test_a_tar_that_was_cut_is_one_line(tmp_path, cut, message):
    file = write_tar(tmp_path / "t.tar", {f"{k}.jpg": jpeg(k, 64) for k in range(8)})
    whole = file.read_bytes()
    assert cut < len(whole)
    file.write_bytes(whole[:cut])
    with pytest.raises(DetrkitError, match="damaged or cut") as raised:
        ids(str(file))
    assert "\n" not in str(raised.value)


def test_a_tar_with_garbage_in_the_middle_is_one_line(tmp_path):
    file = write_tar(tmp_path / "t.tar", {f"{k}.jpg": jpeg(k) for k in range(3)})
    (source,) = find_sources([str(file)])
    second = list(source.items())[1].ref[0] - 512
    whole = bytearray(file.read_bytes())
    whole[second : second + 512] = b"x" * 512
    file.write_bytes(whole)
    with pytest.raises(DetrkitError, match="after 1 members"):
        ids(str(file))


def test_a_compressed_tar_says_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(DetrkitError, match="uncompress it first"):
        ids(str(tmp_path / "t.tar.gz"))


def test_a_tar_that_changes_is_noticed(tmp_path):
    file = write_tar(tmp_path / "t.tar", {"a.jpg": jpeg(1), "b.jpg": jpeg(2)})
    (source,) = find_sources([str(file)])
    before, items = source.signature(), list(source.items())
    write_tar(file, {"a.jpg": jpeg(1), "b.jpg": jpeg(3)})
    assert source.signature() != before
    file.write_bytes(b"short")
    with pytest.raises(SourceError):
        source.image(items[1].ref)


def test_parquet_of_images_and_of_paths(photos, tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": jpeg(k), "path": f"{k}.jpg"} for k in range(3)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 2]}), tmp_path / "images.parquet")
    pq.write_table(pa.table({"image": [jpeg(1)]}), tmp_path / "bare.parquet")
    pq.write_table(pa.table({"image": [jpeg(1)], "id": [17]}), tmp_path / "named.parquet")
    pq.write_table(pa.table({"path": ["photos/a.jpg"]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "none.parquet")
    (source,) = find_sources(["images.parquet"])
    items = list(source.items())
    assert [item.id for item in items] == ["0.jpg", "1.jpg", "2.jpg"]
    assert source.image(items[2].ref) == jpeg(2)
    assert ids("bare.parquet") == ["row 0"] and ids("named.parquet") == ["17"]
    assert ids("paths.parquet") == ["photos/a.jpg"]
    with pytest.raises(DetrkitError, match="no column of paths"):
        ids("none.parquet")


def test_a_pattern_of_tars_is_each_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k in range(2):
        write_tar(Path(f"train-{k}.tar"), {"a.jpg": jpeg(k)})
    assert ids("train-*.tar") == ["train-0.tar/a.jpg", "train-1.tar/a.jpg"]
    with pytest.raises(DetrkitError, match=r"val-\*.tar: no such file or folder"):
        ids("val-*.tar")


@pytest.mark.parametrize("ref", [None, 3, "/etc/passwd", "../x.jpg", "a\0b", [1, 2], {}, ""])
def test_a_reference_that_a_folder_did_not_give_is_refused(photos, ref):
    with pytest.raises(SourceError, match="the manifest in the output folder was changed"):
        FolderSource("photos").image(ref)


@pytest.mark.parametrize("ref", [None, "a", [1], [1, "2"], [-1, 5], [0, 10**9], [5, -3]])
def test_a_reference_that_a_tar_did_not_give_is_refused(tmp_path, ref):
    (source,) = find_sources([str(write_tar(tmp_path / "t.tar", {"a.jpg": jpeg(1)}))])
    with pytest.raises(SourceError):
        source.image(ref)


def test_nothing_there_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DetrkitError, match="nowhere: no such file or folder"):
        find_sources(["nowhere"])
    os.mkfifo("pipe")
    with pytest.raises(DetrkitError, match="not a regular file"):
        find_sources(["pipe"])
    with pytest.raises(DetrkitError, match="no images given"):
        find_sources([])


def test_a_source_that_has_gone_is_not_a_fault_of_its_images(tmp_path):
    (tmp_path / "photos").mkdir()
    source = FolderSource(str(tmp_path / "photos"))
    source.check()
    (tmp_path / "photos").rmdir()
    with pytest.raises(SourceError, match="is gone"):
        source.check()
