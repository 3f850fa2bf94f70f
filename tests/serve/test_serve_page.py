"""The page of a service in a browser: dropped, pasted and chosen images, the slider, the keyboard, a phone."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn
from pycocotools import mask as coco_mask

from detrkit.serve import create_app
from helpers.browser import chromium, opened
from helpers.explained import detector_of
from helpers.serving import encoded, painted

pytestmark = pytest.mark.slow
TOKEN = "a-token-of-many-signs"
SEEDS = {"detr-r50": 2, "instance": 0, "detr-r50-panoptic": 2}


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@contextmanager
def running(kind, tile=None, **options):
    """The address of a service in a thread, and its detector."""
    detector = detector_of(kind, panoptic="panoptic" in kind, size=64, seed=SEEDS[kind])
    app = create_app(detector if tile is None else detector.tiled(tile), **options)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="critical", lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/", detector
    finally:
        server.should_exit = True
        thread.join(60)


@contextmanager
def at(browser, address, **options):
    """The page, which may ask its own server alone."""
    with opened(browser, address, allowed=lambda url: url.startswith(address), **options) as page:
        yield page


def give(page, image, *, how="choose", name="street.png", form="PNG"):
    """Give an image to the page and wait until its objects are shown."""
    data = encoded(image, form)
    if how == "choose":
        page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": data})
    else:
        page.evaluate(
            """([text, name, how]) => {
              const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
              const data = new DataTransfer();
              data.items.add(new File([bytes], name, { type: "image/png" }));
              const options = { bubbles: true, cancelable: true };
              window.dispatchEvent(how === "drop" ? new DragEvent("drop", { ...options, dataTransfer: data })
                : new ClipboardEvent("paste", { ...options, clipboardData: data }));
            }""",
            [base64.b64encode(data).decode(), name, how],
        )
    page.wait_for_selector("#json:not([disabled])")


def visible(page):
    return page.evaluate("detrkitServe.visible()")


def slide(page, value):
    page.evaluate(
        "(v) => { const s = document.getElementById('threshold'); s.value = v; s.dispatchEvent(new Event('input')); }",
        value,
    )


@pytest.mark.parametrize("how", ["choose", "drop", "paste"])
def test_an_image_is_shown_with_its_objects(browser, how):
    with running("detr-r50") as (address, detector), at(browser, address) as page:
        image = painted(160, 100, 1)
        give(page, image, how=how)
        want = detector.predict(image, threshold=0.05)
        objects = page.evaluate("detrkitServe.page.objects")
        assert np.array_equal(np.array([o["box"] for o in objects], np.float32), want.boxes.numpy())
        assert len(visible(page)) == int((want.scores > detector.threshold).sum())
        assert page.locator("#rows tr").count() == len(visible(page)) > 0
        canvas = page.evaluate("document.getElementById('stage').getContext('2d').getImageData(0, 0, 5, 5).data.length")
        assert canvas == 100


def test_the_slider_the_table_and_the_file_without_another_request(browser, tmp_path):
    with running("detr-r50") as (address, detector), at(browser, address) as page:
        image = painted(160, 100, 1)
        give(page, image)
        requests = []
        page.on("request", lambda request: requests.append(request.url))
        scores = [round(score, 6) for score in detector.predict(image, threshold=0.05).scores.tolist()]
        for value in (0.1, 0.9, 0.6):
            slide(page, value)
            count = sum(score > value for score in scores)
            assert len(visible(page)) == page.locator("#rows tr").count() == count
            assert f"{count} object" in page.inner_text("#caption")
        with page.expect_download() as download:
            page.click("#json")
        file = tmp_path / "saved.json"
        download.value.save_as(file)
        assert download.value.suggested_filename == "street.json"
        (saved,) = json.loads(file.read_text())["images"]
        assert saved["threshold"] == 0.6 and len(saved["detections"]) == sum(score > 0.6 for score in scores)
        assert not [url for url in requests if not url.startswith("blob:")]


@pytest.mark.parametrize("own", [None, 200])
def test_another_tile_is_another_request(browser, own):
    """The page asks at first for the tiles of the server, then for those that are chosen, or for none."""
    with running("detr-r50", tile=own) as (address, detector), at(browser, address) as page:
        image = painted(500, 260, 1)
        give(page, image)
        assert page.input_value("#tile") == str(own or "none")
        for tile in (own or "none", "320", "none"):
            page.select_option("#tile", str(tile))
            page.wait_for_selector("#json:not([disabled])")
            way = {"tile": 10_000 if tile == "none" else int(tile)}  # larger than the image: it is not cut
            want = detector.predict(image, threshold=0.05, **way)
            objects = page.evaluate("detrkitServe.page.objects")
            assert np.array_equal(np.array([o["box"] for o in objects], np.float32), want.boxes.numpy())


def test_by_keyboard_alone(browser):
    with running("detr-r50") as (address, _), at(browser, address) as page:
        give(page, painted(160, 100, 1))
        slide(page, 0.05)
        page.focus("#stage")
        shown = visible(page)
        page.keyboard.press("ArrowRight")
        assert page.evaluate("detrkitServe.page.view.object") == shown[0]
        assert page.inner_text("#caption").startswith(f"Object {shown[0] + 1}: dog, score ")
        page.keyboard.press("ArrowLeft")
        assert page.evaluate("detrkitServe.page.view.object") == shown[-1]
        page.keyboard.press("b")
        assert not page.is_checked("#boxes")
        page.keyboard.press("Escape")
        assert page.evaluate("detrkitServe.page.view.object") is None
        page.locator("#rows tr").nth(1).focus()
        page.keyboard.press("Enter")
        assert page.evaluate("detrkitServe.page.view.object") == shown[1]
        assert page.locator("#rows tr").nth(1).get_attribute("aria-selected") == "true"
        assert page.evaluate("document.activeElement.dataset.object") == str(shown[1])  # the focus stays


def test_the_explanation_opens_in_the_page(browser):
    with running("detr-r50") as (address, _), at(browser, address) as page:
        give(page, painted(160, 100, 1))
        page.click("#explain")
        page.wait_for_selector("#why:not([hidden])", timeout=60_000)
        frame = page.frame_locator("#why-frame")
        frame.locator("#main:not([hidden])").wait_for(timeout=60_000)
        assert "Cross-attention of object 0" in frame.locator("#caption").inner_text()


def test_masks_are_those_of_the_answer(browser):
    with running("instance") as (address, detector), at(browser, address) as page:
        image = painted(160, 100, 1)
        give(page, image)
        for rle in (o["segmentation"] for o in page.evaluate("detrkitServe.page.objects")):
            runs = page.evaluate("(text) => detrkitServe.runLengths(text)", rle["counts"])
            flat = np.repeat(np.arange(len(runs)) % 2, runs)
            assert np.array_equal(flat.reshape(rle["size"], order="F"), coco_mask.decode(rle))
        assert page.is_visible("#masks-label")
        areas = page.evaluate(
            """() => detrkitServe.page.masks.map((mask) => {
              const { data } = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
              let count = 0;
              for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
              return count;
            })"""
        )
        want = detector.predict(image, threshold=0.2).masks.sum((1, 2)).tolist()
        assert areas == want


def test_segments_are_those_of_the_answer(browser):
    with running("detr-r50-panoptic") as (address, detector), at(browser, address) as page:
        assert page.is_hidden("#tiles")
        image = painted(160, 100, 1)
        want = detector.predict(image)
        give(page, image)
        assert page.evaluate("detrkitServe.page.objects.map((o) => o.area)") == [s.area for s in want.segments]
        areas = page.evaluate(
            """() => detrkitServe.page.masks.map((mask) => {
              const { data } = mask.getContext("2d").getImageData(0, 0, mask.width, mask.height);
              let count = 0;
              for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
              return count;
            })"""
        )
        assert areas == [s.area for s in want.segments]


def test_refusals_and_tokens_are_told(browser):
    with running("detr-r50", token=TOKEN) as (address, _):
        with pytest.raises(AssertionError, match="401"), at(browser, address) as page:  # the browser's own line
            page.set_input_files(
                "#file", {"name": "a.png", "mimeType": "image/png", "buffer": encoded(painted(50, 40))}
            )
            page.wait_for_selector("#access:not([hidden])")
            assert "token" in page.inner_text("#problem")
            page.fill("#token", TOKEN)
            page.keyboard.press("Enter")
            page.wait_for_selector("#json:not([disabled])")
            assert page.is_hidden("#problem") and page.is_hidden("#access")
        with pytest.raises(AssertionError, match="415"), at(browser, address) as page:
            page.evaluate(f"detrkitServe.page.token = '{TOKEN}'")
            page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
            page.wait_for_selector("#problem:not([hidden])")
            assert "no format that is taken" in page.inner_text("#problem")


def test_a_phone_has_everything_within_its_width(browser):
    options = {"width": 390, "height": 844, "has_touch": True, "is_mobile": True}
    with running("detr-r50") as (address, _), at(browser, address, **options) as page:
        give(page, painted(600, 900, 1))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator("label.choose").bounding_box()
        assert box["height"] >= 40  # of a finger
        assert page.locator("#stage").bounding_box()["width"] <= 390
