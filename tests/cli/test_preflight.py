"""Wrong paths and names are refused before torch is imported, in the words of the code that would refuse them later."""

from __future__ import annotations

import subprocess
import sys

import pytest

import detrkit
from detrkit.cli import main, preflight
from detrkit.cli.preflight import check_model, check_recipe, check_weights
from detrkit.config import load_config
from detrkit.data import open_dataset
from detrkit.models.pretrained import PUBLISHED
from detrkit.models.registry import architecture
from detrkit.utils.errors import DetrkitError
from detrkit.weights.checkpoint import load_any

# what is typed, and the line that answers
REFUSED = {
    "train nowhere": "nowhere: no such file or folder",
    "train my_dat": "my_dat: no such file or folder (there is my_data)",
    "train my_data --recipe smal": "smal: no such file, and no recipe of that name (did you mean small? there are",
    "train my_data --model detr-r51": "unknown model 'detr-r51': choose one of detr-r50,",
    "train my_data --init-from detr-r51": "detr-r51: neither a file nor a model; models are detr-r50,",
    "train my_data --epoch 3": "unknown option --epoch: did you mean --epochs?",
    "train my_data --epochs x": "--epochs x: must be a whole number",
    "train my_data --out used": "used/config.yaml is of no run and would be written over: choose another --out",
    "train --resume nowhere": "nowhere/config.yaml: not there, so nowhere is no run to resume",
    "eval detr-r50 nowhere": "nowhere: no such file or folder",
    "eval nowhere.pth my_data": "nowhere.pth: no such weights file",
    "predict detr-r50 nowhere.jpg": "nowhere.jpg: no such file or folder",
    "explain detr-r50 nowhere.jpg": "nowhere.jpg: no such file or folder",
    "explain my_data/nowhere my_data/a.png": "my_data/nowhere: no such weights file",
    "explain detr-r50 --queries nowhere": "nowhere: no such file or folder",
    "predict my_data/nowhere my_data/a.png": "my_data/nowhere: no such weights file",
    "data check nowhere": "nowhere: no such file or folder",
    "data preview nowhere": "nowhere: no such file or folder",
    "data convert nowhere b --to csv": "nowhere: no such file or folder",
    "convert nowhere.pth b.safetensors": "nowhere.pth: no such weights file",
    "compare detr-r51:0 detr-r50:0": "detr-r51:0: no model of that name; models are detr-r50,",
    "reproduce detr-r50 --coco nowhere": "nowhere: no such file or folder",
    "study shapes-for": "shapes-for: no such file, and no recipe of that name (did you mean shapes-four?",
    "bench nowhere.safetensors": "nowhere.safetensors: no such weights file",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_data").mkdir()
    (tmp_path / "my_data" / "a.png").write_bytes(b"")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.yaml").write_text("")
    return tmp_path


@pytest.mark.parametrize("words", REFUSED)
def test_each_is_one_line(folder, capsys, words):
    before = sorted(folder.rglob("*"))
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"detrkit: error: {REFUSED[words]}") and len(err.splitlines()) == 1, err
    assert sorted(folder.rglob("*")) == before


@pytest.mark.slow
def test_none_of_them_imports_torch(folder):
    """One process refuses them all, and all help too, and has imported neither torch nor another large library."""
    code = f"""
import sys
from detrkit.cli import main
helps = ["", "--version", "train --help", "train --recipe small --help-all", "data --help", "eval --help-all"]
for line in [*{list(REFUSED)!r}, *helps]:
    try:
        main(line.split())
    except SystemExit:
        pass
    large = {{"torch", "torchvision", "matplotlib", "scipy", "lightning_fabric", "transformers", "tensorboard"}}
    assert not large & set(sys.modules), (line, large & set(sys.modules))
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_names_are_those_of_the_registry():
    assert list(preflight.MODELS) == detrkit.list_models()
    assert [*preflight.FURTHER_FILES] == [name for name in PUBLISHED if name not in preflight.MODELS]


def _said(function, *arguments) -> str:
    with pytest.raises(DetrkitError) as error:
        function(*arguments)
    return str(error.value)


def test_words_are_those_of_the_code_behind(folder):
    assert _said(check_model, "detr-r51") == _said(architecture, "detr-r51")
    assert _said(check_recipe, "nowhere") == _said(load_config, "nowhere")
    assert _said(check_weights, "zzz") == _said(load_any, "zzz")
    assert _said(preflight.check_dataset, folder / "my_dat") == _said(open_dataset, folder / "my_dat")


def test_what_may_be_on_the_hub_or_of_a_plugin_is_left_to_the_code_behind(folder, monkeypatch):
    check_weights("facebook/detr-resnet-50")
    check_weights("hf://owner/name")
    assert "my_data/nowhere: no such" in _said(check_weights, "my_data/nowhere")
    monkeypatch.setenv("DETRKIT_PLUGINS", "some_package")
    check_weights("model-of-some-package")
    check_model("model-of-some-package")
