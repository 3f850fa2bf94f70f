"""The recipe `realtime` on the command line, without the published weights and with DEIM's options."""

from __future__ import annotations

import csv
import math

import pytest

from detrkit.cli import main
from detrkit.cli.train import with_defaults
from detrkit.config import TrainConfig, load_config
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.relations import check_config
from detrkit.utils.errors import SettingError

TINY = ["--backbone", "presnet10", "--backbone-width", "8", "--hidden-dim", "32", "--nheads", "2", "--dec-layers", "2"]
TINY += ["--dim-feedforward", "32", "--enc-hidden-dim", "32", "--enc-dim-feedforward", "32", "--num-queries", "8"]
SHORT = ["--size", "64", "--batch-size", "4", "--epochs", "2", "--no-tensorboard", "--no-pictures", "--device", "cpu"]
DEIM = ["--class-loss", "mal", "--mosaic", "0.5", "--mixup", "0.5", "--multi-scale", "--log-every", "1"]


def test_the_recipe_fine_tunes():
    config = load_config("realtime")
    assert config.run.init_from == "PekingU/rtdetr_v2_r18vd" and config.model.name == "rtdetrv2-r18"
    check_config(config.changed(data={"path": "set"}))
    typed = with_defaults(["set", "--recipe", "realtime", "--backbone-weights", "random"]).typed
    assert typed == ("model.backbone_weights",)


@pytest.mark.slow
def test_it_trains_from_random_weights_with_the_options_of_deim(tmp_path, capsys):
    shapes = write_shapes(tmp_path / "set", images={"train": 12, "val": 2}, sides=(48, 64), classes=2)
    random = ["--recipe", "realtime", "--backbone-weights", "random"]
    assert main(["train", str(shapes), *random, *TINY, *SHORT, *DEIM, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "first weights: those of the backbone alone, not PekingU/rtdetr_v2_r18vd as in the recipe" in said
    saved = load_config(tmp_path / "run" / "config.yaml")
    assert saved.run.init_from is None and saved.loss.class_loss == "mal" and saved.data.multi_scale
    with (tmp_path / "run" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    for term in ("loss_mal", "loss_mal_0", "loss_mal_enc", "loss_mal_dn", "loss_giou_dn_0"):
        values = [float(value) for row in rows for name, value in row.items() if name.rpartition("/")[2] == term]
        assert len(values) == 6 and all(map(math.isfinite, values)), term
    assert main(["eval", str(tmp_path / "run"), str(shapes)]) == 0


def test_the_class_loss_is_that_of_rt_detr_alone():
    config = TrainConfig().changed(data={"path": "set"}, loss={"class_loss": "mal"})
    check_config(config.changed(model={"name": "rtdetrv2-r18"}))
    with pytest.raises(SettingError, match=r"^loss\.class_loss is 'mal': dino-r50-4scale has no such part of its loss"):
        check_config(config.changed(model={"name": "dino-r50-4scale"}))
    with pytest.raises(SettingError, match=r"^loss\.class_loss is 'bce': .*vfl.*mal.*focal"):
        check_config(config.changed(model={"name": "rtdetrv2-r18"}, loss={"class_loss": "bce"}))
