"""Reproduces the pages in `tests/recordings/pages` as they were at two points in time in each recording.

A page is served without an SDK, and the recorded actions up to the given point in time are performed on it again.
`facts.json` contains the times of the actions, and `MOMENTS` contains the code that performs the actions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

RECORDED = Path(__file__).parents[2] / "tests" / "recordings"
VIEWPORT: Any = {"width": 1024, "height": 768}
# A stub for the SDK: the pages call these functions, and nothing is recorded.
STUB = b"window.startSentry = () => {}; window.Sentry = new Proxy({}, { get: () => () => {} });"
# The canvas page draws ten times per second. Here, frames are drawn explicitly instead.
NO_TIMERS = "window.setInterval = () => 0;"
EMOJI = "family 👨‍👩‍👧 flag 🏳️‍🌈 astral 𝒳 lone? ok"
Act = Callable[[Page, int], None]


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time in a recording: its name, its offset in milliseconds from the recording's start, and the
    actions up to that point. `facts.json` contains the time of the start.

    The actions receive the page and the number of frames that the replayed page shows.
    """

    name: str
    after_ms: int
    act: Act = lambda page, frames: None


def _shop(page: Page, _: int) -> None:
    page.locator("#add").click(click_count=1)
    page.locator("#add").click()
    page.evaluate("text => (document.getElementById('emoji').textContent = text)", EMOJI)
    page.locator("#rage").hover()


def _dom(page: Page, _: int) -> None:
    page.locator("#sb").click()
    page.locator("#sb").click()
    page.frame_locator("#f1").locator("#fb").click()
    page.evaluate("() => { cssom(); changeAdopted(); }")


def _half(page: Page, _: int) -> None:
    page.locator("#half").click()


def _many(page: Page, _: int) -> None:
    page.locator("#half").click()
    page.evaluate("() => many(1500)")


def _frames(clicks: int) -> Act:
    def act(page: Page, frames: int) -> None:
        for _ in range(clicks):
            page.locator("#b").click()
        page.evaluate("count => { for (let i = 0; i < count; i++) draw(); }", frames)

    return act


MOMENTS: dict[str, tuple[Moment, Moment]] = {
    "v7-shop": (Moment("a", 3502), Moment("b", 35086, _shop)),
    "v11-shop": (Moment("a", 1508), Moment("b", 29565, _shop)),
    "v11-canvas": (Moment("a", 3795, _frames(0)), Moment("b", 7033, _frames(1))),
    "v11-dom": (Moment("a", 2450), Moment("b", 8872, _dom)),
    "v11-extra": (Moment("a", 2025, _half), Moment("b", 2550, _many)),
}


def facts(name: str) -> Any:
    """Returns the contents of a recording's facts.json."""
    return json.loads((RECORDED / name / "facts.json").read_bytes())


class _Pages(SimpleHTTPRequestHandler):
    """The pages, with the stub for the SDK."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, directory=str(RECORDED / "pages"), **options)

    def do_GET(self) -> None:
        if self.path != "/SDK.js":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript")
        self.end_headers()
        self.wfile.write(STUB)

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""


@contextmanager
def served() -> Iterator[str]:
    """Serves the pages on the loopback interface, and yields their address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def original(browser: Browser, address: str, name: str, moment: Moment, frames: int = 0) -> Iterator[Page]:
    """Yields the original page of a recording at a point in time. As in the player, files from other servers are
    not loaded.
    """
    page = browser.new_page(viewport=VIEWPORT)
    try:
        page.route(lambda url: not url.startswith((address, "data:", "about:")), lambda route: route.abort())
        if name == "v11-canvas":
            page.add_init_script(NO_TIMERS)
        page.goto(f"{address}{facts(name)['page']}")
        moment.act(page, frames)
        yield page
    finally:
        page.close()
