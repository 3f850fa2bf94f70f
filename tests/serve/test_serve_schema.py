"""Requests that schemathesis makes of the description: none gets status 500, nor one that is not described."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings

from detrkit.serve import Limits, create_app
from helpers.explained import detector_of

schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install 'detrkit[test]'")
pytestmark = pytest.mark.slow


def ask(operation, strategy, statuses):
    """Send requests of a strategy, and check the answers."""

    @given(case=strategy)
    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def check(case):
        response = case.call()
        statuses[operation.path, response.status_code] += 1
        assert response.status_code < 500, response.text
        assert str(response.status_code) in operation.definition.raw["responses"], response.text

    check()


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_of_the_description_is_a_fault(mode):
    """Requests that fit the description, and such as do not, to every route."""
    app = create_app(detector_of("detr-r50", size=64), limits=Limits(max_queue=100, max_megabytes=1.0))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    statuses: Counter = Counter()
    for result in schema.get_all_operations():
        operation = result.ok()

        if mode == "NEGATIVE" and operation.path not in ("/predict", "/explain"):
            continue  # without described parameters there is nothing to be wrong
        strategy = operation.as_strategy(generation_mode=getattr(schemathesis.GenerationMode, mode))
        ask(operation, strategy, statuses)
    paths = {path for path, _ in statuses}
    assert {"/predict", "/explain"} <= paths
    if mode == "POSITIVE":
        assert {"/health", "/metrics", "/setup"} <= paths and statuses["/health", 200] and statuses["/metrics", 200]
    assert any(path == "/predict" and status in (400, 415, 422) for path, status in statuses), statuses
