"""A failed query for the ends of a partition does not end the loop."""

from __future__ import annotations

import queue

import pytest
from confluent_kafka import Consumer

from ingest.core import events as on
from ingest.reader.assignment import NoStartOffset, Offsets
from ingest.reader.kafka import KafkaSource

UNREACHABLE = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0}


def test_a_partition_with_unknown_ends_is_left_out() -> None:
    """If the client raises RuntimeError, as a closed client does for every call, the partition is left out."""
    inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
    source = KafkaSource(UNREACHABLE, "recordings", inbox)
    source._epochs[0] = 1
    source.close()

    assert source.log_ranges() == {}
    assert source.query_log_ranges() == {}


def test_a_start_with_unknown_ends_has_no_result() -> None:
    """If the ends are unknown, the reader rejoins the group instead of choosing an offset."""
    consumer = Consumer(UNREACHABLE)
    consumer.close()

    with pytest.raises(NoStartOffset, match="limits of recordings-0"):
        Offsets("recordings", "latest").log_range(consumer, 0)
