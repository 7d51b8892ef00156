"""A real worker is scraped, probed and traced, and is shown by `status` and `top`."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Message, Stage, TopicPartition
from ingest.local.servers.processes import wait_until
from ingest.observe.fleet import FleetWatch
from ingest.observe.heartbeat import HeartbeatSource
from ingest.observe.metrics import Metrics
from ingest.observe.tracing import Tracing
from ingest.operate import status, top
from ingest.reader.dispatch import Dispatcher
from ingest.settings import Settings
from tasks.observe import telemetry
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Collector:
    """An OTLP collector that stores received spans."""

    def __init__(self) -> None:
        spans = self.spans = []  # type: list[Any]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                request = ExportTraceServiceRequest.FromString(body)
                spans.extend(
                    span
                    for resource in request.resource_spans
                    for scope in resource.scope_spans
                    for span in scope.spans
                )
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def fleet_options(port: int) -> dict[str, str]:
    return {"WORKER_HTTP_PORT": str(port), "HEARTBEAT_SECONDS": "0.2", "LOG_FORMAT": "json"}


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Returns the samples that Prometheus would store from one scrape."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(get(port, "/metrics")[1])
        for sample in family.samples
    }


def flushes(port: int, sink: str, outcome: str) -> float:
    labels = (("outcome", outcome), ("sink", sink))
    return samples(port).get(("replays_worker_flushes_total", labels), 0.0)


def test_a_worker_counts_its_flushes_over_all_of_its_processes(fleet: Fleet, port: int):
    """A worker's /metrics counts completed, repeated and failed task runs in all processes of the worker; /readyz
    and /livez succeed.
    """
    fleet.worker()
    dispatcher = fleet.dispatcher()

    assert isinstance(fleet.settle(dispatcher, make_batch(), Stage.BLOBS), on.FlushSucceeded)
    assert isinstance(fleet.settle(dispatcher, make_batch(), Stage.ROWS), on.FlushSucceeded)

    wait_until(lambda: flushes(port, "clickhouse", "done") == 1, 10, "the flush to be counted")
    found = samples(port)
    assert found["replays_worker_flush_items_sum", (("sink", "clickhouse"),)] == 3
    assert found["replays_worker_flush_seconds_count", (("sink", "gcs"),)] == 1
    assert found["replays_worker_flushes_total", (("outcome", "gave_up"), ("sink", "gcs"))] == 0
    assert found["replays_worker_completions_total", (("kind", "done"),)] == 2
    assert get(port, "/readyz")[0] == 200
    assert get(port, "/livez")[0] == 200


def test_a_worker_without_its_broker_is_not_ready_but_live(fleet: Fleet, port: int):
    """If Redis is unavailable, a worker is not ready. The worker stays live, because a restart would not help."""
    fleet.worker()
    wait_until(lambda: get(port, "/readyz")[0] == 200, 20, "the worker to be ready")

    fleet.redis.kill()

    wait_until(lambda: get(port, "/readyz")[0] == 503, 40, "the worker to notice")
    assert get(port, "/livez")[0] == 200


def test_a_worker_whose_port_is_in_use_exits_with_an_error(fleet: Fleet, port: int):
    """A worker whose port is in use exits with an error before it accepts a task."""
    with socket.create_server(("127.0.0.1", port)):
        worker = fleet.start_worker()
        fleet.wait(lambda: not worker.alive, "the worker to end")

    log = worker.log_path.read_text()
    assert worker.returncode == 2
    assert f"127.0.0.1:{port}" in log
    assert "set REPLAYS_WORKER_HTTP_PORT" in log
    assert "Traceback" not in log


def test_a_trace_goes_from_the_kafka_header_to_the_sinks(fleet: Fleet, collector: Collector):
    """The trace that the message's header names contains the span of the batch, and that span contains one span
    per sink."""
    fleet.environment |= {"REPLAYS_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    fleet.environment |= {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    fleet.worker()
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    telemetry.configure(Settings(tracing=True), "replays-reader", provider)
    tracing = Tracing()
    dispatcher = Dispatcher(fleet.settings, "reader-1", fleet.inbox, trace=tracing.begin)
    dispatcher.start()
    try:
        batch = make_batch()
        header = ((telemetry.HEADER, TRACEPARENT.encode()),)
        source = TopicPartition("ingest-replay-recordings", 0)
        tracing.polled([Message(source, 1, 0, b"", headers=header)])
        fleet.settle(dispatcher, batch, Stage.BLOBS)
        done = fleet.settle(dispatcher, batch, Stage.ROWS)
        assert isinstance(done, on.FlushSucceeded)
        tracing.observe(done, [do.Discard(batch)], 0.0)
    finally:
        dispatcher.stop(2.0)
        telemetry.configure(Settings(), "replays-reader")

    (of_batch,) = exporter.get_finished_spans()
    assert f"{of_batch.context.trace_id:032x}" == TRACE
    assert of_batch.parent is not None
    assert f"{of_batch.parent.span_id:016x}" == PARENT
    wait_until(lambda: len(collector.spans) >= 4, 15, "the sinks' spans")
    names = {span.name for span in collector.spans}
    assert {"flush gcs", "flush clickhouse", "flush bigquery", "flush datadog"} <= names
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in collector.spans} == {f"{of_batch.context.span_id:016x}"}


def test_a_retried_task_stays_in_its_trace(fleet: Fleet, collector: Collector):
    """A task that Celery retries stays in its trace, because it keeps the trace header."""
    fleet.environment |= {"REPLAYS_TRACING": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    fleet.environment |= {"OTEL_BSP_SCHEDULE_DELAY": "200"}
    fleet.script("gcs", "transient")
    fleet.worker()
    dispatcher = Dispatcher(fleet.settings, "reader-1", fleet.inbox, trace=lambda batch: TRACEPARENT)
    dispatcher.start()
    try:
        assert isinstance(fleet.settle(dispatcher, make_batch(), Stage.BLOBS), on.FlushFailed)
    finally:
        dispatcher.stop(2.0)

    wait_until(lambda: len(collector.spans) >= 2, 15, "the spans of both runs")
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert (
        len(
            {
                attribute.value.int_value
                for span in collector.spans
                for attribute in span.attributes
                if attribute.key == "replays.retries"
            }
        )
        >= 2
    )


def test_status_and_top_show_readers_queues_and_parked_batches(fleet: Fleet):
    """`status` and `top` show readers, queues and parked batches, which they read from Redis."""
    metrics = Metrics(fleet.settings, ("not_msgpack",))
    metrics.meters.count("replays.reader.rejects", 3, "not_msgpack")
    heartbeat = HeartbeatSource(fleet.settings, metrics)
    heartbeat.http = "127.0.0.1:9464"
    dispatcher = Dispatcher(fleet.settings, "reader-7", fleet.inbox, heartbeat=heartbeat)
    dispatcher.start()
    try:
        batch = make_batch()
        dispatcher.submit(do.Dispatch(batch, Stage.BLOBS, 1, 30.0))
        dispatcher.submit(do.Park(batch, Stage.BLOBS, 1, "bucket is gone", 5.0))
        wait_until(lambda: bool(status.collect(fleet.settings).parked), 10, "the batch to be parked")
        wait_until(lambda: bool(status.collect(fleet.settings).readers), 10, "the heartbeat")
        found = status.collect(fleet.settings)
    finally:
        dispatcher.stop(2.0)

    assert [reader.reader for reader in found.readers] == ["reader-7"]
    assert found.readers[0].topic == "ingest-replay-recordings"
    assert found.readers[0].http == "127.0.0.1:9464"
    assert found.readers[0].pid == os.getpid()
    assert not found.readers[0].silent
    assert found.rejects == {"not_msgpack": 3}
    assert [parked.error for parked in found.parked] == ["bucket is gone"]
    assert {sink.sink: sink.queue_depth for sink in found.sinks}["gcs"] == 1
    assert json.loads(msgspec.json.encode(found))["redis"]["policy"] == "noeviction"
    drawn = io.StringIO()
    Console(file=drawn, width=140).print(top.page(found))
    for text in ("reader-7", "bucket is gone", "not_msgpack", "clickhouse", batch.id):
        assert text in drawn.getvalue()


def test_the_watch_exports_queues_and_breakers_as_metrics(fleet: Fleet):
    """Queues and breakers are exported as metrics once per heartbeat.

    If Redis is unavailable, a gauge is set and the reader is not ready.
    """
    metrics = Metrics(fleet.settings)
    watch = FleetWatch(fleet.settings, metrics)
    fleet.dispatcher().submit(do.Dispatch(make_batch(), Stage.BLOBS, 1, 30.0))

    def depth() -> float | None:
        watch.check()
        return metrics.registry.get_sample_value("replays_reader_queue_depth", {"queue": "flush.gcs"})

    wait_until(lambda: depth() == 1, 10, "the task to be queued")
    assert watch.dependencies() == {"redis": ""}
    assert metrics.registry.get_sample_value("replays_reader_breaker_state", {"sink": "gcs"}) == 0

    fleet.redis.kill()
    watch.check()

    assert metrics.registry.get_sample_value("replays_reader_redis_up") == 0
    assert watch.dependencies()["redis"] != ""
