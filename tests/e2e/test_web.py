"""Tests the pages in a real browser, on data ingested by a complete running system: users find a replay, play it,
and operate the system.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError, sync_playwright

from ingest.local.servers.fault_proxy import NoFault, Refuse
from ingest.local.servers.processes import free_port, is_listening
from tests.kit.stored_replays import message, recorded_session
from tests.kit.whole_system import System, until

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
LOGIN = ("op", "a-long-password")
LONG_BACKOFF = {"retry_backoff_seconds": "120", "retry_backoff_seconds_max": "600", "task_retries_max": "1"}
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine; Debian's package is called chromium"),
]


@contextmanager
def browser(system: System) -> Iterator[Page]:
    """Yields a headless Chromium page, signed in to this system's web server as an operator."""
    port = free_port()
    command = [sys.executable, "-m", "ingest.cli", "web", "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    system.stack.children.start("web", command, env=system.env, keep=True)
    until(lambda: is_listening(port), 60, "the web server")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = chromium.new_context(
            base_url=address,
            viewport={"width": 1400, "height": 1000},
            http_credentials={"username": LOGIN[0], "password": LOGIN[1]},
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        yield page
        chromium.close()


def changes_while_it_plays(page: Page) -> bool:
    """Returns whether the recorded page changes after play is pressed."""
    frame = page.locator(".replayer-wrapper")
    frame.wait_for()
    before = frame.screenshot()
    page.locator(".rr-controller__btns button").first.click()
    until(lambda: frame.screenshot() != before, 60, "the recorded page to change")
    return True


def test_a_rage_click_replay_is_found_and_played(tmp_path: Path) -> None:
    """A replay that is found by the filter for rage clicks can be played, and the rage click is marked on its
    timeline.
    """
    with System(tmp_path, flower_basic_auth=":".join(LOGIN)) as system:
        system.load(400)
        system.wait_until_committed()
        with browser(system) as page:
            page.goto("/")
            page.locator("tbody tr").first.wait_for()
            everything = page.locator("tbody tr").count()
            page.get_by_label("rage clicks").check()
            until(lambda: 0 < page.locator("tbody tr").count() < everything, 60, "the filter")
            page.locator("tbody a").first.click()

            assert changes_while_it_plays(page)
            mark = page.locator("#marks [data-kind=rage_click]").first
            mark.wait_for()
            assert page.locator("#ticks .rage_click").count() >= 1
            mark.click()
            page.locator("#marks [data-kind=rage_click].past").first.wait_for()


def test_a_recording_of_a_real_sdk_plays_and_a_missing_segment_is_named(tmp_path: Path) -> None:
    """A real recording can be played, whether it is complete or has a missing segment; a missing segment is
    named.
    """
    whole, holed = "a" * 32, "b" * 32
    with System(tmp_path, flower_basic_auth=":".join(LOGIN)) as system:
        for value in recorded_session(whole):
            system.send(value)
        for number, value in enumerate(recorded_session(holed)):
            if number != 2:
                system.send(value)
        system.wait_for_rows("replay_segments", 7)
        with browser(system) as page:
            page.goto(f"/replay/7/{whole}")
            assert changes_while_it_plays(page)
            assert page.get_by_text("is missing").count() == 0

            page.goto(f"/replay/7/{holed}")
            page.get_by_text("Segment 2 is missing").wait_for()
            assert changes_while_it_plays(page)


def test_an_operator_retries_a_batch_and_replays_a_dead_letter(tmp_path: Path) -> None:
    """If a signed-in operator retries a batch, the reader commits it; if the operator replays a dead letter, it is
    sent once.
    """
    with System(tmp_path, flower_basic_auth=":".join(LOGIN), **LONG_BACKOFF) as system:
        system.send(message("c" * 32, 0, b"this is no recording"))
        until(lambda: len(system.json("dlq", "ls")["letters"]) == 1, 90, "a dead letter")
        bad = system.json("dlq", "ls")["letters"][0]["id"]
        system.proxies["bigquery"].set(Refuse())
        system.load(40)
        until(lambda: len(system.json("batches", "ls")) >= 1, 90, "a batch to be parked")
        system.proxies["bigquery"].set(NoFault())
        until(lambda: system.breaker("bigquery") != "open", 60, "the breaker to half-open")
        with browser(system) as page:
            page.goto("/operate")

            def retry_all() -> bool:
                button = page.locator("#parked button", has_text="Retry").first
                with suppress(TimeoutError):  # An automatic retry may already have released the batch.
                    button.click(timeout=2_000)
                return system.lag() == 0

            until(retry_all, 90, "the reader to commit")
            letter = page.locator(f'#letters input[value="{bad}"]')
            letter.check()
            page.locator("#replay-letters").click()
            letter.wait_for(state="detached")

        assert any(letter["replayed"] for letter in system.json("dlq", "ls", "--replayed")["letters"])
        system.wait_until_committed()
