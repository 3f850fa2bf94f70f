"""The pages in a browser: built strictly, readable in both palettes and at phone width, searched without a network."""

from __future__ import annotations

import http.server
import subprocess
import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from helpers.browser import chromium, opened
from helpers.file_server import running
from test_docs import ROOT

pytestmark = pytest.mark.slow
LAPTOP, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
PALETTES = ("default", "slate")  # light and dark, in Material's words

# What a reader may stumble over in the page as it stands, one line each.
FAULTS = r"""
() => {
  const faults = [];
  const wide = document.documentElement.scrollWidth - window.innerWidth;
  if (wide > 0) faults.push(`${wide} pixels wider than the window`);
  for (const image of document.images) {
    if (!image.alt) faults.push(`no alt text: ${image.src}`);
    if (!image.naturalWidth) faults.push(`not shown: ${image.src}`);
  }
  for (const table of document.querySelectorAll('.md-content table')) {
    const scrolled = table.closest('.md-typeset__scrollwrap, .highlighttable, pre');
    if (!scrolled && table.getBoundingClientRect().right > window.innerWidth) faults.push('a table leaves the window');
  }
  return faults;
}
"""
# Text whose contrast with what lies behind it is below 4.5 (WCAG 2.2, 1.4.3), one line for each kind.
FAINT = r"""
() => {
  const channel = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const luminance = c => .2126 * channel(c[0]) + .7152 * channel(c[1]) + .0722 * channel(c[2]);
  const parsed = text => { const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number); return [r, g, b, a] };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.push(parsed(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
  };
  const faint = new Map();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = texts.nextNode();) {
    const e = node.parentElement;
    if (!node.data.trim() || !e.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
    const ground = behind(e), color = over(parsed(getComputedStyle(e).color), ground);
    const [high, low] = [luminance(color), luminance(ground)].sort((a, b) => b - a);
    const contrast = (high + .05) / (low + .05);
    const text = `${contrast.toFixed(2)}: ${node.data.trim().slice(0, 40)}`;
    if (contrast < 4.5) faint.set(`${e.tagName} ${e.className}`, text);
  }
  return [...faint].map(([kind, text]) => `${kind} ${text}`);
}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextmanager
def served(folder: Path):
    """The address of a folder's files on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    with running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}/"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The site, built as strictly as it can be: a warning is an error."""
    pytest.importorskip("mkdocs", reason="needs pip install '.[docs]'")
    pytest.importorskip("mkdocstrings", reason="needs pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def site(built):
    with served(built) as address:
        yield address


@contextmanager
def reader(browser, site, path="", **options):
    """A window on the site. What it asks of another machine, and what it reports as an error, fails the test."""
    with opened(browser, site + path, allowed=lambda address: address.startswith(site), **options) as page:
        yield page


def pages_of(nav) -> list[str]:
    """Every page of the navigation, in its order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def test_the_tour_the_tables_and_the_api_are_in_one_place(built):
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = pages_of(nav)
    assert len(pages) == len(set(pages))
    assert {"index.md", "tour.md", "explaining.md", "reproduce.md", "results/index.md", "api.md"} <= set(pages)
    for page in pages:
        folder = "" if page == "index.md" else page.removesuffix(".md").removesuffix("index")
        assert (built / folder / "index.html").is_file(), page


def test_every_page_is_readable_on_a_laptop_and_a_phone_in_both_palettes(built, site, browser):
    paths = sorted(p.parent.relative_to(built).as_posix() for p in built.rglob("index.html"))
    assert len(paths) > 20
    faults = []
    with reader(browser, site) as page:
        for path in paths:
            page.goto(site if path == "." else f"{site}{path}/")
            page.add_style_tag(content="* { transition: none !important }")  # a color on its way is no color
            for window in (LAPTOP, PHONE):
                page.set_viewport_size(window)
                where = f"{path} at {window['width']} pixels"
                faults += [f"{where}: {fault}" for fault in page.evaluate(FAULTS)]
                for palette in PALETTES:
                    page.evaluate("palette => document.body.setAttribute('data-md-color-scheme', palette)", palette)
                    faults += [f"{where}, {palette}: {text}" for text in page.evaluate(FAINT)]
    assert faults == [], "\n".join(faults)


def test_a_wide_table_scrolls_inside_itself_on_a_phone(site, browser):
    with reader(browser, site, "performance/", **PHONE) as page:
        inner, outer = page.evaluate(
            """() => {
                const wraps = [...document.querySelectorAll('.md-typeset__scrollwrap')];
                const widest = wraps.sort((a, b) => b.scrollWidth - a.scrollWidth)[0];
                widest.scrollLeft = 10000;
                return [widest.scrollLeft, document.documentElement.scrollWidth];
            }"""
        )
        assert inner > 50 and outer == PHONE["width"]


def test_faults_would_be_seen(site, browser):
    with reader(browser, site, **PHONE) as page:
        assert page.evaluate(FAULTS) == page.evaluate(FAINT) == []
        page.evaluate(
            """() => document.querySelector('.md-content__inner').insertAdjacentHTML('afterbegin',
                `<p style="color: #777; background: #fff" class="pale">gray</p><p style="width: 500px">wide</p>
                 <img src="data:image/png;base64,AAAA">`)"""
        )
        faults = page.evaluate(FAULTS)
        assert [fault.split(":")[0] for fault in faults[1:]] == ["no alt text", "not shown"]
        assert faults[0].endswith("pixels wider than the window")
        assert page.evaluate(FAINT) == ["P pale 4.48: gray"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_palette_follows_the_system_and_a_click_changes_and_keeps_it(site, browser, dark):
    with reader(browser, site, dark=dark, **LAPTOP) as page:
        palette = "() => [document.body.dataset.mdColorScheme, getComputedStyle(document.body).backgroundColor]"
        name, background = page.evaluate(palette)
        assert name == PALETTES[dark]
        page.locator("label[for^=__palette]:visible").click()
        other, changed = page.evaluate(palette)
        assert other == PALETTES[not dark] and changed != background
        page.goto(f"{site}faq/")
        assert page.evaluate(palette) == [other, changed]


@pytest.mark.parametrize(
    ("words", "page_found"), [("cross_attention", "api/"), ("lr_backbone", "training/"), ("--overfit", "training/")]
)
def test_search_finds_names_options_and_settings(site, browser, words, page_found):
    with reader(browser, site, **LAPTOP) as page:
        page.locator("input[name=query]").click()
        page.keyboard.type(words)
        results = page.locator(".md-search-result__link")
        results.first.wait_for()
        found = [link.get_attribute("href").removeprefix(site) for link in results.all()]
        sections = [link for link in found if link.startswith(page_found) and "#" in link]
        assert sections, found
        page.goto(site + sections[0])
        assert page.locator("mark").first.inner_text() in words


def test_a_phone_reaches_every_page_by_the_menu(site, browser):
    with reader(browser, site, **PHONE) as page:
        page.locator("label[for=__drawer]:visible").first.click()
        page.get_by_role("navigation", name="Navigation").get_by_text("For developers", exact=True).first.click()
        page.get_by_role("link", name="Python API", exact=True).first.click()
        page.wait_for_url("**/api/")
        assert page.locator("h1").first.is_visible()
