"""The reader put together: shells around the pipeline, the loop, signals, and the exit code."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import time
from typing import Any

import structlog

from ingest.core import events as on
from ingest.core.limits import Limits
from ingest.core.parse import ParseRules
from ingest.core.pipeline import Pipeline
from ingest.dispatch import Dispatcher
from ingest.kafka import ConsumerFailed, KafkaSource
from ingest.parsing import InlineParser
from ingest.runtime import Runtime
from ingest.settings import Settings
from tasks.kafka_options import kafka_options

log = structlog.get_logger(__name__)


class ReaderFailed(Exception):
    """The reader cannot go on. The text says why and what to do."""


def limits_of(settings: Settings) -> Limits:
    """The core's bounds, by their common names."""
    names = Limits.__dataclass_fields__
    return Limits(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def rules_of(settings: Settings) -> ParseRules:
    """The parser's bounds and sampling rates, by their common names."""
    names = ParseRules.__dataclass_fields__
    return ParseRules(**{name: getattr(settings, name) for name in names if hasattr(settings, name)})


def consumer_config(settings: Settings) -> dict[str, Any]:
    """The librdkafka properties of the reader's consumer."""
    config: dict[str, Any] = {
        "group.id": settings.kafka_group,
        "session.timeout.ms": int(settings.kafka_session_timeout_seconds * 1000),
        "heartbeat.interval.ms": max(100, int(settings.kafka_session_timeout_seconds * 1000 / 10)),
        "max.poll.interval.ms": max(300_000, int(settings.kafka_session_timeout_seconds * 1000)),
        "queued.max.messages.kbytes": settings.kafka_queued_bytes_max // 1024,
        "fetch.message.max.bytes": 1024 * 1024,
        "fetch.wait.max.ms": 100,
    }
    if settings.kafka_instance_id:
        config["group.instance.id"] = settings.kafka_instance_id
    return {**config, **kafka_options(settings)}


def reader_id(settings: Settings) -> str:
    """Who this process is to the fleet: a new stream of completions for each life of it."""
    name = settings.kafka_instance_id or socket.gethostname()
    return f"{name}-{os.getpid()}-{secrets.token_hex(3)}"


def run(settings: Settings) -> int:
    """Consumes until SIGTERM or SIGINT. Returns the exit code: 0 drained or out of time, 3 had halted."""
    inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
    pipeline = Pipeline(limits_of(settings))
    source = KafkaSource(consumer_config(settings), settings.kafka_topic, inbox, settings.kafka_offset_reset)
    dispatcher = Dispatcher(settings, reader_id(settings), inbox)
    runtime = Runtime(pipeline, source, dispatcher, InlineParser(rules_of(settings)), inbox, time.monotonic)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: inbox.put(on.ShutdownRequested()))
    dispatcher.start()
    source.subscribe(runtime.feed, runtime.drain)
    log.info("reader_started", topic=settings.kafka_topic, group=settings.kafka_group, reader=dispatcher.reader)
    try:
        stop = runtime.run()
    except ConsumerFailed as failure:
        raise ReaderFailed(str(failure)) from failure
    log.info("reader_stopped", clean=stop.clean, halted=pipeline.halted)
    return 3 if pipeline.halted else 0
