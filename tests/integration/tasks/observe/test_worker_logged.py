"""The log lines of a real worker, and the data that it sends to Sentry and to an OTLP collector over gRPC."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from ingest.core import events as on
from ingest.core.model import Stage
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet

EXPORT_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Sentry:
    """A server that stores received events."""

    def __init__(self) -> None:
        events = self.events = []  # type: list[dict[str, Any]]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                lines = body.split(b"\n")
                events.extend(
                    json.loads(lines[place + 1])
                    for place, line in enumerate(lines[:-1])
                    if line.startswith(b'{"type":"event"')
                )
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, format: str, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.dsn = f"http://key@127.0.0.1:{self.server.server_address[1]}/1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    server = Sentry()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def collected() -> Iterator[tuple[str, list[Any]]]:
    """Runs an OTLP collector over gRPC, and yields its address and the received resources with their spans."""
    resources: list[Any] = []

    def export(request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:
        resources.extend(request.resource_spans)
        return ExportTraceServiceResponse()

    handler = grpc.method_handlers_generic_handler(
        EXPORT_METHOD.split("/")[1],
        {
            "Export": grpc.unary_unary_rpc_method_handler(
                export, ExportTraceServiceRequest.FromString, ExportTraceServiceResponse.SerializeToString
            )
        },
    )
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}", resources
    server.stop(0)


@pytest.fixture
def fleet_options(sentry: Sentry) -> dict[str, str]:
    return {
        "LOG_FORMAT": "json",
        "SENTRY_DSN": sentry.dsn,
        "TASK_RETRIES_MAX": "0",
        "WORKER_PROCESSES": "2",
        "TRACING": "true",
    }


def test_a_worker_logs_lines_with_fields_and_reports_a_failure_once(
    fleet: Fleet, sentry: Sentry, collected: tuple[str, list[Any]]
):
    """A worker flushes one batch; the flush of another batch fails because a sink is unavailable.

    Each run is one line, the failure is one event, and the spans have the configured service name.
    """
    address, resources = collected
    fleet.environment |= {
        "OTEL_EXPORTER_OTLP_ENDPOINT": address,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_SERVICE_NAME": "our-flushers",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    worker = fleet.worker()
    dispatcher = fleet.dispatcher()
    assert isinstance(fleet.settle(dispatcher, make_batch(), Stage.BLOBS), on.FlushSucceeded)
    fleet.script("clickhouse", "transient")
    assert isinstance(fleet.settle(dispatcher, make_batch(), Stage.ROWS), on.FlushFailed)
    fleet.wait(lambda: bool(sentry.events), "the failure in Sentry")
    fleet.wait(lambda: bool(resources), "spans")
    worker.stop(20)

    lines = [json.loads(line) for line in worker.log_path.read_text().splitlines() if line.startswith("{")]
    others = [line for line in worker.log_path.read_text().splitlines() if line and not line.startswith("{")]
    runs = {line["task"].split("/")[1]: line for line in lines if line["event"] == "flush"}
    (ready,) = (line for line in lines if line["event"] == "worker_ready")

    assert ready["processes"] == 2
    assert (runs["gcs"]["outcome"], runs["gcs"]["level"]) == ("done", "info")
    assert (runs["clickhouse"]["outcome"], runs["clickhouse"]["level"]) == ("gave_up", "warning")
    assert "clickhouse is away" in runs["clickhouse"]["error"]
    for line in runs.values():
        assert line["batch"] == "ingest-replay-recordings-0-0-3"
        assert line["seconds"] > 0
    assert others in ([], ["worker: Warm shutdown (MainProcess)"])
    assert len(sentry.events) == 1, [event.get("logentry") or event["exception"] for event in sentry.events]
    assert sentry.events[0]["tags"]["service"] == "replays-worker"
    names = {a.value.string_value for r in resources for a in r.resource.attributes if a.key == "service.name"}
    assert names == {"our-flushers"}
