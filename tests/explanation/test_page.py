"""The page in a browser: what it shows is what the explanation says, by mouse and by keyboard alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from PIL import Image

import detrkit
from detrkit.explanation.page import page_html
from detrkit.structures.classes import ClassList
from helpers.browser import chromium, opened
from helpers.datasets import picture
from helpers.explained import detector_of

pytestmark = pytest.mark.slow

# whose boxes overlap
SEEDS = {"detr-r50": 2, "deformable-detr-r50-two-stage": 0, "detr-r50-panoptic": 2, "rtdetrv2-r18": 0}
KINDS = tuple(SEEDS)
HEIGHT, WIDTH = 100, 140
HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
READY = "#main:not([hidden])"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """An explanation of each kind, and the file of its page, made once."""
    made = {}

    def of(kind):
        if kind not in made:
            detector = detector_of(kind, panoptic="panoptic" in kind, seed=SEEDS[kind])
            explanation = detrkit.explain(detector, picture(HEIGHT, WIDTH, 3), threshold=0.0)
            path = tmp_path_factory.mktemp("page") / f"{kind} #1?.html"  # signs that addresses escape
            made[kind] = explanation, explanation.save_page(path)
        return made[kind]

    return of


def shown(page):
    return page.evaluate("detrkitPage.numbers()")


def assert_map(got, want):
    """Equal within the steps of the quantization: 1/255 of the largest weight, finer below."""
    assert (got["height"], got["width"]) == tuple(want.shape)
    weights = torch.tensor(got["weights"]).view(want.shape)
    assert float((weights - want).abs().max()) <= float(want.max()) / 250
    assert float(weights.sum()) == pytest.approx(float(want.sum()), abs=0.01)


def assert_points(got, want, head):
    points, weights = want
    kept = slice(None) if head == "mean" else slice(head, head + 1)
    xy = torch.tensor([[point["x"], point["y"]] for point in got]).view(points[kept].shape)
    assert float((xy - points[kept]).abs().max()) < 0.05  # pixels
    heads, levels, count = weights[kept].shape
    given = torch.tensor([point["weight"] for point in got]).view(heads, levels, count)
    assert float((given - weights[kept]).abs().max()) < 0.02
    assert [point["level"] for point in got] == [
        level for _ in range(heads) for level in range(levels) for _ in range(count)
    ]
    assert {point["head"] for point in got} == (set(range(heads)) if head == "mean" else {head})


def assert_cross(page, explanation, i, layer, head):
    got = shown(page)
    assert got["view"]["kind"] == "cross-attention"
    assert (got["view"]["object"], got["view"]["layer"], got["view"]["head"]) == (i, layer, head)
    if explanation.deformable:
        assert_points(got["attention"]["points"], explanation.sampling_points(i, layer), head)
    else:
        assert_map(got["attention"]["map"], explanation.cross_attention(i, layer, head))
    described = {entry["number"]: entry for entry in got["detections"]}[i]
    assert described["attentionInside"] == pytest.approx(explanation.attention_inside(i, layer, head), abs=0.015)
    caption = page.inner_text("#caption")
    assert f"Cross-attention of object {i}, {explanation.detections.names[i]}, score" in caption
    assert f"query {int(explanation.queries[i])}" in caption and f"decoder layer {layer}" in caption
    assert f"{100 * described['attentionInside']:.1f} % of it lies inside the object's box" in caption


def assert_self(page, explanation, x, y, layer, head, level):
    got = shown(page)
    assert got["view"]["kind"] == "self-attention" and got["view"]["layer"] == layer
    if explanation.encoder_samples_points:
        want = explanation.encoder_points(x, y, layer, level=level)
        assert_points(got["attention"]["points"], want, head)
    else:
        want = explanation.self_attention(x, y, layer, head)
        assert got["view"]["cell"]["level"] == level and got["attention"]["points"] is None
        if explanation.deformable:  # the coarsest map's cells, which the explanation spreads over the finest
            want = coarse(want, explanation.maps.levels[-1])
        assert_map(got["attention"]["map"], want)


def coarse(spread, size):
    """Add up a map spread over finer cells: (h, w) of the coarse cells."""
    height, width = spread.shape
    rows, columns = (torch.arange(n) * m // n for n, m in zip((height, width), size, strict=True))
    cells = (rows[:, None] * size[1] + columns).flatten()
    counts = torch.zeros(size[0] * size[1]).index_add_(0, cells, torch.ones(height * width))
    total = torch.zeros(size[0] * size[1]).index_add_(0, cells, spread.flatten()) / counts
    return (total / total.sum()).view(size)


def first_level(explanation):
    """The level of the cell that the page asks first."""
    if not explanation.encoder_samples_points:
        return len(explanation.maps.levels) - 1
    return 1


def place_of_two(explanation):
    """A pixel in two boxes or more, near no edge, the smallest not chosen yet; and their objects, smallest first."""
    boxes = [[round(value, 2) for value in box] for box in explanation.detections.boxes.tolist()]

    def objects_at(x, y, margin):
        areas = [
            ((x2 - x1) * (y2 - y1), i)
            for i, (x1, y1, x2, y2) in enumerate(boxes)
            if x1 + margin <= x <= x2 - margin and y1 + margin <= y <= y2 - margin
        ]
        return [i for _, i in sorted(areas)]

    for x in range(5, WIDTH, 3):
        for y in range(5, HEIGHT, 3):
            order = objects_at(x, y, 0.3)
            if len(order) > 1 and order[0] != 0 and order == objects_at(x, y, -0.3):
                return (x, y), order
    raise AssertionError("no two boxes overlap")


@pytest.mark.parametrize("kind", KINDS)
def test_by_mouse(kind, explained, browser):
    explanation, path = explained(kind)
    last, inner = explanation.decoder_layers - 1, explanation.encoder_layers - 1
    with opened(browser, path) as page:
        page.wait_for_selector(READY)
        stage = page.locator("#stage")
        size = stage.bounding_box()

        def at(x, y):
            return {"x": x / WIDTH * size["width"], "y": y / HEIGHT * size["height"]}

        assert page.locator("#objects label").count() == len(explanation)
        assert_cross(page, explanation, 0, last, "mean")

        # a click on the picture chooses the smallest box there, another on the same place the next one
        (x, y), order = place_of_two(explanation)
        stage.click(position=at(x, y))
        assert_cross(page, explanation, order[0], last, "mean")
        stage.click(position=at(x, y))
        assert_cross(page, explanation, order[1], last, "mean")
        page.locator("#objects label").nth(1).click()
        assert_cross(page, explanation, 1, last, "mean")

        page.select_option("#layer", "0")
        page.select_option("#head", "2")
        assert_cross(page, explanation, 1, 0, 2)
        page.locator("#strip button").nth(1).click()
        assert_cross(page, explanation, 1, 1, 2)

        page.locator('input[value="pixel"]').check()
        stage.hover(position=at(33.0, 61.0))
        level = first_level(explanation)
        assert (
            page.locator("#form").is_visible()
            == page.locator("#level").is_visible()
            == (explanation.encoder_samples_points)
        )
        assert_self(page, explanation, 33.0, 61.0, inner, 2, level)
        stage.click(position=at(101.0, 20.0))
        page.mouse.move(0, 0)  # away: the clicked pixel stays
        assert_self(page, explanation, 101.0, 20.0, inner, 2, level)
        page.select_option("#head", "-1")
        page.select_option("#layer", "0")
        if explanation.encoder_samples_points:
            page.select_option("#level", "0")
            level = 0
        assert_self(page, explanation, 101.0, 20.0, 0, "mean", level)

        page.locator('input[value="all"]').check()
        assert f"Cross-attention of {len(explanation)} objects, each in its color" in page.inner_text("#caption")
        for box in ("boxes", "gray", "smooth", "root"):
            page.locator(f"#{box}").click()


@pytest.mark.parametrize("kind", KINDS)
def test_by_keyboard(kind, explained, browser):
    explanation, path = explained(kind)
    last = explanation.decoder_layers - 1
    with opened(browser, path, dark=True) as page:
        page.wait_for_selector(READY)

        def focus(identifier):
            for _ in range(40):
                page.keyboard.press("Tab")
                if page.evaluate("document.activeElement.id || document.activeElement.name") == identifier:
                    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline != "none" or identifier in ("object", "mode")  # these show it on their label
                    return
            raise AssertionError(f"Tab never reaches {identifier}")

        focus("stage")
        page.keyboard.press("ArrowRight")
        assert_cross(page, explanation, 1, last, "mean")
        page.keyboard.press("[")
        page.keyboard.press("}")
        assert_cross(page, explanation, 1, last - 1, 0)
        page.locator("#live", has_text="Cross-attention of object 1").wait_for(state="attached")

        page.keyboard.press("p")
        before = shown(page)["view"]["cell"]
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowDown")
        cell = shown(page)["view"]["cell"]
        assert (cell["row"], cell["column"]) == (before["row"] + 1, before["column"] - 1)
        assert_self(page, explanation, cell["x"], cell["y"], explanation.encoder_layers - 1, 0, cell["level"])
        page.keyboard.press("a")
        page.keyboard.press("o")

        focus("object")
        page.keyboard.press("ArrowDown")
        assert shown(page)["view"]["object"] == 2
        page.keyboard.press("Shift+Tab")  # back to the slider
        assert page.evaluate("document.activeElement.id") == "threshold"
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        threshold = float(page.input_value("#threshold"))
        count = int((explanation.detections.scores > threshold).sum())
        assert page.locator("#objects label").count() == count
        assert page.inner_text("#threshold-value") == f"{threshold:.2f}: {count} of {len(explanation)}"
        page.keyboard.press("End")
        assert page.locator("#objects label").count() == 0
        assert page.inner_text("#none") == "No object has a higher score."
        assert page.inner_text("#caption").startswith("No object has a score above the threshold.")


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind, explained, browser, tmp_path):
    explanation, path = explained(kind)
    with opened(browser, path, width=390, height=844) as page:
        page.wait_for_selector(READY)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390  # nothing is cut off on a phone
        with page.expect_download() as download:
            page.locator("#png").click()
        last = explanation.decoder_layers - 1
        assert download.value.suggested_filename == f"attention-object-0-layer-{last}-head-mean.png"
        download.value.save_as(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert image.width == 1200 and abs(image.height - 1200 * HEIGHT / WIDTH) <= 1
            assert len(image.convert("RGB").getcolors(2**24)) > 500
        with page.expect_download() as download:
            page.locator("#json").click()
        download.value.save_as(tmp_path / "a.json")
        numbers = json.loads((tmp_path / "a.json").read_text())
        assert numbers == shown(page)
    assert numbers["model"] == explanation.model_name and (numbers["width"], numbers["height"]) == (WIDTH, HEIGHT)
    for i, entry in enumerate(numbers["detections"]):
        assert entry["query"] == int(explanation.queries[i]) and entry["name"] == explanation.detections.names[i]
        assert entry["box"] == pytest.approx(explanation.detections.boxes[i].tolist(), abs=0.006)
        assert entry["layerScores"] == pytest.approx(explanation.layer_scores(i).tolist(), abs=6e-5)
        for box, want in zip(entry["layerBoxes"], explanation.layer_boxes(i).tolist(), strict=True):
            assert box == pytest.approx(want, abs=0.006)
        for box, want in zip(entry["references"], explanation.reference_boxes(i).tolist(), strict=True):
            assert box == pytest.approx(want, abs=0.006)
        proposal = explanation.proposal(i)
        if proposal is None:
            assert entry["proposal"] is None
        else:
            assert (entry["proposal"]["level"], entry["proposal"]["x"]) == (
                proposal.level,
                pytest.approx(proposal.x, abs=0.06),
            )


def test_segments_cover_what_their_masks_cover(explained, browser):
    explanation, path = explained("detr-r50-panoptic")
    with opened(browser, path) as page:
        page.wait_for_selector(READY)
        assert page.inner_text("#masks-label").strip() == "Segments"
        page.locator("#masks").check()
        page.locator("#gray").uncheck()
        assert explanation.panoptic is not None
        areas = page.evaluate("detrkitPage.maskAreas()")
    assert areas == [segment.area for segment in explanation.panoptic.segments]


def test_names_are_text(browser, tmp_path):
    detector = detector_of("detr-r50")
    names = (HOSTILE, "\u202eevil\x1b[31m", "dog & <b>cat</b>")
    detector.spec = dataclasses.replace(detector.spec, classes=ClassList(names, (1, 2, 3)))
    explanation = detrkit.explain(detector, picture(HEIGHT, WIDTH, 3), threshold=0.0)
    path = explanation.save_page(tmp_path / "a.html", title=HOSTILE)
    with opened(browser, path) as page:
        page.wait_for_selector(READY)
        assert page.title() == HOSTILE and page.inner_text("h1") == HOSTILE
        shown_names = set(page.locator("#objects .name").all_inner_texts())
        assert shown_names <= {HOSTILE, "\\u202eevil\\x1b[31m", names[2]} and len(shown_names) > 1
        assert page.locator("img").count() == 1 and page.locator("b").count() == 0


def test_scripts_that_are_not_the_page_s_own_do_not_run(explained, browser, tmp_path):
    """The content security policy knows the page's script by its hash, and lets nothing out."""
    text = page_html(explained("detr-r50")[0])
    (tmp_path / "a.html").write_text(text.replace("</main>", "</main><script>document.title='taken'</script>"))
    reported = pytest.raises(AssertionError, match=r"the page reported .*Content Security Policy")
    with reported, opened(browser, tmp_path / "a.html") as page:
        page.wait_for_selector(READY)
        assert page.title() != "taken"
    with reported, opened(browser, tmp_path / "a.html") as page:
        page.evaluate("fetch('https://example.com/').catch(() => 0)")


def test_no_detections(browser, tmp_path):
    detector = detector_of("deformable-detr-r50-two-stage")
    explanation = detrkit.explain(detector, picture(HEIGHT, WIDTH, 3), threshold=1.0)
    path = explanation.save_page(tmp_path / "a.html")
    with opened(browser, path) as page:
        page.wait_for_selector(READY)
        assert page.inner_text("#none").startswith("No object: nothing above 1; best score ")
        assert not page.locator("#threshold").is_visible()  # a slider "0.99: 0 of 0" says nothing
        assert page.locator('input[value="pixel"]').is_checked()
        assert "Self-attention of the encoder from the cell of level 1" in page.inner_text("#caption")


@pytest.mark.parametrize(("width", "height"), [(12, 6000), (6000, 12)])
def test_very_long_images(browser, tmp_path, width, height):
    """A canvas of more than some 65,000 pixels would stay empty, and its picture could not be saved."""
    explanation = detrkit.explain(detector_of("detr-r50"), Image.new("RGB", (width, height), "red"), threshold=0.0)
    path = explanation.save_page(tmp_path / "a.html")
    with opened(browser, path) as page:
        page.wait_for_selector(READY)
        sides = page.evaluate("[...document.querySelectorAll('canvas')].map((c) => Math.max(c.width, c.height))")
        assert max(sides) <= 8192
        heights = page.evaluate("[...document.querySelectorAll('#strip canvas')].map((c) => c.clientHeight)")
        assert max(heights) <= 300 and page.locator("#stage").bounding_box()["height"] <= 4 * 860
        with page.expect_download() as started:
            page.click("#png")
        started.value.save_as(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as saved:
        assert saved.width / saved.height == pytest.approx(width / height, rel=0.5) and max(saved.size) > 1000


def test_a_damaged_file_says_so(explained, browser, tmp_path):
    text = page_html(explained("detr-r50")[0])
    start = text.index('id="section-cross.0"')
    (tmp_path / "a.html").write_text(text[: start + 30] + text[start + 60 :])
    with pytest.raises(AssertionError, match="the page reported"), opened(browser, tmp_path / "a.html") as page:
        page.wait_for_selector("#problem:not([hidden])")
        assert page.inner_text("#problem").startswith("This page cannot be shown: ")
