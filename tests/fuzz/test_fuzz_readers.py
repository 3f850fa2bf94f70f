"""Whatever is in the files: one clear line or a dataset, within bounded time and memory.

`pytest` runs some examples of each reader; `python tests/fuzz/run_long.py --minutes 12` runs each for that long.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from detrkit.config import load_config
from detrkit.data import open_dataset
from detrkit.data.readers import READERS, find_layout
from detrkit.data.tools.check import check
from detrkit.study.config import load_study
from detrkit.utils.errors import DetrkitError
from helpers.changes import change_disk, changed_files
from helpers.corpus import CORPUS, Files, write
from helpers.limits import EXAMPLES, bounds, one_line


def read_all(root: Path) -> None:
    """Checks and opens everything that there is, as the commands do."""
    try:
        report = check(root, decode=True)
        for fault in report.faults:
            assert fault.reason.strip()
    except DetrkitError as error:
        one_line(error)
    for masks in (False, True):
        try:
            layout = find_layout(root, masks=masks)
            splits = READERS[layout].splits(root)
        except DetrkitError as error:
            one_line(error)
            continue
        for split in splits:
            try:
                dataset = open_dataset(root, split=split, masks=masks)
                assert len(dataset.classes) > 0
                assert not masks or dataset.with_masks
                for k in range(len(dataset)):
                    sample = dataset[k]
                    assert len(sample.boxes) == len(sample.labels)
                    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()
                    assert not len(sample.labels) or 0 <= sample.labels.min() <= sample.labels.max() < len(
                        dataset.classes
                    )
                dataset.ground_truth()
            except DetrkitError as error:
                one_line(error)


def read_settings(root: Path) -> None:
    for load, name in ((load_config, "recipe.yaml"), (load_study, "study.yaml")):
        try:
            load(root / name)
        except DetrkitError as error:
            one_line(error)


def try_one(kind: str, files: Files, on_disk: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        write(root, files)
        if not root.is_dir():
            return
        change_disk(root, on_disk)
        os.environ["DETRKIT_HOME"] = str(Path(folder) / "home")
        with bounds():
            (read_settings if kind == "settings" else read_all)(root)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
@pytest.mark.parametrize("kind", CORPUS)
def test_any_files_are_read_or_refused_in_one_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.setenv("DETRKIT_HOME", "")  # put back afterwards

    @settings(
        max_examples=EXAMPLES,
        derandomize="DETRKIT_FUZZ_EXAMPLES" not in os.environ,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(changed_files(CORPUS[kind]()))
    def run(case: tuple[Files, list[tuple[str, str]]]) -> None:
        try_one(kind, *case)

    run()


@pytest.mark.parametrize("kind", CORPUS)
def test_unchanged_files_are_read(kind: str, tmp_path: Path) -> None:
    """Or the test above would show nothing."""
    write(tmp_path, CORPUS[kind]())
    if kind == "settings":
        assert load_config(tmp_path / "recipe.yaml").run.seed == 3
        assert len(load_study(tmp_path / "study.yaml").members) == 2
        return
    assert check(tmp_path).ok
    assert [len(open_dataset(tmp_path, split=s)) for s in ("train", "val")] in ([2, 2], [1, 1])
    assert len(open_dataset(tmp_path, split="train")[0].boxes) == (1 if kind in ("coco", "parquet") else 2)
