"""A headless Chromium that opens the pages of a server in this process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from ingest.settings import Settings
from tests.kit.web_pages import running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="no chromium; Debian's package is called chromium")


@contextmanager
def launched() -> Iterator[Browser]:
    """A running Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@contextmanager
def browser(settings: Settings) -> Iterator[Page]:
    """Starts the web server, opens a browser page, and signs in with the link that the server printed."""
    with running(settings) as announced, launched() as chromium:
        address, link = announced.get(timeout=30)
        page = chromium.new_context(base_url=address, viewport={"width": 1400, "height": 1000}).new_page()
        page.set_default_timeout(30_000)
        page.goto(link)
        yield page
