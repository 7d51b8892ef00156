"""Tests the operator's page and the list of replays in Chromium: desktop and phone layouts, keyboard shortcuts,
bulk actions.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from pydantic import SecretStr

from ingest.core import events as on
from ingest.local.servers.processes import Children
from ingest.local.servers.redis import Redis
from ingest.settings import Settings
from tests.kit.browser import browser, launched, needs_chromium
from tests.kit.library import Library
from tests.kit.operator_system import OperatorSystem
from tests.kit.web_pages import START_SECONDS_MAX, running

pytestmark = needs_chromium
LONG = (
    "rows/clickhouse/0: "
    + "a-very-long-word-without-any-space-" * 8
    + "<img src=x onerror=\"document.title='x'\">"
)
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter((one) => one.getBoundingClientRect().right > innerWidth + 1)
    .map((one) => one.tagName + "." + one.className)"""


LOGIN = {"username": "ann", "password": "a-long-password"}
OF_THE_STATE = ("alerts", "trend", "flow", "parked", "sinks", "workers", "flights", "partitions", "deeds")


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with launched() as opened:
        yield opened


@pytest.fixture
def page(operator_system: OperatorSystem, chromium: Browser) -> Iterator[Page]:
    """The operator's page, with two parked batches and a dead letter."""
    operator_system.park(0, 2, LONG)
    operator_system.park(2, 3)
    operator_system.add_dead_letter(3, "kept_for_the_browser")
    operator_system.add_dead_letter(4, "kept_for_the_browser")
    with running(operator_system.settings) as announced:
        address, _ = announced.get(timeout=START_SECONDS_MAX)
        opened = chromium.new_context(base_url=address, http_credentials=LOGIN).new_page()
        opened.set_default_timeout(30_000)
        opened.goto("/operate")
        opened.locator("#letters tbody tr").first.wait_for()
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (390, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_window(page: Page, width: int, scheme: str) -> None:
    """On a desktop and on a phone, nothing is wider than the window, and untrusted text is not interpreted as
    HTML.
    """
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.set_viewport_size({"width": width, "height": 900})

    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width < 600:
        assert page.evaluate(TOO_WIDE) == []
    expect(page.locator("#parked")).to_contain_text("<img src=x onerror=")
    assert page.title() == "Operate"


def test_selected_batches_are_retried_with_a_reason(page: Page, operator_system: OperatorSystem) -> None:
    """When selected batches are retried, the audit trail on the page contains the reason.

    Each alert links to its runbook section.
    """
    page.get_by_label("select all parked batches").check()
    page.get_by_placeholder("for the audit trail").fill("it is back")
    page.get_by_role("button", name="Retry selected").click()

    expect(page.locator("#notices")).to_contain_text("2 batches: the readers were asked to retry.")
    expect(page.locator("#deeds")).to_contain_text("reason it is back")
    asked = {type(operator_system.next_event()) for _ in range(2)}
    assert asked == {on.RetryRequested}
    page.get_by_role("link", name="Runbook: ReplaysBatchParked").click()
    expect(page.locator("#replaysbatchparked")).to_be_in_viewport()


def test_dead_letters_are_selected_and_filtered_with_keys(page: Page) -> None:
    """`/` moves the focus to the filter, and selecting all dead letters enables the button.

    The plots and the flow diagram are drawn.
    """
    page.keyboard.press("/")
    page.keyboard.type("message 4")
    page.keyboard.press("Enter")
    expect(page.locator("#letters tbody tr td.content", has_text="message 3")).to_have_count(0)
    expect(page.locator("#letters tbody tr td.content").last).to_have_text("message 4")
    page.get_by_label("select all shown dead letters").check()
    expect(page.locator("#replay-letters")).to_be_enabled()

    expect(page.locator("#trend svg")).to_have_count(3)
    expect(page.locator("#flow")).to_contain_text("bottleneck")
    page.keyboard.press("Tab")
    page.locator("h2").first.click()
    page.keyboard.press("p")
    expect(page.locator("#refreshing")).not_to_be_checked()


def test_pages_work_at_an_address_with_a_password(library: Library, chromium: Browser) -> None:
    """Every page works if it is opened as `http://user:password@host`: browsers refuse requests to such addresses,
    so pages must not request relative paths.
    """
    guarded = library.settings.model_copy(update={"flower_basic_auth": SecretStr("ann:a-long-password")})
    with running(guarded) as announced:
        address, _ = announced.get(timeout=START_SECONDS_MAX)
        place = address.replace("http://", "http://ann:a-long-password@")
        page = chromium.new_context().new_page()
        page.set_default_timeout(30_000)

        page.goto(f"{place}/operate")
        expect(page.locator("#at")).to_contain_text("signed in as ann", timeout=30_000)
        page.goto(f"{place}/")
        first = page.locator("#replays tbody a").first
        first.wait_for()
        page.goto(place + str(first.get_attribute("href")))
        expect(page.locator("#stage")).not_to_have_text("loading", timeout=30_000)
        assert page.locator("#notices .error").count() == 0


@pytest.mark.parametrize(
    ("fault", "parts", "why"),
    [
        ({"redis_url": SecretStr("redis://127.0.0.1:1/0")}, OF_THE_STATE, "Unknown: redis: does not respond"),
        ({"kafka_brokers": "127.0.0.1:1", "sink_timeout_seconds": 1.0}, ("letters",), "Unknown: "),
    ],
    ids=["redis", "kafka"],
)
def test_parts_that_cannot_be_read_are_unknown(
    operator_settings: Settings, chromium: Browser, fault: dict[str, object], parts: tuple[str, ...], why: str
) -> None:
    """If a server is unavailable, each part of the page that needs it is shown as unknown, with the cause: never
    as loading, and never as empty.
    """
    with running(operator_settings.model_copy(update=fault)) as announced:
        address, _ = announced.get(timeout=START_SECONDS_MAX)
        page = chromium.new_context(base_url=address, http_credentials=LOGIN).new_page()
        page.goto("/operate")
        for part in parts:
            expect(page.locator(f"#{part}")).to_contain_text(why, timeout=30_000)
        for part in ("flow", "parked", "letters"):
            expect(page.locator(f"#{part}")).not_to_have_text("loading", timeout=30_000)


def test_the_page_recovers_with_redis(
    operator_settings: Settings, chromium: Browser, children: Children, tmp_path: Path
) -> None:
    """When Redis responds again, every part of the page has its content again, and the error disappears."""
    redis = Redis(children, tmp_path / "redis")
    redis.start()
    with running(operator_settings.model_copy(update={"redis_url": SecretStr(redis.address)})) as announced:
        address, _ = announced.get(timeout=START_SECONDS_MAX)
        page = chromium.new_context(base_url=address, http_credentials=LOGIN).new_page()
        page.goto("/operate")
        expect(page.locator("#parked")).to_have_text("Nothing is parked.", timeout=30_000)

        redis.child.kill()
        expect(page.locator("#parked")).to_contain_text("Unknown: redis: ", timeout=30_000)
        expect(page.locator("#notices")).to_contain_text("redis: ")

        redis.restart()
        expect(page.locator("#parked")).to_have_text("Nothing is parked.", timeout=30_000)
        expect(page.locator("#trend svg")).to_have_count(3, timeout=30_000)
        expect(page.locator("#notices")).to_be_empty()


def test_the_lag_is_unknown_without_a_reader(
    operator_settings: Settings, chromium: Browser, fresh_name: Any
) -> None:
    """Until a reader has reported, the page shows the lag as unknown, and not as 0."""
    with running(operator_settings.model_copy(update={"key_prefix": fresh_name("nobody")})) as announced:
        address, _ = announced.get(timeout=START_SECONDS_MAX)
        page = chromium.new_context(base_url=address, http_credentials=LOGIN).new_page()
        page.goto("/operate")

        expect(page.locator("#flow")).to_contain_text("lag unknown", timeout=30_000)


def test_the_list_fits_and_has_a_total(library: Library) -> None:
    """The list fits into a window that is 1,400 or 390 pixels wide, and shows the total and the sort column."""
    with browser(library.settings) as page:
        page.goto("/")
        page.locator("#replays tbody tr").first.wait_for()
        for width in (1400, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate(TOO_WIDE) == []
        rows = page.locator("#replays tbody tr").count()
        expect(page.locator("#total")).to_have_text(f"{rows} of {rows} replays, latest end first")
        page.set_viewport_size({"width": 1400, "height": 900})
        expect(page.get_by_role("columnheader", name="ended (UTC)")).to_be_visible()


def test_an_unknown_replay_is_named(library: Library) -> None:
    """For an unknown replay, the page shows an error instead of loading forever."""
    with browser(library.settings) as page:
        page.goto(f"/replay/7/{'e' * 32}")
        expect(page.locator("#notices")).to_contain_text("no replay")
        expect(page.locator("#stage")).to_have_text("Nothing to play.")
