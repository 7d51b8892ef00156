"""Tests every possible outcome of a stage; the real tasks run in this process."""

from __future__ import annotations

import json
import random

import pytest

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from tasks.breaker import Breaker, Permit, PermitKind
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.kafka.letters import decode
from tasks.wire import SinkName
from tests.kit.batches import make_batch
from tests.kit.eager_fleet import EagerFleet


def test_every_sink_gets_its_items(eager: EagerFleet) -> None:
    """Blobs are written first, then rows, metrics and dead letters; the reader receives the result of each
    stage.
    """
    batch = make_batch(messages=134, rejects=2)

    assert eager.settle(batch, Stage.BLOBS) == on.FlushSucceeded(batch.id, 1, Stage.BLOBS)
    assert eager.settle(batch, Stage.ROWS) == on.FlushSucceeded(batch.id, 1, Stage.ROWS)

    assert len(eager.sink("gcs").objects) == 134
    assert [count for _, count in eager.sink("gcs").calls] == [128, 6]
    assert len(eager.sink("clickhouse").rows) == len(eager.sink("bigquery").rows) == 134
    assert len(eager.sink("datadog").metrics) == 134
    assert len(eager.sink("dead_letter").dead_letters) == 2


def test_a_dead_letter_has_the_message_and_its_reason(eager: EagerFleet) -> None:
    """A dead letter contains the original record, with our headers.

    One of our headers contains the record's own headers.
    """
    eager.settle(make_batch(messages=1, rejects=1, start=10), Stage.ROWS)

    (letter,) = eager.sink("dead_letter").dead_letters
    assert (letter.key, bytes(letter.value)) == (b"k", b"not msgpack")
    label = decode(letter.headers)
    assert label is not None
    assert label.originals == (("traceparent", b"00-1"),)
    assert {name: value for name, value in letter.headers if name != "originals"} == {
        "version": b"2",
        "reason": b"not_msgpack",
        "error": b"bad",
        "topic": b"ingest-replay-recordings",
        "partition": b"0",
        "offset": b"11",
        "batch_id": b"ingest-replay-recordings-0-10-12",
        "first_seen": b"5",
    }


def test_a_sink_that_fails_twice_and_then_works_causes_no_failure(eager: EagerFleet) -> None:
    """If a sink fails twice and then works, the task is retried automatically, and no failure is reported."""
    eager.sink("clickhouse").fail(TransientSinkError("503"), TransientSinkError("503"))

    assert isinstance(eager.settle(make_batch()), on.FlushSucceeded)
    assert len(eager.sink("clickhouse").calls) == 3


def test_partial_success_is_kept_over_retries(eager: EagerFleet) -> None:
    """If 2 of 64 blobs fail, the retry writes only those two, with a separate token."""
    eager.sink("gcs").fail(TransientSinkError("429", failed=(5, 40)))

    assert isinstance(eager.settle(make_batch(messages=64), Stage.BLOBS), on.FlushSucceeded)

    calls = eager.sink("gcs").calls
    assert [count for _, count in calls] == [64, 2]
    assert calls[0][0] != calls[1][0]
    assert len(eager.sink("gcs").objects) == 64


def test_partial_success_is_kept_over_attempts(eager: EagerFleet) -> None:
    """If a task failed and its batch is retried minutes later, items that are already durable are not written
    again.
    """
    away = TransientSinkError("429", failed=(5,))
    eager.sink("gcs").fail(away, *[TransientSinkError("429", failed=(0,))] * 2)
    batch = make_batch(messages=10)

    failed = eager.settle(batch, Stage.BLOBS)
    succeeded = eager.settle(batch, Stage.BLOBS, attempt=2)

    assert isinstance(failed, on.DispatchFailed)
    assert isinstance(succeeded, on.FlushSucceeded)
    assert [count for _, count in eager.sink("gcs").calls] == [10, 1, 1, 1]


def test_a_refused_row_becomes_a_dead_letter_and_the_rest_is_written(eager: EagerFleet) -> None:
    """If the server names a refused row, the dead letter contains the sink, its error, and the row's origin.

    The other rows are written.
    """
    eager.sink("bigquery").refuse(lambda item: "no such field: x" if item.offset == 3 else None)
    batch = make_batch(messages=50)

    assert isinstance(eager.settle(batch), on.FlushSucceeded)

    assert len(eager.sink("bigquery").rows) == 49
    (letter,) = eager.sink("dead_letter").dead_letters
    headers = {name: (value or b"").decode() for name, value in letter.headers}
    assert headers == {
        "version": "2",
        "reason": "sink_refused",
        "sink": "bigquery",
        "error": "no such field: x",
        "kind": "row",
        "item": "replay_events/fact-3",
        "topic": "ingest-replay-recordings",
        "partition": "0",
        "offset": "3",
        "batch_id": batch.id,
    }
    assert json.loads(bytes(letter.value)) == {"n": 3}


def test_an_unnamed_bad_row_is_found_in_about_log2_writes(eager: EagerFleet) -> None:
    """If the server refuses one of n rows without naming it, bisection finds the row in at most 1 + 2 log2(n)
    writes."""
    eager.sink("clickhouse").refuse(lambda item: "no" if item.offset == 100 else None, named=False)

    assert isinstance(eager.settle(make_batch(messages=256)), on.FlushSucceeded)

    assert len(eager.sink("clickhouse").rows) == 255
    assert len(eager.sink("clickhouse").calls) <= 1 + 2 * 8
    assert len(eager.sink("dead_letter").dead_letters) == 1


def test_a_missing_table_parks_the_batch_and_dead_letters_nothing(eager: EagerFleet) -> None:
    """If a table is missing, the chord fails without a retry and reports the reason, because the configuration
    is at fault.
    """
    eager.sink("clickhouse").fail(PermanentSinkError("table replays is missing", configuration=True))

    event = eager.settle(make_batch())

    assert isinstance(event, on.DispatchFailed)
    assert "table replays is missing" in event.error
    assert len(eager.sink("clickhouse").calls) == 1
    assert eager.sink("dead_letter").dead_letters == []


def test_a_row_is_not_refused_before_its_dead_letter_is_durable(eager: EagerFleet) -> None:
    """Even if the sink has stored the other rows, a task is not done before the dead letter of the refused row
    is durable.
    """
    eager.sink("bigquery").refuse(lambda item: "bad" if item.offset == 0 else None)
    eager.sink("dead_letter").fail(*[TransientSinkError("no brokers")] * 3)
    batch = make_batch()

    failed = eager.settle(batch)
    succeeded = eager.settle(batch, attempt=2)

    assert isinstance(failed, on.DispatchFailed)
    assert isinstance(succeeded, on.FlushSucceeded)
    assert len(eager.sink("dead_letter").dead_letters) == 1
    assert len(eager.sink("bigquery").calls) == 1


def test_a_redelivered_batch_changes_nothing(eager: EagerFleet) -> None:
    """If the done marks are lost, for example because Redis restarts empty, everything is written again, without
    duplicates.
    """
    batch = make_batch(messages=5)
    for stage in Stage:
        eager.settle(batch, stage)
    tokens = eager.sink("clickhouse").calls

    eager.client.flushall()
    for stage in Stage:
        assert isinstance(eager.settle(batch, stage), on.FlushSucceeded)

    assert len(eager.sink("gcs").objects) == len(eager.sink("clickhouse").rows) == 5
    assert len({token for token, _ in tokens}) == 1


def test_the_same_range_with_other_content_is_written_separately(eager: EagerFleet) -> None:
    """If another release parses the same range differently, the batch's digest differs, so no done mark covers
    bytes that were not written.
    """
    eager.settle(make_batch(messages=2), Stage.BLOBS)

    eager.settle(make_batch(messages=2, content=b"new", epoch=2), Stage.BLOBS)

    assert set(eager.sink("gcs").objects.values()) == {b"new 0", b"new 1"}
    assert len(eager.client.keys("replays:batch:*")) == 2


def test_a_disabled_sink_is_not_in_the_chord(eager: EagerFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disabled sink is not in the chord, and a stage without sinks completes at once."""
    from ingest.reader.encoding import Encoder

    encoder = Encoder((SinkName.CLICKHOUSE, SinkName.DEAD_LETTER), 64, "r")

    names = [entry.name for entry in encoder.encode(make_batch(rejects=1)).manifest.tasks]

    assert names == ["rows/clickhouse/0", "rows/dead_letter/0"]


def test_a_parked_batch_is_shown_until_it_settles(eager: EagerFleet) -> None:
    """Until it settles, a parked batch is listed with its error, its reader, and the time of its next retry."""
    batch = make_batch()
    eager.dispatcher.submit(do.Park(batch, Stage.ROWS, 3, "clickhouse is away", 30.0))
    eager.settle(batch, Stage.BLOBS)
    from tasks.coordination import Coordination

    coordination = Coordination(eager.client, eager.settings)
    (shown,) = coordination.parked().values()
    eager.dispatcher.submit(do.Discard(batch))
    eager.settle(make_batch(start=1000), Stage.BLOBS)

    assert (shown["batch_id"], shown["reader"], shown["stage"]) == (batch.id, "eager-reader", "rows")
    assert (shown["attempt"], shown["error"]) == (3, "clickhouse is away")
    assert shown["retry_at"] - shown["parked_at"] == pytest.approx(30)
    assert coordination.parked() == {}


@pytest.mark.parametrize("seed", range(10))
def test_after_random_failures_everything_is_durable_once(eager: EagerFleet, seed: int) -> None:
    """After random failures and refusals, every item is durable exactly once.

    Each row is stored in its sink or, if the sink refused the row, as a dead letter.

    The test asserts a subset, because a scripted partial failure stores everything that it does not list,
    including poison items.
    """
    dice = random.Random(seed)
    batch = make_batch(messages=dice.randint(1, 40), rejects=dice.randint(0, 3))
    poison = {sink: {dice.randrange(40) for _ in range(dice.randint(0, 3))} for sink in ("clickhouse", "bigquery")}
    for sink, offsets in poison.items():
        eager.sink(sink).refuse(
            lambda item, offsets=offsets: "poison" if item.offset in offsets else None,  # type: ignore[misc]
            named=dice.random() < 0.5,
        )
    for sink in ("gcs", "clickhouse", "bigquery", "dead_letter"):
        script = [None, TransientSinkError("503"), TransientSinkError("503", failed=(0,))]
        eager.sink(sink).fail(*dice.choices(script, weights=[2, 1, 1], k=4))

    for stage in Stage:
        for attempt in range(1, 20):
            if isinstance(eager.settle(batch, stage, attempt), on.FlushSucceeded):
                break
        else:
            pytest.fail("it never succeeds")

    offsets = {segment.segment_id for segment in batch.segments}
    assert len(eager.sink("gcs").objects) == len(offsets)
    for sink, bad in poison.items():
        letters = {
            letter.offset
            for letter in eager.sink("dead_letter").dead_letters
            if ("sink", sink.encode()) in letter.headers
        }
        kept = {int(row_id.split("-")[1]) for _, row_id in eager.sink(sink).rows}
        assert kept | letters == offsets
        assert not kept & letters
        assert letters <= bad


def test_a_batch_parked_by_an_open_breaker_shows_the_sinks_last_error(eager: EagerFleet) -> None:
    """If the circuit breaker of a sink is open, the batch is parked with the sink's last error."""
    breaker = Breaker(eager.client, eager.settings)
    for _ in range(eager.settings.breaker_failures_min):
        error = "clickhouse: HTTP 413 with a web page: Request Entity Too Large"
        breaker.report("clickhouse", Permit(PermitKind.CLOSED), worked=False, error=error)
    batch = make_batch()

    eager.dispatcher.submit(do.Dispatch(batch, Stage.ROWS, 1, 1.0))
    event = eager.inbox.get(timeout=20)

    assert isinstance(event, on.DispatchFailed)
    assert "Request Entity Too Large" in event.error
    assert "breaker is open" in event.error
    assert eager.sink("clickhouse").calls == []


def test_a_table_at_fault_parks_the_batch_with_no_dead_letter(eager: EagerFleet) -> None:
    """If a table refuses every row, even one known to be good, the batch is parked.

    Once the table is repaired, all rows are written.
    """
    sink = eager.sink("bigquery")
    sink.refuse(lambda item: "Missing required field: team")
    sink.fault(PermanentSinkError("bigquery: column team is REQUIRED", configuration=True))
    batch = make_batch(messages=8)

    parked = eager.settle(batch)
    sink.refuse(lambda item: None)
    sink.fault(None)
    repaired = eager.settle(batch, attempt=2)

    assert isinstance(parked, on.DispatchFailed)
    assert "column team is REQUIRED" in parked.error
    assert isinstance(repaired, on.FlushSucceeded)
    assert len(sink.rows) == 8
    assert eager.sink("dead_letter").dead_letters == []


def test_rows_written_before_the_table_was_found_at_fault_stay_written(eager: EagerFleet) -> None:
    """Rows that were written before the table was found to be at fault stay written, and the next attempt writes
    the other rows.

    Refusals found by an unfinished bisection are discarded.
    """
    sink = eager.sink("clickhouse")
    sink.refuse(lambda item: "no" if item.offset >= 6 else None, named=False)
    healthy_once = iter([None, PermanentSinkError("clickhouse: a constraint", configuration=True)])
    batch = make_batch(messages=8)
    examine = sink.examine

    def examine_in_turn(items: object, deadline_seconds: float) -> None:
        sink.fault(next(healthy_once, None))
        examine([], deadline_seconds)

    sink.examine = examine_in_turn  # type: ignore[method-assign]
    parked = eager.settle(batch)
    del sink.examine  # type: ignore[attr-defined]
    sink.refuse(lambda item: None)
    calls_before = len(sink.calls)
    repaired = eager.settle(batch, attempt=2)

    assert isinstance(parked, on.DispatchFailed)
    assert isinstance(repaired, on.FlushSucceeded)
    assert [count for _, count in sink.calls[calls_before:]] == [2]
    assert len(sink.rows) == 8
    assert eager.sink("dead_letter").dead_letters == []
