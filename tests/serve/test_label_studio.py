"""Label Studio's protocol: setup, health, and boxes of tasks in percent; no address is fetched, no other file read."""

from __future__ import annotations

import base64

import pytest

from helpers.explained import detector_of
from helpers.serving import encoded, painted, served

CONFIG = """<View>
  <Header value="Boxes, please"/>
  <Image name="img" value="$photo" zoom="true"/>
  <RectangleLabels name="rect" toName="img">
    <Label value="Cat"/><Label value="Hound" predicted_values="wolf, Dog"/>
  </RectangleLabels>
</View>"""


@pytest.fixture(scope="module")
def detector():
    return detector_of("detr-r50", size=64)


@pytest.fixture(scope="module")
def image():
    return painted(96, 60, 1)


def tasks(*photos, config=CONFIG):
    """The body of a request as Label Studio sends it, with fields that the service does not need."""
    return {
        "tasks": [
            {"id": i, "data": {"photo": photo, "text": "..."}, "annotations": []} for i, photo in enumerate(photos)
        ],
        "project": "1.1700000000",
        "label_config": config,
        "model_version": None,
        "params": {"login": None, "password": None, "context": None},
    }


def data_url(image):
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def test_boxes_of_tasks(detector, image):
    """As the boxes of `predict`, in percent of the image; classes under the labels that stand for them."""
    want = detector.predict([image, image], threshold=0.0)[0]  # the batch that the tasks make
    assert set(want.names) == {"dog"}

    async def ask(client):
        setup = await client.post(
            "/setup", json={"project": "1", "schema": CONFIG, "hostname": "http://x", "access_token": "t"}
        )
        health = await client.get("/health")
        answer = await client.post("/predict?threshold=0", json=tasks(data_url(image), data_url(image)))
        other = CONFIG.replace(", Dog", "")
        unlabeled = await client.post("/predict?threshold=0", json=tasks(data_url(image), config=other))
        return setup, health, answer, unlabeled

    setup, health, answer, unlabeled = served(detector, ask)
    assert health.json()["status"] == "UP"
    version = setup.json()["model_version"]
    assert version.startswith("detr-r50-") and answer.json()["model_version"] == version
    first, second = answer.json()["results"]
    assert first["model_version"] == version and len(second["result"]) == len(first["result"])
    assert len(first["result"]) == len(want) > 0
    assert unlabeled.json()["results"][0] == {"result": [], "score": 0.0, "model_version": version}
    for region, box, score in zip(first["result"], want.boxes.tolist(), want.scores.tolist(), strict=True):
        assert (region["from_name"], region["to_name"], region["type"]) == ("rect", "img", "rectanglelabels")
        assert (region["original_width"], region["original_height"], region["image_rotation"]) == (96, 60, 0)
        assert region["score"] == score and region["value"]["rectanglelabels"] == ["Hound"]
        value = region["value"]
        x, y = value["x"] * 0.96, value["y"] * 0.60
        got = [x, y, x + value["width"] * 0.96, y + value["height"] * 0.60]
        clipped = [min(max(v, 0), side) for v, side in zip(box, (96, 60, 96, 60), strict=True)]
        assert got == pytest.approx(clipped, abs=1e-6)
        assert all(0 <= value[key] <= 100 for key in ("x", "y", "width", "height")) and value["rotation"] == 0
    assert first["score"] == pytest.approx(float(want.scores.mean()))
    assert len({region["id"] for region in first["result"] + second["result"]}) == 2 * len(want)


def test_no_tasks_have_no_results(detector):
    response = served(detector, lambda client: client.post("/predict", json=tasks()))
    assert response.status_code == 200 and response.json()["results"] == []


def test_files_below_a_folder_that_the_operator_names(detector, image, tmp_path):
    root, outside = tmp_path / "files", tmp_path / "secret.png"
    (root / "upload" / "1").mkdir(parents=True)
    (root / "sub dir").mkdir()
    image.save(root / "sub dir" / "a.png")
    image.save(root / "upload" / "1" / "b.png")
    image.save(outside)
    (root / "link.png").symlink_to(outside)
    good = ["/data/local-files/?d=sub%20dir/a.png", "/data/upload/1/b.png"]
    bad = [
        "/data/local-files/?d=../secret.png", "/data/local-files/?d=%2e%2e/secret.png",
        f"/data/local-files/?d={outside}",
        "/data/local-files/?d=link.png", "/data/upload/../../secret.png", "/data/upload/%2e%2e/%2e%2e/secret.png",
        "/data/local-files/?d=missing.png", "/data/local-files/?d=sub%20dir", "/data/local-files/", "/etc/passwd",
        "http://127.0.0.1/data/upload/1/b.png", "http://169.254.169.254/", "//127.0.0.1/data/upload/1/b.png",
        "file:///etc/passwd", "s3://bucket/a.png", "", "/data/local-files/?d=a%00b", "/data/upload/" + "a" * 5000, "http://[",
    ]  # fmt: skip

    async def ask(client):
        both = await client.post("/predict?threshold=0", json=tasks(*good))
        inline = await client.post("/predict?threshold=0", json=tasks(data_url(image)))
        refused = [await client.post("/predict", json=tasks(good[0], address)) for address in bad]
        return both, inline, refused

    both, inline, refused = served(detector, ask, label_studio_files=root)
    (want,) = inline.json()["results"]
    values = [[region["value"] for region in one["result"]] for one in both.json()["results"]]
    assert len(values[0]) == len(want["result"]) > 0
    for got, region in zip(values[0], want["result"], strict=True):
        assert got["x"] == pytest.approx(region["value"]["x"], abs=1e-3)
    for address, response in zip(bad, refused, strict=True):
        assert response.status_code == 422 and response.json()["error"]["image"] == 1, address
        assert str(tmp_path) not in response.text


@pytest.mark.parametrize(
    "config",
    [
        "<View>", "", "<View><Image name='img' value='$photo'/></View>",
        "<View><RectangleLabels name='r' toName='img'/></View>",
        "<View><Image name='img' value='photo'/><RectangleLabels name='r' toName='img'/></View>",
        "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><View>&b;</View>",
        "<!DOCTYPE a [<!ENTITY b 'bbbbbbbbbb'><!ENTITY c '&b;&b;&b;&b;&b;&b;'>]><View>&c;</View>",
    ],
)  # fmt: skip
def test_configurations_without_a_place_for_boxes(detector, config):
    response = served(detector, lambda client: client.post("/predict", json=tasks(config=config)))
    assert response.status_code == 422 and response.json()["error"]["code"] == "label_config"


@pytest.mark.parametrize(
    "body",
    [
        {"tasks": 5, "label_config": ""},
        {"tasks": [{}], "label_config": CONFIG},
        {"tasks": []},
        {"tasks": [{"data": {}}], "label_config": CONFIG},
    ],
)
def test_requests_that_are_none(detector, body):
    response = served(detector, lambda client: client.post("/predict", json=body))
    assert response.status_code == 422


def test_more_tasks_than_are_taken_and_a_panoptic_model():
    panoptic = detector_of("detr-r50-panoptic", panoptic=True, size=64)

    async def ask(client):
        return await client.post("/predict", json=tasks(*["x"] * 20)), await client.post("/predict", json=tasks())

    many, one = served(panoptic, ask)
    assert many.json()["error"]["code"] == "too_many_images" and one.json()["error"]["code"] == "panoptic"
