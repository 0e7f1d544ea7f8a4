"""A real browser: the Chromium of this host without a window, which can reach nothing but 127.0.0.1."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
OPTIONS = (
    # Chromium's own sandbox needs a user other than root, or namespaces that containers seldom have.
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a profile of its own, which goes with it."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("there is no Chromium on this host: apt-get install chromium (as root, `make test` does it)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=found, args=list(OPTIONS))
        yield made
        made.close()


@dataclass
class Tab:
    """A page, and what it did: requests, and what it complained about."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def hear(self, said: ConsoleMessage) -> None:
        """Keep what the page, or the browser about it, complains about on its console."""
        if said.type in ("error", "warning"):
            self.complaints.append(f"{said.text} {said.location}")

    def blame(self, *excused: str) -> list[str]:
        """The complaints but for those that have one of these texts in them."""
        return [each for each in self.complaints if not any(text in each for text in excused)]

    def passes(self, milliseconds: float) -> bool:
        """True, after what the page does in this time: it does nothing while the test runs."""
        self.page.wait_for_timeout(milliseconds)
        return True

    def value_once(self, expression: str) -> Any:
        """What a JavaScript expression is, once that is true."""
        # As a function: a page's policy may forbid that a text is evaluated.
        return self.page.wait_for_function(f"() => ({expression})").json_value()


class Tabs:
    """Opens pages, each in a context of its own, and closes them."""

    def __init__(self, browser: Browser) -> None:
        self._browser = browser
        self._contexts: list[Any] = []

    def open(self, url: str = "", **context: Any) -> Tab:
        """A page at this address. ``context``: as for Playwright's ``new_context``."""
        made = self._browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **context})
        self._contexts.append(made)
        tab = Tab(made.new_page())
        tab.page.set_default_timeout(20_000)
        tab.page.on("request", lambda request: tab.requests.append(request.url))
        tab.page.on("console", tab.hear)
        tab.page.on("pageerror", lambda error: tab.complaints.append(str(error)))
        if url:
            tab.page.goto(url)
        return tab

    def close(self) -> None:
        for context in self._contexts:
            context.close()


@pytest.fixture
def tabs(browser: Browser) -> Iterator[Tabs]:
    """Opens pages that are closed after the test."""
    made = Tabs(browser)
    yield made
    made.close()
