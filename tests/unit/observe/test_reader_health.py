"""Tests the reader's probes: the reader is live while its loop runs, and ready while it can process messages."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from ingest.observe.health import Health, serve
from ingest.observe.stuck import StuckDetector, stacks
from ingest.settings import Settings
from tasks.observe.probe_server import Probes
from tests.kit.batches import reject
from tests.kit.observed_reader import Driver


class Reader:
    """A driver with probes; `silent_seconds` is the time since its loop last ran."""

    def __init__(self) -> None:
        self.driver = Driver(reject_window=10, reject_unattributed_ratio_max=0.1)
        self.silent_seconds = 0.0
        self.trouble: dict[str, str] = {}
        settings = Settings(http_port=0, loop_silent_seconds_max=60)
        self.probes: Probes = serve(
            Health(settings, self.driver.metrics, lambda: self.silent_seconds, lambda: self.trouble)
        )

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probes.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.probes.close()


def test_it_listens_on_loopback_by_default(reader: Reader):
    """By default the server listens on the loopback interface, so that metrics are not exposed to the network."""
    assert reader.probes.host == "127.0.0.1"


def test_a_running_loop_is_live_and_a_stuck_one_is_not(reader: Reader):
    """A reader is live while its loop runs; if the loop is stuck, the reader is not live, because only a restart
    helps.
    """
    assert reader.get("/livez") == (200, '{"ok":true,"checks":{"loop":""}}')

    reader.silent_seconds = 61.0

    status, body = reader.get("/livez")
    assert status == 503
    assert "61 s" in json.loads(body)["checks"]["loop"]


def test_a_reader_is_ready_once_it_has_partitions(reader: Reader):
    """A reader is not ready until it has partitions."""
    status, body = reader.get("/readyz")
    assert (status, json.loads(body)["checks"]["assignment"]) == (503, "no partition is assigned")

    reader.driver.assign()
    reader.driver.advance(1.0)

    assert reader.get("/readyz")[0] == 200


def test_a_dead_redis_is_no_reason_to_restart(reader: Reader):
    """Without Redis, a reader is not ready, but it stays live, because a restart would not help."""
    reader.driver.assign()
    reader.driver.advance(1.0)
    reader.trouble = {"redis": "connection refused"}

    assert reader.get("/readyz")[0] == 503
    assert reader.get("/livez")[0] == 200


def test_a_halted_reader_is_not_ready_and_reports_why(reader: Reader):
    """A reader that has halted after too many rejects is not ready, and reports the reason to operators."""
    reader.driver.assign()
    for offset in range(12):
        reader.driver.message(reject(offset))
    reader.driver.advance(1.0)

    status, body = reader.get("/readyz")
    assert status == 503
    assert "rejects" in json.loads(body)["checks"]["halted"]
    assert reader.driver.value("replays_reader_halted") == 1


def test_metrics_are_served_and_nothing_else_is(reader: Reader):
    """The server has three paths, and any other path returns 404."""
    status, body = reader.get("/metrics")
    assert status == 200
    assert "replays_reader_loop_turned_seconds 0.0" in body
    assert reader.get("/etc/passwd")[0] == 404


def test_a_stuck_loop_is_reported_once_with_every_stack():
    """A stuck loop is reported once, with the stacks of all threads, and again only if the loop has run in
    between.
    """
    silent = [0.0]
    reports: list[dict[str, list[str]]] = []
    detector = StuckDetector(lambda: silent[0], 10.0, reports.append)
    assert not detector.check()

    silent[0] = 11.0
    assert detector.check()
    assert detector.check()
    assert len(reports) == 1
    assert any("test_a_stuck_loop_is_reported_once" in call for stack in reports[0].values() for call in stack)

    silent[0] = 0.0
    assert not detector.check()
    silent[0] = 11.0
    assert detector.check()
    assert len(reports) == 2


def test_the_stacks_name_the_threads():
    """The reported stacks contain the names of the threads, so that an operator sees which thread runs the
    loop.
    """
    waiting, release = threading.Event(), threading.Event()

    def wait_here() -> None:
        waiting.set()
        release.wait(5)

    thread = threading.Thread(target=wait_here, name="the-loop")
    thread.start()
    waiting.wait(5)
    found = stacks()
    release.set()
    thread.join()

    (stack,) = [calls for name, calls in found.items() if name.startswith("the-loop-")]
    assert any("wait_here" in call for call in stack)
