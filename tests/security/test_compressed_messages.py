"""A message of a few kilobytes that inflates beyond the reader's limit would otherwise stop its partition
permanently.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from confluent_kafka import KafkaError, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from ingest.local.servers.java_kafka import JavaKafka
from tasks.migrate.kafka import SOURCE_MESSAGE_BYTES_MAX
from tasks.units import MiB

pytestmark = pytest.mark.kafka
BOMB = bytes(100 * MiB)


def answer_to(brokers: str, topic: str, value: bytes, codec: str) -> KafkaError | None:
    """Produces one message, and returns the broker's error, or None if the message was accepted."""
    answers: list[KafkaError | None] = []
    limits = {"message.max.bytes": 1_000_000_000, "compression.type": codec}
    producer = Producer({"bootstrap.servers": brokers, **limits})
    producer.produce(topic, value, on_delivery=lambda error, _: answers.append(error))
    assert producer.flush(60) == 0
    return answers[0]


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
def test_a_broker_that_inflates_refuses_bombs(
    apache_kafka: JavaKafka, fresh_name: Callable[[str], str], codec: str
):
    """A broker with `compression.type=uncompressed` refuses bombs, because its limit applies to the inflated
    size.

    By default the limit applies to the compressed size.
    """
    admin = AdminClient({"bootstrap.servers": apache_kafka.address})
    limit = {"max.message.bytes": str(SOURCE_MESSAGE_BYTES_MAX)}
    guarded, usual = fresh_name("guarded"), fresh_name("usual")
    topics = [
        NewTopic(guarded, 1, 1, config={**limit, "compression.type": "uncompressed"}),
        NewTopic(usual, 1, 1, config=limit),
    ]
    for made in admin.create_topics(topics).values():
        made.result(20)

    error = answer_to(apache_kafka.address, guarded, BOMB, codec)

    assert error is not None
    assert error.code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert answer_to(apache_kafka.address, guarded, bytes(14_000_000), codec) is None
    assert answer_to(apache_kafka.address, usual, BOMB, codec) is None
