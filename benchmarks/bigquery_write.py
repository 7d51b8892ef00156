"""Measures the CPU time per row of the two ways to write to BigQuery, in one run, with the same batch.

    python -m benchmarks.bigquery_write [--rows 10000] [--rounds 7] [--json FILE]

Each way writes the staged bytes of a flush task, from decoding to the last response, to a server in another
process that accepts everything. Only the CPU time of the writing process in the best round counts. A third
measurement sends rows that are already encoded. It shows what the Storage Write API would cost the worker if the
reader encoded rows as protobuf.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from google.cloud.bigquery_storage_v1 import types

from ingest.core.parse.rows import moment
from ingest.local.servers.processes import HOST, free_port, is_listening, wait_until
from tasks.settings import Settings
from tasks.sinks.bigquery.append_record import Unrecorded
from tasks.sinks.bigquery.sink import BigQuerySink
from tasks.sinks.bigquery.storage_write import StorageWriteSink
from tasks.units import MiB
from tasks.wire import Row, SinkName, decode_items, encode_items

SECONDS_MAX = 60.0
NOON = 1_795_000_000
READ_BYTES = MiB
FACTS_PER_SEGMENT = 20
_Appended = types.AppendRowsResponse.pb()


class AcceptsAll(BaseHTTPRequestHandler):
    """An HTTP server that accepts insertAll requests without storing rows."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        left = int(self.headers["Content-Length"])
        while left:
            left -= len(self.rfile.read(min(left, READ_BYTES)))
        body = b'{"kind":"bigquery#tableDataInsertAllResponse"}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Does not log requests."""


class AcceptsAppends:
    """A gRPC service BigQueryWrite that acknowledges each append at its offset without storing rows."""

    def service(self, details: Any) -> Any:
        """Returns the handler of a gRPC method."""
        if details.method.endswith("/AppendRows"):
            return grpc.stream_stream_rpc_method_handler(
                self._append, types.AppendRowsRequest.pb().FromString, _Appended.SerializeToString
            )
        name = b"\n\x01s"  # WriteStream(name="s")
        return grpc.unary_unary_rpc_method_handler(lambda request, context: name)

    @staticmethod
    def _append(requests: Any, context: Any) -> Any:
        for request in requests:
            response = _Appended()
            response.append_result.offset.value = request.offset.value
            yield response


def serve(http_port: int, grpc_port: int) -> None:
    """Runs both servers until the process is killed."""
    limits = [("grpc.max_receive_message_length", 32 * MiB)]
    server = grpc.server(ThreadPoolExecutor(4), options=limits)
    server.add_generic_rpc_handlers((AcceptsAppends(),))
    server.add_insecure_port(f"{HOST}:{grpc_port}")
    server.start()
    ThreadingHTTPServer((HOST, http_port), AcceptsAll).serve_forever()


def fact(number: int) -> Row:
    """Returns a row like those of the reader."""
    replay, segment = f"{number // FACTS_PER_SEGMENT // 10:032x}", number // FACTS_PER_SEGMENT
    attributes = {"url": "https://example.com/a/b?c=d", "selector": "div > button#buy", "message": 'said "yes" ä'}
    row = {
        "row_id": f"{replay}-{segment}-{number}-ui.click",
        "event_type": "ui.click",
        "timestamp": moment(NOON + number / 8),
        "org_id": 1,
        "project_id": 22,
        "replay_id": replay,
        "segment_id": segment,
        "retention_days": 90,
        "attributes": json.dumps(attributes, ensure_ascii=False),
    }
    return Row("replay_events", f"22-{row['row_id']}", json.dumps(row, separators=(",", ":")).encode(), number)


class Encoded:
    """Replaces the encoder. It returns rows unchanged, because they are already encoded."""

    def __init__(self, encoder: Any) -> None:
        self.descriptor = encoder.descriptor
        self.encode: Callable[[bytes], bytes] = lambda row: row


def microseconds(write: Callable[[], None], rows: int, rounds: int) -> float:
    """Returns the CPU time of this process per row, over all threads, in the best round."""
    found = []
    for _ in range(rounds):
        before = time.process_time()
        write()
        found.append((time.process_time() - before) / rows * 1e6)
    return min(found)


def measure(rows: int, rounds: int, http_port: int, grpc_port: int) -> dict[str, float]:
    """Returns microseconds of CPU time per row, for each way to write."""
    items = [fact(number) for number in range(rows)]
    payload = encode_items(items)
    settings = Settings(
        bigquery_endpoint=f"http://{HOST}:{http_port}",
        bigquery_storage_endpoint=f"http://{HOST}:{grpc_port}",
        bigquery_write="storage",
    )
    insert_all, storage, encoded = BigQuerySink(settings), StorageWriteSink(settings), StorageWriteSink(settings)
    encoders = encoded._writer.get().encoders
    ready = [
        Row(item.table, item.id, encoders[item.table].encode(item.json), item.offset)  # type: ignore[arg-type]
        for item in items
    ]
    ready_payload = encode_items(ready)
    for table, encoder in list(encoders.items()):
        encoders[table] = Encoded(encoder)  # type: ignore[assignment]

    def appends(sink: StorageWriteSink, staged: bytes) -> None:
        found: Any = decode_items(SinkName.BIGQUERY, staged)
        sink.write_recorded(found, range(rows), Unrecorded(), SECONDS_MAX)

    def inserts() -> None:
        insert_all.write(decode_items(SinkName.BIGQUERY, payload), "token", SECONDS_MAX)  # type: ignore[arg-type]

    ways = {
        "insert_all": inserts,
        "storage": lambda: appends(storage, payload),
        "storage, rows encoded by the reader": lambda: appends(encoded, ready_payload),
    }
    result = {name: microseconds(way, rows, rounds) for name, way in ways.items()}
    for sink in (insert_all, storage, encoded):
        sink.close()
    result["bytes per row, JSON"] = sum(len(item.json) for item in items) / rows
    result["bytes per row, protobuf"] = sum(len(item.json) for item in ready) / rows
    return result


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ports = free_port(), free_port()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=ports, daemon=True)
    server.start()
    try:
        wait_until(lambda: all(map(is_listening, ports)), SECONDS_MAX, "the servers")
        found = measure(arguments.rows, arguments.rounds, *ports)
    finally:
        server.kill()
    base = found["insert_all"]
    for name, value in found.items():
        if name.startswith("bytes"):
            print(f"{name:<40} {value:8.0f}")
        else:
            rate = 1e6 / value
            print(f"{name:<40} {value:8.2f} us {rate:12,.0f} rows per CPU second  {base / value:5.2f} times")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
