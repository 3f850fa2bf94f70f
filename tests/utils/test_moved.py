"""Names of modules in earlier versions still import the modules, which are there once."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest

import detrkit
from detrkit.structures.classes import ClassList
from detrkit.utils.moved import MOVED, present_name


@pytest.mark.parametrize("before", MOVED)
def test_a_module_is_the_same_under_its_earlier_name(before):
    with pytest.warns(DeprecationWarning, match=f"detrkit.{before} is now detrkit.{MOVED[before]}"):
        sys.modules.pop(f"detrkit.{before}", None)
        module = importlib.import_module(f"detrkit.{before}")
    assert module is importlib.import_module(f"detrkit.{MOVED[before]}")
    assert module.__name__ == module.__spec__.name == f"detrkit.{MOVED[before]}"


def test_an_earlier_name_is_an_attribute_without_an_import_of_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "detrkit.results", raising=False)
    monkeypatch.delitem(vars(detrkit), "results", raising=False)
    with pytest.warns(DeprecationWarning, match=r"detrkit.results is now detrkit.structures.results"):
        assert detrkit.results.Detections is detrkit.Detections
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        detrkit.nothing  # noqa: B018


def test_modules_inside_a_package_that_moved():
    assert present_name("detrkit.benchmark.parts") == "detrkit.profiling.parts"
    assert present_name("detrkit.models.detr") is None and present_name("torch.classes") is None


@pytest.mark.slow
def test_earlier_imports_in_a_new_process():
    code = (
        "from detrkit.checkpoint import load_model, save_model, ModelSpec\n"
        "import detrkit.results, detrkit.convert.official, detrkit.convert\n"
        "from detrkit.benchmark import parts, stopwatch\n"
        "from detrkit import errors\n"
        "import detrkit.weights.checkpoint as present\n"
        "assert load_model is present.load_model and detrkit.checkpoint is present\n"
        "assert detrkit.convert.official.load_official is detrkit.convert.load_official\n"
        "assert errors.DetrkitError is detrkit.DetrkitError\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_objects_pickled_by_an_earlier_version_are_read():
    classes = ClassList.contiguous({0: "cat", 1: "dog"})
    earlier = pickle.dumps(classes, protocol=0).replace(b"detrkit.structures.classes", b"detrkit.classes")
    with pytest.warns(DeprecationWarning):
        sys.modules.pop("detrkit.classes", None)
        assert pickle.loads(earlier) == classes
