"""Metrics are derived from events and commands, so they count only what happened."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message
from ingest.observe.heartbeat import HeartbeatSource, UnownedPartition
from ingest.observe.metrics import DEFINITIONS, Metrics
from ingest.settings import Settings
from ingest.testing.runtime import PARTITION
from tasks.observe.meters import Definition, Kind, Meters
from tests.kit.batches import reject, segment
from tests.kit.observed_reader import WALL_TIME, Driver


def settled_batch() -> Driver:
    """Simulates a batch of two messages that is cut by count, passes both stages, and is committed."""
    driver = Driver(batch_messages_max=2)
    driver.assign()
    driver.message()
    driver.now += 0.5
    driver.message()
    driver.acknowledge(0.1)
    driver.complete(0.2)
    driver.complete(0.4)
    driver.acknowledge(0.1)
    driver.advance(1.0)
    return driver


def test_every_metric_is_described():
    """Each metric has a unique name, a unit and a one-sentence description."""
    names = [definition.name for definition in DEFINITIONS]

    assert len(names) == len(set(names))
    for definition in DEFINITIONS:
        assert definition.unit
        assert definition.help.endswith((".", ")")), definition.name
        assert definition.name.startswith(("replays.reader.", "replays.recording_consumer."))


def test_a_settled_batch_is_counted():
    """A settled batch is counted once in the metrics for size, cut reason, stages and end-to-end latency."""
    driver = settled_batch()

    assert driver.value("replays_reader_batches_cut_total", reason="count") == 1
    assert driver.value("replays_recording_consumer_buffer_message_count_sum") == 2
    assert driver.value("replays_recording_consumer_buffer_size_in_bytes_sum") == 200
    assert driver.value("replays_recording_consumer_exceeded_max_message_count_total") == 1
    assert driver.value("replays_reader_batch_age_seconds_sum") == pytest.approx(0.5)
    assert driver.value("replays_reader_dispatches_total", stage="blobs", why="first") == 1
    assert driver.value("replays_reader_dispatches_total", stage="rows", why="first") == 1
    assert driver.value("replays_reader_stage_seconds_sum", stage="blobs") == pytest.approx(0.2)
    assert driver.value("replays_reader_stage_seconds_sum", stage="rows") == pytest.approx(0.4)
    assert driver.value("replays_reader_end_to_end_seconds_count") == 2
    assert driver.value("replays_reader_end_to_end_seconds_sum") == 6
    assert driver.value("replays_reader_batches_settled_total") == 1
    assert driver.value("replays_reader_messages_consumed_total", partition="0") == 2
    assert driver.value("replays_reader_commits_total", outcome="stored") == 2


def test_parking_and_retry_are_counted_apart_from_missed_deadlines():
    """After a failure a batch is parked and retried; after a missed deadline its chord is restarted."""
    driver = Driver(batch_messages_max=1, retry_backoff_seconds=5.0, flush_deadline_seconds=60.0)
    driver.assign()
    driver.message()
    driver.acknowledge()
    driver.fail_all()
    driver.advance(1.0)
    assert driver.value("replays_reader_in_flight_batches", phase="parked") == 1
    assert driver.value("replays_reader_stage_failures_total", stage="blobs") == 1
    assert driver.value("replays_reader_batches_parked_total") == 1
    assert (driver.value("replays_reader_parked_oldest_seconds") or 0) == pytest.approx(1.0)

    driver.advance(5.0)
    driver.take(do.Dispatch)  # No result arrives for this batch.
    driver.advance(61.0)

    assert driver.value("replays_reader_dispatches_total", stage="blobs", why="retry") == 1
    assert driver.value("replays_reader_dispatches_total", stage="blobs", why="deadline") == 1


def test_rejects_and_warnings_are_counted_by_their_stable_names():
    """A known reason has a series at zero before its first message."""
    driver = Driver()
    assert driver.value("replays_reader_rejects_total", reason="not_msgpack") == 0
    driver.assign()

    driver.message(reject(0))
    driver.message(segment(1, warnings=("events_not_json",)))
    driver.advance(1.0)

    assert driver.value("replays_reader_rejects_total", reason="not_msgpack") == 1
    assert driver.value("replays_reader_warnings_total", warning="events_not_json") == 1
    assert driver.value("replays_reader_messages_parsed_total", outcome="reject") == 1
    assert driver.value("replays_reader_messages_parsed_total", outcome="segment") == 1


def test_lag_is_the_uncommitted_messages_and_the_age_of_the_oldest():
    """The lag of a partition is its number of uncommitted messages and the age of the oldest uncommitted message.

    An idle partition has no lag, however old its last message is.
    """
    driver = Driver(batch_messages_max=100)
    driver.assign()
    driver.high = 10
    old = [Message(PARTITION, 1, 0, b"abc", timestamp_ms=int((WALL_TIME - 120) * 1000))]
    driver.metrics.polled(old)
    driver.message()
    driver.advance(1.0)
    assert driver.value("replays_reader_lag_messages", partition="0") == 10
    assert driver.value("replays_reader_lag_position_messages", partition="0") == 9
    assert driver.value("replays_reader_lag_seconds", partition="0") == pytest.approx(120)
    assert driver.value("replays_reader_bytes_consumed_total", partition="0") == 3

    driver.handle_event(on.PartitionsLost((PARTITION,)))
    driver.handle_event(on.PartitionsAssigned((on.Assignment(PARTITION, 2, 10),)))
    driver.advance(1.0)

    assert driver.value("replays_reader_lag_messages", partition="0") == 0
    assert driver.value("replays_reader_lag_seconds", partition="0") == 0


def test_a_revoked_partition_has_no_series():
    """A revoked partition has no lag series, because another reader now reports its lag."""
    driver = Driver()
    driver.assign()
    driver.advance(1.0)
    assert driver.value("replays_reader_lag_messages", partition="0") is not None

    driver.handle_event(on.PartitionsLost((PARTITION,)))
    driver.advance(1.0)

    assert driver.value("replays_reader_lag_messages", partition="0") is None
    assert driver.value("replays_reader_partitions_assigned") == 0
    assert driver.value("replays_reader_rebalances_total", kind="lost") == 1


def test_backpressure_is_timed():
    """Backpressure is measured as the seconds spent at an in-flight limit and the seconds paused."""
    driver = Driver(batch_messages_max=1, in_flight_batches_max=2, pause_after_seconds=0.5)
    driver.assign()
    driver.advance(0.0)
    for _ in range(2):
        driver.message()
    driver.advance(1.0)
    driver.advance(3.0)

    assert driver.value("replays_reader_paused") == 1
    assert (driver.value("replays_reader_paused_seconds_total") or 0) == pytest.approx(3.0)
    assert (driver.value("replays_reader_full_seconds_total") or 0) >= 3.0


def test_expired_messages_are_counted():
    """Messages that expire unread are counted."""
    driver = Driver()
    driver.committed[PARTITION] = 5
    driver.assign()

    driver.handle_event(on.OffsetOutOfRange(PARTITION, 2, wanted=5, resumed_at=105))

    assert driver.value("replays_reader_offsets_out_of_range_total", partition="0") == 1
    assert driver.value("replays_reader_messages_expired_total") == 100


def test_an_impossible_received_time_is_not_a_latency():
    """An impossible receive time, such as the year 5871 in a public example, is not counted as a latency."""
    driver = Driver(batch_messages_max=1)
    driver.assign()
    driver.message(segment(0, received=123123123123))
    driver.acknowledge()
    driver.complete()
    driver.complete()

    assert driver.value("replays_reader_end_to_end_seconds_count") == 0


def test_counting_a_message_is_cheap():
    """For each message, the observer reads the CPU clock once and calls `len` twice, and makes no other calls."""
    metrics = Metrics(Settings(), wall_clock=lambda: WALL_TIME)
    event = on.MessageParsed(PARTITION, 1, 0, segment(0))
    metrics.observe(event, [], 1.0)
    called: list[str] = []

    def note(frame: FrameType, what: str, function: Any) -> None:
        if what in ("call", "c_call"):
            called.append(frame.f_code.co_name if what == "call" else function.__name__)

    before = sys.getprofile()
    sys.setprofile(note)
    metrics.observe(event, [], 1.0)
    sys.setprofile(before)

    assert called == ["observe", "thread_time", "len", "len", "setprofile"]


class FakeAgent:
    """A server that receives DogStatsD packets, as a Datadog agent does."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, float, tuple[str, ...]]] = []

    def increment(self, metric: str, value: float, tags: list[str]) -> None:
        self.lines.append(("c", metric, value, tuple(tags)))

    def gauge(self, metric: str, value: float, tags: list[str]) -> None:
        self.lines.append(("g", metric, value, tuple(tags)))

    def distribution(self, metric: str, value: float, tags: list[str]) -> None:
        self.lines.append(("d", metric, value, tuple(tags)))


def test_dogstatsd_receives_the_same_names():
    """DogStatsD receives the same metrics as Prometheus, with dots instead of underscores and with labels as
    tags.
    """
    agent = FakeAgent()
    table = (
        Definition("replays.reader.rejects", Kind.COUNTER, "messages", "x.", ("reason",)),
        Definition("replays.reader.paused", Kind.GAUGE, "0 or 1", "x."),
        Definition("replays.reader.commit_seconds", Kind.HISTOGRAM, "seconds", "x."),
    )
    meters = Meters(table, CollectorRegistry(), agent)

    meters.count("replays.reader.rejects", 2, "oversize")
    meters.set("replays.reader.paused", 1)
    meters.observe("replays.reader.commit_seconds", 0.5, times=3)

    assert agent.lines == [
        ("c", "replays.reader.rejects", 2, ("reason:oversize",)),
        ("g", "replays.reader.paused", 1, ()),
        ("d", "replays.reader.commit_seconds", 0.5, ()),
    ]
    assert meters.registry.get_sample_value("replays_reader_rejects_total", {"reason": "oversize"}) == 2
    assert meters.registry.get_sample_value("replays_reader_commit_seconds_count") == 3


def test_projects_with_the_most_rejects_have_series_and_the_rest_share_one() -> None:
    """Projects with the most rejects have their own series, and all other projects share one series.

    A project that has recovered has no series.
    """
    driver = Driver(reject_window=100)
    driver.assign()
    for project in range(1, 10):
        for _ in range(project):
            driver.message(reject(driver._offsets[PARTITION], project_id=project))
    driver.message(reject(driver._offsets[PARTITION]))
    driver.advance(2.0)

    rejects = series(driver, "replays_reader_project_rejects")
    assert rejects == {"9": 9, "8": 8, "7": 7, "6": 6, "5": 5, "other": 10, "none": 1}
    assert series(driver, "replays_reader_project_shed") == {"9": 0, "8": 0, "7": 0, "6": 0, "5": 0}

    for _ in range(20):
        driver.message(reject(driver._offsets[PARTITION], project_id=4242))
    driver.advance(2.0)
    assert series(driver, "replays_reader_project_shed")["4242"] == 1
    assert driver.metrics.snapshot.rejects.shed == 1

    for _ in range(100):
        driver.message()
    driver.advance(2.0)
    assert series(driver, "replays_reader_project_rejects") == {"other": 0, "none": 0}


def series(driver: Driver, name: str) -> dict[str, float]:
    """Returns the values of a gauge by project."""
    return {
        sample.labels["project"]: sample.value
        for metric in driver.metrics.registry.restricted_registry([name]).collect()
        for sample in metric.samples
    }


def test_a_partition_without_an_owner_has_a_lag_until_it_has_one() -> None:
    """While a partition has no owner, it has a lag series if its lag is known."""
    lag = {3: 41, 5: -1}
    metrics = Metrics(Settings(), wall_clock=lambda: WALL_TIME)
    source = HeartbeatSource(Settings(), metrics, lambda: lag)

    assert source().unowned == (UnownedPartition(3, 41), UnownedPartition(5))
    assert metrics.registry.get_sample_value("replays_reader_unowned_lag_messages", {"partition": "3"}) == 41
    assert metrics.registry.get_sample_value("replays_reader_unowned_lag_messages", {"partition": "5"}) is None

    lag.clear()
    source()
    assert metrics.registry.get_sample_value("replays_reader_unowned_lag_messages", {"partition": "3"}) is None
