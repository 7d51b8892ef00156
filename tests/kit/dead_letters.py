"""A separate topic with two recordings on real servers, and dead letters for them, including forged ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from confluent_kafka import Producer
from pydantic import SecretStr

from ingest.core.model import Batch, OffsetRange, Segment
from ingest.core.parse import parse
from ingest.operate.dlq import Letter, ReplaySummary, Selection, letters, replay
from ingest.operate.remake import batch_of, message_of
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from ingest.testing.messages import recording
from tasks.kafka.letters import REFUSED, Label, Origin, Refusal
from tasks.kafka.ranges import RangeReader
from tasks.kafka.records import Headers, Record
from tasks.migrate import migrate
from tasks.refused import dead_letter
from tasks.sinks.clickhouse.sink import client as clickhouse_client
from tasks.sinks.gcs.sink import client as gcs_client
from tasks.wire import DeadLetter, Item, Manifest, SinkName

MINE, THEIRS = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
MY_PROJECT, THEIR_PROJECT = 11, 777
UNLIMITED_RATE = 1e6
ALL = Selection(include_replayed=True)


@dataclass(frozen=True)
class Topics:
    """A topic with a recording of project 11 at offset 0 and a recording of project 777 at offset 1, and its dead
    letters.

    `mine` and `theirs` are the parsed segments of the two recordings, neither of which was written to a sink.
    """

    settings: Settings
    mine: Segment
    theirs: Segment

    def write(self, *items: DeadLetter) -> None:
        """Writes letters as the dead-letter sink does."""
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

    def replay(self, selection: Selection = ALL, **options: Any) -> ReplaySummary:
        return replay(self.settings, selection, per_second_max=UNLIMITED_RATE, **options)

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
        redis_url=SecretStr(redis_url),
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
    """Returns the two messages as one batch."""
    source = message_of(topics.records()[0]).source
    return batch_of(source, OffsetRange(0, 2), [topics.mine, topics.theirs])


def manifest(topics: Topics, start: int = 0, stop: int = 2) -> Manifest:
    topic = topics.settings.kafka_topic
    return Manifest(f"{topic}-0-{start}-{stop}", "digest", topic, 0, start, stop, "reader", 1, ())


def refusal(topics: Topics, sink: SinkName, item: Item) -> DeadLetter:
    """Returns the letter that a flush task writes when the sink refuses the item."""
    return dead_letter(item, manifest(topics), sink, "no")


def forged(topics: Topics, sink: str, kind: str, item: str, value: bytes, offset: int = 0) -> DeadLetter:
    """Returns a letter forged by a producer that knows our header format."""
    origin = Origin(topics.settings.kafka_topic, 0, offset)
    label = Label(REFUSED, "no", origin, manifest(topics).batch_id, refusal=Refusal(sink, kind, item))
    return DeadLetter(None, value, label.encode(), offset)
