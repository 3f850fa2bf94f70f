"""The files that greet a visitor say what is so: one version, both papers, the one definition of CI."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

import detrkit

ROOT = Path(__file__).parent.parent


def test_version_is_in_one_place():
    try:
        assert version("detrkit") == detrkit.__version__
    except PackageNotFoundError:
        pytest.skip("detrkit is on the path, and not installed")


def test_citation_names_the_version_and_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == detrkit.__version__
    cited = {r["identifiers"][0]["value"] for r in citation["references"]}
    assert cited == {"arXiv:2005.12872", "arXiv:2010.04159"}


def test_workflow_runs_what_ci_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert any(".ci/run" in step.get("run", "") for step in workflow["jobs"]["test"]["steps"])
    for form in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        assert yaml.safe_load(form.read_text())
