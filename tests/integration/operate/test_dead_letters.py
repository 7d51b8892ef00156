"""Dead letters on real servers: what a letter may do when it is replayed, whoever wrote it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
from confluent_kafka import Producer

from ingest.core.model import Batch, OffsetRange, Reject, Segment, TopicPartition
from ingest.core.parse import parse
from ingest.operate.dlq import Letter, Replayed, Selection, letters, mentioning, replay
from ingest.operate.remake import batch_of, message_of
from ingest.reader.encoding import Encoder, items_of
from ingest.reader.process import rules_of
from ingest.settings import Settings
from ingest.testing.messages import recording
from tasks.kafka.letters import REFUSED, REPLAYED_FROM, Label, Mark, Origin, Refusal, Sealed, digest, sealed
from tasks.kafka.ranges import RangeReader
from tasks.kafka.records import Headers, Record
from tasks.migrate import migrate
from tasks.refused import dead_letter
from tasks.sinks import build
from tasks.sinks.clickhouse.sink import client as clickhouse_client
from tasks.sinks.gcs.sink import client as gcs_client
from tasks.wire import Blob, DeadLetter, Item, Manifest, Row, SinkName, decode_items

MINE, THEIRS = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
MY_PROJECT, THEIR_PROJECT = 11, 777
FAST = 1e6
ALL = Selection(include_replayed=True)


@dataclass(frozen=True)
class Topics:
    """A topic with a recording of project 11 at offset 0 and one of project 777 at offset 1, and its dead letters.

    `mine` and `theirs` are what the two make; nothing of it was written to any sink.
    """

    settings: Settings
    mine: Segment
    theirs: Segment

    def write(self, *items: DeadLetter) -> None:
        """Letters, as the dead-letter sink writes them."""
        for item in items:
            value = None if item.value is None else bytes(item.value)
            self.produce(self.settings.dlq_topic, item.key, value, item.headers)

    def produce(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        producer = Producer({"bootstrap.servers": self.settings.kafka_brokers})
        producer.produce(topic, value, key, headers=list(headers), partition=0)
        assert producer.flush(20) == 0

    def records(self, topic: str = "") -> list[Record]:
        with RangeReader(self.settings, topic or self.settings.kafka_topic) as reader:
            return list(reader.read_all())

    def letters(self, selection: Selection = ALL) -> list[Letter]:
        return list(letters(self.settings, selection))

    def replay(self, selection: Selection = ALL, **options: Any) -> Replayed:
        return replay(self.settings, selection, per_second_max=FAST, **options)

    def object(self, name: str) -> bytes | None:
        blob = gcs_client(self.settings).bucket(self.settings.gcs_bucket).get_blob(name)
        return None if blob is None else bytes(blob.download_as_bytes(raw_download=True))

    def store(self, name: str, content: bytes) -> None:
        gcs_client(self.settings).bucket(self.settings.gcs_bucket).blob(name).upload_from_string(content)

    def rows(self, table: str) -> int:
        server = clickhouse_client(self.settings)
        try:
            return int(server.query(f"SELECT count() FROM {table} FINAL").result_rows[0][0])
        finally:
            server.close()


@pytest.fixture
def topics(
    kafka_brokers: str, gcs_endpoint: str, clickhouse_url: str, redis_url: str, fresh_name: Callable[[str], str]
) -> Topics:
    name = fresh_name("letters").replace("-", "_")
    settings = Settings(
        redis_url=redis_url,  # type: ignore[arg-type]
        kafka_brokers=kafka_brokers,
        kafka_topic=name,
        kafka_group=name,
        gcs_endpoint=gcs_endpoint,
        gcs_bucket=name,
        clickhouse_url=clickhouse_url,
        clickhouse_database=name,
        sinks=(SinkName.GCS, SinkName.CLICKHOUSE, SinkName.DEAD_LETTER),
    )
    for _ in migrate(settings, topics=True):
        pass
    made = Topics(settings, *[None] * 2)  # type: ignore[arg-type]
    for replay_id, project in ((MINE, MY_PROJECT), (THEIRS, THEIR_PROJECT)):
        made.produce(name, None, recording(replay_id=replay_id, project_id=project, received=int(time.time())))
    found = [parse(message_of(record), rules_of(settings)) for record in made.records()]
    assert all(isinstance(outcome, Segment) for outcome in found)
    return Topics(settings, *found)  # type: ignore[arg-type]


def batch(topics: Topics) -> Batch:
    """Both messages, as one batch."""
    source = message_of(topics.records()[0]).source
    return batch_of(source, OffsetRange(0, 2), [topics.mine, topics.theirs])


def manifest(topics: Topics, start: int = 0, stop: int = 2) -> Manifest:
    topic = topics.settings.kafka_topic
    return Manifest(f"{topic}-0-{start}-{stop}", "digest", topic, 0, start, stop, "reader", 1, ())


def refusal(topics: Topics, sink: str, item: Item) -> DeadLetter:
    """The letter that a flush task writes when the sink refuses the item."""
    return dead_letter(item, manifest(topics), sink, "no")


def forged(topics: Topics, sink: str, kind: str, item: str, value: bytes, offset: int = 0) -> DeadLetter:
    """A letter by somebody who can write the topic and knows our headers."""
    origin = Origin(topics.settings.kafka_topic, 0, offset)
    label = Label(REFUSED, "no", origin, manifest(topics).batch_id, refusal=Refusal(sink, kind, item))
    return DeadLetter(None, value, label.encode(), offset)


def first_format(item: DeadLetter) -> DeadLetter:
    """The letter as the first release wrote it."""
    headers = tuple(pair for pair in item.headers if pair[0] != "version")
    return DeadLetter(item.key, item.value, headers, item.offset)


@pytest.mark.parametrize("older", [False, True], ids=["this format", "the first format"])
def test_a_refused_item_is_written_to_its_sink_and_marked(topics: Topics, older: bool) -> None:
    """Blob and rows; equal letters once; a second replay finds nothing to do."""
    written = [refusal(topics, "gcs", items_of(batch(topics), SinkName.GCS)[0])] * 2
    written += [refusal(topics, "clickhouse", row) for row in items_of(batch(topics), SinkName.CLICKHOUSE)]
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


def test_a_producers_headers_make_no_refused_item_of_its_garbage(topics: Topics) -> None:
    """The first format kept them beside ours. They named another project's recording, and hid the letter."""
    name = topics.theirs.blobs[0].name
    topics.store(name, b"theirs")
    origin = (("topic", topics.settings.kafka_topic.encode()), ("partition", b"0"), ("offset", b"0"))
    headers = (("sink", b"gcs"), ("kind", b"blob"), ("item", name.encode()), ("replayed", b"0-0"))
    topics.produce(topics.settings.dlq_topic, None, b"garbage", (*headers, ("reason", b"not_msgpack"), *origin))
    topics.write(forged(topics, "gcs", "blob", name, b"first letter"))  # 0-1, so that there is a letter to hide

    (letter, _) = topics.letters(Selection())
    done = topics.replay(Selection(reason="not_msgpack"))

    assert (letter.sink, letter.label.originals) == ("", headers)
    assert (done.produced, done.written) == (1, 0)
    assert topics.object(name) == b"theirs"
    assert topics.records()[-1].value == b"garbage"
    assert topics.records()[-1].headers[: len(headers)] == headers


def test_a_letter_reaches_no_other_projects_recording(topics: Topics) -> None:
    """It names their object and a message of ours; the message makes no such object."""
    name = topics.theirs.blobs[0].name
    topics.store(name, b"theirs")
    topics.write(forged(topics, "gcs", "blob", name, b"overwritten"))

    done = topics.replay()

    assert (done.written, [letter for letter, _ in done.failed]) == (0, ["0-0"])
    assert "makes no such item" in done.failed[0][1]
    assert topics.object(name) == b"theirs"


def test_a_letter_cannot_change_what_its_message_made(topics: Topics) -> None:
    """Right name, right message, other bytes: what is written is what the message makes."""
    name = topics.mine.blobs[0].name
    topics.write(forged(topics, "gcs", "blob", name, b"other bytes"))

    done = topics.replay()

    assert done.written == 1
    assert topics.object(name) == bytes(topics.mine.blobs[0].content)


def test_a_tables_name_is_never_sql(topics: Topics) -> None:
    """With the rights of the operator it would be run."""
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


def test_an_item_whose_message_is_gone_needs_to_be_asked_for(topics: Topics) -> None:
    """Nothing vouches for it then; its names are still checked."""
    name, content = topics.mine.blobs[0].name, b"as the letter has it"
    topics.write(forged(topics, "gcs", "blob", name, content, offset=50))
    topics.write(forged(topics, "gcs", "blob", f"{name}/../../1", content, offset=50))

    cautious = topics.replay()
    asked = topics.replay(unverified=True)

    assert [letter for letter, _ in cautious.failed] == ["0-0", "0-1"]
    assert "--unverified" in cautious.failed[0][1]
    assert (asked.written, [letter for letter, _ in asked.failed]) == (1, ["0-1"])
    assert topics.object(name) == content


def test_with_a_shared_key_only_sealed_letters_are_replayed_unasked(topics: Topics) -> None:
    """Without the key nobody forges a letter or hides one; a sealed one needs no original."""
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
    asked = keyed.replay(Selection(), unverified=True)

    assert [letter for letter, _ in done.failed] == ["0-0"]
    assert "--unverified" in done.failed[0][1]
    assert (done.written, topics.object(name)) == (1, b"refused")
    assert [(letter.id, letter.sealed) for letter in left] == [("0-0", Sealed.NO)]
    assert asked.produced == 1
    assert keyed.letters(Selection()) == []


def test_a_packed_object_and_its_index_come_from_their_whole_batch(topics: Topics) -> None:
    """And an index row that points elsewhere does not."""
    encoded = Encoder((SinkName.GCS, SinkName.CLICKHOUSE), 100, "reader", packed=True).encode(batch(topics))
    (blob,) = decode_items("gcs", encoded.payloads["blobs/gcs/0"])
    index = [
        item
        for item in decode_items("clickhouse", encoded.payloads["rows/clickhouse/0"])
        if isinstance(item, Row) and item.table == "replay_objects"
    ]
    assert isinstance(blob, Blob)
    topics.write(refusal(topics, "gcs", blob))
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
    """The operator's rights reach further than the topic of this deployment."""
    label = Label("not_msgpack", "", Origin("payments", 0, 3), "payments-0-0-9")
    topics.write(DeadLetter(None, b"x", label.encode(), 3))
    topics.produce(topics.settings.dlq_topic, None, b"whose?")

    done = topics.replay()

    assert [letter for letter, _ in done.failed] == ["0-0", "0-1"]
    assert "payments" in done.failed[0][1]
    assert topics.letters()[1].reason == "unknown"


def test_what_came_back_counts_as_replayed_only_with_the_bytes_that_were_replayed(topics: Topics) -> None:
    """Any producer can send the header of a replayed message along."""
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


def test_letters_that_mention_a_replay_are_found_wherever_they_do(topics: Topics) -> None:
    """In a message, in its headers, in an item's name or bytes."""
    topic = topics.settings.kafka_topic
    label = Label("not_msgpack", "", Origin(topic, 0, 1), "b", 5, (("trace", MINE.encode()),))
    topics.write(DeadLetter(None, b"x", label.encode(), 1))
    topics.write(DeadLetter(None, MINE.encode(), Label("r", "", Origin(topic, 0, 2), "b").encode(), 2))
    topics.write(refusal(topics, "gcs", items_of(batch(topics), SinkName.GCS)[0]))
    topics.write(forged(topics, "gcs", "blob", topics.theirs.blobs[0].name, b""))

    row = f'{{"replay_id":"{UUID(MINE)}"}}'.encode()
    topics.write(forged(topics, "clickhouse", "row", "replays/1", row))

    found = mentioning(topics.settings, (MINE, str(UUID(MINE))))

    assert [letter.id for letter in found] == ["0-0", "0-1", "0-2", "0-4"]


@pytest.mark.parametrize("value", [None, b""])
def test_a_null_value_stays_null_and_an_empty_one_empty(topics: Topics, value: bytes | None) -> None:
    """From the topic into a dead letter, from there back into the topic, and through what parses it again."""
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
