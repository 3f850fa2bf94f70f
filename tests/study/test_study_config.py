"""What a study is: shipped recipes, one budget, one clear line for what is wrong."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest

from detrkit.config import recipes
from detrkit.study import load_study, studies
from detrkit.study.config import check_same
from detrkit.study.running import _check_models
from detrkit.utils.errors import DetrkitError
from detrkit.visualize.colors import LINE_COLORS
from helpers.tiny_study import TINY, tiny_study

# CPPE-5 as published: mAP, mAP50, mAP75, small, medium, large, Coverall, Mask, Gloves, Face_Shield, Goggles
PUBLISHED = {
    "detr": (0.232, 0.4721, 0.1868, 0.101, 0.2005, 0.2627, 0.587, 0.2249, 0.151, 0.1186, 0.0784),
    "deformable": (0.3052, 0.558, 0.2883, 0.1814, 0.2784, 0.3247, 0.6106, 0.3401, 0.2183, 0.1701, 0.187),
    "refine": (0.318, 0.573, 0.301, 0.193, 0.291, 0.337, 0.625, 0.352, 0.227, 0.182, 0.195),
    "two-stage": (0.327, 0.585, 0.315, 0.205, 0.302, 0.348, 0.638, 0.364, 0.235, 0.195, 0.203),
}


def member(i: int, **changes) -> list[dict]:
    """The tiny study's members, one of them changed."""
    members = copy.deepcopy(TINY["members"])
    members[i].update(changes)
    return members


@pytest.mark.slow
@pytest.mark.parametrize("name", studies())
def test_shipped_studies_train_the_published_models_under_one_budget(name):
    study = load_study(name, data="somewhere")
    _check_models(study)
    configs = [study.config(m) for m in study.members]
    names = ["detr-r50", "deformable-detr-r50", "deformable-detr-r50-refine", "deformable-detr-r50-two-stage"]
    if "-six" in name:
        names += ["deformable-detr-r50-two-stage", "h-deformable-detr-r50", "dino-r50-4scale"]
        tricks = [(c.model.mixed_selection, c.model.look_forward_twice) for c in configs]
        assert tricks == [*[(None, None)] * 4, (True, True), (None, None), (None, None)]
        hybrid, dino = configs[-2].model, configs[-1].model
        assert hybrid.num_queries_one2many == 5 * hybrid.num_queries and hybrid.k_one2many == 6
        assert dino.num_queries == 3 * hybrid.num_queries
        assert {m.name: len(study.runs(m)) for m in study.members} == {
            **dict.fromkeys(("detr", "deformable", "refine", "tricks"), 1),
            **dict.fromkeys(("two-stage", "hybrid", "dino"), 1 if name.endswith("-small") else 3),
        }
    assert [c.model.name for c in configs] == names
    budgets = [
        dataclasses.replace(c, model=study.train.model, optim=dataclasses.replace(c.optim, lr=0, lr_backbone=0))
        for c in configs
    ]
    assert all(b == budgets[0] for b in budgets)
    widths = [(c.model.backbone, c.model.hidden_dim, c.model.enc_layers, c.model.dec_layers) for c in configs]
    assert len(set(widths)) == 1


def test_shipped_studies_and_their_settings():
    assert studies() == ["bccd-four", "bccd-six", "bccd-six-small", "cppe5-four", "shapes-four", "shapes-six"]
    assert not set(studies()) & set(recipes()) and "studies" not in recipes()
    study = load_study("cppe5-four")
    optim, data = study.train.optim, study.train.data
    assert (optim.epochs, optim.lr, optim.schedule, optim.lr_drop, optim.weight_decay) == (50, 1e-4, "step", 40, 1e-4)
    assert data.batch_size * optim.accumulate == 16
    for m in study.members:
        assert tuple(m.published.metrics().values()) == PUBLISHED[m.name]
    assert list(study.members[0].published.metrics())[6:] == [
        f"class {n}" for n in ("Coverall", "Mask", "Gloves", "Face_Shield", "Goggles")
    ]


def test_yaml_round_trip(tmp_path):
    unset = member(0, model={"name": "detr-r50", "backbone_stage": 4, "num_queries": None})
    study = load_study(tiny_study(tmp_path, members=unset), data="here")
    assert study.train.data.path == "here"
    (tmp_path / "again.yaml").write_text(study.to_yaml())
    assert load_study(tmp_path / "again.yaml") == study
    assert study.config(study.members[0]).model.num_queries is None


def test_a_member_has_its_own_model_and_rates_and_all_else_is_shared(tmp_path):
    study = load_study(tiny_study(tmp_path))
    detr, two_stage = (study.config(m) for m in study.members)
    assert (detr.optim.lr, detr.optim.lr_backbone, two_stage.optim.lr) == (5e-4, 1e-3, 1e-3)
    assert two_stage.model.backbone_stages == (3, 4)  # as the dataclass has it, not a list
    assert detr.model.hidden_dim == two_stage.model.hidden_dim == 32
    assert detr.data == two_stage.data == study.train.data
    assert [study.color(m) for m in study.members] == list(LINE_COLORS[:2])


def test_the_drop_moves_with_the_epochs(tmp_path):
    study = load_study("cppe5-four", shared={"optim": {"epochs": 10}})
    assert (study.train.optim.epochs, study.train.optim.lr_drop) == (10, 8)
    assert load_study("cppe5-four", shared={"optim": {"epochs": 1}}).train.optim.lr_drop == 1


def test_the_tables_are_of_the_test_split_if_there_is_one():
    assert load_study("bccd-four").split() == "test"
    assert load_study("bccd-four", shared={"data": {"test_split": "none"}}).split() == "val"
    assert load_study("cppe5-four").split() == "test"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"members": member(1, data={"size": 32})}, r"members\.1\.data\.size: the members share one budget"),
        ({"members": member(0, optim={"epochs": 9})}, r"members\.0\.optim\.epochs: the members share one budget"),
        ({"members": member(0, run={"seed": 9})}, r"members\.0\.run\.seed: the members share one budget"),
        ({"members": member(0, model={"head": 9})}, r"members\.detr: model\.head: unknown field"),
        ({"members": member(0, loss={"eos_coef": "x"})}, r"members\.detr: loss\.eos_coef: .*number"),
        ({"members": member(0, modle={})}, r"members\.0\.modle: unknown field"),
        ({"members": member(1, name="a/b")}, r"members\.1\.name is 'a/b': use letters"),
        ({"members": member(1, name="detr")}, r"members\.1\.name is 'detr' again"),
        ({"members": member(1, title="DETR")}, r"members\.1\.title is 'DETR' again"),
        ({"members": member(0, published={"mAP": 23.2})}, r"members\.detr\.published\.mAP is 23\.2: give it in \[0, 1"),
        ({"members": member(0, published={"AP": 0.2})}, r"members\.0\.published\.AP: unknown field"),
        ({"members": [{"name": f"m{i}"} for i in range(9)]}, r"members: 9 are more than one plot can distinguish"),
        ({"members": []}, r"members: give a list of the models"),
        ({"members": ["detr"]}, r"members\.0: expected name, model, \.\.\.; found str"),
        ({"data": {"val_split": None}}, r"train\.data\.val_split: a study needs a split"),
        ({"run": {"patience": 3}}, r"train\.run\.patience is 3: leave it out"),
        ({"optim": {"epochs": "many"}}, r"train\.optim\.epochs: .*integer"),
        ({"epochs": 3}, r"epochs: unknown field"),
        ({"seeds": 0}, r"seeds is 0: must be at least 1"),
        ({"members": member(1, seeds=-1)}, r"members\.1\.seeds is -1: must be at least 1"),
        (
            {"members": member(0, seeds=2), "run": {"seed": 2**32 - 1}},
            r"DETR, seed 4294967296: seeds end at 4294967295",
        ),
        (
            {"members": [*member(0, seeds=2), {"name": "detr-seed4"}]},
            r"members\.detr-seed4: its seed 3 would have the folder detr-seed4 of the member detr: give one",
        ),
    ],
)
def test_bad_studies_name_file_and_field(tmp_path, changes, message):
    with pytest.raises(DetrkitError, match=rf"tiny\.yaml: {message}") as error:
        load_study(tiny_study(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_unknown_study_lists_those_there_are():
    with pytest.raises(DetrkitError, match=rf"quickstart: no such file.*{', '.join(studies())}"):
        load_study("quickstart")


def test_seeds_of_a_study_of_a_member_and_of_the_command(tmp_path):
    file = tiny_study(tmp_path, seeds=2, members=member(0, seeds=3))
    study = load_study(file)
    detr, two_stage = study.members
    assert [(r.seed, r.folder, r.heading) for r in study.runs(detr)] == [
        (3, "detr", "DETR, seed 3"),
        (4, "detr-seed4", "DETR, seed 4"),
        (5, "detr-seed5", "DETR, seed 5"),
    ]
    assert [r.seed for r in study.runs(two_stage)] == [3, 4]
    assert [study.config(detr, seed=r.seed).run.seed for r in study.runs(detr)] == [3, 4, 5]
    (tmp_path / "again.yaml").write_text(study.to_yaml())
    assert load_study(tmp_path / "again.yaml") == study
    one = load_study(file, seeds=1, shared={"run": {"seed": 7}})
    assert [(r.seed, r.folder, r.heading) for r in one.all_runs()] == [
        (7, "detr", "DETR"),
        (7, "two-stage", "++ two-stage"),
    ]
    check_same(load_study(file, seeds=2), load_study(file, seeds=3), Path("study.yaml"))  # a study may grow


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "detr-r51"}, r"members\.detr: unknown model 'detr-r51'"),
        ({"name": "detr-r50", "two_stage": True}, r"members\.detr: detr-r50 takes no argument two_stage"),
        ({"name": "detr-r50", "backbone": "vgg"}, r"members\.detr: unknown backbone"),
    ],
)
def test_models_that_cannot_be_built_are_found_before_training(tmp_path, model, message):
    with pytest.raises(DetrkitError, match=message):
        _check_models(load_study(tiny_study(tmp_path, members=member(0, model=model))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim": {"epochs": 3}}, r"study\.yaml: train\.optim\.epochs was 2, now it is 3: a study goes on with"),
        ({"data": {"size": 32}}, r"train\.data\.size was 64, now it is 32"),
        ({"members": member(1, optim={"lr": 0.1})}, r"members\.two-stage\.optim\.lr was 0\.001, now it is 0\.1"),
        ({"generate": {"images": {"train": 9}}}, r"study\.yaml: generate was .*'train': 13.*, now it is .*'train': 9"),
        ({"data": {"path": "other"}}, r"train\.data\.path was 'shapes', now it is 'other'"),
    ],
)
def test_changed_settings_are_refused(tmp_path, changes, message):
    before = load_study(tiny_study(tmp_path), data="shapes")
    data = None if "path" in changes.get("data", {}) else "shapes"
    with pytest.raises(DetrkitError, match=message):
        check_same(before, load_study(tiny_study(tmp_path, **changes), data=data), Path("study.yaml"))


def test_what_changes_no_number_may_change(tmp_path):
    """Another place, another title, more members."""
    before = load_study(tiny_study(tmp_path), data="shapes")
    more = [*member(0, title="plain DETR"), {"name": "third"}]
    now = tiny_study(tmp_path, title="Other", members=more, data={"workers": 2}, run={"eval_every": 2})
    check_same(before, load_study(now, data="moved/shapes"), Path("study.yaml"))
