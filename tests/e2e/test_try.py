"""`replays-ingest try`: a browser uses the shop with the shipped SDK, and the session has the facts of its use.

Recorded live: nothing in this file comes from a stored recording.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, Response, sync_playwright

from ingest.local.launch import settings_of
from ingest.local.servers.processes import is_listening
from ingest.settings import Settings
from tasks.sinks.bigquery.sink import client
from tasks.sinks.clickhouse.sink import client as clickhouse
from tests.kit.browser import CHROMIUM, needs_chromium
from tests.kit.paths import ROOT
from tools.pictures.running import trying

RAGE_CLICKS = 7
pytestmark = [pytest.mark.timeout(300), needs_chromium]
SDK_VERSION = json.loads((ROOT / "ingest/trial/static/vendor/VERSIONS.json").read_text())["@sentry/browser"]


@dataclass
class Done:
    """What the driver did in the page and what the browser's network saw, independently of the SDK."""

    clicks: Counter[str] = field(default_factory=Counter)
    statuses: Counter[tuple[str, str, int]] = field(default_factory=Counter)

    def watch(self, page: Page) -> None:
        """Counts the page's own requests by method, path and status."""
        page.on("response", self._response)

    def _response(self, answer: Response) -> None:
        path = re.sub(r"^http://[^/]+", "", answer.url)
        if path.startswith("/shop/"):
            self.statuses[answer.request.method, path, answer.status] += 1

    def click(self, page: Page, selector: str, times: int = 1) -> None:
        page.locator(selector).click(click_count=times, delay=20)
        self.clicks[selector] += times


def use_the_shop(page: Page, done: Done) -> None:
    """Adds to the cart, reads it, types, clicks in rage on what is broken, fails to check out, draws."""
    page.locator("#items button").first.wait_for()
    for tea in ("add-green", "add-pot", "add-green"):
        with page.expect_response("**/shop/cart"):
            done.click(page, f"[data-testid={tea}]")
        page.locator(f"[data-testid={tea}]:enabled").wait_for()
    box = page.locator("#gift").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 30, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 90, steps=12)
    page.mouse.up()
    done.clicks["#gift"] += 1
    done.click(page, "#nav-cart")
    page.locator("#name").press_sequentially("Ada")
    page.locator("#card").press_sequentially("4111")
    with page.expect_response("**/shop/checkout"):
        done.click(page, "#checkout")
    page.get_by_text("Something went wrong").wait_for()
    done.click(page, "#coupon", RAGE_CLICKS)  # any change of the page would be its reaction to these


def facts_of(settings: Settings, replay_id: str) -> list[tuple[str, dict[str, Any]]]:
    """Type and attributes of each fact in BigQuery."""
    connected = client(settings)
    try:
        rows = connected.query_and_wait(
            f"SELECT DISTINCT row_id, event_type, TO_JSON_STRING(attributes) AS attributes "
            f"FROM `{settings.bigquery_project}.{settings.bigquery_dataset}.replay_events` "
            f"WHERE replay_id = '{replay_id}'"
        )
        return [(row["event_type"], json.loads(row["attributes"])) for row in rows]
    finally:
        connected.close()  # type: ignore[no-untyped-call]


def sdk_version_of(settings: Settings) -> str:
    """The version of the only SDK that sent replays."""
    connected = clickhouse(settings)
    try:
        ((version,),) = connected.query(
            "SELECT DISTINCT sdk_version FROM replays WHERE sdk_name != ''"
        ).result_rows
        return str(version)
    finally:
        connected.close()


def test_a_session_in_the_shop_is_recorded_and_watched_with_its_facts() -> None:
    """The page of the recording opens once every sink has it; its clicks, requests and errors are those that were
    made. Ctrl-C removes everything.
    """
    done = Done()
    with trying() as trial, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        page.set_default_timeout(60_000)
        done.watch(page)
        page.goto(trial["link"])
        use_the_shop(page, done)
        page.locator("#watch").click()
        page.wait_for_url(re.compile(rf"^{re.escape(trial['replays'])}/replay/1/[0-9a-f]{{32}}"))
        replay_id = page.url.rpartition("/")[2]
        see_the_replay(page, done)

        settings = settings_of(trial["settings"])
        compare_facts(facts_of(settings, replay_id), done)
        assert sdk_version_of(settings) == SDK_VERSION
        counts = page.request.get(f"{trial['shop']}/counts").json()
        assert counts["refused"] == {}
        assert counts["ignored_items"]["event"] == 1
        chromium.close()
        port = int(trial["shop"].rpartition(":")[2])
        assert is_listening(port)

    assert not Path(trial["directory"]).exists()
    assert not is_listening(port)
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if trial["directory"] in read(path)]


def see_the_replay(page: Page, done: Done) -> None:
    """The timeline has the session, every segment is durable, and the recording shows the shop."""
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


def compare_facts(facts: list[tuple[str, dict[str, Any]]], done: Done) -> None:
    """Facts in BigQuery against what was done."""
    clicked = Counter(
        about["testid"] or about["id"] for kind, about in facts if kind in ("ui.click", "ui.slowClickDetected")
    )
    by_name = {re.sub(r"^(#|\[data-testid=)|\]$", "", name): count for name, count in done.clicks.items()}
    # The SDK sends repeated clicks on one element once per second, and their number with the rage click.
    assert 1 <= clicked["apply-coupon"] <= by_name.pop("coupon")
    by_name["watch"] = 1
    assert {name: clicked[name] for name in by_name} == by_name
    (rage,) = [about for kind, about in facts if kind == "ui.rageClick"]
    assert (rage["id"], rage["testid"]) == ("coupon", "apply-coupon")

    requests = Counter(
        (about["method"], re.sub(r"^http://[^/]+", "", about["url"]), int(about["status_code"]))
        for kind, about in facts
        if kind == "resource.fetch" and "/shop/" in about["url"]
    )
    assert requests == done.statuses
    assert requests["POST", "/shop/checkout", 503] == 1
    (console,) = [about for kind, about in facts if kind == "console" and about["level"] == "error"]
    assert console["message"].startswith("checkout failed")
    assert [re.sub(r"^.*\?", "?", about["to"]) for kind, about in facts if kind == "navigation"] == ["?page=cart"]
    assert any(kind == "ui.input" and "#name" in about["selector"] for kind, about in facts)
    assert any(kind == "memory" for kind, _ in facts)


def read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""
