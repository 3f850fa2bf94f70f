"""Answers of the service are those of `Detector.predict`, to the bit, in every form of request."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detrkit.detector import Detector
from detrkit.serve.answers import Answer, weights_sha256
from helpers.explained import detector_of
from helpers.serving import assert_equal, encoded, painted, served

SIZES = [(96, 64), (70, 110), (64, 64), (128, 50), (33, 81)]  # width, height


@pytest.fixture(scope="module")
def detector():
    return detector_of("detr-r50", size=64)


@pytest.fixture(scope="module")
def images():
    return [painted(*size, seed=number) for number, size in enumerate(SIZES)]


def test_every_form_of_a_request_has_the_same_answer(detector, images):
    """Form, raw body and JSON, with the threshold in the address, the form or the document."""
    file = encoded(images[0], "JPEG", quality=90)
    want = detector.predict(file, threshold=0.3)
    text = base64.b64encode(file).decode()

    async def ask(client):
        raw = {"content": file, "headers": {"Content-Type": "image/jpeg"}}
        return [
            await client.post("/predict?threshold=0.3", **raw),
            await client.post("/predict?threshold=0.3", content=file),
            await client.post("/predict", files={"file": ("a.jpg", file)}, data={"threshold": "0.3"}),
            await client.post("/predict?threshold=0.3", files={"whatever": ("../../a", file, "text/plain")}),
            await client.post("/predict", json={"image": text, "threshold": 0.3}),
            await client.post("/predict?threshold=0.9", json={"images": [text], "threshold": 0.3}),
            await client.post("/predict", json={"image": f"data:image/jpeg;base64,{text}", "threshold": 0.3}),
            await client.post("/predict", json={"image": "\n".join([text[:60], text[60:]]), "threshold": 0.3}),
        ]

    responses = served(detector, ask)
    assert [response.status_code for response in responses] == [200] * len(responses)
    assert len({response.content for response in responses}) == 1
    whole = responses[0].json()
    Answer.model_validate(whole)
    assert whole["model"] == {"name": "detr-r50", "sha256": weights_sha256(detector.model)}
    (answer,) = whole["images"]
    assert answer["threshold"] == 0.3 and answer["left_out"] == 0 and answer["panoptic"] is None
    assert_equal(answer, want)


def test_several_images_of_a_request_are_those_of_a_batch(detector, images):
    """A request alone in the queue runs as the batch that `predict` makes of its images: equal to the bit."""
    want = detector.predict(images, threshold=0.0, batch_size=8)
    files = [("file", (f"{number}.png", encoded(image))) for number, image in enumerate(images)]
    response = served(detector, lambda client: client.post("/predict?threshold=0", files=files))
    for answer, result in zip(response.json()["images"], want, strict=True):
        assert_equal(answer, result)


def test_answers_of_waiting_requests_are_not_crossed(detector, images):
    """Forty requests at once, mixed sizes and thresholds; with max_batch=1 each is equal to the bit."""
    files = [encoded(image) for image in images]
    thresholds = [0.0, 0.2]
    want = {(i, t): detector.predict(image, threshold=t) for i, image in enumerate(images) for t in thresholds}

    async def ask(client):
        cases = [(i, t) for _ in range(4) for i in range(len(files)) for t in thresholds]
        posts = [client.post(f"/predict?threshold={t}", content=files[i]) for i, t in cases]
        responses = await asyncio.gather(*posts)
        metrics = (await client.get("/metrics")).text
        return cases, responses, metrics

    for max_batch in (1, 8):
        limits = {"max_batch": max_batch, "max_wait_ms": 400}
        cases, responses, metrics = served(detector, ask, limits=limits)
        for case, response in zip(cases, responses, strict=True):
            assert response.status_code == 200
            assert_equal(response.json()["images"][0], want[case], exact=max_batch == 1)
        batches = float(next(line for line in metrics.splitlines() if "batch_images_count" in line).split()[1])
        assert (batches == 40) if max_batch == 1 else (batches <= 20)  # images did share batches
        assert "detrkit_images_total 40.0" in metrics and "detrkit_waiting_images 0.0" in metrics


def test_a_model_whose_padding_leaks_runs_each_image_alone(images):
    leaky = detector_of("detr-r50", size=64, padding="official")
    want = [leaky.predict(image, threshold=0.0) for image in images]
    files = [("file", (f"{number}.png", encoded(image))) for number, image in enumerate(images)]
    response = served(leaky, lambda client: client.post("/predict?threshold=0", files=files), limits={"max_batch": 8})
    for answer, result in zip(response.json()["images"], want, strict=True):
        assert_equal(answer, result)


def test_the_limit_keeps_the_best(detector, images):
    want = detector.predict(images[0], threshold=0.0)
    response = served(detector, lambda client: client.post("/predict?threshold=0&limit=3", content=encoded(images[0])))
    (answer,) = response.json()["images"]
    assert answer["left_out"] == len(want) - 3
    assert_equal(answer, want.select(torch.arange(3)))


def test_a_rotated_photograph_has_boxes_of_the_upright_image(detector, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = encoded(images[0], "JPEG", exif=exif)
    want = detector.predict(file, threshold=0.0)
    response = served(detector, lambda client: client.post("/predict?threshold=0", content=file))
    (answer,) = response.json()["images"]
    assert (answer["width"], answer["height"]) == (64, 96)
    assert_equal(answer, want)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_format_that_is_taken(detector, images, form):
    image = images[0] if form != "PNG" else Image.fromarray(np.arange(64 * 96, dtype=np.uint16).reshape(64, 96))
    file = encoded(image.convert("P") if form == "GIF" else image, form)
    want = detector.predict(file, threshold=0.0)
    response = served(detector, lambda client: client.post("/predict?threshold=0", content=file))
    assert_equal(response.json()["images"][0], want)


def test_masks_are_run_lengths_that_pycocotools_reads():
    detector = detector_of("instance", size=64)
    image = painted(90, 60, 3)
    want = detector.predict(image, threshold=0.0)

    async def ask(client):
        file = encoded(image)
        return [await client.post(f"/predict?threshold=0{more}", content=file) for more in ("", "&masks=false")]

    with_masks, without = served(detector, ask)
    (answer,) = with_masks.json()["images"]
    assert_equal(answer, want)
    masks = np.stack([coco_mask.decode(entry["segmentation"]) for entry in answer["detections"]])
    assert np.array_equal(masks.astype(bool), want.masks.numpy()) and masks.any()
    assert all("segmentation" not in entry for entry in without.json()["images"][0]["detections"])


def test_a_panoptic_answer_is_the_map_and_its_segments():
    detector = detector_of("detr-r50-panoptic", panoptic=True, size=64, seed=2)
    image = painted(90, 60, 3)
    want = detector.predict(image, threshold=0.0)
    response = served(detector, lambda client: client.post("/predict?threshold=0", content=encoded(image)))
    Answer.model_validate(response.json())
    (answer,) = response.json()["images"]
    assert answer["detections"] is None and len(want.segments) > 0
    rgb = np.array(Image.open(BytesIO(base64.b64decode(answer["panoptic"]["png"]))), np.int64)
    assert np.array_equal(rgb @ [1, 256, 65536], want.id_map.numpy())
    got = [(s["id"], s["label"], s["score"], s["area"], s["kind"], s["query"]) for s in answer["panoptic"]["segments"]]
    kinds = ["thing" if s.thing else "stuff" for s in want.segments]
    assert got == [(s.id, s.label, s.score, s.area, k, s.query) for s, k in zip(want.segments, kinds, strict=True)]


def test_thresholds_of_the_checkpoint_are_the_default(detector, images):
    """One for each class where it suggests them; "auto" is refused where it does not."""
    names = detector.spec.classes.names
    own = dict(zip(names, (0.2, 0.5, 0.3), strict=True))
    suggested = {"score_thresholds": {"general": 0.3, "f1": 0.5, "classes": own}}
    spec = replace(detector.spec, training=suggested)
    suggesting = Detector(detector.model, spec, device="cpu")
    want = suggesting.predict(images[0])

    async def ask(client):
        file = encoded(images[0])
        return [await client.post(f"/predict{query}", content=file) for query in ("", "?threshold=auto")]

    default, auto = served(suggesting, ask)
    assert default.content == auto.content and default.json()["images"][0]["threshold"] == "auto"
    assert_equal(default.json()["images"][0], want)
    _, refused = served(detector, ask)
    assert refused.status_code == 422 and refused.json()["error"]["code"] == "invalid"


def test_explanations_are_the_page_or_its_numbers(detector, images):
    import detrkit
    from detrkit.explanation.numbers import explanation_numbers

    file = encoded(images[0])
    want = explanation_numbers(detrkit.explain(detector, file, threshold=0.3))

    async def ask(client):
        page = await client.post("/explain?threshold=0.3", content=file)
        numbers = await client.post("/explain?format=json", files={"file": file}, data={"threshold": "0.3"})
        small = await client.post("/explain?max_megabytes=0.2", content=encoded(painted(1500, 1500, 1)))
        two = await client.post("/explain", files=[("a", file), ("b", file)])
        return page, numbers, small, two

    page, numbers, small, two = served(detector, ask)
    assert page.headers["content-type"].startswith("text/html") and "Content-Security-Policy" in page.text
    assert page.headers["x-detrkit-model"] == weights_sha256(detector.model)
    assert numbers.json() == json.loads(json.dumps(want))
    assert small.status_code in (200, 422)
    assert two.status_code == 422 and two.json()["error"]["code"] == "too_many_images"


def test_a_tiled_detector_answers_in_tiles(detector):
    """Images of several requests, larger than a tile and not, share batches; `serve --tile` makes such a detector."""
    tiled = detector.tiled(48, 0.25)
    files = [encoded(painted(*size, seed=9), "PNG") for size in ((120, 60), (40, 44), (60, 130))]

    async def ask(client):
        return await asyncio.gather(*(client.post("/predict?threshold=0.3", content=file) for file in files))

    for response, file in zip(served(tiled, ask), files, strict=True):
        answer = response.json()["images"][0]
        assert_equal(answer, tiled.predict(file, threshold=0.3), exact=False)
        assert response.status_code == 200
