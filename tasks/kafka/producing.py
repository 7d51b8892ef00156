"""Produces single records, each acknowledged by all in-sync replicas before the call returns."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tasks.kafka.options import producer_options
from tasks.kafka.records import Headers
from tasks.settings import Settings

CALL_SECONDS_MAX = 15.0
log = logging.getLogger(__name__)


class NotProduced(Exception):
    """The record was refused, or it was not acknowledged in time and may still be written."""


class AcknowledgedProducer:
    """Used by one thread. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None

    def produce(self, topic: str, key: bytes | None, value: bytes | None, headers: Headers) -> int:
        """Returns the record's offset once it is durable. Raises NotProduced."""
        if self._producer is None:
            self._producer = Producer(producer_options(self._settings), logger=log)
        reports: list[str] = []
        offsets: list[int] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            reports.append(error.str() if error is not None else unconfirmed_delivery(message) or "")
            offsets.append(message.offset() or 0)

        try:
            self._producer.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
        except (KafkaException, BufferError, ValueError) as error:
            raise NotProduced(f"could not produce to {topic}: {error}") from error
        self._producer.flush(CALL_SECONDS_MAX)
        failure = reports[0] if reports else f"no answer in {CALL_SECONDS_MAX:g} s"
        if failure:
            raise NotProduced(f"{topic} refused the message: {failure}")
        return offsets[0]


def unconfirmed_delivery(message: Message) -> str | None:
    """Returns the reason why a delivery report without an error does not prove the write. Returns None if the
    broker assigned an offset."""
    offset = message.offset()
    return None if offset is not None and offset >= 0 else f"acknowledged without an offset ({offset})"
