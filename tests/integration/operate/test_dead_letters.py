"""Tests what replaying a dead letter can change on real servers, even if the letter was forged."""

from __future__ import annotations

from uuid import UUID

import pytest

from ingest.core.model import OffsetRange, Reject, TopicPartition
from ingest.core.parse import parse
from ingest.operate.dlq import Selection, letters_containing
from ingest.operate.remake import batch_of, message_of
from ingest.reader.encoding import Encoder, items_of
from ingest.reader.process import rules_of
from ingest.settings import Settings
from tasks.kafka.letters import REPLAYED_FROM, Label, Mark, Origin, SealStatus, digest, sealed
from tasks.kafka.records import Headers
from tasks.sinks import build
from tasks.sinks.clickhouse.sink import client as clickhouse_client
from tasks.wire import Blob, DeadLetter, Row, SinkName, decode_items
from tests.kit.dead_letters import (
    MINE,
    Topics,
    batch,
    forged,
    refusal,
)


def first_format(item: DeadLetter) -> DeadLetter:
    """Returns the letter in the format of the first release."""
    headers = tuple(pair for pair in item.headers if pair[0] != "version")
    return DeadLetter(item.key, item.value, headers, item.offset)


@pytest.mark.parametrize("older", [False, True], ids=["this format", "the first format"])
def test_a_refused_item_is_written_to_its_sink_and_marked(topics: Topics, older: bool) -> None:
    """Replaying dead letters writes a refused blob and refused rows to their sinks; identical dead letters are
    written only once.

    A second run finds nothing to replay.
    """
    written = [refusal(topics, SinkName.GCS, items_of(batch(topics), SinkName.GCS)[0])] * 2
    written += [refusal(topics, SinkName.CLICKHOUSE, row) for row in items_of(batch(topics), SinkName.CLICKHOUSE)]
    topics.write(*(first_format(letter) if older else letter for letter in written))

    rehearsed = topics.replay(dry_run=True)
    before = topics.object(topics.mine.blobs[0].name)
    done = topics.replay()
    again = topics.replay(Selection())

    rows = len(written) - 2
    assert before is None
    assert (rehearsed.written, rehearsed.repeats, rehearsed.failed) == (1 + rows, 1, [])
    assert (done.written, done.produced, done.repeats, done.failed) == (1 + rows, 0, 1, [])
    assert (again.written, again.repeats) == (0, 0)
    assert topics.object(topics.mine.blobs[0].name) == bytes(topics.mine.blobs[0].content)
    assert topics.rows("replay_segments") == 2
    assert all(letter.replayed for letter in topics.letters())


def test_a_producers_headers_cannot_turn_garbage_into_a_refused_item(topics: Topics) -> None:
    """The first format kept a producer's headers next to ours.

    Such headers cannot turn garbage into a refused item, or mark another letter as replayed.
    """
    name = topics.theirs.blobs[0].name
    topics.store(name, b"theirs")
    origin = (("topic", topics.settings.kafka_topic.encode()), ("partition", b"0"), ("offset", b"0"))
    headers = (("sink", b"gcs"), ("kind", b"blob"), ("item", name.encode()), ("replayed", b"0-0"))
    topics.produce(topics.settings.dlq_topic, None, b"garbage", (*headers, ("reason", b"not_msgpack"), *origin))
    topics.write(
        forged(topics, "gcs", "blob", name, b"first letter")
    )  # letter 0-1, which must not count as replayed

    (letter, _) = topics.letters(Selection())
    done = topics.replay(Selection(reason="not_msgpack"))

    assert (letter.sink, letter.label.originals) == ("", headers)
    assert (done.produced, done.written) == (1, 0)
    assert topics.object(name) == b"theirs"
    assert topics.records()[-1].value == b"garbage"
    assert topics.records()[-1].headers[: len(headers)] == headers


def test_a_letter_cannot_overwrite_another_projects_recording(topics: Topics) -> None:
    """A forged letter that names another project's object and one of our messages is refused, because that message
    does not produce that object.
    """
    name = topics.theirs.blobs[0].name
    topics.store(name, b"theirs")
    topics.write(forged(topics, "gcs", "blob", name, b"overwritten"))

    done = topics.replay()

    assert (done.written, [letter for letter, _ in done.failed]) == (0, ["0-0"])
    assert "does not produce this item" in done.failed[0][1]
    assert topics.object(name) == b"theirs"


def test_a_letter_cannot_change_the_items_of_its_message(topics: Topics) -> None:
    """If a forged letter has the right name and message but different bytes, the item that the message produces is
    written."""
    name = topics.mine.blobs[0].name
    topics.write(forged(topics, "gcs", "blob", name, b"other bytes"))

    done = topics.replay()

    assert done.written == 1
    assert topics.object(name) == bytes(topics.mine.blobs[0].content)


def test_a_tables_name_is_never_sql(topics: Topics) -> None:
    """A letter with SQL as the name of its table is refused, because the SQL would run with the operator's
    rights.
    """
    (row, *_) = items_of(batch(topics), SinkName.CLICKHOUSE)
    assert isinstance(row, Row)
    tables = [
        "replays",
        "replay_segments SELECT * FROM replays --",
        "replay_summaries",
        "system.users",
        "`replays`",
    ]
    topics.write(*(forged(topics, "clickhouse", "row", f"{t}/{row.id}-forged", bytes(row.json)) for t in tables))

    done = topics.replay(unverified=True)

    assert done.written == 0
    assert len(done.failed) == len(tables)
    assert topics.rows("replays") == topics.rows("replay_segments") == 0


def test_an_item_without_its_message_needs_an_option(topics: Topics) -> None:
    """An item whose message is missing is written only with `--unverified`, because the content of the item cannot
    be verified.

    The names of such an item are still checked.
    """
    name, content = topics.mine.blobs[0].name, b"as the letter has it"
    topics.write(forged(topics, "gcs", "blob", name, content, offset=50))
    topics.write(forged(topics, "gcs", "blob", f"{name}/../../1", content, offset=50))

    cautious = topics.replay()
    forced = topics.replay(unverified=True)

    assert [letter for letter, _ in cautious.failed] == ["0-0", "0-1"]
    assert "--unverified" in cautious.failed[0][1]
    assert (forced.written, [letter for letter, _ in forced.failed]) == (1, ["0-1"])
    assert topics.object(name) == content


def test_with_a_shared_key_only_sealed_letters_are_replayed_by_default(topics: Topics) -> None:
    """If a shared key is configured, only sealed letters are replayed by default, even if their original messages
    are no longer in Kafka.
    """
    settings = Settings(**{**topics.settings.model_dump(), "shared_key": "a-key-of-this-test-0123456789-0123"})
    keyed, dlq = Topics(settings, topics.mine, topics.theirs), settings.dlq_topic
    label = Label("not_msgpack", "", Origin(settings.kafka_topic, 0, 2), "b", 5)
    name = topics.mine.blobs[0].name
    ours = forged(topics, "gcs", "blob", name, b"refused", offset=50)
    headers = sealed(settings.seals, dlq, ours.key, bytes(ours.value), ours.headers)
    keyed.write(DeadLetter(b"key", b"garbage", label.encode(), 2))
    keyed.write(DeadLetter(ours.key, ours.value, headers, 50))
    keyed.produce(dlq, None, b"", Mark("0-1", digest(ours.key, bytes(ours.value))).encode())

    done = keyed.replay()
    left = keyed.letters(Selection())
    forced = keyed.replay(Selection(), unverified=True)

    assert [letter for letter, _ in done.failed] == ["0-0"]
    assert "--unverified" in done.failed[0][1]
    assert (done.written, topics.object(name)) == (1, b"refused")
    assert [(letter.id, letter.sealed) for letter in left] == [("0-0", SealStatus.NO)]
    assert forced.produced == 1
    assert keyed.letters(Selection()) == []


def test_a_packed_object_and_its_index_are_rebuilt_from_the_whole_batch(topics: Topics) -> None:
    """A packed object and its index rows are rebuilt from the whole batch; an index row that points to another
    location is not written.
    """
    encoded = Encoder((SinkName.GCS, SinkName.CLICKHOUSE), 100, "reader", packed=True).encode(batch(topics))
    (blob,) = decode_items("gcs", encoded.payloads["blobs/gcs/0"])
    index = [
        item
        for item in decode_items("clickhouse", encoded.payloads["rows/clickhouse/0"])
        if isinstance(item, Row) and item.table == "replay_objects"
    ]
    assert isinstance(blob, Blob)
    topics.write(refusal(topics, SinkName.GCS, blob))
    stolen = bytes(index[1].json).replace(b'"start_bytes":', b'"start_bytes":9')
    topics.write(forged(topics, "clickhouse", "row", f"replay_objects/{index[1].id}", stolen))

    done = topics.replay()

    assert (done.written, done.failed) == (2, [])
    assert topics.object(blob.name) == bytes(blob.content)
    server = clickhouse_client(topics.settings)
    (start,) = server.query("SELECT start_bytes FROM replay_objects FINAL").result_rows[0]
    server.close()
    assert start == len(topics.mine.blobs[0].content)


def test_a_message_of_another_topic_is_not_produced(topics: Topics) -> None:
    """A letter whose message comes from another topic is not replayed, even if the operator may write to that
    topic.
    """
    label = Label("not_msgpack", "", Origin("payments", 0, 3), "payments-0-0-9")
    topics.write(DeadLetter(None, b"x", label.encode(), 3))
    topics.produce(topics.settings.dlq_topic, None, b"whose?")

    done = topics.replay()

    assert [letter for letter, _ in done.failed] == ["0-0", "0-1"]
    assert "payments" in done.failed[0][1]
    assert topics.letters()[1].reason == "unknown"


def test_a_message_counts_as_replayed_only_with_the_same_bytes(topics: Topics) -> None:
    """A message counts as replayed only if its bytes are the same, because any producer can send the header."""
    topic = topics.settings.kafka_topic

    def rejected(offset: int, value: bytes, originals: Headers = ()) -> DeadLetter:
        label = Label("not_msgpack", "", Origin(topic, 0, offset), f"{topic}-0-0-9", 5, originals)
        return DeadLetter(b"key", value, label.encode(), offset)

    topics.write(rejected(2, b"garbage", (("h", b"v"),)))
    done = topics.replay()
    came_back = topics.records()[-1]
    topics.write(rejected(3, came_back.value, came_back.headers))
    topics.write(rejected(4, b"other garbage", ((REPLAYED_FROM, f"{topics.settings.dlq_topic}-0-0".encode()),)))

    waiting = topics.letters(Selection())

    assert done.produced == 1
    assert (came_back.key, came_back.value) == (b"key", b"garbage")
    assert came_back.headers == (("h", b"v"), (REPLAYED_FROM, f"{topics.settings.dlq_topic}-0-0".encode()))
    assert [letter.value for letter in waiting] == [b"other garbage"]


def test_letters_that_mention_a_replay_are_found(topics: Topics) -> None:
    """A letter is found if it mentions the replay in a message, in the message's headers, or in an item's name or
    bytes."""
    topic = topics.settings.kafka_topic
    label = Label("not_msgpack", "", Origin(topic, 0, 1), "b", 5, (("trace", MINE.encode()),))
    topics.write(DeadLetter(None, b"x", label.encode(), 1))
    topics.write(DeadLetter(None, MINE.encode(), Label("r", "", Origin(topic, 0, 2), "b").encode(), 2))
    topics.write(refusal(topics, SinkName.GCS, items_of(batch(topics), SinkName.GCS)[0]))
    topics.write(forged(topics, "gcs", "blob", topics.theirs.blobs[0].name, b""))

    row = f'{{"replay_id":"{UUID(MINE)}"}}'.encode()
    topics.write(forged(topics, "clickhouse", "row", "replays/1", row))

    found = letters_containing(topics.settings, (MINE, str(UUID(MINE))))

    assert [letter.id for letter in found] == ["0-0", "0-1", "0-2", "0-4"]


@pytest.mark.parametrize("value", [None, b""])
def test_null_and_empty_values_are_preserved(topics: Topics, value: bytes | None) -> None:
    """Null and empty values are unchanged after passing into a dead letter, back into the topic, and through
    the parser.
    """
    source = topics.settings.kafka_topic
    topics.produce(source, b"key", value)
    record = topics.records()[-1]
    outcome = parse(message_of(record), rules_of(topics.settings))
    assert isinstance(outcome, Reject)
    batch = batch_of(TopicPartition(source, 0), OffsetRange(record.offset, record.offset + 1), [outcome])
    encoded = Encoder((SinkName.DEAD_LETTER,), blobs_per_task=1, reader="reader").encode(batch)
    (payload,) = encoded.payloads.values()
    items = decode_items(SinkName.DEAD_LETTER, payload)

    sink = build(SinkName.DEAD_LETTER, topics.settings)
    sink.write(items, batch.id, topics.settings.sink_timeout_seconds)
    sink.close()
    (letter,) = topics.letters()
    assert letter.replayed is False
    assert (letter.tombstone, letter.value, letter.key) == (value is None, b"", b"key")

    assert topics.replay().produced == 1
    (again,) = [found for found in topics.records() if dict(found.headers).get(REPLAYED_FROM)]
    assert (again.tombstone, again.value, again.key) == (value is None, b"", b"key")
    assert [found.replayed for found in topics.letters()] == [True]
