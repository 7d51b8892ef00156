"""Recordings made by real SDKs are rendered like the original pages: every element with its text, box and colors.

`python -m tools.pictures.sides DIRECTORY` takes screenshots for the same comparison.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Page

from ingest.settings import Settings
from tests.kit.browser import browser, needs_chromium
from tests.kit.recordings import RECORDINGS
from tests.kit.stored_replays import store_replays
from tools.pictures.originals import MOMENTS, original, served
from tools.pictures.sides import address_of, frames_shown, played
from tools.pictures.structure import differences, structure

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def page(separate_settings: Settings) -> Iterator[Page]:
    """A browser page with a signed-in user, after every recording has been stored."""
    for number, recorded in enumerate(RECORDINGS):
        store_replays(separate_settings, recorded.values, first_offset=5000 + 100 * number)
    with browser(separate_settings) as opened:
        opened.set_viewport_size({"width": 1560, "height": 1300})
        yield opened


@pytest.fixture(scope="module")
def originals() -> Iterator[str]:
    """The address of a server with the original pages."""
    with served() as address:
        yield address


@pytest.mark.parametrize("name", MOMENTS)
def test_a_recording_is_drawn_like_its_page_at_two_moments(page: Page, originals: str, name: str) -> None:
    """A recording looks like its page, except for content that the SDK masks or blocks and for files from other
    servers.

    Files from other servers are blocked both on the page and in the recording.
    """
    opened = page.context.browser
    assert opened is not None
    for moment in MOMENTS[name]:
        pages = page.evaluate("() => location.origin")
        frame = played(page, pages, address_of(name), name, moment)
        with original(opened, originals, name, moment, frames_shown(frame)) as there:
            now, before = structure(frame), structure(there.main_frame)
        assert differences(now, before) == []
        assert len(before) > 5
