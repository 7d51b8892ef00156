"""Asking for the ends of a partition may fail; that ends no loop."""

from __future__ import annotations

import queue

import pytest
from confluent_kafka import Consumer

from ingest.core import events as on
from ingest.reader.assignment import Offsets, Unanswered
from ingest.reader.kafka import KafkaSource

NOBODY = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": 0}


def test_a_partition_whose_ends_the_client_cannot_tell_is_left_out() -> None:
    """A closed client raises RuntimeError for whatever it is asked."""
    inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
    source = KafkaSource(NOBODY, "recordings", inbox)
    source._epochs[0] = 1
    source.close()

    assert source.log_ranges() == {}
    assert source.ask_log_ranges() == {}


def test_a_start_whose_ends_the_client_cannot_tell_is_unanswered() -> None:
    """The reader joins the group again then, instead of choosing an offset."""
    consumer = Consumer(NOBODY)
    consumer.close()

    with pytest.raises(Unanswered, match="limits of recordings-0"):
        Offsets("recordings", "latest").log_range(consumer, 0)
