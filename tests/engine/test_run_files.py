"""What is of a run may go, what is not stays; a failed write says which state is safe."""

import os

import pytest

from detrkit.config import load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine import quickstart as module
from detrkit.engine.run_files import foreign_to_run, naming_last_state, sweep_old
from detrkit.utils.errors import DetrkitError, Interrupted, WriteError

NO_PROCESS = 2**22 + 7  # above the largest number that Linux gives


def make_run(folder):
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "detector" / "tensorboard").mkdir(parents=True)
    for name in ("README.md", "last.pt", "steps.csv", "detector/best.safetensors"):
        (folder / name).write_text("# run\n\nA training run of detrkit. ...")
    (folder / "run.lock").write_text("written by detrkit, process 1 on host\n")  # and killed
    for place in ("", "detector/"):
        (folder / f"{place}tensorboard/events.out.tfevents.1.host.2.0").write_text("")
    (folder / "eval-val" / "panoptic").mkdir(parents=True)
    for name in ("eval-val/report.md", "eval-val/panoptic/1.png"):
        (folder / name).write_text("")
    (folder / ".last.pt.detrkit-01234567.tmp").write_text("")
    (folder / f".last.pt.{NO_PROCESS}.tmp").write_text("")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        "tensorboard/notes.txt",
        "last.pt.bak",
        "sub/last.pt",
        "detector/detector/last.pt",
        "eval-val/mine",
        ".hidden",
    ],
)
def test_foreign_files_are_found(name, tmp_path):
    run = make_run(tmp_path / "run")
    assert foreign_to_run(run) is None
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("mine")
    assert foreign_to_run(run) in (name, os.path.dirname(name))


def test_a_project_with_names_like_those_of_a_run_is_foreign(tmp_path):
    for name in ("README.md", "config.yaml"):
        (tmp_path / name).write_text("mine")
    assert foreign_to_run(tmp_path) == "README.md"


def test_a_link_to_a_folder_is_foreign(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "panoptic").symlink_to(tmp_path)
    assert foreign_to_run(run) == "panoptic"


def test_temporary_files_of_earlier_versions_are_swept(tmp_path):
    gone = [
        f".last.pt.{NO_PROCESS}.tmp",
        f".best.safetensors.{NO_PROCESS}.part",
        f".{NO_PROCESS}-report.md",
        ".steps.csv.tmp",
        ".report.md.a1b2c3_d",
    ]
    stay = [
        f".last.pt.{os.getpid()}.tmp",
        f".notes.{NO_PROCESS}.tmp",
        ".report.md",
        ".report.md.backup",
        "last.pt",
        ".tmpAbCdEf",
    ]
    for name in gone + stay:
        (tmp_path / name).write_text("")
    (tmp_path / ".tmpGhIjKl").write_bytes(b'\x40\0\0\0\0\0\0\0{"__metadata__":{"detrkit":"..."}}')
    sweep_old(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(stay)


def test_a_failed_write_says_which_state_is_safe(tmp_path):
    with pytest.raises(WriteError, match=r"^no room$"), naming_last_state(tmp_path):
        raise WriteError("no room")
    (tmp_path / "detector").mkdir()
    for name in ("detector/last.pt", "last.pt"):
        (tmp_path / name).write_text("")
        with pytest.raises(WriteError) as caught, naming_last_state(tmp_path):
            raise WriteError("no room")
        assert str(caught.value) == f"no room; the last good state is {tmp_path / name}"


@pytest.fixture
def trained(monkeypatch):
    """Instead of training: what was asked for."""
    asked = []
    monkeypatch.setattr(module, "train", lambda config, **_: asked.append(config))
    monkeypatch.setattr(module, "IMAGES", {"train": 1, "val": 1})
    return asked


def snapshot(folder):
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "run.lock"}


def test_quickstart_replaces_its_own(tmp_path, trained):
    module.quickstart(tmp_path)
    make_run(tmp_path / "run")
    with pytest.raises(DetrkitError, match="holds an earlier quickstart"):
        module.quickstart(tmp_path)
    module.quickstart(tmp_path, force=True, seed=1)
    assert len(trained) == 2
    assert os.listdir(tmp_path) == ["shapes"]


def test_a_quickstart_that_was_stopped_too_early_says_how_to_start_again(tmp_path, monkeypatch, trained):
    def stopped(config, **_):
        with pytest.raises(DetrkitError, match="is being written by this process"):
            module.quickstart(tmp_path)
        raise Interrupted(15, config.run.out, saved=False)

    monkeypatch.setattr(module, "train", stopped)
    with pytest.raises(Interrupted, match=r"nothing was saved; the same command with --force starts it again$"):
        module.quickstart(tmp_path)


@pytest.mark.parametrize(
    ("given", "minutes", "whole"),
    [({}, 5.0, False), ({"minutes": 2.0}, 2.0, True), ({"epochs": 3}, None, None)],
)
def test_a_quickstart_takes_five_minutes_at_most_or_what_is_given(
    tmp_path, monkeypatch, trained, given, minutes, whole
):
    """The time before training counts, and without minutes the recipe's epochs are the most."""
    limits = []
    monkeypatch.setattr(module, "train", lambda config, limit: (trained.append(config), limits.append(limit)))
    module.quickstart(tmp_path, **given, gone=7.0)
    assert trained[0].run.minutes == minutes
    assert trained[0].optim.epochs == given.get("epochs", load_config("quickstart").optim.epochs)
    if minutes is None:
        assert limits == [None]
    else:
        assert limits[0].seconds == 60 * minutes and limits[0].whole is whole and 7.0 < limits[0].gone < 20.0


def test_a_quickstart_has_minutes_or_epochs(tmp_path, trained):
    with pytest.raises(DetrkitError, match="give one of them"):
        module.quickstart(tmp_path, minutes=5, epochs=2)
    assert trained == [] and os.listdir(tmp_path) == []


def somebodys_shapes(root):
    (root / "shapes").mkdir()
    (root / "shapes" / "classes.txt").write_text("mine")
    make_run(root / "run")


def somebodys_run(root):
    write_shapes(root / "shapes", images={"train": 1}, sides=(16, 16))
    (root / "run").mkdir()
    (root / "run" / "README.md").write_text("mine")


def added_to_shapes(root):
    write_shapes(root / "shapes", images={"train": 1}, sides=(16, 16))
    (root / "shapes" / "train2017" / "mine.txt").write_text("mine")
    make_run(root / "run")


def added_to_run(root):
    write_shapes(root / "shapes", images={"train": 1}, sides=(16, 16))
    (make_run(root / "run") / "mine.txt").write_text("mine")


def linked_run(root):
    make_run(root / "elsewhere")
    (root / "run").symlink_to("elsewhere")


@pytest.mark.parametrize("project", [somebodys_shapes, somebodys_run, added_to_shapes, added_to_run, linked_run])
def test_quickstart_deletes_nothing_of_others(project, tmp_path, trained):
    project(tmp_path)
    before = snapshot(tmp_path)
    for force in (False, True):
        with pytest.raises(DetrkitError) as caught:
            module.quickstart(tmp_path, force=force)
        assert "\n" not in str(caught.value)
        assert snapshot(tmp_path) == before
    assert trained == []
