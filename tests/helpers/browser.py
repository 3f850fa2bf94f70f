"""Pages in Debian's chromium, driven by Playwright: offline, and without a single error in the console.

Start the browser with a module's own fixture (`with chromium() as browser: yield browser`, scope "module"), not for
the whole session: while Playwright runs, asyncio believes that a loop runs in this thread, and other tests need one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# tests may run as root, where chromium has no sandbox; the others keep it from calling home
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
TIMEOUT = 20_000  # ms, for slow cores


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser; skip the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'detrkit[test]'")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"needs a browser: none of {', '.join(names)} is on the path")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser,
    target: str | Path,
    *,
    width: int = 1280,
    height: int = 860,
    dark: bool = False,
    allowed: Callable[[str], bool] | None = None,
    **context: Any,
) -> Iterator[Page]:
    """Open a page; at the end fail if it asked for anything else or reported an error.

    Args:
        browser: from `chromium`.
        target: a file, or an address.
        width: of the window in pixels.
        height: of the window in pixels.
        dark: prefer the dark color scheme.
        allowed: tells of the address of a request whether it may be made; by default only the page itself.
        context: further options of Playwright's `new_context`, such as `has_touch`.
    """
    url = target.resolve().as_uri() if isinstance(target, Path) else target
    may = allowed or (lambda address: address.partition("#")[0] == url)
    requests: list[str] = []
    errors: list[str] = []

    def route(route: Any) -> None:
        address = route.request.url
        if address.startswith(("data:", "blob:")) or may(address):
            route.continue_()
        else:
            requests.append(address)
            route.abort()

    scheme = "dark" if dark else "light"
    opened_context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, accept_downloads=True, **context
    )
    opened_context.set_default_timeout(TIMEOUT)
    opened_context.route("**/*", route)
    page = opened_context.new_page()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    try:
        page.goto(url)
        yield page
        page.wait_for_timeout(50)  # so that a request or an error of the last action is seen
    finally:
        opened_context.close()
    assert not requests, f"the page asked for {requests}"
    assert not errors, f"the page reported {errors}"
