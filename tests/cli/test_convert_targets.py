"""`detrkit convert` never writes over its source, and over another file only when asked to."""

import os

import pytest

from detrkit.cli import main
from detrkit.weights.checkpoint import ModelSpec, save_model, save_official

OPTIONS = {"backbone": "resnet18", "hidden_dim": 32, "dim_feedforward": 32, "enc_layers": 1, "dec_layers": 1}
SPEC = ModelSpec("detr-r50", OPTIONS, num_classes=2)


@pytest.fixture(scope="module")
def model():
    return SPEC.build()


def test_the_source_is_never_the_target(tmp_path, model, capsys):
    source = save_official(tmp_path / "a.pth", model, SPEC)
    (tmp_path / "link.pth").symlink_to("a.pth")
    os.link(source, tmp_path / "hard.pth")
    run = save_model(tmp_path / "run" / "best.safetensors", model, SPEC)
    before = source.read_bytes(), run.read_bytes()
    for given, target in (
        (source, "a.pth"),
        (source, "link.pth"),
        (source, "hard.pth"),
        (run.parent, "run/" + run.name),
    ):
        assert main(["convert", str(given), str(tmp_path / target), "--force"]) == 2
        assert (
            capsys.readouterr().err
            == f"detrkit: error: {tmp_path / target} is the source, or a file of it: name another target\n"
        )
    assert (source.read_bytes(), run.read_bytes()) == before


@pytest.mark.slow
def test_a_file_is_replaced_only_with_force(tmp_path, model, capsys):
    source = str(save_official(tmp_path / "a.pth", model, SPEC))
    for name in ("b.pth", "b.safetensors"):
        target = tmp_path / name
        target.write_text("mine")
        assert main(["convert", source, str(target)]) == 2
        assert f"{target} exists already: name another file, or pass --force to replace it" in capsys.readouterr().err
        assert target.read_text() == "mine"
        assert main(["convert", source, str(target), "--force"]) == 0
        assert target.stat().st_size > 1000
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").write_text("")
    assert main(["convert", source, str(tmp_path / "hf"), "--force"]) == 2
    assert os.listdir(tmp_path / "hf") == ["mine"]
