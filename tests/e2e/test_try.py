"""A browser with the shipped SDK uses the shop of `replays-ingest try`, and the facts about the session match what
the browser did.

The session is recorded live; nothing in this file comes from a stored recording. `make live-sdks` makes the same
comparison for other versions of the SDK.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from ingest.local.launch import settings_of
from ingest.local.servers.processes import is_listening
from tests.kit.browser import CHROMIUM, needs_chromium
from tests.kit.paths import ROOT
from tools.pictures.running import run_try_command
from tools.sdks.comparing import Facts, compared, facts_of, sdk_version_of
from tools.sdks.driving import VIEWPORT_HEIGHT, VIEWPORT_WIDTH, PerformedActions, use_the_shop, watched

pytestmark = [pytest.mark.timeout(300), needs_chromium]
SDK_VERSION = json.loads((ROOT / "ingest/trial/static/vendor/VERSIONS.json").read_text())["@sentry/browser"]


def test_a_session_in_the_shop_is_recorded_and_watched_with_its_facts() -> None:
    """The recording's page opens once every sink has the recording, and shows the clicks, requests and errors that
    occurred in the session.

    Ctrl-C removes everything.
    """
    done = PerformedActions()
    with run_try_command() as trial, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": VIEWPORT_WIDTH, "height": VIEWPORT_HEIGHT})
        replay_id = watched(page, trial["link"], trial["replays"], done, use_the_shop)
        see_the_replay(page, done)

        settings = settings_of(trial["settings"])
        compare_facts(facts_of(settings, replay_id), done)
        assert sdk_version_of(settings, replay_id) == SDK_VERSION
        counts = page.request.get(f"{trial['shop']}/counts").json()
        assert counts["refused"] == {}
        assert counts["ignored_items"]["event"] == 1
        chromium.close()
        port = int(trial["shop"].rpartition(":")[2])
        assert is_listening(port)

    assert not Path(trial["directory"]).exists()
    assert not is_listening(port)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if trial["directory"] in read(path)]


def see_the_replay(page: Page, done: PerformedActions) -> None:
    """Asserts that the timeline has the session, every segment is durable, and the recording shows the shop."""
    page.locator("#marks [data-kind=rage_click]").wait_for()
    assert page.locator("#marks [data-kind=rage_click]").count() == 1
    assert re.search(r"clicks [5-7],", page.locator("#marks [data-kind=rage_click]").inner_text())
    assert set(page.locator("#segments tbody tr td:nth-child(8)").all_inner_texts()) <= {
        "every sink",
        "every sink (offset committed)",
    }
    assert page.locator("#marks [data-kind=error]").count() == 1
    network = page.locator("#marks [data-kind=network]").all_inner_texts()
    assert sum("/shop/" in text for text in network) == sum(done.statuses.values())
    assert page.locator("#segments tbody tr").count() >= 1
    page.locator(".replayer-wrapper iframe").wait_for()
    recorded = page.frames[-1]
    recorded.get_by_text("Kettle & Leaf").first.wait_for(state="attached")


def compare_facts(facts: Facts, done: PerformedActions) -> None:
    """Asserts that the facts in BigQuery match the actions performed on the page."""
    assert [found for found in compared(facts, done) if not found.is_accepted] == []
    assert done.statuses["POST", "/shop/checkout", 503] == 1
    assert done.navigation == ["/?page=cart"]
    assert [text.startswith("checkout failed") for _, text in done.console] == [True]
    (rage,) = [about for kind, about in facts if kind == "ui.rageClick"]
    assert (rage["id"], rage["testid"]) == ("coupon", "apply-coupon")
    assert any(kind == "memory" for kind, _ in facts)


def read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
