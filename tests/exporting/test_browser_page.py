"""The page that runs an exported model in a browser: the numbers of Python, offline, by mouse and by keyboard."""

from __future__ import annotations

import http.server
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import detrkit
from detrkit.data.image_processor import ImageProcessor
from detrkit.data.tools.shapes import write_shapes
from detrkit.exporting.browser import write_browser_page
from detrkit.exporting.browser.build import description
from detrkit.models.postprocess import PostProcessor
from detrkit.models.spec import ModelSpec
from detrkit.runtimes.metadata import ExportInfo
from detrkit.structures.classes import ClassList
from detrkit.structures.outputs import Outputs
from detrkit.structures.thresholds import ScoreThresholds
from detrkit.utils.errors import DetrkitError, SettingError
from detrkit.utils.pages import asset
from detrkit.utils.web_runtime import SCRIPT, WASM, WebRuntime
from helpers.browser import chromium, opened
from helpers.file_server import running

ROOT = Path(__file__).parents[2]
SCRIPTS = "".join(asset("detrkit.exporting.browser", name) for name in ("preprocess.js", "detections.js"))
# not by `wait_for_function`, which the policy of the page forbids
READY, DONE = "#main:not([hidden])", "#png:not([disabled])"
SLOW = 120_000  # ms: 14 MB of WebAssembly are compiled
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\">"


def info(**changes):
    values = {
        **{"detrkit": "0", "format": "onnx", "inputs": ("images", "padding_mask"), "outputs": ("logits", "boxes")},
        **{"least_side": 17, "largest_side": None, "fixed": None, "batch": None, "num_queries": 20},
        **{"num_select": None, "activation": "softmax", "threshold": 0.5, "source": "", "sha256": ""},
    }
    return ExportInfo(**{**values, **changes})


@pytest.fixture
def runtime(tmp_path):
    """A folder that looks like npm's package, with files that are none."""
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    (dist / SCRIPT).write_text("export {};\n")
    (dist / WASM).write_bytes(b"\0asm")
    (dist.parent / "package.json").write_text('{"version": "1.30.0"}')
    return dist.parent


def test_the_runtime_is_found_in_a_package_and_in_a_project(runtime, tmp_path):
    found = WebRuntime.find(runtime)
    assert (found.folder, found.version) == (runtime / "dist", "1.30.0")
    assert WebRuntime.find(str(runtime / "dist")).folder == runtime / "dist"
    modules = tmp_path / "project" / "node_modules"
    modules.mkdir(parents=True)
    runtime.rename(modules / "onnxruntime-web")
    assert WebRuntime.find(tmp_path / "project").version == "1.30.0"


def test_a_folder_without_the_runtime_says_how_to_get_it(tmp_path):
    with pytest.raises(DetrkitError, match="npm pack onnxruntime-web"):
        WebRuntime.find(tmp_path)


@pytest.mark.parametrize("address", ["http://example.org/dist", "https://example.org/d?x=1", "https://a b/", "https:x"])
def test_an_address_that_is_no_folder_is_refused(address):
    with pytest.raises(SettingError, match="the https address of a folder"):
        WebRuntime.find(address)


def test_the_description_has_what_detector_uses():
    classes = ClassList.contiguous({1: "cat", 2: "dog"})
    thresholds = ScoreThresholds(0.4, 0.8, {"dog": 0.3})
    spec = ModelSpec(
        "detr-r50", num_classes=2, classes=classes, training={"score_thresholds": thresholds.to_json()}, size=100
    )
    found = description(info(), spec, WebRuntime.find("https://cdn.example.org/ort@1.30.0/dist"), 5)
    assert (found["threshold"], found["thresholds"]) == (0.4, [0.4, 0.3])
    assert found["names"] == ["cat", "dog"] and found["maxSize"] == 1333 and found["masked"] and found["exact"]
    assert found["runtime"]["script"] == f"https://cdn.example.org/ort@1.30.0/dist/{SCRIPT}"
    assert description(info(num_select=300), spec, WebRuntime.find("https://a.b"), 5)["topK"] == 300


def test_a_page_needs_an_onnx_file(runtime, tmp_path):
    with pytest.raises(SettingError, match=r"a browser runs \.onnx files"):
        write_browser_page(tmp_path / "detr.xml", tmp_path / "page", runtime=runtime)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "detr.xml", "--page", "page", "--web-runtime", "package"], "let --out end with .onnx"),
        (["--out", "detr.onnx", "--page", "page"], "--web-runtime"),
        (["--out", "detr.onnx", "--web-runtime", "package"], "--page"),
        (["--out", "detr.onnx", "--page", "page", "--web-runtime", "nowhere"], "npm pack onnxruntime-web"),
        (["--out", "detr.onnx", "--page", "src", "--web-runtime", "package"], "exists already"),
    ],
)
def test_the_command_refuses_before_it_exports(runtime, tmp_path, monkeypatch, arguments, message):
    from detrkit.cli.export import Export

    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "file").touch()
    options = dict(zip([a[2:].replace("-", "_") for a in arguments[::2]], arguments[1::2], strict=True))
    paths = {name: Path(value) if name in ("out", "page") else value for name, value in options.items()}
    checkpoint = ROOT / "examples" / "tour" / "detr.safetensors"
    with pytest.raises(DetrkitError, match=message):
        Export(checkpoint=str(checkpoint), **paths).check()


# in the browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as running_browser:
        yield running_browser


@pytest.fixture(scope="module")
def blank(browser):
    """An empty page with the scripts that compute."""
    page = browser.new_page()
    page.add_script_tag(content=SCRIPTS)
    yield page
    page.close()


CASES = [
    (64, 48, 32, 60, False),
    (37, 91, 64, 100, False),
    (300, 200, 77, 90, False),
    (50, 50, 128, None, True),
    (240, 320, 144, 200, False),
    (30, 31, 30, 200, False),
    (33, 77, 20, 40, True),
    (400, 2, 144, 60, False),
]


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "size", "max_size", "square"), CASES)
def test_the_input_is_that_of_image_processor_to_the_bit(blank, height, width, size, max_size, square):
    rng = np.random.default_rng(height)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    processor = ImageProcessor(size=size, max_size=max_size, square=square)
    batch = processor([image])
    alpha = np.full((height, width, 1), 255, np.uint8)
    model = {
        **{"size": size, "maxSize": max_size, "square": square, "mean": processor.mean, "std": processor.std},
        **{"fixed": None, "batch": None, "masked": True, "exact": True, "leastSide": 1, "largestSide": None},
    }
    found = blank.evaluate(
        """([model, pixels, height, width]) => {
          const input = prepared(model, Uint8ClampedArray.from(pixels), height, width);
          return {...input, images: Array.from(input.images), mask: Array.from(input.mask)};
        }""",
        [model, np.concatenate([image, alpha], -1).ravel().tolist(), height, width],
    )
    assert (found["height"], found["width"]) == batch.sizes[0]
    assert np.array_equal(np.array(found["images"], np.float32), batch.images.numpy().ravel())
    assert not any(found["mask"])


@pytest.mark.slow
def test_sizes_are_those_of_the_resize_rule(blank):
    rng = np.random.default_rng(0)
    cases = [[int(v) for v in rng.integers(1, 3000, 2)] for _ in range(500)]
    for size, max_size in ((800, 1333), (97, 160), (33, 34), (144, None)):
        found = blank.evaluate(
            "([cases, model]) => cases.map(([h, w]) => inputSize(h, w, model))",
            [cases, {"size": size, "maxSize": max_size, "square": False}],
        )
        expected = [list(ImageProcessor(size=size, max_size=max_size).input_size(h, w)) for h, w in cases]
        assert found == expected


@pytest.mark.slow
def test_a_small_image_is_padded_as_the_model_asks(blank):
    model = {
        **{"size": 8, "maxSize": 20, "square": False, "mean": [0, 0, 0], "std": [1, 1, 1]},
        **{"fixed": None, "batch": 2, "masked": True, "exact": True, "leastSide": 12, "largestSide": None},
    }
    found = blank.evaluate(
        "(model) => { const i = prepared(model, new Uint8ClampedArray(8 * 10 * 4).fill(255), 8, 10);"
        "return [i.height, i.width, Array.from(i.mask), Array.from(i.images)]; }",
        model,
    )
    mask = np.array(found[2]).reshape(2, 12, 12)
    images = np.array(found[3]).reshape(2, 3, 12, 12)
    assert found[:2] == [12, 12] and not mask[:, :8, :10].any() and mask[:, 8:].all() and mask[:, :, 10:].all()
    assert (images[:, :, :8, :10] == 1).all() and images.sum() == 2 * 3 * 80


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_detections_are_those_of_the_postprocessor(blank, activation):
    generator = torch.Generator().manual_seed(1)
    logits, boxes = torch.randn(1, 30, 6, generator=generator) * 3, torch.rand(1, 30, 4, generator=generator)
    expected = PostProcessor(activation=activation, top_k=100).detections(Outputs(logits, boxes), [(480, 640)])[0]
    order = expected.scores.argsort(descending=True)
    found = blank.evaluate(
        """([model, logits, boxes]) => (
          detectionsOf(model, Float32Array.from(logits), 6, Float32Array.from(boxes), 480, 640))""",
        [
            {"activation": activation, "numQueries": 30, "topK": 100, "names": None},
            logits.ravel().tolist(),
            boxes.ravel().tolist(),
        ],
    )
    assert [one["label"] for one in found] == expected.labels[order].tolist()
    assert torch.tensor([one["score"] for one in found]).allclose(expected.scores[order], atol=1e-6)
    assert torch.tensor([one["box"] for one in found]).allclose(expected.boxes[order], atol=1e-3)


@pytest.fixture(scope="module")
def page_files(tmp_path_factory):
    """A trained DETR's page on a server, an image of a photograph's size, and the detector of the exported file."""
    package = os.environ.get("DETRKIT_ORT_WEB")
    if not package:
        pytest.skip("needs onnxruntime-web: npm pack it, unpack it and name the folder in DETRKIT_ORT_WEB")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("browser")
    ready = os.environ.get("DETRKIT_TEST_ONNX")  # exporting takes a while
    onnx = Path(ready) if ready else folder / "detr.onnx"
    if not ready:
        detrkit.export(ROOT / "examples" / "tour" / "detr.safetensors", onnx, timing=False)
    write_browser_page(onnx, folder / "page", runtime=package)
    write_shapes(folder / "shapes", images={"train": 0, "val": 1}, sides=(480, 640), seed=3)
    image = next((folder / "shapes").rglob("*.jpg"))
    handler = partial(_Quiet, directory=folder / "page")
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}/", image, detrkit.load(onnx), folder


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def visit(browser, address, **options):
    return opened(browser, address, allowed=lambda url: url.startswith(address), **options)


def detect(page, image):
    page.wait_for_selector(READY, timeout=SLOW)
    page.set_input_files("#file", image)
    page.wait_for_selector(DONE, timeout=SLOW)


@pytest.mark.slow
def test_detections_in_the_browser_are_those_of_detector(browser, page_files, tmp_path):
    address, image, detector, _ = page_files
    with visit(browser, address) as page:
        detect(page, image)
        found = page.evaluate("detrkitPage.all()")
        everything = detector.predict(Image.open(image), threshold=0.0)
        order = everything.scores.argsort(descending=True)
        assert len(found) == len(everything)
        best = everything.scores > 0.01  # below, equal scores may change places
        scores = torch.tensor([one["score"] for one in found])[: int(best.sum())]
        boxes = torch.tensor([one["box"] for one in found])[: int(best.sum())]
        assert (scores - everything.scores[order][best[order]]).abs().max() < 1e-3
        assert (boxes - everything.boxes[order][best[order]]).abs().max() < 1

        shown = page.evaluate("detrkitPage.numbers()")
        predicted = detector.predict(Image.open(image))  # by the thresholds that the checkpoint suggests
        assert len(predicted) > 0
        order = predicted.scores.argsort(descending=True).tolist()
        assert [one["name"] for one in shown["detections"]] == [predicted.names[i] for i in order]
        assert page.locator("#rows tr").count() == len(predicted)
        with page.expect_download() as download:
            page.click("#json")
        download.value.save_as(tmp_path / "detections.json")
        assert json.loads((tmp_path / "detections.json").read_text()) == shown
        with page.expect_download() as download:
            page.click("#png")
        download.value.save_as(tmp_path / "detections.png")
        assert Image.open(tmp_path / "detections.png").size[0] == 1200
        if folder := os.environ.get("DETRKIT_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "browser-page.png", full_page=True)


@pytest.mark.slow
def test_the_page_works_offline_once_it_is_there(browser, page_files):
    address, image, _, _ = page_files
    with visit(browser, address) as page:
        page.wait_for_selector(READY, timeout=SLOW)
        page.context.set_offline(True)
        page.set_input_files("#file", image)
        page.wait_for_selector(DONE, timeout=SLOW)
        assert page.evaluate("detrkitPage.numbers().detections.length") > 0


@pytest.mark.slow
def test_keyboard_and_phone(browser, page_files):
    address, image, _, _ = page_files
    with visit(browser, address, width=390, height=844, dark=True) as page:
        detect(page, image)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.focus("#file")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "threshold"
        page.keyboard.press("Home")  # everything
        assert page.locator("#threshold-value").inner_text() == "0.00"
        count = page.locator("#rows tr").count()
        assert count == page.evaluate("detrkitPage.all().length")
        page.keyboard.press("End")
        assert page.locator("#rows tr").count() == 0 and "best one below" in page.locator("#caption").inner_text()
        page.keyboard.press("Tab")
        page.keyboard.press("Space")  # as suggested again
        assert page.locator("#rows tr").count() == len(page.evaluate("detrkitPage.numbers().detections"))
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
        assert page.evaluate("detrkitPage.view.chosen") == 0
        if folder := os.environ.get("DETRKIT_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / "browser-page-phone.png", full_page=True)


@pytest.mark.slow
def test_a_file_that_is_no_image_is_said_in_a_line(browser, page_files, tmp_path):
    address, image, _, _ = page_files
    (tmp_path / "notes.png").write_text("no image")
    with visit(browser, address) as page:
        page.wait_for_selector(READY, timeout=SLOW)
        page.set_input_files("#file", tmp_path / "notes.png")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.locator("#problem").inner_text() == "notes.png: this file is no image that the browser can read."
        detect(page, image)
        assert page.locator("#problem").is_hidden()


@pytest.mark.slow
def test_names_and_titles_cannot_become_markup(browser, page_files, tmp_path):
    _, image, _, folder = page_files
    onnx = pytest.importorskip("onnx")
    source = folder / "page" / "model.onnx"
    content = onnx.load(source)
    metadata = {entry.key: entry.value for entry in content.metadata_props}
    plain = json.loads(metadata["detrkit"])
    plain["classes"]["names"] = [HOSTILE + str(i) for i in range(5)]
    plain["training"] = {}
    metadata["detrkit"] = json.dumps(plain)
    onnx.helper.set_model_props(content, metadata)
    onnx.save(content, tmp_path / "hostile.onnx")
    write_browser_page(
        tmp_path / "hostile.onnx", tmp_path / "page", runtime=os.environ["DETRKIT_ORT_WEB"], title=HOSTILE
    )
    handler = partial(_Quiet, directory=tmp_path / "page")
    with running(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with visit(browser, address) as page:
            detect(page, image)
            assert page.title() == HOSTILE and page.locator("img").count() == 0
            assert HOSTILE in page.locator("#rows").inner_text()
