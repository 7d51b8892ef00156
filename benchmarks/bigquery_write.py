"""Measures the CPU time per row of both BigQuery write APIs, in one run and with the same batch.

    python -m benchmarks.bigquery_write [--rows 10000] [--rounds 15] [--json FILE]

The measured work is that of a flush task, from decoding its staged bytes to the last response. The server runs in
another process and accepts everything. Only the CPU time of the writing process is counted, over all threads.
`insert_all` receives the rows in JSON, and `storage` receives the same rows in protobuf, as the reader stages
them. A third variant is `storage` with rows in JSON, as older readers stage them. The reader's part of the work,
from the parsed facts to the staged bytes, is measured separately. All variants run in turn within every round, and
the result is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import msgspec
from google.cloud.bigquery_storage_v1 import types

from ingest.core.model import Blob, Segment, proto_rows
from ingest.core.parse.rows import Identity, Writer
from ingest.core.parse.rrweb import Fact
from ingest.local.servers.processes import HOST, free_port, is_listening, wait_until
from tasks.settings import Settings
from tasks.sinks.bigquery.append_record import DiscardedRecord
from tasks.sinks.bigquery.sink import BigQuerySink
from tasks.sinks.bigquery.storage_write import StorageWriteSink
from tasks.units import MiB
from tasks.wire import SinkName, decode_items, encode_items

CALL_SECONDS_MAX = 60.0
NOON = 1_795_000_000
READ_BYTES = MiB
FACTS_PER_SEGMENT = 20
INSERT_ALL, STORAGE = "insert_all", "storage"
_Appended = types.AppendRowsResponse.pb()


class AcceptAllHandler(BaseHTTPRequestHandler):
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


class AppendHandler:
    """A BigQueryWrite gRPC service that acknowledges each append with its offset but stores no rows."""

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
    server.add_generic_rpc_handlers((AppendHandler(),))
    server.add_insecure_port(f"{HOST}:{grpc_port}")
    server.start()
    ThreadingHTTPServer((HOST, http_port), AcceptAllHandler).serve_forever()


class Attributes(msgspec.Struct, gc=False):
    """The attributes of a fact, in the form that the parser uses."""

    url: str
    selector: str
    message: str


def facts_of(rows: int) -> list[list[Fact]]:
    """Returns the facts of the segments of a batch."""
    made = []
    for number in range(rows):
        attributes = Attributes("https://example.com/a/b?c=d", "div > button#buy", 'said "yes" ä')
        made.append(Fact("ui.click", NOON + number / 8, attributes))
    return [made[start : start + FACTS_PER_SEGMENT] for start in range(0, rows, FACTS_PER_SEGMENT)]


def staged(segments: list[list[Fact]], way: str) -> bytes:
    """Does the reader's part of the work: encodes these facts as rows, and returns the rows as the staged bytes of
    a flush task.
    """
    found = []
    for number, facts in enumerate(segments):
        replay = f"{number // 10:032x}"
        writer = Writer(Identity(1, 22, replay, number, 90, None, NOON, 0, number))
        encode: Any = writer.proto_fact if way == STORAGE else writer.fact
        rows = [encode(fact, index) for index, fact in enumerate(facts)]
        proto, as_json = (b"".join(rows), ()) if way == STORAGE else (b"", tuple(rows))
        count = len(rows) if way == STORAGE else 0
        blob = Blob(replay, b"", number)
        found.append(Segment(1, 22, replay, number, 90, NOON, (blob,), (), as_json, (), (), 0, proto, count))
    if way == STORAGE:
        return encode_items(proto_rows(found))
    return encode_items([row for segment in found for row in segment.bigquery])


def medians(ways: dict[str, Callable[[], object]], rows: int, rounds: int) -> dict[str, float]:
    """Returns the CPU time of this process per row, in microseconds, over all threads."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, act in ways.items():
            before = time.process_time()
            act()
            if number:  # the first round opens connections
                found[name].append((time.process_time() - before) / rows * 1e6)
    return {name: statistics.median(each) for name, each in found.items()}


def measure(rows: int, rounds: int, http_port: int, grpc_port: int) -> dict[str, float]:
    """Returns microseconds of CPU time per row, by variant and process."""
    segments = facts_of(rows)
    payloads = {way: staged(segments, way) for way in (INSERT_ALL, STORAGE)}
    settings = Settings(
        bigquery_endpoint=f"http://{HOST}:{http_port}",
        bigquery_storage_endpoint=f"http://{HOST}:{grpc_port}",
        bigquery_write="storage",
    )
    insert_all, storage = BigQuerySink(settings), StorageWriteSink(settings)
    everything = list(range(rows))

    def inserts() -> None:
        insert_all.write(decode_items(SinkName.BIGQUERY, payloads[INSERT_ALL]), "token", CALL_SECONDS_MAX)  # type: ignore[arg-type]

    def appends(payload: bytes) -> None:
        found: Any = decode_items(SinkName.BIGQUERY, payload)
        storage.write_recorded(found, everything, DiscardedRecord(), CALL_SECONDS_MAX)

    result = medians(
        {
            f"task, {INSERT_ALL}": inserts,
            f"task, {STORAGE}": lambda: appends(payloads[STORAGE]),
            f"task, {STORAGE}, rows in JSON": lambda: appends(payloads[INSERT_ALL]),
            f"reader, {INSERT_ALL}": lambda: staged(segments, INSERT_ALL),
            f"reader, {STORAGE}": lambda: staged(segments, STORAGE),
        },
        rows,
        rounds,
    )
    for way in (INSERT_ALL, STORAGE):
        result[f"reader and task, {way}"] = result[f"reader, {way}"] + result[f"task, {way}"]
    for sink in (insert_all, storage):
        sink.close()
    for way, payload in payloads.items():
        result[f"staged bytes, {way}"] = len(payload) / rows
    return result


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    ports = free_port(), free_port()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=ports, daemon=True)
    server.start()
    try:
        wait_until(lambda: all(map(is_listening, ports)), CALL_SECONDS_MAX, "the servers")
        found = measure(arguments.rows, arguments.rounds, *ports)
    finally:
        server.kill()
    for name, value in found.items():
        if name.startswith("staged"):
            print(f"{name:<32} {value:8.0f} per row")
            continue
        base = found[f"{name.partition(',')[0]}, {INSERT_ALL}"]
        print(f"{name:<32} {value:8.3f} us {1e6 / value:12,.0f} rows per CPU second  {base / value:6.2f} times")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
