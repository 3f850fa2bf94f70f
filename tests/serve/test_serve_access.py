"""Who may ask, what every answer has, and what is there for programs."""

from __future__ import annotations

import base64

import pytest

from detrkit.serve import Limits, create_app
from detrkit.utils.errors import SettingError
from helpers.explained import detector_of
from helpers.serving import encoded, painted, served

TOKEN = "a-token-of-many-signs"


@pytest.fixture(scope="module")
def detector():
    return detector_of("detr-r50", size=64)


@pytest.fixture(scope="module")
def png():
    return encoded(painted(40, 30))


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer", 401),
        (TOKEN, 401),
        ("Basic !!!", 401),
        (basic("user:wrong"), 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN}", 200),
        (basic(f"anyone:{TOKEN}"), 200),
    ],
)
def test_a_token_is_needed_where_there_is_one(detector, png, header, status):
    async def ask(client):
        headers = {} if header is None else {"Authorization": header}
        answers = [
            await client.post(path, content=png, headers=headers) for path in ("/predict", "/explain?format=json")
        ]
        answers += [await client.get(path, headers=headers) for path in ("/metrics", "/openapi.json")]
        return answers, [await client.get(path) for path in ("/", "/health", "/ready")]

    answers, free = served(detector, ask, token=TOKEN)
    assert [answer.status_code for answer in answers] == [status] * 4
    assert [answer.status_code for answer in free] == [200] * 3
    if status == 401:
        assert answers[0].headers["www-authenticate"] == "Bearer"
        assert TOKEN not in answers[0].text


def test_pages_of_other_sites_are_not_answered(detector, png):
    """No CORS header, so that they cannot read; and no request of theirs makes the model work."""

    async def ask(client):
        own = await client.post("/predict", content=png, headers={"Sec-Fetch-Site": "same-origin"})
        other = await client.post(
            "/predict", content=png, headers={"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
        )
        preflight = await client.options(
            "/predict", headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        )
        link = await client.get("/", headers={"Sec-Fetch-Site": "cross-site"})
        return own, other, preflight, link

    own, other, preflight, link = served(detector, ask)
    assert (own.status_code, other.status_code, link.status_code) == (200, 403, 200)
    assert preflight.status_code == 405
    for response in (own, other, preflight, link):
        assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:8000", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("evil.example", 421),
        ("", 421),
    ],
)
def test_a_name_that_leads_here_from_elsewhere_is_not_answered(detector, host, status):
    """DNS rebinding: a site's own name, resolved to the loopback address, would make its pages ones of this origin."""
    hosts = {"localhost", "127.0.0.1", "[::1]"}
    response = served(detector, lambda client: client.get("/health", headers={"Host": host}), hosts=hosts)
    assert response.status_code == status


def test_every_answer_has_the_headers_that_browsers_need(detector, png):
    async def ask(client):
        page, nothing = await client.get("/"), await client.get("/nothing")
        return [await client.post("/predict", content=png), await client.post("/predict", content=b"x"), page, nothing]

    for response in served(detector, ask):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["x-frame-options"] == "DENY"
        assert response.headers["cache-control"] == "no-store"
        assert "server" not in response.headers


def test_what_programs_ask(detector, png):
    async def ask(client):
        await client.post("/predict", content=png)
        await client.post("/predict", content=b"x")
        await client.get("/" + "a" * 50)
        paths = ("/health", "/ready", "/metrics", "/openapi.json")
        return [await client.get(path) for path in paths]

    health, ready, metrics, openapi = served(detector, ask)
    assert health.json()["status"] == "UP" and health.json()["model"]["name"] == "detr-r50"
    assert ready.json() == {"status": "READY"}
    lines = metrics.text.splitlines()
    assert 'detrkit_requests_total{route="/predict",status="200"} 1.0' in lines
    assert 'detrkit_requests_total{route="/predict",status="415"} 1.0' in lines
    assert 'detrkit_requests_total{route="other",status="404"} 1.0' in lines  # no label of a client's making
    assert "detrkit_images_total 1.0" in lines and "detrkit_batch_images_count 1.0" in lines
    description = openapi.json()
    assert {"/predict", "/explain", "/setup", "/health", "/ready", "/metrics"} == set(description["paths"])
    used = {part["$ref"].rsplit("/", 1)[1] for part in found(description, "$ref")}
    assert used <= set(description["components"]["schemas"]) and "Document" in used


def found(value, key):
    """All objects in a JSON value that have a key."""
    if isinstance(value, dict):
        yield from ([value] if key in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from found(part, key)


def test_limits_have_ranges(detector):
    with pytest.raises(SettingError, match="max_queue is 0: must be at least 1"):
        create_app(detector, limits=Limits(max_queue=0))


def test_without_the_packages_the_command_says_how_to_get_them(monkeypatch, capsys):
    import detrkit.serve
    from detrkit.cli import main

    monkeypatch.setattr(detrkit.serve, "find_spec", lambda name: None if name == "fastapi" else object())
    assert main(["serve", "detr-r50"]) == 2
    assert capsys.readouterr().err == "detrkit: error: detrkit serve needs fastapi: pip install 'detrkit[serve]'\n"


@pytest.mark.parametrize(
    ("token", "problem"),
    [("short", "a token must be"), ("with a space in it", "a token must be"), ("ü" * 20, "a token must be")],
)
def test_tokens_that_are_too_weak(tmp_path, capsys, token, problem, monkeypatch):
    from detrkit.cli import main

    (tmp_path / "token").write_text(token, encoding="utf-8")
    assert main(["serve", "detr-r50", "--token-file", str(tmp_path / "token")]) == 2
    assert problem in capsys.readouterr().err
    monkeypatch.setenv("DETRKIT_TOKEN", token)
    assert main(["serve", "detr-r50"]) == 2
    assert "DETRKIT_TOKEN: a token must be" in capsys.readouterr().err
