"""How a consumer leaves its group without hanging.

librdkafka delivers a rebalance that nobody polled for from inside its `close`. The client then asks librdkafka's
main thread a question that may never be answered, since the group is already being left, and holds the
interpreter's lock meanwhile: no thread of the process runs again, neither health probes nor signal handlers.
Seen once, on a crowded machine, with confluent-kafka 2.16.1.

So what is pending is delivered before, and a timer that needs no interpreter ends the process if that was not
enough. Everything durable was committed by then.
"""

from __future__ import annotations

import faulthandler
import sys
from contextlib import suppress

from confluent_kafka import Consumer, KafkaException

CLOSE_SECONDS_MAX = 30.0
# A client that is replaced may drain its partitions first, for the longest REPLAYS_DRAIN_DEADLINE_SECONDS.
REPLACE_SECONDS_MAX = 600.0 + CLOSE_SECONDS_MAX
PENDING_MAX = 100_000


def close(consumer: Consumer, seconds_max: float = CLOSE_SECONDS_MAX) -> None:
    """Delivers pending callbacks, drops prefetched messages, and leaves the group.

    Raises what the client raises. After `seconds_max` the process exits with 1, its stacks on standard error.
    """
    _deliver_pending(consumer)
    if sys.__stderr__ is not None:
        faulthandler.dump_traceback_later(seconds_max, exit=True, file=sys.__stderr__)
    try:
        consumer.close()
    finally:
        faulthandler.cancel_dump_traceback_later()


def _deliver_pending(consumer: Consumer) -> None:
    """Callbacks and messages share one queue: a message may stand before a rebalance."""
    with suppress(KafkaException, RuntimeError):  # the close reports it, if it still matters
        for _ in range(PENDING_MAX):
            if consumer.poll(0) is None:
                return
