"""The cases of benchmarks/recipes.py are those of their recipes: each is chosen for the images it is measured on."""

from __future__ import annotations

from pathlib import Path

import pytest

from detrkit.data import open_dataset
from detrkit.data.tools.shapes import write_shapes
from detrkit.engine.choice import Facts, choose
from detrkit.engine.facts import shapes_of
from detrkit.engine.relations import check_config


@pytest.mark.parametrize("recipe", ["own-data", "few-images", "dense", "small-objects"])
def test_the_images_of_a_case_are_such_that_its_recipe_is_chosen(recipe, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import recipes

    count, options = recipes.CASES[recipe]
    data = write_shapes(tmp_path / "set", images={"train": 4}, **options)
    facts = Facts(**shapes_of(open_dataset(data, split="train")), images=count)
    assert choose(facts).recipe == recipe
    for name in (recipe, recipes.BASELINE):
        config = recipes.settings(name, data, tmp_path / "run", minutes=1.0, case=recipe, seed=0)
        check_config(config)
        assert config.run.minutes == 1.0
