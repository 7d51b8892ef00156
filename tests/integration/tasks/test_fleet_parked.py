"""Tests Flower's pages for parked batches in Chromium with a real worker: one action retries 500 batches."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, OffsetRange, Stage
from ingest.reader.dispatch import Dispatcher
from ingest.testing.runtime import PARTITION
from tasks.coordination import Coordination
from tests.kit.batches import batch_of, segment
from tests.kit.browser import launched, needs_chromium
from tests.kit.fleet import Fleet
from tests.kit.flower import PASSWORD, FlowerClient, running

pytestmark = needs_chromium
BATCHES = 500
HOSTILE = """rows/clickhouse/0: <img src=x onerror="document.title='x'"> '; <script>document.title='x'</script>"""


@pytest.fixture
def fleet_options() -> dict[str, str]:
    """Settings that admit all batches at once. Datadog and BigQuery are disabled, because they would only slow
    down the tests.
    """
    return {
        "IN_FLIGHT_BATCHES_MAX": str(BATCHES),
        "SINKS": "clickhouse,dead_letter",
        "FLUSH_DEADLINE_SECONDS": "120",
        "WORKER_PROCESSES": "2",
    }


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite3"


@pytest.fixture
def flower(fleet: Fleet, history: Path) -> FlowerClient:
    return running(fleet, REPLAYS_FLOWER_HISTORY_PATH=str(history))


@pytest.fixture
def chromium() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def page(chromium: Browser, flower: FlowerClient) -> Page:
    """A browser page that is logged in to Flower."""
    user, _, password = PASSWORD.partition(":")
    context = chromium.new_context(
        base_url=flower.address,
        viewport={"width": 1400, "height": 1000},
        http_credentials={"username": user, "password": password},
    )
    page = context.new_page()
    page.set_default_timeout(60_000)
    return page


def one(offset: int, blob: bool = False) -> Batch:
    """Returns a batch of one message."""
    return batch_of([segment(offset, blob=blob)], [], OffsetRange(offset, offset + 1), source=PARTITION)


def park(
    fleet: Fleet, dispatcher: Dispatcher, batches: list[Batch], error: str = "rows/clickhouse/0: timed out"
) -> None:
    """Parks the batches as their reader does."""
    coordination = Coordination(fleet.client, fleet.settings)
    for batch in batches:
        dispatcher.submit(do.Park(batch, Stage.ROWS, 3, error, 300.0))
    fleet.wait(lambda: {batch.id for batch in batches} <= set(coordination.parked()), "the batches to be parked")
    fleet.wait(lambda: "reader-1" in coordination.readers(), "the reader's heartbeat")


def test_one_action_retries_five_hundred_batches_which_then_settle(
    fleet: Fleet, flower: FlowerClient, page: Page
) -> None:
    """If 500 parked batches are all retried with a reason, each is written once, and none stays parked."""
    dispatcher = fleet.dispatcher()
    batches = [one(number) for number in range(BATCHES)]
    park(fleet, dispatcher, batches)
    page.goto("/parked")
    expect(page.locator("#counts")).to_contain_text("500 of 500 parked batches")
    expect(page.locator('input[name="batch_id"]')).to_have_count(BATCHES)

    page.locator("#select-shown").check()
    expect(page.locator("#count")).to_have_text("500")
    page.get_by_placeholder("For the audit trail").fill("clickhouse is back")
    page.locator("#retry").click()

    expect(page.locator("#result")).to_have_text("500 batches: the readers were asked to retry.")
    asked = {
        event.batch_id for event in (fleet.next_event() for _ in batches) if isinstance(event, on.RetryRequested)
    }
    assert asked == {batch.id for batch in batches}
    (action,) = Coordination(fleet.client, fleet.settings).audited()
    assert (action["what"], action["by"], action["reason"]) == ("retry", "operator", "clickhouse is back")
    assert (action["batches"], len(action["batch_id"].split(","))) == ("500", BATCHES)

    fleet.worker()
    fleet.settle_all(dispatcher, batches, deadline_seconds=120)
    for batch in batches:
        dispatcher.submit(do.Discard(batch))
    fleet.wait(lambda: not fleet.client.hlen("replays:parked"), "the batches to be settled")
    assert sorted(name for call in fleet.calls("clickhouse") for name in call["names"]) == sorted(
        f"click-{number}" for number in range(BATCHES)
    )
    page.goto("/parked")
    expect(page.locator(".parked-none")).to_have_text("Nothing is parked.")


def test_filters_select_what_all_means_and_outside_text_stays_text(
    fleet: Fleet, flower: FlowerClient, page: Page
) -> None:
    """If all batches that match a filter are retried, batches that do not match the filter stay parked.

    Scripts in a batch's error text do not run.
    """
    dispatcher = fleet.dispatcher()
    sick, other = one(0), one(1)
    park(fleet, dispatcher, [sick], HOSTILE)
    park(fleet, dispatcher, [other], "rows/dead_letter/0: no broker")
    page.goto("/parked")

    page.locator('select[name="sink"]').select_option("clickhouse")
    page.get_by_role("button", name="Filter").click()

    expect(page.locator("#counts")).to_contain_text("1 of 2 parked batches")
    expect(page.locator("td.error")).to_contain_text("<script>document.title='x'</script>")
    assert page.title() == "Parked batches · Flower"
    page.locator('input[name="scope"][value="all"]').check()
    page.get_by_placeholder("For the audit trail").fill("restarted it")
    page.locator("#retry").click()
    expect(page.locator("#result")).to_contain_text("1 batch: the readers were asked to retry.")
    assert fleet.next_event() == on.RetryRequested(sick.id)
    assert fleet.inbox.empty()


def test_a_batch_and_its_tasks_link_to_each_other_also_after_a_restart_of_flower(
    fleet: Fleet, flower: FlowerClient, page: Page
) -> None:
    """The page of a batch shows its chords, runs, offsets and operators' actions.

    After a restart, Flower restores the runs from its history.
    """
    fleet.script("clickhouse", "transient")
    dispatcher, batch = fleet.dispatcher(), one(7)
    fleet.worker()
    failed = fleet.settle(dispatcher, batch)
    assert isinstance(failed, on.FlushFailed)
    park(fleet, dispatcher, [batch], failed.error)
    path = "/batch/" + urllib.parse.quote(batch.id)
    fleet.wait(lambda: "FAILURE" in flower(path)[1], "flower to see the failure")
    flower.restart()

    page.goto("/parked")
    page.get_by_role("link", name=batch.id).click()
    expect(page.locator("#state")).to_contain_text("parked for")
    expect(page.locator("#facts")).to_contain_text("partition 0")
    expect(page.locator("#facts")).to_contain_text("settling it commits 8")
    expect(page.locator("#chords")).to_contain_text("clickhouse is away")
    expect(page.locator("#runs")).to_contain_text("rows, attempt 1")
    page.locator("#runs").get_by_role("link", name="rows/clickhouse/0").click()
    expect(page.locator("#retry-batch")).to_be_visible()
    page.locator("#batch-page").click()
    page.get_by_placeholder("For the audit trail").fill("it is back")
    page.locator("#retry").click()

    expect(page.locator("#actions")).to_contain_text("it is back")
    assert fleet.next_event() == on.RetryRequested(batch.id)


def test_an_action_needs_a_reason_a_login_and_our_own_page(fleet: Fleet, flower: FlowerClient) -> None:
    """An action without a reason, without a login, or from another site changes nothing; unknown values are named
    in the error.
    """
    batch = one(0)
    park(fleet, fleet.dispatcher(), [batch])
    form = {"action": "retry", "batch_id": batch.id, "reason": "why not"}

    def post(headers: dict[str, str] | None = None, password: str | None = PASSWORD, **changed: str) -> int:
        return flower("/parked", urllib.parse.urlencode({**form, **changed}), password, **(headers or {}))[0]

    assert post(password=None) == 401
    assert post({"Origin": "http://evil.example"}) == 403
    assert post({"Sec-Fetch-Site": "cross-site"}) == 403
    assert [post(reason=" "), post(action="erase"), post(sink="kitchen"), post(age="1")] == [400] * 4
    assert flower("/parked/static/parked.js", password=None)[0] == 401
    assert flower("/batch/none-0-0-1")[0] == 404
    assert fleet.inbox.empty()
    assert Coordination(fleet.client, fleet.settings).audited() == []
