"""Complete peer consumers in one process for comparison, built from public packages: P1, P2 and P3.

They read from Kafka, write to Cloud Storage and commit offsets.

    python -m benchmarks.peers_pipeline p1-typed --brokers HOST:PORT --topic T --group G --endpoint URL

- `p1-json`, `p1-typed`: what Sentry ran until mid-2026: sentry-arroyo, RunTask(parse) -> RunTaskInThreads(one
  object per segment with google-cloud-storage) -> CommitOffsets; parsing as in benchmarks/peers_parse.py, full
  JSON or typed. Like the consumer that it models, it stores only recordings: rows are built, encoded and
  discarded.
- `p2`: RunTask(parse) -> Reduce(a batch) -> RunTaskInThreads(the batch's objects one after another, one ClickHouse
  insert of rows, one BigQuery insert, with the official clients) -> CommitOffsets.
- `p3`: a loop around confluent-kafka's Consumer and a thread pool: parse and upload in the pool, commit
  contiguous offsets.

As in our system, offsets are committed at most every half second, once all objects before them are stored.
P4 is benchmarks/peers_streams.py, and P5 is benchmarks/peers_celery.py.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgpack  # type: ignore[import-untyped]
from google.auth.credentials import AnonymousCredentials

from benchmarks.peers_common import (
    BATCH_SECONDS,
    BATCH_SEGMENTS,
    COMMIT_SECONDS,
    PENDING_MAX,
    QUEUED_KBYTES_MAX,
    SESSION_MS,
    Upload,
    consumer_config,
    named,
    peer_parser,
)
from benchmarks.peers_parse import Found, full_json, typed

KINDS = ("p1-json", "p1-typed", "p2", "p3")


class Rows:
    """Writes the rows of a batch with the official clients of ClickHouse and BigQuery."""

    def __init__(self, endpoint: str) -> None:
        from google.cloud import bigquery

        self._bigquery = bigquery.Client(
            project="benchmark",
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": endpoint},
        )
        import clickhouse_connect

        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._clickhouse = clickhouse_connect.get_client(
            host=host, port=int(port), autogenerate_session_id=False, compress="lz4"
        )

    def write(self, found: list[Found]) -> None:
        """Sends one insert request to each sink for which there are rows."""
        rows = b"\n".join(row for one in found for row in one.rows)
        if rows:
            self._clickhouse.raw_insert("replays", insert_block=rows, fmt="JSONEachRow")
        facts = [msgpack.unpackb(msgpack.packb({"json": fact.decode()})) for one in found for fact in one.facts]
        if facts:
            self._bigquery.insert_rows_json("benchmark.replays.replay_events", facts)


def run_arroyo(arguments: argparse.Namespace) -> None:
    """Runs P1 or P2."""
    from arroyo.backends.kafka import KafkaConsumer, build_kafka_consumer_configuration
    from arroyo.commit import CommitPolicy
    from arroyo.processing.processor import StreamProcessor
    from arroyo.processing.strategies import CommitOffsets, Reduce, RunTask, RunTaskInThreads
    from arroyo.types import BaseValue, Topic

    upload = Upload(arguments.endpoint, arguments.bucket, arguments.threads)
    parse = functools.partial(named, full_json if arguments.kind == "p1-json" else typed)
    rows = Rows(arguments.endpoint) if arguments.kind == "p2" else None

    def parse_message(message: Any) -> tuple[str, Found]:
        return parse(message.payload.value)

    def store(message: Any) -> None:
        name, found = message.payload
        upload(name, found.blob)

    def store_all(message: Any) -> None:
        for name, found in message.payload:
            upload(name, found.blob)
        assert rows is not None
        rows.write([found for _, found in message.payload])

    class Factory:
        def create_with_partitions(self, commit: Any, partitions: Any) -> Any:
            last = CommitOffsets(commit)
            if arguments.kind != "p2":
                threads = RunTaskInThreads(store, arguments.threads, PENDING_MAX, last)
                return RunTask(parse_message, threads)
            threads = RunTaskInThreads(store_all, arguments.threads, 2 * arguments.threads, last)

            def add(batch: list[Any], value: BaseValue[Any]) -> list[Any]:
                batch.append(value.payload)
                return batch

            reduce: Any = Reduce(BATCH_SEGMENTS, BATCH_SECONDS, add, list, threads)
            return RunTask(parse_message, reduce)

        def shutdown(self) -> None: ...

    config = build_kafka_consumer_configuration(
        {
            "bootstrap.servers": arguments.brokers,
            "session.timeout.ms": SESSION_MS,
            # arroyo stores offsets, and librdkafka commits them. The default commit interval of 5 s is longer than
            # that of the other systems.
            "auto.commit.interval.ms": int(COMMIT_SECONDS * 1000),
        },
        group_id=arguments.group,
        auto_offset_reset="earliest",
        strict_offset_reset=False,
        queued_max_messages_kbytes=QUEUED_KBYTES_MAX,
    )
    processor: Any = StreamProcessor(
        KafkaConsumer(config),
        Topic(arguments.topic),
        Factory(),
        CommitPolicy(COMMIT_SECONDS, None),
        join_timeout=5.0,
    )
    signal.signal(signal.SIGTERM, lambda *_: processor.signal_shutdown())
    processor.run()


def run_loop(arguments: argparse.Namespace) -> None:
    """Runs P3."""
    from confluent_kafka import Consumer, TopicPartition

    upload = Upload(arguments.endpoint, arguments.bucket, arguments.threads)
    pool = ThreadPoolExecutor(arguments.threads)
    ending = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    consumer = Consumer(consumer_config(arguments))
    consumer.subscribe([arguments.topic])
    waiting: dict[int, deque[tuple[int, Future[None]]]] = {}

    def work(value: bytes) -> None:
        name, found = named(typed, value)
        upload(name, found.blob)

    committed_at, pending = time.monotonic(), 0
    while not ending.is_set():
        message = consumer.poll(0.05) if pending < PENDING_MAX else None
        if message is not None and message.error() is None:
            number, offset, value = message.partition(), message.offset(), message.value()
            assert number is not None
            assert offset is not None
            assert value is not None
            waiting.setdefault(number, deque()).append((offset, pool.submit(work, value)))
            pending += 1
        elif pending >= PENDING_MAX:
            oldest = min((queue[0] for queue in waiting.values() if queue), key=lambda entry: entry[0])
            oldest[1].exception(timeout=30)
        if pending < PENDING_MAX and time.monotonic() - committed_at < COMMIT_SECONDS:
            continue
        done: list[TopicPartition] = []
        for number, queue in waiting.items():
            last = None
            while queue and queue[0][1].done():
                last, future = queue.popleft()
                future.result()
                pending -= 1
            if last is not None:
                done.append(TopicPartition(arguments.topic, number, last + 1))
        if done:
            consumer.commit(offsets=done, asynchronous=True)
        committed_at = time.monotonic()
    pool.shutdown()
    consumer.close()


def main() -> None:
    """The command line. Runs until SIGTERM."""
    arguments = peer_parser(__doc__ or "", KINDS).parse_args()
    logging.basicConfig(level=os.environ.get("LOG_LEVEL", "WARNING"))
    if arguments.kind == "p3":
        run_loop(arguments)
    else:
        run_arroyo(arguments)


if __name__ == "__main__":
    main()
