"""Leaves the consumer group without hanging.

librdkafka delivers an unserved rebalance inside its `close`. The client then makes a request to librdkafka's main
thread and holds the interpreter lock while it waits. The main thread may never respond, because the client is
already leaving the group. From then on no thread of the process runs, and neither health probes nor signal
handlers work. Such a hang was seen once, on a loaded machine, with confluent-kafka 2.16.1.

Therefore pending callbacks are delivered first. If that is not enough, a timer that does not need the interpreter
ends the process. When the timer fires, everything durable has been committed.
"""

from __future__ import annotations

import faulthandler
import sys
from contextlib import suppress

from confluent_kafka import Consumer, KafkaException

CLOSE_SECONDS_MAX = 30.0
# A client that is replaced may drain its partitions first, which takes at most
# REPLAYS_DRAIN_DEADLINE_SECONDS (maximum 600).
REPLACE_SECONDS_MAX = 600.0 + CLOSE_SECONDS_MAX
PENDING_MAX = 100_000


def close(consumer: Consumer, seconds_max: float = CLOSE_SECONDS_MAX) -> None:
    """Delivers pending callbacks, drops prefetched messages, and leaves the group.

    Raises KafkaException or RuntimeError if the client fails to close. After `seconds_max`, the process writes the
    stack traces of its threads to standard error and exits with code 1.
    """
    _deliver_pending(consumer)
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds_max, exit=True, file=sys.__stderr__)
    try:
        consumer.close()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _deliver_pending(consumer: Consumer) -> None:
    """Polls until the client's queue is empty, because messages in it may precede a rebalance."""
    with suppress(KafkaException, RuntimeError):  # if the error persists, `consumer.close` raises it
        for _ in range(PENDING_MAX):
            if consumer.poll(0) is None:
                return
