"""Settings that do not go together: one line with both names, before anything is read or written."""

from __future__ import annotations

import pytest
import torch

from detrkit.config import TrainConfig, load_config, recipes
from detrkit.engine import train
from detrkit.engine.relations import check_config
from detrkit.utils import memory
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.memory import check_batch, check_memory, is_out_of_memory
from detrkit.utils.ranges import as_option
from detrkit.weights.build import build_model

SMALL = load_config("small")


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_right(name):
    check_config(load_config(name, data="data"))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"size": 64, "max_size": 32}}, "data.size is 64 and data.max_size is 32: the longest side"),
        ({"run": {"devices": 1000}}, "run.devices is 1000: these are processes of this machine"),
        ({"run": {"out": ""}}, "run.out is '': name a folder"),
        ({"loss": {"eos_coef": 0.3}}, "loss.eos_coef is 0.3: .* no such part of its loss"),
        ({"loss": {"set_cost_class": 0, "set_cost_bbox": 0, "set_cost_giou": 0}}, "matching cost must not be 0"),
        ({"model": {"name": "no-such"}}, "unknown model 'no-such': choose one of detr-r50"),
        ({"model": {"name": ""}}, "model.name is '': name one of `detrkit models`"),
        ({"model": {"name": "detr-r50", "two_stage": True}}, "detr-r50 takes no argument .*two_stage"),
        ({"model": {"hidden_dim": 7}}, "hidden_dim=7 and nheads=[0-9]+: the heads share the width evenly: such as"),
        ({"model": {"hidden_dim": 30, "nheads": 2}}, "hidden_dim=30: .*width that 4 divides: such as 28 or 32"),
        ({"model": {"hidden_dim": 144, "nheads": 8}}, "hidden_dim=144: .*32 divides: such as 128 or 160"),
        (
            {"model": {"name": "deformable-detr-r50", "hidden_dim": 2, "nheads": 1, "position_embedding": "learned"}},
            "hidden_dim=2: its group norm needs a width that 32 divides: such as 32",
        ),
        ({"model": {"backbone_width": 7}}, "backbone_width=7 and backbone_norm='group': .*such as 32"),
        ({"model": {"backbone_stages": (4, 3)}}, r"backbone_stages=\(4, 3\): .*ascending order"),
        ({"model": {"backbone_stages": (3, 4, 5), "num_feature_levels": 2}}, "and num_feature_levels=2: 3 stages"),
        ({"model": {"dilation": True, "backbone": "resnet18"}}, "dilation=True and backbone='resnet18'"),
        ({"model": {"hidden_dim": 65_536, "nheads": 8, "enc_layers": 100}}, "would take about .* GiB of memory"),
    ],
)
def test_wrong_together(sections, message, tmp_path):
    model = {"backbone_norm": "group", **sections.get("model", {})}
    config = SMALL.changed(**{"run": {"out": str(tmp_path / "run")}, **sections, "model": model})
    with pytest.raises(DetrkitError, match=message):
        check_config(config)
    with pytest.raises(DetrkitError, match=message):
        train(config.changed(data={"path": str(tmp_path / "no-data")}))
    assert not (tmp_path / "run").exists()


def test_options_are_named_as_they_are_typed():
    config = TrainConfig().changed(data={"size": 64, "max_size": 32})
    with pytest.raises(SettingError, match=r"^--size 64 and --max-size 32: "):
        check_config(config, format_field=as_option)


@pytest.mark.parametrize("width", [4, 8, 16, 32, 64, 96, 128])
def test_backbone_widths_that_are_accepted_can_be_built(width):
    with torch.device("meta"):
        build_model("detr-r50", backbone="resnet10", backbone_norm="group", backbone_width=width, enc_layers=0)


@pytest.mark.parametrize("options", [{"hidden_dim": 0}, {"nheads": 0}, {"num_queries": 0}, {"dropout": 1.0}])
def test_models_built_in_python(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} is .*: must be "):
        build_model("detr-r50", **options)


def test_memory(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 8 * 2**30)
    check_memory(8 * 2**30, "this", fix="less")
    with pytest.raises(SettingError, match=r"^this would take about 40 GiB of memory, this machine has 8.0 GiB: less$"):
        check_memory(40 * 2**30, "this", fix="less")
    check_batch(800, 1333, 64)
    with pytest.raises(SettingError, match="a batch of 64 images with a short side of 8000 pixels would take about"):
        check_batch(8000, None, 64)
    check_batch(10**9, 800, 1)  # the longest side bounds the short one


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")]
)
def test_used_up(error):
    assert is_out_of_memory(error) and not is_out_of_memory(RuntimeError("expected a tensor"))
