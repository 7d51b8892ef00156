"""P4: sentry-streams (Sentry's platform since mid-2026), with the typed parser of P1 and an upload step.

    .bench/streams/bin/python -m benchmarks.peers_streams --brokers HOST:PORT --topic T --group G --endpoint URL

Kafka source -> Map(parse) -> native batch step (62 segments or 1 s) -> upload step -> commit. Source, batching and
commits are Rust; parsing and uploads are Python. The upload step implements the platform's own operator interface
(`RustOperatorDelegate`), and writes one object per segment with google-cloud-storage in a thread pool. The
platform's own GCS sink is not used: it writes only to storage.googleapis.com with Google's credentials, and its
object names do not depend on the message.

It stores before it commits: the platform commits the offsets of a watermark when the watermark reaches the end of
the pipeline, and the upload step passes a watermark on only after all objects of the batches before it are stored.
If an upload fails, the process ends, and its successor reads the messages again, so delivery is at least once.

The platform holds the GIL while it executes Rust code. The upload step therefore releases the GIL on every poll.
While 256 segments are in flight, the upload step waits instead of rejecting a batch. Python starts the consumer
directly, without the platform's runner, which only adds a function call per message and a metric.

Its dependencies conflict with ours (protobuf), so it has its own environment; see `make bench-streams`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from sentry_streams.adapters.arroyo.rust_step import RustOperatorDelegate, RustOperatorFactory
from sentry_streams.rust_streams import (
    ArroyoConsumer,
    InitialOffset,
    PyAnyMessage,
    PyKafkaConsumerConfig,
    PyWatermark,
    Route,
    RuntimeOperator,
)

from benchmarks.peers_common import (
    BATCH_SECONDS,
    BATCH_SEGMENTS,
    COMMIT_SECONDS,
    PENDING_MAX,
    QUEUED_KBYTES_MAX,
    SESSION_MS,
    Upload,
    named,
    peer_parser,
)
from benchmarks.peers_parse import typed

Committable = dict[tuple[str, int], int]
UPLOAD_SECONDS_MAX = 60.0
IDLE_WAIT_SECONDS = 0.02


@dataclass(slots=True)
class Progress:
    """Number of messages parsed by this process."""

    parsed: int = 0


@dataclass(slots=True)
class Entry:
    """One entry of the queue, which is in order of arrival: a batch with its uploads, or a watermark."""

    message: Any
    committable: Committable
    uploads: list[Future[None]] = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """True if all objects are stored. Raises the exception of a failed upload."""
        if not all(upload.done() for upload in self.uploads):
            return False
        for upload in self.uploads:
            upload.result()
        return True


class Uploads(RustOperatorDelegate):
    """Uploads each segment of a batch, and passes batches and watermarks on in order."""

    def __init__(self, upload: Upload, threads: int, progress: Progress) -> None:
        self._upload = upload
        self._pool = ThreadPoolExecutor(threads)
        self._entries: deque[Entry] = deque()
        self._pending = 0
        self._progress = progress
        self._parsed_before = 0

    def submit(self, message: Any, committable: Committable) -> None:
        """Starts the uploads of a batch. Waits while PENDING_MAX segments are in flight."""
        if isinstance(message, PyWatermark):
            self._entries.append(Entry(message, committable))
            return
        segments = message.payload
        while self._pending + len(segments) > PENDING_MAX and self._pending:
            oldest = next(entry for entry in self._entries if entry.uploads)
            wait(oldest.uploads, UPLOAD_SECONDS_MAX)
            self._pending -= len(oldest.uploads)
            for upload in oldest.uploads:
                upload.result(0)
            oldest.uploads = []
        uploads = [self._pool.submit(self._upload, name, blob) for name, blob in segments]
        self._pending += len(uploads)
        done = PyAnyMessage(None, [], message.timestamp, message.schema)
        self._entries.append(Entry(done, committable, uploads))

    def poll(self) -> Iterable[tuple[Any, Committable]]:
        """Returns the entries whose objects are all stored, up to the first unfinished one. Gives the uploads time
        to run: if there are no new messages, waits briefly for the uploads.
        """
        if self._entries:
            if self._progress.parsed == self._parsed_before and self._pending:
                wait([upload for entry in self._entries for upload in entry.uploads], IDLE_WAIT_SECONDS)
            else:
                time.sleep(0)
        self._parsed_before = self._progress.parsed
        return self._stored()

    def flush(self, timeout: float | None = None) -> Iterable[tuple[Any, Committable]]:
        """Waits for all uploads, and returns the entries whose objects are all stored."""
        wait([upload for entry in self._entries for upload in entry.uploads], timeout)
        return self._stored()

    def _stored(self) -> list[tuple[Any, Committable]]:
        found = []
        while self._entries and self._entries[0].is_done:
            entry = self._entries.popleft()
            self._pending -= len(entry.uploads)
            found.append((entry.message, entry.committable))
        return found


class Factory(RustOperatorFactory):
    """Creates a new upload step for each assignment."""

    def __init__(self, arguments: argparse.Namespace, progress: Progress) -> None:
        super().__init__()
        self._arguments = arguments
        self._progress = progress

    def build(self) -> Uploads:
        """Returns a new upload step."""
        arguments = self._arguments
        upload = Upload(arguments.endpoint, arguments.bucket, arguments.threads)
        return Uploads(upload, arguments.threads, self._progress)


def run(arguments: argparse.Namespace) -> None:
    """Runs the consumer until SIGINT or SIGTERM."""
    progress = Progress()

    def parse(message: Any) -> PyAnyMessage:
        progress.parsed += 1
        name, found = named(typed, message.payload)
        return PyAnyMessage((name, found.blob), [], message.timestamp, message.schema)

    consumer = ArroyoConsumer(
        source="recordings",
        kafka_config=PyKafkaConsumerConfig(
            bootstrap_servers=[arguments.brokers],
            group_id=arguments.group,
            auto_offset_reset=InitialOffset.earliest,
            strict_offset_reset=False,
            max_poll_interval_ms=60_000,
            override_params={
                "session.timeout.ms": str(SESSION_MS),
                "auto.commit.interval.ms": str(int(COMMIT_SECONDS * 1000)),
                "queued.max.messages.kbytes": str(QUEUED_KBYTES_MAX),
            },
        ),
        topic=arguments.topic,
        schema=None,
    )
    route = Route("recordings", [])
    consumer.add_step(RuntimeOperator.Map(route, parse))
    consumer.add_step(
        RuntimeOperator.Batch(
            route,
            "batch",
            max_batch_size=BATCH_SEGMENTS,
            max_batch_size_bytes=None,
            max_batch_time_ms=BATCH_SECONDS * 1000,
        )
    )
    consumer.add_step(RuntimeOperator.PythonAdapter(route, Factory(arguments, progress)))
    consumer.run()


def main() -> None:
    """Command line."""
    os.environ.setdefault("RUST_LOG", "warn")
    run(peer_parser(__doc__ or "").parse_args())


if __name__ == "__main__":
    main()
