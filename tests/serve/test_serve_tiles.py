"""Tiles that a request asks for: answers of `Detector.predict` to the bit, bounds, and who waits for whom."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from PIL import Image

from detrkit.serve import batching
from detrkit.serve.batching import Batcher
from detrkit.serve.refusal import Refusal
from detrkit.structures.detections import Detections
from detrkit.structures.rle import encode_masks
from detrkit.tiling.tiles import Tiling
from helpers.explained import detector_of
from helpers.serving import assert_equal, encoded, painted, png_of, served

TILED = {"tile": 48, "overlap": 0.25}


@pytest.fixture(scope="module")
def detector():
    return detector_of("detr-r50", size=64)


@pytest.fixture(scope="module")
def instance():
    return detector_of("instance", size=64)


def refused(detector, content, query, **options):
    """Status, code and image of a request that must be refused, and its message."""
    response = served(detector, lambda client: client.post(f"/predict?{query}", content=content), **options)
    error = response.json()["error"]
    assert len(error["message"].splitlines()) == 1
    return (response.status_code, error["code"], error["image"]), error["message"]


def test_every_form_of_a_request_may_ask_for_tiles(detector):
    """In the address, the form or the document; each part by default as the server was started."""
    file = encoded(painted(120, 70, 3))
    text = base64.b64encode(file).decode()
    post = {"content": file}

    async def ask(client):
        return [
            await client.post("/predict?threshold=0.3&tile=48&overlap=0.25", **post),
            await client.post("/predict?threshold=0.3", files={"file": file}, data={"tile": "48", "overlap": "0.25"}),
            await client.post("/predict", json={"image": text, "threshold": 0.3, **TILED}),
            await client.post("/predict?threshold=0.3&tile=48", **post),
            await client.post("/predict?threshold=0.3", **post),
            await client.post("/predict?threshold=0.3&tile=none", **post),
            await client.post("/predict?threshold=0.3&overlap=0.5", **post),
        ]

    plain, cut = detector.predict(file, threshold=0.3), detector.predict(file, threshold=0.3, **TILED)
    wide = detector.predict(file, threshold=0.3, tile=48)  # an overlap of 0.2
    *forms, tile_alone, nothing, none, refusal = served(detector, ask)
    assert len(plain) != len(cut) and len({response.content for response in forms}) == 1
    assert_equal(forms[0].json()["images"][0], cut)
    assert_equal(tile_alone.json()["images"][0], wide)
    assert nothing.content == none.content and refusal.status_code == 422
    assert_equal(none.json()["images"][0], plain)

    *forms, tile_alone, nothing, none, overlap_alone = served(detector.tiled(40, 0.1), ask)
    assert_equal(forms[0].json()["images"][0], cut)
    assert_equal(tile_alone.json()["images"][0], detector.predict(file, threshold=0.3, tile=48, overlap=0.1))
    assert_equal(nothing.json()["images"][0], detector.predict(file, threshold=0.3, tile=40, overlap=0.1))
    assert_equal(none.json()["images"][0], plain)
    assert_equal(overlap_alone.json()["images"][0], detector.predict(file, threshold=0.3, tile=40, overlap=0.5))


def test_images_in_tiles_are_exact_in_any_mix(detector):
    """Requests with and without tiles, of several thresholds and sizes at once: those in tiles to the bit."""
    images = [painted(*size, seed=k) for k, size in enumerate([(120, 60), (40, 44), (60, 130), (96, 64)])]
    ways = [{}, TILED, {"tile": 64}]
    cases = [(k, way, (0.2, 0.5)[(k + turn) % 2]) for k in range(4) for turn, way in enumerate(ways)]

    async def ask(client):
        posts = []
        for k, way, threshold in cases:
            query = "&".join(f"{name}={value}" for name, value in {**way, "threshold": threshold}.items())
            posts.append(client.post(f"/predict?{query}", content=encoded(images[k])))
        responses = await asyncio.gather(*posts)
        return responses, (await client.get("/metrics")).text

    responses, metrics = served(detector, ask, limits={"max_wait_ms": 100})
    for (k, way, threshold), response in zip(cases, responses, strict=True):
        cut = bool(way) and max(images[k].size) > way["tile"]
        want = detector.predict(images[k], threshold=threshold, **way)
        assert (want.tiles is not None) == cut
        assert_equal(response.json()["images"][0], want, exact=cut)
    assert "detrkit_images_total 12.0" in metrics and "detrkit_waiting_images 0.0" in metrics


def test_the_batch_size_of_tiles_is_that_of_the_server(detector):
    image = painted(150, 150, 1)
    want = detector.predict(image, threshold=0.3, batch_size=3, **TILED)
    ask = lambda client: client.post("/predict?threshold=0.3&tile=48&overlap=0.25", content=encoded(image))  # noqa: E731
    response = served(detector, ask, limits={"max_batch": 3})
    assert_equal(response.json()["images"][0], want)


def test_masks_of_tiles_are_encoded_like_any(instance):
    image = painted(110, 70, 3)
    want = instance.predict(image, threshold=0.3, **TILED)

    async def ask(client):
        query = "/predict?threshold=0.3&tile=48&overlap=0.25"
        return [await client.post(query + more, content=encoded(image)) for more in ("", "&limit=2", "&masks=false")]

    whole, two, without = (response.json()["images"][0] for response in served(instance, ask))
    assert_equal(whole, want)
    assert [entry["segmentation"] for entry in whole["detections"]] == encode_masks(want.masks)
    assert two["detections"] == whole["detections"][:2] and two["left_out"] == len(want) - 2
    assert all("segmentation" not in entry for entry in without["detections"])


OPTIONS = {
    "tile=31": "invalid",
    "tile=0": "invalid",
    "tile=70000": "invalid",
    "tile=small": "invalid",
    "tile=48&overlap=0.95": "invalid",
    "tile=48&overlap=-1": "invalid",
    "tile=48&overlap=nan": "invalid",
    "overlap=0.2": "invalid",
    "tile=none&overlap=0.2": "invalid",
}


@pytest.mark.parametrize("query", OPTIONS)
def test_options_out_of_range_are_refused(detector, query):
    (status, code, _), _ = refused(detector, encoded(painted(60, 50)), query)
    assert (status, code) == (422, OPTIONS[query])


def test_a_panoptic_model_has_no_tiles_in_requests():
    panoptic = detector_of("detr-r50-panoptic", panoptic=True, size=64, seed=2)
    file = encoded(painted(90, 60, 3))
    assert refused(panoptic, file, "tile=48")[0] == (422, "panoptic", None)
    response = served(panoptic, lambda client: client.post("/predict?tile=none", content=file))
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("width", "height", "query"),
    [(7_000, 7_000, "tile=32&overlap=0.9"), (60_000_000, 1, "tile=32&overlap=0.9"), (7_000, 7_000, "tile=400")],
)
def test_tiles_are_bounded_before_anything_is_decoded(detector, width, height, query):
    """The file has a header alone: if it were decoded it would be damaged."""
    started = time.perf_counter()
    what, message = refused(detector, png_of(width, height), query, limits={"max_tiles": 300})
    assert what == (422, "too_many_tiles", 0) and "and 300 are taken" in message
    assert time.perf_counter() - started < 5


def test_tiles_of_all_images_of_a_request_count_together(detector):
    """120 x 48 pixels are 3 tiles of 48 with an overlap of 0.25, 40 x 40 none."""
    sizes = [(120, 48), (40, 40), (48, 120)]
    files = [("file", (f"{k}.png", encoded(painted(*size, seed=k)))) for k, size in enumerate(sizes)]

    def ask(client):
        return client.post("/predict?tile=48&overlap=0.25", files=files)

    assert served(detector, ask, limits={"max_tiles": 6}).status_code == 200
    response = served(detector, ask, limits={"max_tiles": 5})
    assert response.status_code == 422 and response.json()["error"]["code"] == "too_many_tiles"
    assert response.json()["error"]["image"] == 2
    tiled = detector.tiled(48, 0.25)  # also where the server itself asks for them
    response = served(tiled, lambda client: client.post("/predict", files=files), limits={"max_tiles": 5})
    assert response.status_code == 422


def test_too_many_detections_of_tiles_are_refused(detector, monkeypatch):
    """The time to merge them grows with the square of their number, and the thread of the model has all requests."""
    image = encoded(painted(110, 70, 3))
    count = len(detector.predict(image, threshold=0.3)) + 1
    monkeypatch.setattr(batching, "MAX_MERGED", count)
    what, message = refused(detector, image, "tile=48&threshold=0.3")
    assert what == (422, "too_many_detections", 0) and "greater threshold" in message
    assert refused(detector, image, "tile=48&threshold=0.3&limit=1")[0] == what


def test_masks_of_tiles_have_a_budget(instance, monkeypatch):
    image = painted(110, 70, 3)
    found = instance.predict(image, threshold=0.3, **TILED)

    async def ask(client):
        monkeypatch.setattr("detrkit.serve.service.MASK_BYTES", found.masks.numel() - 1)
        return await client.post("/predict?threshold=0.3&tile=48&overlap=0.25", content=encoded(image))

    response = served(instance, ask)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["image"]) == (413, "mask_memory", 0)
    assert "greater threshold" in error["message"]


class Recorder:
    """A model that notes its batches, and detects nothing.

    Attributes:
        batches: the sizes in pixels of the images of each, in their order.
        during: called while the batch of that number is computed.
    """

    def __init__(self, masks: int = 0) -> None:
        self.batches: list[list[tuple[int, int]]] = []
        self.during: dict[int, object] = {}
        self._masks = masks

    def __call__(self, images, threshold):
        self.batches.append([image.size for image in images])
        self.during.get(len(self.batches), lambda: None)()
        return [self.found(image) for image in images]

    def found(self, image):
        masks = torch.zeros(self._masks, image.height, image.width, dtype=torch.bool) if self._masks else None
        count = self._masks
        return Detections(torch.zeros(count, 4), torch.zeros(count), torch.zeros(count, dtype=torch.int64), masks=masks)


@contextmanager
def batcher(model, **options):
    with ThreadPoolExecutor(2) as threads:
        made = Batcher(model, threads, **{"max_batch": 2, "max_wait": 0.0, "max_queue": 100, **options})
        try:
            yield made
        finally:
            made.close()


def whole(batcher, side, threshold=0.5):
    return batcher.add([Image.new("RGB", (side, side))], threshold, None, lambda result: result)[0]


def in_tiles(batcher, width, tile=32):
    return batcher.add([Image.new("RGB", (width, 32))], 0.5, Tiling(tile, 0.0), lambda result: result)[0]


def test_others_wait_for_one_batch_of_tiles():
    """Between two batches of tiles one batch of others runs, or an explanation; a second image in tiles comes last."""
    model, futures = Recorder(), []

    def come(batcher):
        futures.append(in_tiles(batcher, 96))
        futures.append(whole(batcher, 50))
        futures.append(batcher.call(lambda: model.batches.append(["explained"])))
        futures.append(whole(batcher, 51, threshold=0.7))
        futures.append(whole(batcher, 52))

    with batcher(model) as made:
        model.during[1] = lambda: come(made)
        first = in_tiles(made, 160)  # five tiles and the whole image: three batches
        assert len(first.result(30)) == 0
        for future in futures:
            future.result(30)
    tile = (32, 32)
    assert model.batches == [
        [(160, 32), tile],
        [(50, 50), (52, 52)],
        [tile, tile],
        ["explained"],
        [tile, tile],
        [(96, 32), tile],
        [(51, 51)],
        [tile, tile],
    ]


def test_an_image_in_tiles_that_nobody_waits_for_is_given_up():
    model = Recorder()
    with batcher(model) as made:
        futures = []
        model.during[2] = lambda: futures[0].cancel()
        futures.append(in_tiles(made, 32 * 100))
        time.sleep(0.05)
        assert whole(made, 50).result(30) is not None
    assert len(model.batches) <= 4 and model.batches[-1] == [(50, 50)] and futures[0].cancelled()


def test_a_failure_in_one_tile_is_that_image_s():
    def broken(images, threshold):
        if images[0].size == (33, 33):
            raise Refusal(413, "image_memory", "no memory")
        return Recorder().__call__(images, threshold)

    with batcher(broken) as made:
        bad = made.add([Image.new("RGB", (66, 33))], 0.5, Tiling(33, 0.0), lambda result: result)[0]
        assert len(whole(made, 50).result(30)) == 0
        assert isinstance(bad.exception(30), Refusal)


def test_tiles_of_a_batch_have_the_pixels_that_masks_allow():
    """8 at once, but of a model with masks no more than its budget has beside the whole image."""
    model = Recorder()
    with batcher(model, max_batch=8, max_pixels=160 * 32 + 3 * 32 * 32) as made:
        in_tiles(made, 160).result(30)
    assert [len(batch) for batch in model.batches] == [4, 2]


def test_masks_of_two_batches_are_held_at_most():
    """The model waits with the results of a batch until the masks of the former one are encoded."""
    model, release, encoding = Recorder(masks=1), threading.Event(), []

    def encode(result):
        encoding.append(result)
        release.wait(30)
        return result

    with batcher(model, max_batch=1) as made:
        futures = [made.add([Image.new("RGB", (40 + k, 40))], 0.5, None, encode)[0] for k in range(4)]
        deadline = time.monotonic() + 30
        while len(model.batches) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
        assert len(model.batches) == 2 and len(encoding) == 1 and not any(future.done() for future in futures)
        release.set()
        assert [future.result(30).masks.shape[-1] for future in futures] == [40, 41, 42, 43]
