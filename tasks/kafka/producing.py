"""Produces single records, each acknowledged by all in-sync replicas before the call returns."""

from __future__ import annotations

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tasks.kafka.options import producer_options
from tasks.kafka.records import Headers
from tasks.settings import Settings

CALL_SECONDS_MAX = 15.0


class NotProduced(Exception):
    """The brokers did not acknowledge the record in time, or refused it. It may still arrive."""


class AcknowledgedProducer:
    """Used by one thread. The connection is made when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: Producer | None = None

    def produce(self, topic: str, key: bytes | None, value: bytes, headers: Headers) -> None:
        """Returns when the record is durable. Raises NotProduced."""
        if self._producer is None:
            self._producer = Producer(producer_options(self._settings))
        reports: list[KafkaError | None] = []

        def delivered(error: KafkaError | None, _message: Message) -> None:
            reports.append(error)

        try:
            self._producer.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
        except (KafkaException, BufferError, ValueError) as failure:
            raise NotProduced(f"could not produce to {topic}: {failure}") from failure
        self._producer.flush(CALL_SECONDS_MAX)
        if not reports or reports[0] is not None:
            told = reports[0].str() if reports and reports[0] else f"no answer in {CALL_SECONDS_MAX:g} s"
            raise NotProduced(f"{topic} did not take the message: {told}")
