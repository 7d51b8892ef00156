"""Facts are appended to write streams of a BigQuery server: each row is in the table once, whatever is lost.

Every test runs with rows in JSON, as older readers and commands stage them, and with rows in protobuf.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
import pytest

from ingest.local.stack import Stack
from tasks.errors import PermanentSinkError, SinkError, TransientSinkError
from tasks.kafka import letters
from tasks.migrate.bigquery import migrate_tables
from tasks.proto_rows import framed, places_of, time_text
from tasks.refused import dead_letter, revive
from tasks.settings import Settings
from tasks.sinks import build, check
from tasks.sinks.bigquery.append_record import decode
from tasks.sinks.bigquery.sink import BigQuerySink, client
from tasks.sinks.bigquery.storage_write import StorageWriteSink
from tasks.wire import EncodedRows, Manifest, ProtoRows, Row, SinkName
from tests.kit.delivering import deliver_to
from tests.kit.grpc_relay import LossPoint, Relay, relay_to
from tests.kit.write_streams import TABLE, Notes, RetriedNotes, encoded, fact, numbers, selected

SECONDS = 20.0
TEN = [fact(number) for number in range(10)]


@pytest.fixture
def migrated(settings: Callable[..., Settings], stack: Stack, bigquery_endpoint: str) -> Settings:
    """Settings whose dataset has all tables."""
    made = settings(
        bigquery_endpoint=bigquery_endpoint,
        bigquery_storage_endpoint=stack.addresses["bigquery_storage"],
        bigquery_write="storage",
    )
    list(migrate_tables(made, dry_run=False))
    return made


class Staged:
    """The staged form of the rows in the current test."""

    form: Callable[[Sequence[Row]], Sequence[Row]] = list


@pytest.fixture(params=[list, encoded], ids=["json", "protobuf"], autouse=True)
def form(request: pytest.FixtureRequest) -> None:
    """Sets the form in which the test stages its rows."""
    Staged.form = staticmethod(request.param)


@pytest.fixture
def relay(migrated: Settings) -> Iterator[Relay]:
    """A relay in front of the server."""
    with relay_to(migrated.bigquery_storage_endpoint) as running:
        yield running


@pytest.fixture
def new_sink(migrated: Settings, relay: Relay) -> Iterator[Callable[[], StorageWriteSink]]:
    """A function that creates sinks behind the relay, each with its own streams, as in separate processes."""
    made: list[StorageWriteSink] = []

    def make() -> StorageWriteSink:
        made.append(StorageWriteSink(migrated.model_copy(update={"bigquery_storage_endpoint": relay.address})))
        return made[-1]

    yield make
    for sink in made:
        sink.close()


@pytest.fixture
def sink(new_sink: Callable[[], StorageWriteSink]) -> StorageWriteSink:
    """One worker's sink."""
    return new_sink()


def write(sink: StorageWriteSink, notes: Notes, items: Sequence[Row] = TEN, seconds: float = SECONDS) -> None:
    """Runs a task once with the given items."""
    sink.write_recorded(Staged.form(items), range(len(items)), notes.run(), seconds)


def losing(method: str, moment: LossPoint, *which: int) -> Callable[[str, LossPoint, int], bool]:
    """Returns a function for `Relay.on` that makes the relay drop the given requests or responses of a method."""
    return lambda asked, at, number: (asked, at) == (method, moment) and number in which


def streams_of(notes: Notes) -> set[str]:
    """Returns the names of the streams in a task's record."""
    return {append.stream for append in decode(notes.content)}


def test_facts_arrive_with_their_values(sink: StorageWriteSink, migrated: Settings) -> None:
    """Facts with strings, numbers, JSON and microseconds are stored as insertAll stores them."""
    write(sink, Notes(), [fact(1), fact(2, retention_days=30)])

    select = "row_id, UNIX_MICROS(timestamp), JSON_VALUE(attributes, '$.url'), retention_days"
    assert sorted(selected(migrated, select)) == [
        ("row-1", 1_795_000_001_125_000, 'http://a/"ä', None),
        ("row-2", 1_795_000_002_125_000, 'http://a/"ä', 30),
    ]


def test_tasks_share_a_stream_and_repeated_ones_add_nothing(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings
) -> None:
    """If two tasks of one process are each run again by another process, the table has each row once.

    Only one stream is used.
    """
    first, second, notes, other = new_sink(), new_sink(), Notes(), Notes()
    write(first, notes)
    write(first, other, [fact(number) for number in range(10, 15)])

    for run in (second, first, second):
        write(run, notes)
        write(run, other, [fact(number) for number in range(10, 15)])

    assert numbers(migrated) == list(range(15))
    assert streams_of(notes) == streams_of(other)
    assert [append.offset for append in decode(other.content)] == [10]


@pytest.mark.parametrize("moment", LossPoint)
@pytest.mark.parametrize("method", ["CreateWriteStream", "AppendRows", "FinalizeWriteStream"])
def test_a_lost_request_or_response_costs_no_row_and_adds_none(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay, method: str, moment: LossPoint
) -> None:
    """If the request or the response of one API call is lost and the task is repeated, the table contains each
    good row exactly once.

    The batch has a bad row, so that the sink makes every kind of API call.
    """
    notes, items = Notes(), [*TEN[:4], fact(4, timestamp=1), *TEN[5:]]
    relay.on = losing(method, moment, 1)

    ends = []
    for _ in range(3):
        try:
            write(new_sink(), notes, items)
        except SinkError as error:
            ends.append(error)

    assert isinstance(ends[-1], PermanentSinkError)
    assert [position for position, _ in ends[-1].failed or ()] == [4]
    assert numbers(migrated) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_a_dead_workers_append_is_sent_again_to_the_same_place(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay
) -> None:
    """If all requests or responses of a run are lost, another process that runs the task uses the recorded
    stream and offset.
    """
    for moment in LossPoint:
        notes, items = Notes(), [fact(number + 100 * moment.value) for number in range(10)]
        relay.on = lambda method, at, number, lost=moment: method == "AppendRows" and at is lost
        with pytest.raises(TransientSinkError) as failed:
            write(new_sink(), notes, items)
        assert failed.value.failed == tuple(range(10))
        (recorded,) = decode(notes.content)
        relay.on = losing("", moment)

        write(new_sink(), notes, items)

        assert [(append.stream, append.offset) for append in decode(notes.content)] == [(recorded.stream, 0)]
    assert numbers(migrated) == [*range(100, 110), *range(200, 210)]


def test_a_stream_with_an_unknown_append_is_not_used_for_other_rows(
    sink: StorageWriteSink, migrated: Settings, relay: Relay
) -> None:
    """A stream with an unconfirmed append is not used for other rows.

    The next task of the process gets another stream, and the first task is finished later.
    """
    first, second = Notes(), Notes()
    relay.on = lambda method, moment, number: method == "AppendRows" and moment is LossPoint.RESPONSE
    with pytest.raises(TransientSinkError):
        write(sink, first)
    relay.on = losing("", LossPoint.REQUEST)

    write(sink, second, [fact(number) for number in range(10, 20)])
    write(sink, first)

    assert not streams_of(first) & streams_of(second)
    assert numbers(migrated) == list(range(20))


@pytest.mark.parametrize("moment", LossPoint)
def test_two_runs_of_a_task_at_once_store_each_row_once(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay, moment: LossPoint
) -> None:
    """If another process completes the same task while an append of the first run is in flight, the first run also
    succeeds.
    """
    notes, slow, quick = Notes(), new_sink(), new_sink()

    def meanwhile(method: str, at: LossPoint, number: int) -> bool:
        if (method, at, number) == ("AppendRows", moment, 1):
            write(quick, notes)
        return False

    relay.on = meanwhile
    write(slow, notes)

    assert numbers(migrated) == list(range(10))


def test_a_run_that_is_overtaken_before_it_records_follows_the_other(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay
) -> None:
    """If a second run writes its record while the first creates a stream, both runs use the recorded stream and
    offset.

    The stream of the first run is not used.
    """
    notes, other, slow, quick = Notes(), Notes(), new_sink(), new_sink()

    def meanwhile(method: str, at: LossPoint, number: int) -> bool:
        if (method, at, number) == ("CreateWriteStream", LossPoint.RESPONSE, 1):
            write(quick, notes)
        return False

    relay.on = meanwhile
    write(slow, notes)
    write(slow, other, [fact(10)])

    assert numbers(migrated) == list(range(11))
    assert relay.asked["CreateWriteStream"] == 3


def test_a_record_that_was_stored_although_its_call_was_repeated_loses_no_row(
    sink: StorageWriteSink, migrated: Settings
) -> None:
    """If the response to a record is lost, the client's retry mistakes its own record for that of another run.

    The next task then does not use the recorded stream and offset.
    """
    first, second = RetriedNotes(), Notes()
    write(sink, first)

    write(sink, second, [fact(number) for number in range(10, 20)])

    assert numbers(migrated) == list(range(20))
    assert not streams_of(first) & streams_of(second)


@pytest.mark.parametrize("is_stored", [True, False])
def test_the_row_count_of_a_finalized_stream_decides(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay, is_stored: bool
) -> None:
    """If an append is lost and its stream has been finalized, its rows are written to another stream only if
    they are not stored.
    """
    notes, sink = Notes(), new_sink()
    lost = LossPoint.RESPONSE if is_stored else LossPoint.REQUEST
    relay.on = lambda method, moment, number: method == "AppendRows" and moment is lost
    with pytest.raises(TransientSinkError):
        write(sink, notes)
    relay.on = losing("", lost)
    (stream,) = streams_of(notes)
    assert sink._writer.get().streams.finalize(stream, SECONDS) == (10 if is_stored else 0)

    write(new_sink(), notes)

    assert numbers(migrated) == list(range(10))
    assert (streams_of(notes) == {stream}) is is_stored


def test_an_offset_past_the_end_is_resolved_by_finalizing(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings
) -> None:
    """If the stream ends before the offset of a recorded append, because an earlier append is missing, the task
    still writes its rows, and no row is lost.
    """
    notes = Notes()
    streams = new_sink()._writer.get().streams
    name = streams.take(TABLE, SECONDS).name
    notes.content = b'[["replay_events","%s",7,[[0,10]],false]]' % name.encode()

    write(new_sink(), notes)

    assert numbers(migrated) == list(range(10))
    assert name not in streams_of(notes)


def test_a_stream_that_is_gone_loses_no_row(new_sink: Callable[[], StorageWriteSink], migrated: Settings) -> None:
    """If the table of a recorded stream was deleted and created again, the task writes its rows to the new
    table.
    """
    notes = Notes()
    write(new_sink(), notes)
    server: Any = client(migrated)
    server.delete_table(f"{migrated.bigquery_project}.{migrated.bigquery_dataset}.{TABLE}")
    list(migrate_tables(migrated, dry_run=False))

    write(new_sink(), notes)

    assert numbers(migrated) == list(range(10))


def test_with_its_record_lost_a_task_repeats_rows_and_the_view_shows_each_once(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay
) -> None:
    """If Redis is emptied after the append and before the done mark, rows are stored twice, but the view shows
    each row once.
    """
    relay.on = lambda method, moment, number: method == "AppendRows" and moment is LossPoint.RESPONSE
    with pytest.raises(TransientSinkError):
        write(new_sink(), Notes())
    relay.on = losing("", LossPoint.REQUEST)

    write(new_sink(), Notes())

    assert numbers(migrated) == sorted([*range(10), *range(10)])
    assert numbers(migrated, f"{TABLE}_exact") == list(range(10))


def test_a_record_of_the_past_hides_no_row(new_sink: Callable[[], StorageWriteSink], migrated: Settings) -> None:
    """If Redis returns an outdated append record, an append that was refused does not count as stored.

    The batch has a bad row, so the first append was refused, and the other rows were then written in a second
    append.
    """
    notes, items = Notes(), [*TEN[:4], fact(4, timestamp=1), *TEN[5:]]
    with pytest.raises(PermanentSinkError):
        write(new_sink(), notes, items)
    past = Notes(notes.stored[0])

    with pytest.raises(PermanentSinkError) as refused:
        write(new_sink(), past, items)

    assert [position for position, _ in refused.value.failed or ()] == [4]
    assert numbers(migrated, f"{TABLE}_exact") == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_refused_rows_are_named_and_the_others_stored(sink: StorageWriteSink, migrated: Settings) -> None:
    """In a batch of five hundred, rows that do not fit the columns or that BigQuery refuses are named, and all
    other rows are stored.
    """
    items = [fact(number) for number in range(500)]
    items[123] = fact(123, segment_id="many")
    items[321] = fact(321, timestamp=1)
    items[400] = fact(400, attributes="{")

    if Staged.form is not list:
        items[123] = fact(123, timestamp=2)  # a reader never encodes a number as text

    progress = deliver_to(sink, Staged.form(items))

    reasons = dict(progress.refused)
    assert sorted(reasons) == [123, 321, 400]
    assert ("segment_id" if Staged.form is list else "timestamp") in reasons[123]
    assert "timestamp" in reasons[321]
    assert "attributes" in reasons[400]
    assert numbers(migrated) == [number for number in range(500) if number not in reasons]


def test_a_large_task_is_split_and_each_part_recorded(
    new_sink: Callable[[], StorageWriteSink], migrated: Settings, relay: Relay
) -> None:
    """If each append has only a few rows and the response to the third append is lost, another run of the task
    repeats the appends at the recorded offsets.
    """
    notes, sink = Notes(), new_sink()
    sink._writer.get().limit.refused(2 * 1024)
    relay.on = losing("AppendRows", LossPoint.RESPONSE, 3, 4, 5)
    with pytest.raises(TransientSinkError):
        write(sink, notes, [fact(number) for number in range(40)])
    relay.on = losing("", LossPoint.RESPONSE)

    write(new_sink(), notes, [fact(number) for number in range(40)])

    assert numbers(migrated) == list(range(40))
    assert len(decode(notes.content)) > 3


def test_an_append_above_the_servers_limit_is_split(sink: StorageWriteSink, migrated: Settings) -> None:
    """An append of 20 MiB, which the server refuses because of its size, is split, and no row is blamed."""
    sink._writer.get().limit = type(sink._writer.get().limit)(50 * 1024 * 1024)
    text = "x" * 1024 * 1024

    write(sink, Notes(), [fact(number, event_type=text) for number in range(20)])

    assert numbers(migrated) == list(range(20))


def test_a_column_that_the_table_lacks_blames_no_row(sink: StorageWriteSink, migrated: Settings) -> None:
    """If the table has the schema of an older release and a row has a newer column, the batch waits for
    `migrate`.
    """
    server: Any = client(migrated)
    name = f"{migrated.bigquery_project}.{migrated.bigquery_dataset}.{TABLE}"
    table = server.get_table(name)
    server.delete_table(name)
    table.schema = [field for field in table.schema if field.name != "attributes"]
    made: Any = type(table)(name, schema=table.schema)
    server.create_table(made)
    notes = Notes()
    for items in ([fact(1)], [fact(1, brand_new=1)]):
        with pytest.raises(PermanentSinkError, match="migrate") as refused:
            write(sink, notes, items)
        assert refused.value.configuration

    list(migrate_tables(migrated, dry_run=False))
    write(sink, notes, [fact(1)])

    assert numbers(migrated) == [1]


def test_a_missing_table_blames_no_row(settings: Callable[..., Settings], migrated: Settings) -> None:
    """If the table is missing, the error names it, and no row is blamed."""
    empty = StorageWriteSink(migrated.model_copy(update={"bigquery_dataset": "nothing"}))
    with pytest.raises(PermanentSinkError, match=TABLE) as refused:
        empty.write(Staged.form([fact(1)]), "token", SECONDS)
    assert refused.value.configuration
    empty.close()


def test_a_server_that_does_not_respond_is_a_transient_error_within_the_deadline(migrated: Settings) -> None:
    """If the server does not respond, the write raises a transient error within the deadline, and the error lists
    every row as not durable."""
    away = StorageWriteSink(migrated.model_copy(update={"bigquery_storage_endpoint": "http://127.0.0.1:1"}))
    with pytest.raises(TransientSinkError) as failed:
        away.write(Staged.form([fact(1), fact(2)]), "token", 2)
    assert failed.value.failed == (0, 1)
    away.close()


def test_check_reports_what_the_chosen_api_needs(migrated: Settings) -> None:
    """`check` reports that streams can be created, or which setting to correct."""
    assert "streams can be created" in check("bigquery", migrated).text

    wrong = {"bigquery_storage_endpoint": "http://127.0.0.1:1", "sink_timeout_seconds": 2.0}
    found = check("bigquery", migrated.model_copy(update=wrong))
    assert not found.ok
    assert "REPLAYS_BIGQUERY_STORAGE_ENDPOINT" in found.text


def test_the_setting_chooses_the_sink(migrated: Settings) -> None:
    """The setting selects which API the sink uses. An emulator without a gRPC address is refused."""
    assert isinstance(build("bigquery", migrated), StorageWriteSink)
    with pytest.raises(ValueError, match="REPLAYS_BIGQUERY_STORAGE_ENDPOINT"):
        Settings(bigquery_endpoint="http://127.0.0.1:1", bigquery_write="storage")


def test_rows_of_two_releases_share_a_stream(sink: StorageWriteSink, migrated: Settings) -> None:
    """If one process writes rows from readers that know a column, rows from readers that do not, and JSON rows in
    turn, each row is stored with its own columns.
    """
    older = encoded([fact(1), fact(2)]).staged
    older = msgspec.structs.replace(
        older, columns=older.columns[:-2] + older.columns[-1:], rows=without_days(older)
    )
    newer = [fact(3, retention_days=30), fact(4, retention_days=90)]
    notes = [Notes() for _ in range(4)]
    for each, items in zip(notes, (EncodedRows(older), encoded(newer)) * 2, strict=True):
        sink.write_recorded(items, range(2), each.run(), SECONDS)
    write(sink, Notes(), [fact(5, retention_days=7)])

    assert sorted(selected(migrated, "segment_id, retention_days, JSON_VALUE(attributes, '$.url')")) == [
        *[(number, None, 'http://a/"ä') for number in (1, 1, 2, 2)],
        *[(3, 30, 'http://a/"ä')] * 2,
        *[(4, 90, 'http://a/"ä')] * 2,
        (5, 7, 'http://a/"ä'),
    ]
    assert len({name for each in notes for name in streams_of(each)}) == 1


def without_days(staged: ProtoRows) -> bytes:
    """Returns the same rows with `attributes` as the eighth column."""
    rows = []
    for start, stop in places_of(staged.rows):
        head, attributes = staged.rows[start:stop].split(b"\x4a", 1)
        rows.append(framed(head + b"\x42" + attributes))
    return b"".join(rows)


def test_rows_for_the_other_api_are_written_too(migrated: Settings) -> None:
    """If the reader uses `storage` and the workers use `insert_all`, rows are converted to JSON, and only a bad
    row is refused.
    """
    sink = BigQuerySink(migrated)
    items = encoded([*TEN[:4], fact(4, timestamp=1), *TEN[5:]])

    progress = deliver_to(sink, items)

    assert [position for position, _ in progress.refused] == [4]
    assert numbers(migrated) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    sink.close()


def test_the_dead_letter_of_a_row_has_its_content(sink: StorageWriteSink) -> None:
    """The dead letter of a row in protobuf equals that of the same row in JSON, and can be replayed."""
    manifest = Manifest("facts-0-0-10", "d", "facts", 0, 0, 10, "reader", 1, ())
    as_json = [*TEN[:4], fact(4, timestamp=time_text(1_000_000)), *TEN[5:]]
    items = Staged.form(as_json)

    ((position, error),) = deliver_to(sink, items).refused
    letter = dead_letter(items[position], manifest, SinkName.BIGQUERY, error)

    label = letters.decode(letter.headers)
    assert label is not None
    _, revived = revive(label, bytes(letter.value or b""))
    assert position == 4
    assert (label.origin.offset, revived.offset) == (4, 4)  # type: ignore[union-attr]
    assert json.loads(letter.value or b"") == json.loads(as_json[4].json)
