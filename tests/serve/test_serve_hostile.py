"""Requests that mean harm, or are simply wrong: one clear answer, never status 500, nothing of the server in it."""

from __future__ import annotations

import asyncio
import base64
import time

import pytest
from PIL import Image

from detrkit.detector import Detector
from helpers.explained import detector_of
from helpers.serving import encoded, painted, png_of, served


@pytest.fixture(scope="module")
def detector() -> Detector:
    return detector_of("detr-r50", size=64)


@pytest.fixture(scope="module")
def png() -> bytes:
    return encoded(painted(40, 30))


def refused(detector, ask, **options):
    """(status, code) of the answer of a request that must be refused, in the form of every refusal."""
    response = served(detector, ask, **options)
    assert set(response.json()) == {"error"}, response.text
    assert set(response.json()["error"]) == {"code", "message", "image"}
    for word in ("Traceback", "/work", "/usr", "/tmp", "Error", ".py", "PIL", "pydantic"):
        assert word not in response.text
    return response.status_code, response.json()["error"]["code"]


def post(content=b"", path="/predict", **options):
    if "json" in options or "files" in options:
        return lambda client: client.post(path, **options)
    return lambda client: client.post(path, content=content, **options)


IMAGES = {
    "a bomb of 50,000 x 50,000 pixels": (png_of(50_000, 50_000), 413, "image_too_large"),
    "a bomb below Pillow's own bound": (png_of(9_000, 9_000), 413, "image_too_large"),
    "a bomb whose size overflows": (png_of(2**31 - 1, 2**31 - 1), 413, "image_too_large"),
    "a header without pixels": (png_of(40, 30), 400, "image_damaged"),
    "no pixels at all": (png_of(0, 0), 400, "image_damaged"),
    "a signature alone": (b"\x89PNG\r\n\x1a\n", 400, "image_damaged"),
    "a JPEG of three bytes": (b"\xff\xd8\xff", 400, "image_damaged"),
    "a page": (b"<html><script>alert(1)</script></html>", 415, "image_format"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "image_format"),
    "PostScript, for which Pillow starts a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n", 415, "image_format"),
    "a PDF": (b"%PDF-1.7\n", 415, "image_format"),
    "a zip": (b"PK\x03\x04aaaa", 415, "image_format"),
    "a pickle": (b"\x80\x04\x95cos\nsystem\n", 415, "image_format"),
    "an array of numpy": (b"\x93NUMPY\x01\x00", 415, "image_format"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_are_none(detector, name):
    data, status, code = IMAGES[name]
    assert refused(detector, post(data), limits={"max_megapixels": 64}) == (status, code)


def test_bombs_are_refused_by_their_header_alone(detector):
    """Without the bytes, and in a moment: nothing is decoded."""
    started = time.perf_counter()
    assert refused(detector, post(IMAGES["a bomb of 50,000 x 50,000 pixels"][0]))[0] == 413
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_images(detector, form):
    file = encoded(painted(80, 60).convert("P" if form == "GIF" else "RGB"), form)
    for share in (0.2, 0.6):
        status, code = refused(detector, post(file[: int(share * len(file))]))
        assert (status, code) == (400, "image_damaged")


def test_a_file_of_two_kinds_is_an_image_and_nothing_else(detector, png):
    polyglot = png + b"<script>alert(1)</script>PK\x05\x06" + bytes(18)

    async def ask(client):
        return await client.post("/predict", content=polyglot), await client.post("/explain", content=polyglot)

    answer, page = served(detector, ask)
    assert answer.status_code == page.status_code == 200
    assert (
        answer.headers["x-content-type-options"] == "nosniff" and answer.headers["content-type"] == "application/json"
    )
    assert "alert(1)" not in answer.text + page.text


def test_one_damaged_image_of_several_is_named(detector, png):
    files = [("file", ("a.png", png)), ("file", ("b.png", png[:60])), ("file", ("c.png", png))]
    response = served(detector, post(files=files))
    assert response.status_code == 400 and response.json()["error"]["image"] == 1


def test_bodies_are_bounded_stated_or_not(detector, png):
    limits = {"max_megabytes": 0.01}

    async def chunks():
        for _ in range(100):
            yield bytes(1000)

    assert refused(detector, post(bytes(20_000)), limits=limits) == (413, "body_too_large")
    assert refused(detector, post(chunks()), limits=limits) == (413, "body_too_large")
    assert refused(detector, post(png, headers={"Content-Length": "9" * 40}), limits=limits) == (413, "body_too_large")


def test_bodies_of_all_requests_are_bounded_together(detector):
    """Slow bodies hold memory: those of more than eight largest ones are refused, and given back at the end."""
    limits = {"max_megabytes": 0.01, "body_timeout": 1.0}

    async def ask(client):
        # ASGITransport would read the whole body first: the application itself is called
        sent = []

        async def one():
            left = [{"type": "http.request", "body": bytes(9_900), "more_body": True}]

            async def receive():
                if left:
                    return left.pop()
                await asyncio.sleep(30)

            async def send(message):
                if message["type"] == "http.response.start":
                    sent.append(message["status"])

            scope = {
                "type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
                "headers": [], "http_version": "1.1", "scheme": "http", "root_path": "",
                "server": ("a", 1), "client": ("b", 2),
            }  # fmt: skip
            await client.application(scope, receive, send)

        await asyncio.gather(*(one() for _ in range(12)))
        return sorted(sent), client.service.bodies.used

    statuses, used = served(detector, ask, limits=limits)
    assert statuses == [408] * 8 + [429] * 4 and used == 0


JSON = {
    "deep": (b"[" * 15_000, 400),
    "deep objects": (b'{"a":' * 5_000, 400),
    "many parts": (b'{"images": [' + b"1," * 30_000 + b"1]}", 400),
    "a number of many digits": (b'{"threshold": ' + b"1" * 10_000 + b"}", 400),
    "no JSON": (b"hello", 400),
    "half a character": (b'{"image": "\\ud800"}', 422),
    "bytes that are no text": (b'{"image": "\xff"}', 400),
    "a list": (b"[]", 422),
    "no image": (b"{}", 422),
    "null": (b'{"image": null}', 422),
    "a number": (b'{"image": 5}', 422),
    "no base64": (b'{"image": "hello world!"}', 422),
    "another field": (b'{"image": "", "url": "http://127.0.0.1/"}', 422),
    "a threshold that is no number": (b'{"image": "", "threshold": NaN}', 422),
    "a threshold above 1": (b'{"image": "", "threshold": 1.5}', 422),
    "a negative limit": (b'{"image": "", "limit": -1}', 422),
    "an endless limit": (b'{"image": "", "limit": 1e400}', 422),
    "no bytes": (b'{"image": ""}', 400),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_no_request(detector, name):
    body, status = JSON[name]
    got, _ = refused(detector, post(body, headers={"Content-Type": "application/json"}))
    assert got == status


def test_huge_json_of_parts_is_refused_before_it_is_parsed(detector):
    """Each empty list takes a byte or two of JSON and fifty of memory."""
    body = b'{"images": [' + b"[]," * 5_000_000 + b"1]}"
    started = time.perf_counter()
    got = refused(detector, post(body, headers={"Content-Type": "application/json"}))
    assert got == (400, "body_malformed") and time.perf_counter() - started < 10


ADDRESSES = [
    "http://127.0.0.1:22/", "http://localhost/", "http://169.254.169.254/latest/meta-data/", "https://example.com/a.jpg",
    "http://[::1]/", "http://2130706433/", "ftp://127.0.0.1/a", "gopher://127.0.0.1:6379/_FLUSHALL",
    "file:///etc/passwd", "s3://bucket/a.jpg", "HTTP://127.0.0.1/", "data:text/html,<b>", "data:image/png,abc",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_address_is_fetched(detector, address, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the service opened a connection")

    monkeypatch.setattr("socket.socket.connect", forbidden)
    monkeypatch.setattr("socket.getaddrinfo", forbidden)
    status, code = refused(detector, post(json={"image": address}))
    assert status == 422 and code in ("address_refused", "image_text")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../../etc/passwd", "C:\\Windows\\win.ini", "~/.ssh/id_rsa", "a\0b"]
)
def test_no_path_is_read(detector, path, monkeypatch):
    def forbidden(*_, **__):
        raise AssertionError("the service opened a file")

    async def ask(client):
        monkeypatch.setattr("builtins.open", forbidden)
        monkeypatch.setattr("io.open", forbidden)
        try:
            return await client.post("/predict", json={"image": path})
        finally:
            monkeypatch.undo()

    response = served(detector, ask)
    assert response.status_code in (400, 415, 422)


FORMS = {
    "no boundary": ("multipart/form-data", b"--a\r\n"),
    "an empty boundary": ("multipart/form-data; boundary=", b"--\r\n"),
    "another boundary": ("multipart/form-data; boundary=b", b"--a\r\n\r\n--a--"),
    "no end": ("multipart/form-data; boundary=a", b'--a\r\nContent-Disposition: form-data; name="f"\r\n\r\nabc'),
    "no headers": ("multipart/form-data; boundary=a", b"--a\r\nabc\r\n--a--"),
    "a header of 100 kB": ("multipart/form-data; boundary=a", b"--a\r\nX: " + b"a" * 100_000 + b"\r\n\r\nabc\r\n--a--"),
    "a boundary of 10 kB": ("multipart/form-data; boundary=" + "a" * 10_000, b"--a"),
    "bytes": ("multipart/form-data; boundary=\xff", b"\xff" * 100),
    "many fields": (
        "multipart/form-data; boundary=a",
        b'--a\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n'
        + b"".join(b'--a\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n' % i for i in range(10_000))
        + b"--a--",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_cannot_be_read(detector, name):
    kind, body = FORMS[name]
    status, _ = refused(detector, post(body, headers={"Content-Type": kind.encode("latin-1")}))
    assert status in (400, 422)


def test_many_files_and_unknown_fields_of_a_form(detector, png):
    files = [("file", (f"{i}.png", png)) for i in range(17)]
    assert refused(detector, post(files=files)) == (422, "too_many_images")
    assert refused(detector, post(files={"file": png}, data={"thresold": "0.5"})) == (422, "invalid")
    assert refused(detector, post(files={"file": png}, data={"threshold": "high"})) == (422, "invalid")
    assert refused(detector, post(png, path="/predict?thresold=0.5")) == (422, "invalid")


def test_names_in_a_form_are_no_paths(detector, png, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["../../../../tmp/evil.png", "/etc/cron.d/evil", "a\\..\\b", "x" * 3000, "CON", "."]
    large = encoded(painted(700, 700))  # above what parsers of forms write to a disk

    async def ask(client):
        return [await client.post("/predict", files={"file": (name, large)}) for name in names]

    assert {response.status_code for response in served(detector, ask)} <= {200, 400}
    assert not list(tmp_path.rglob("*"))


def test_types_and_encodings_that_are_not_taken(detector, png):
    form = {"Content-Type": "application/x-www-form-urlencoded"}  # of curl's --data-binary
    assert refused(detector, post(png, headers=form)) == (415, "body_type")
    assert refused(detector, post(png, headers={"Content-Type": "text/plain"})) == (415, "body_type")
    assert refused(detector, post(png, headers={"Content-Encoding": "gzip"})) == (415, "body_encoding")
    assert refused(detector, post(b"")) == (422, "no_image")
    assert refused(detector, lambda client: client.get("/predict")) == (405, "http")
    assert refused(detector, lambda client: client.get("/../../etc/passwd")) == (404, "http")


def test_a_long_and_narrow_image_without_max_size_is_refused_and_the_others_are_not():
    from dataclasses import replace

    detector = detector_of("detr-r50", size=64)
    detector = Detector(detector.model, replace(detector.spec, max_size=None), device="cpu")
    long = encoded(Image.new("RGB", (2_000_000, 1)))
    good = encoded(painted(64, 64))

    async def ask(client):
        return await asyncio.gather(*(client.post("/predict", content=file) for file in (good, long, good)))

    responses = served(detector, ask, limits={"max_wait_ms": 100})
    assert [response.status_code for response in responses] == [200, 422, 200]
    assert responses[1].json()["error"]["code"] in ("image_unfit", "image_memory")


def test_a_fault_of_the_model_is_told_in_the_log_alone(detector, png, caplog, monkeypatch):
    def broken(*_, **__):
        raise KeyError("a secret of the server")

    async def ask(client):
        monkeypatch.setattr(client.service.detector, "predict", broken)
        return await client.post("/predict", content=png), await client.get("/health")

    response, health = served(detector_of("detr-r50", size=64), ask)
    assert response.status_code == 500 and "secret" not in response.text and health.status_code == 200
    assert "a secret of the server" in caplog.text


def test_a_full_queue_is_refused_and_the_queue_empties(detector, png):
    async def ask(client):
        first = await asyncio.gather(*(client.post("/predict", content=png) for _ in range(30)))
        later = await client.post("/predict", content=png)
        return first, later

    first, later = served(detector, ask, limits={"max_queue": 4, "max_batch": 2})
    statuses = [response.status_code for response in first]
    assert statuses.count(200) >= 4 and statuses.count(429) >= 10 and set(statuses) == {200, 429}
    busy = next(response for response in first if response.status_code == 429)
    assert 1 <= int(busy.headers["retry-after"]) <= 60 and busy.json()["error"]["code"] == "busy"
    assert later.status_code == 200


def test_a_slow_model_is_a_time_out_and_the_service_goes_on(detector, png, monkeypatch):
    original = detector.predict

    async def ask(client):
        def slow(*arguments, **named):
            time.sleep(1.0)
            return original(*arguments, **named)

        monkeypatch.setattr(client.service.detector, "predict", slow)
        late = await client.post("/predict", content=png)
        monkeypatch.undo()
        await asyncio.sleep(1.0)
        return late, await client.post("/predict", content=png)

    late, later = served(detector, ask, limits={"timeout": 0.5})
    assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
    assert later.status_code == 200


def test_a_service_that_stops_finishes_what_it_took(detector, png, monkeypatch):
    original = detector.predict

    async def ask(client):
        def slow(*arguments, **named):
            time.sleep(0.5)
            return original(*arguments, **named)

        monkeypatch.setattr(client.service.detector, "predict", slow)
        taken = [asyncio.create_task(client.post("/predict", content=png)) for _ in range(3)]
        await asyncio.sleep(0.3)
        client.service.stop()
        refused = await client.post("/predict", content=png)
        ready = await client.get("/ready")
        health = await client.get("/health")
        return await asyncio.gather(*taken), refused, ready, health

    taken, late, ready, health = served(detector, ask)
    assert [response.status_code for response in taken] == [200, 200, 200]
    assert late.status_code == ready.status_code == 503 and "retry-after" in late.headers
    assert health.status_code == 200


def test_base64_of_an_image_in_json_is_bounded_like_any_body(detector):
    text = base64.b64encode(bytes(20_000)).decode()
    got = refused(detector, post(json={"image": text}), limits={"max_megabytes": 0.01})
    assert got == (413, "body_too_large")


def test_pixels_of_a_request_are_bounded_together(detector):
    """Sixteen images below the bound of one would decode to five times what all may take."""
    file = encoded(Image.new("RGB", (900, 1000)))
    files = [("file", (f"{i}.png", file)) for i in range(6)]
    got = refused(detector, post(files=files), limits={"max_megapixels": 1.0})
    assert got == (413, "image_too_large")
