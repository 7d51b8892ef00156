"""Tests chords on a real Redis with real workers: what completes, fails or is lost, and which reader is
notified.
"""

from __future__ import annotations

import os
import signal
import time

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from tasks.wire import reader_stream
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet


def test_both_stages_of_a_batch_complete(fleet: Fleet) -> None:
    """The blobs of a batch are written first, and then its rows and dead letters.

    Each stage is reported once to the waiting reader.
    """
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch(messages=130, rejects=2)

    assert fleet.settle(dispatcher, batch, Stage.BLOBS) == on.FlushSucceeded(batch.id, 1, Stage.BLOBS)
    assert fleet.settle(dispatcher, batch, Stage.ROWS) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)

    assert [len(call["names"]) for call in fleet.calls("gcs")] in ([128, 2], [2, 128])
    assert [len(fleet.calls(sink)[0]["names"]) for sink in ("clickhouse", "bigquery", "datadog")] == [130] * 3
    assert fleet.calls("dead_letter")[0]["names"] == [130, 131]


def test_durable_items_are_not_written_again(fleet: Fleet) -> None:
    """A second dispatch of a batch whose items are durable finds all marks and starts no task.

    After settling, only the manifest, the chord and the marks are left in Redis.
    """
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()

    fleet.settle(dispatcher, batch, Stage.ROWS)
    again = fleet.settle(dispatcher, batch, Stage.ROWS, attempt=2)
    dispatcher.submit(do.Discard(batch))
    dispatcher.stop(5)

    assert again == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("clickhouse")) == 1
    (key,) = fleet.client.keys("replays:batch:*")
    assert {field.split(b"/")[0] for field in fleet.client.hkeys(key)} == {b"manifest", b"chord", b"done"}
    assert 0 < fleet.client.ttl(key) <= 3600


@pytest.mark.parametrize("messages", [1, 3000])
def test_a_task_message_is_smaller_than_a_kilobyte(fleet: Fleet, messages: int) -> None:
    """A task message is smaller than a kilobyte for any batch size, even at the offsets that a busy topic reaches
    in its second year.

    The limit applies to the whole entry in the Redis list.
    """
    dispatcher = fleet.dispatcher()
    batch = make_batch(messages=messages, start=123_456_789_000, partition=127)

    for stage in Stage:
        dispatcher.submit(do.Dispatch(batch, stage, 1, 30.0))
    queues = [f"replays:celery:flush.{sink}" for sink in ("gcs", "clickhouse", "bigquery", "datadog")]
    fleet.wait(lambda: all(fleet.client.llen(queue) for queue in queues), "messages in every queue")

    entries = [entry for queue in queues for entry in fleet.client.lrange(queue, 0, -1)]
    assert max(map(len, entries)) < 1000


def test_a_worker_killed_during_a_flush_loses_nothing(fleet: Fleet) -> None:
    """If a worker is killed with kill -9 during a flush, another worker runs its task after the visibility
    timeout.
    """
    fleet.script("clickhouse", "slow 60")
    dispatcher = fleet.dispatcher()
    worker = fleet.worker("first")
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 30.0))
    fleet.wait(lambda: bool(fleet.calls("clickhouse", "began")), "the flush to begin")

    worker.kill()
    fleet.script("clickhouse", "ok")
    fleet.worker("second")

    assert fleet.next_event() == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("clickhouse")) == 1


def test_a_task_that_always_kills_its_process_fails_eventually(fleet: Fleet) -> None:
    """A task that always kills its process has a bounded number of attempts; then its chord fails, and the rest
    of the fleet continues.
    """
    fleet.script("bigquery", "die")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()

    event = fleet.settle(dispatcher, batch, Stage.ROWS)

    assert isinstance(event, on.FlushFailed)
    assert "kills its worker" in event.error
    assert len(fleet.calls("bigquery", "began")) == fleet.settings.task_starts_max
    assert len(fleet.calls("clickhouse")) == 1


def test_a_sink_that_stays_unavailable_fails_the_chord_with_its_error(fleet: Fleet) -> None:
    """If a sink stays unavailable, retries are bounded and the chord fails with the sink's error.

    The done marks of the other sinks are kept, so that the next attempt needs only the failing sink.
    """
    fleet.script("clickhouse", "transient")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()

    failed = fleet.settle(dispatcher, batch, Stage.ROWS)
    fleet.script("clickhouse", "ok")
    succeeded = fleet.settle(dispatcher, batch, Stage.ROWS, attempt=2)

    assert isinstance(failed, on.FlushFailed)
    assert (failed.batch_id, failed.attempt) == (batch.id, 1)
    assert failed.error.startswith("rows/clickhouse/0: clickhouse is away (gave up after 4 runs)")
    assert len(fleet.calls("clickhouse", "began")) == 1 + 3 + 1
    assert succeeded == on.FlushSucceeded(batch.id, 1, Stage.ROWS)
    assert len(fleet.calls("bigquery")) == 1


def test_a_reader_whose_clock_is_a_day_behind_does_not_shorten_deadlines(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader whose clock is a day behind does not shorten the deadlines that it sets and that workers check.

    A write that fails once is still retried.
    """
    clock, dispatcher = time.time, fleet.dispatcher()
    monkeypatch.setattr(time, "time", lambda: clock() - 86_400.0)
    fleet.script("clickhouse", "transient")
    fleet.worker()
    batch = make_batch()

    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, fleet.settings.flush_deadline_seconds))
    fleet.wait(lambda: fleet.calls("clickhouse", "began") != [], "the first run")
    fleet.script("clickhouse", "ok")

    assert fleet.next_event() == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def test_a_row_that_clickhouse_never_accepts_becomes_a_dead_letter(fleet: Fleet) -> None:
    """If ClickHouse never accepts a row and does not name it, a bisection finds the row.

    The other rows are written, and the stage completes.
    """
    fleet.script("clickhouse", "refuse click-37")
    dispatcher = fleet.dispatcher()
    fleet.worker()

    event = fleet.settle(dispatcher, make_batch(messages=64), Stage.ROWS)

    assert isinstance(event, on.FlushSucceeded)
    written = {name for call in fleet.calls("clickhouse") for name in call["names"]}
    assert written == {f"click-{n}" for n in range(64) if n != 37}
    assert len(fleet.calls("clickhouse", "began")) <= 1 + 2 * 6
    assert fleet.calls("dead_letter")[0]["names"] == [37]


def test_a_task_that_runs_twice_writes_once(fleet: Fleet) -> None:
    """If each task message is delivered twice, as after a visibility timeout, the second run finds the done
    mark and writes nothing.
    """
    dispatcher = fleet.dispatcher()
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.BLOBS, 1, 30.0))
    queue = "replays:celery:flush.gcs"
    fleet.wait(lambda: fleet.client.llen(queue) == 1, "the message")
    fleet.client.lpush(queue, fleet.client.lindex(queue, 0))

    fleet.worker(options=("-c", "1"))

    assert fleet.next_event() == on.FlushSucceeded(batch.id, 1, Stage.BLOBS)
    fleet.wait(lambda: fleet.client.llen(queue) == 0, "both copies to be taken")
    assert len(fleet.calls("gcs")) == 1


def test_a_lost_chord_body_delays_by_one_deadline(fleet: Fleet) -> None:
    """If the body of a chord is lost, the reader is not notified, but the reader's next attempt finds the marks
    and needs no worker.
    """
    dispatcher = fleet.dispatcher()
    worker = fleet.worker(options=("-Q", "flush.clickhouse,flush.bigquery,flush.datadog"))
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 30.0))
    control = "replays:celery:control"
    fleet.wait(lambda: fleet.client.llen(control) == 1, "the body")

    worker.stop()
    fleet.client.delete(control)

    assert fleet.settle(dispatcher, batch, Stage.ROWS, attempt=2) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def test_an_empty_restart_of_redis_repeats_one_attempt_and_loses_no_row(fleet: Fleet) -> None:
    """If Redis restarts empty, the queues, the chord, the staged bytes and the stream are lost.

    The same dispatcher and worker run the next attempt, and no row is lost.
    """
    fleet.script("clickhouse", "slow 3")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    other, batch = make_batch(start=1000), make_batch()
    assert isinstance(fleet.settle(dispatcher, other, Stage.BLOBS), on.FlushSucceeded)
    dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 30.0))
    fleet.wait(lambda: bool(fleet.calls("clickhouse", "began")), "the flush to begin")

    fleet.redis.restart(kill=True, empty=True)
    fleet.script("clickhouse", "ok")
    event = None
    for attempt in range(2, 12):  # the core's backoff, shortened for this test
        event = fleet.settle(dispatcher, batch, Stage.ROWS, attempt=attempt)
        if isinstance(event, on.FlushSucceeded):
            break

    assert event == on.FlushSucceeded(batch.id, 1, Stage.ROWS)


def test_a_stopped_redis_is_an_event_within_seconds(fleet: Fleet) -> None:
    """If Redis refuses connections or hangs, the dispatch fails within seconds, and the loop never waits."""
    dispatcher = fleet.dispatcher()
    fleet.redis.pause()
    try:
        hanging = fleet.settle(dispatcher, make_batch(), Stage.ROWS)
    finally:
        fleet.redis.resume()
    fleet.redis.stop()
    refused = fleet.settle(dispatcher, make_batch(start=1000), Stage.ROWS)

    assert isinstance(hanging, on.DispatchFailed)
    assert isinstance(refused, on.DispatchFailed)


def test_a_worker_process_that_dies_is_replaced_at_once(fleet: Fleet) -> None:
    """If a worker process is killed with SIGKILL, its task is queued again without waiting for the visibility
    timeout."""
    fleet.script("gcs", "slow 60")
    dispatcher = fleet.dispatcher()
    fleet.worker()
    batch = make_batch()
    dispatcher.submit(do.Dispatch(batch, Stage.BLOBS, 1, 30.0))
    fleet.wait(lambda: bool(fleet.calls("gcs", "began")), "the flush to begin")

    fleet.script("gcs", "ok")
    os.kill(fleet.calls("gcs", "began")[0]["pid"], signal.SIGKILL)

    assert fleet.next_event(8) == on.FlushSucceeded(batch.id, 1, Stage.BLOBS)


def test_a_recreated_stream_is_read_from_its_beginning(fleet: Fleet) -> None:
    """After a failover to a node with a slower clock, entry ids are lower; the stream is read from its
    beginning, and no entry is missed.
    """
    dispatcher = fleet.dispatcher()
    fleet.wait(lambda: fleet.client.hexists("replays:readers", "reader-1"), "the reader to be shown")
    stream = reader_stream("reader-1")
    entry = {"c": '{"kind":"retry","batch_id":"ingest-replay-recordings-0-0-3"}'}
    fleet.client.xadd(stream, entry, id="9999999999999-0")
    first = fleet.next_event(5)

    fleet.client.delete(stream)
    fleet.client.xadd(stream, entry, id="5-1")

    assert first == fleet.next_event(10) == on.RetryRequested("ingest-replay-recordings-0-0-3")
    dispatcher.stop(5)
    assert not fleet.client.hexists("replays:readers", "reader-1")
