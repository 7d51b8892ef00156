"""An HTTP server that replaces the stores in benchmarks, and responds to each request after a given latency.

    python -m benchmarks.latency_server --port 18080 --latency-ms 20 [--script '[{"sink": "gcs", "every": 50}]']

It responds like Cloud Storage (media and multipart uploads, `ifGenerationMatch`, CRC32C), ClickHouse's HTTP
interface (inserts, and the requests that the official client sends when it connects) and BigQuery's insertAll. The
server stores names, generations and sizes, but no content. It is one asyncio process without threads, and uses
about 0.1 ms of CPU per upload.

A script is a list of rules for failures, tried in order. A rule has `sink` (gcs, clickhouse, bigquery), either
`every` (n: every n-th request to that sink) or `first` and `last` (positions of requests, from 1), `status`
(default 503) and `retry_after_seconds`. With `drop`, the write is performed, but the connection is closed without
a response.

GET /_seen returns counts and bytes by sink; with ?objects=1, it also returns the arrival time of each object (Unix
seconds). PUT /_script replaces the script, and PUT /_latency sets the latency, in ms. POST /_reset deletes
everything except the script.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote

import google_crc32c

HOST = "127.0.0.1"
HEAD_BYTES_MAX = 64 * 1024
REASONS = {200: "OK", 204: "No Content", 404: "Not Found", 412: "Precondition Failed", 429: "Too Many Requests"}
CLICKHOUSE_SETTINGS = (
    *("async_insert", "wait_for_async_insert", "date_time_input_format", "input_format_allow_errors_num"),
    *("input_format_allow_errors_ratio", "input_format_skip_unknown_fields", "input_format_null_as_default"),
    *("input_format_defaults_for_omitted_fields", "input_format_parallel_parsing", "insert_deduplicate"),
    *("max_partitions_per_insert_block", "deduplicate_blocks_in_dependent_materialized_views"),
    *("insert_deduplication_token", "max_execution_time", "enable_http_compression", "session_timeout"),
    *("date_time_overflow_behavior", "wait_end_of_query", "send_progress_in_http_headers"),
    *("http_headers_progress_interval_ms", "cast_string_to_dynamic_use_inference"),
)


@dataclass(slots=True)
class Answer:
    """One response: status, body, and additional header fields. `drop`: close the connection instead of
    responding.
    """

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    drop: bool = False


@dataclass(slots=True)
class Store:
    """Received requests, and the script that decides which requests fail."""

    latency_seconds: float
    script: list[dict[str, Any]] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    size_bytes: dict[str, int] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    objects: dict[str, dict[str, str]] = field(default_factory=dict)
    stored_at: dict[str, float] = field(default_factory=dict)

    def reset(self) -> None:
        """Deletes everything except the script."""
        for found in (self.requests, self.size_bytes, self.generations, self.objects, self.stored_at):
            found.clear()

    def count(self, sink: str, size_bytes: int) -> Answer | None:
        """Counts a request. Returns the failure that the script defines for it, if any."""
        number = self.requests[sink] = self.requests.get(sink, 0) + 1
        self.size_bytes[sink] = self.size_bytes.get(sink, 0) + size_bytes
        for rule in self.script:
            if rule.get("sink", sink) != sink:
                continue
            every = rule.get("every")
            hit = number % every == 0 if every else rule.get("first", 1) <= number <= rule.get("last", number)
            if hit:
                retry = rule.get("retry_after_seconds")
                headers = (("Retry-After", str(retry)),) if retry else ()
                drop = bool(rule.get("drop"))
                return Answer(rule.get("status", 503), b'{"error":{"message":"scripted"}}', headers, drop)
        return None

    def put(self, name: str, size_bytes: int, only_new: bool) -> int | None:
        """Stores an object. Returns its new generation, or None if the object exists and `only_new` is set."""
        if only_new and name in self.generations:
            return None
        self.stored_at[name] = time.time()
        self.generations[name] = self.generations.get(name, 0) + 1
        return self.generations[name]

    def seen(self, objects: bool) -> dict[str, Any]:
        """Returns counts of received requests, for the benchmark."""
        found: dict[str, Any] = {"requests": self.requests, "bytes": self.size_bytes}
        found["objects_stored"] = len(self.generations)
        if objects:
            found["objects"] = self.stored_at
        return found


def answer(store: Store, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[Answer, bool]:
    """Returns (response, True if the latency applies)."""
    path, _, query = target.partition("?")
    if path.startswith("/_"):
        return _control(store, method, path, query, body), False
    if path.startswith("/upload/storage/"):
        return _upload(store, path, query, headers, body), True
    if path.startswith("/storage/") and "/o/" in path:
        found = store.objects.get(unquote(path.split("/o/", 1)[1]))
        return _json(found) if found else Answer(404, b'{"error":{"code":404,"message":"no such object"}}'), True
    if path.startswith("/storage/"):
        name = path.split("/b/", 1)[-1].split("/")[0]
        return _json({"kind": "storage#bucket", "name": name, "location": "NOWHERE"}), True
    if path.endswith("/insertAll"):
        return store.count("bigquery", len(body)) or _json({"kind": "bigquery#tableDataInsertAllResponse"}), True
    if "/bigquery/" in path:
        return _json({"kind": "bigquery#tableList", "tables": []}), True
    if path in ("/", "/ping"):
        return _clickhouse(store, query, body), path == "/"
    return Answer(404, b'{"error":{"code":404,"message":"no such thing here"}}'), True


def _control(store: Store, method: str, path: str, query: str, body: bytes) -> Answer:
    match path:
        case "/_seen":
            return _json(store.seen("objects=1" in query))
        case "/_script" if method == "PUT":
            store.script = json.loads(body or b"[]")
        case "/_latency" if method == "PUT":
            store.latency_seconds = float(body) / 1000
        case "/_reset":
            store.reset()
        case _:
            return Answer(404)
    return Answer(204)


def _upload(store: Store, path: str, query: str, headers: dict[str, str], body: bytes) -> Answer:
    parameters = parse_qs(query)
    kind = parameters.get("uploadType", [""])[0]
    if kind == "multipart":
        metadata, content = _parts(headers.get("content-type", ""), body)
        name = str(metadata.get("name", ""))
        expected = metadata.get("crc32c")
    elif kind == "media":
        content, name = body, parameters.get("name", [""])[0]
        expected = headers.get("x-goog-hash", "").removeprefix("crc32c=") or None
    else:
        return Answer(501, b'{"error":{"code":501,"message":"only media and multipart uploads"}}')
    failure = store.count("gcs", len(content))
    if failure is not None and not failure.drop:
        return failure
    checksum = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
    if expected is not None and expected != checksum:
        return Answer(400, b'{"error":{"code":400,"message":"Provided CRC32C does not match"}}')
    bucket = unquote(path.split("/b/", 1)[1].split("/")[0])
    only_new = parameters.get("ifGenerationMatch", [""])[0] == "0"
    generation = store.put(name, len(content), only_new)
    if generation is not None:
        about = {"kind": "storage#object", "name": name, "bucket": bucket, "crc32c": checksum}
        store.objects[name] = about | {"generation": str(generation), "size": str(len(content))}
    if failure is not None:
        return failure
    if generation is None:
        return Answer(412, b'{"error":{"code":412,"message":"At least one precondition failed"}}')
    return _json(store.objects[name])


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Returns the metadata and the content of a multipart/related body with two parts."""
    boundary = b"--" + content_type.partition("boundary=")[2].strip('"').encode()
    first = body.index(b"\r\n\r\n") + 4
    middle = body.index(boundary, first)
    second = body.index(b"\r\n\r\n", middle) + 4
    end = body.rindex(boundary)
    return json.loads(body[first:middle]), body[second : end - 2]


def _clickhouse(store: Store, query: str, body: bytes) -> Answer:
    parameters = parse_qs(query)
    sql = parameters.get("query", [""])[0]
    # Counting rows would cost more than all other work, so the summary always reports a billion written rows, more
    # than any insert contains.
    headers = (("X-ClickHouse-Timezone", "UTC"), ("X-ClickHouse-Summary", '{"written_rows":"1000000000"}'))
    if sql.lstrip().upper().startswith("INSERT") or body[:6].upper() == b"INSERT":
        return store.count("clickhouse", len(body)) or Answer(200, b"", headers)
    text = sql or body[:4096].decode("utf-8", "replace")
    if "system.settings" in text:
        return Answer(200, _native_settings(), headers)
    if "version()" in text:
        return Answer(200, b"26.5.1.1\tUTC\n", headers)
    return Answer(200, b"Ok.\n", headers)


def _native_settings() -> bytes:
    """Returns a block in ClickHouse's Native format: (name, value, readonly)."""
    rows = CLICKHOUSE_SETTINGS

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    block = bytes([3, len(rows)])
    block += text("name") + text("String") + b"".join(map(text, rows))
    block += text("value") + text("String") + b"".join(text("0") for _ in rows)
    return block + text("readonly") + text("UInt8") + bytes(len(rows))


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), (("Content-Type", "application/json; charset=UTF-8"),))


class Connection(asyncio.Protocol):
    """One keep-alive connection that serves requests one after another."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunks: list[bytes] = []
        self._size = 0
        self._needed = 0
        self._busy = False
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._size += len(data)
        if self._size >= self._needed and not self._busy:
            self._take()

    def _take(self) -> None:
        """Responds to one request, if it has arrived completely."""
        whole = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks = [whole]
        end = whole.find(b"\r\n\r\n")
        if end < 0:
            if len(whole) > HEAD_BYTES_MAX and self._transport is not None:
                self._transport.close()
            return
        lines = whole[:end].decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        begin = end + 4
        if headers.get("transfer-encoding", "").lower() == "chunked":
            found = _dechunked(whole, begin)
            if found is None:
                return
            body, stop = found
        else:
            stop = begin + int(headers.get("content-length") or 0)
            if len(whole) < stop:
                self._needed = stop
                return
            body = whole[begin:stop]
        rest = whole[stop:]
        self._chunks, self._size, self._needed, self._busy = [rest] if rest else [], len(rest), 0, True
        response, is_delayed = answer(self._store, method, target, headers, body)
        delay_seconds = self._store.latency_seconds if is_delayed else 0.0
        asyncio.get_running_loop().call_later(delay_seconds, self._send, response)

    def _send(self, response: Answer) -> None:
        if self._transport is None:
            return
        if response.drop:
            self._transport.close()
            return
        head = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Answer')}"]
        head += [f"{name}: {value}" for name, value in response.headers]
        head.append(f"Content-Length: {len(response.body)}\r\n\r\n")
        self._transport.write("\r\n".join(head).encode() + response.body)
        self._busy = False
        if self._size:
            self._take()


def _dechunked(whole: bytes, begin: int) -> tuple[bytes, int] | None:
    """Returns (body, end position) of a chunked body, or None while it is incomplete."""
    parts = []
    while True:
        line_end = whole.find(b"\r\n", begin)
        if line_end < 0:
            return None
        size = int(whole[begin:line_end].split(b";")[0], 16)
        stop = line_end + 2 + size
        if len(whole) < stop + 2:
            return None
        parts.append(whole[line_end + 2 : stop])
        begin = stop + 2
        if not size:
            return b"".join(parts), begin


class Discard(asyncio.DatagramProtocol):
    """A replacement for DogStatsD that receives and discards metrics."""


async def serve(port: int, latency_ms: float, script: list[dict[str, Any]]) -> None:
    """Serves until it is cancelled. UDP on the same port receives metrics."""
    store = Store(latency_ms / 1000, script)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(store), HOST, port, backlog=1024)
    await loop.create_datagram_endpoint(Discard, (HOST, port))
    async with server:
        await server.serve_forever()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--script", default="[]", help="JSON list of rules, see the module docstring")
    arguments = parser.parse_args()
    asyncio.run(serve(arguments.port, arguments.latency_ms, json.loads(arguments.script)))


if __name__ == "__main__":
    main()
