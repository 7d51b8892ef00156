"""Measures the client-side cost of uploading an object with our sink, the official client, and a thread pool.

    python -m benchmarks.uploads [--objects 1920] [--size 25000] [--latency-ms 20] [--rounds 3] [--json FILE]

The three methods take turns to write the same objects, 64 per call, to the same server
(benchmarks/latency_server.py). This process runs on one core and the server on another. CPU is the CPU time of
this process per object, in the round in which it was lowest.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import google_crc32c

from benchmarks.common import machine, show, write_json
from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import free_port, wait_until
from tasks.settings import Settings
from tasks.sinks.gcs.sink import GcsSink, client
from tasks.wire import Blob

CALL_OBJECTS = 64
CALL_SECONDS_MAX = 60.0
Write = Callable[[Sequence[Blob]], None]


def official(settings: Settings, threads: int) -> Write:
    """Uploads with `Blob.upload_from_string` from a thread pool."""
    pool = ThreadPoolExecutor(threads)
    bucket = client(settings).bucket(settings.gcs_bucket)

    def put(item: Blob) -> None:
        bucket.blob(item.name).upload_from_string(bytes(item.content), retry=None)

    return lambda items: [None for _ in pool.map(put, items)] and None


def pooled(settings: Settings, threads: int) -> Write:
    """Uploads with `http.client` and one persistent connection per thread, with the same request and checksum as
    our sink.
    """
    pool, local = ThreadPoolExecutor(threads), threading.local()
    where = urlsplit(settings.gcs_endpoint)
    path = f"/upload/storage/v1/b/{settings.gcs_bucket}/o?uploadType=media&fields=crc32c&name="

    def put(item: Blob) -> None:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(where.hostname or "", where.port)
        body = bytes(item.content)
        checksum = base64.b64encode(google_crc32c.value(body).to_bytes(4, "big")).decode()
        headers = {"Content-Type": "application/octet-stream", "X-Goog-Hash": f"crc32c={checksum}"}
        local.connection.request("POST", path + quote(item.name, safe=""), body, headers)
        answer = local.connection.getresponse()
        answer.read()
        assert answer.status == 200, answer.status

    return lambda items: [None for _ in pool.map(put, items)] and None


def ours(settings: Settings, connections: int) -> Write:
    """Uploads with our sink, called in the same way as in flush tasks."""
    sink = GcsSink(settings.model_copy(update={"gcs_connections": connections}))
    return lambda items: sink.write(items, "benchmark", CALL_SECONDS_MAX)


def measure(write: Write, tag: str, objects: int, content: bytes) -> tuple[float, float]:
    """Returns (CPU microseconds per object, objects per second), measured after one warm-up call."""

    def items(call: int) -> list[Blob]:
        return [Blob(f"30/1/{tag}{call}/{number}", memoryview(content), number) for number in range(CALL_OBJECTS)]

    write(items(-1))
    calls = max(1, objects // CALL_OBJECTS)
    cpu, began = time.process_time(), time.monotonic()
    for call in range(calls):
        write(items(call))
    done = calls * CALL_OBJECTS
    return (time.process_time() - cpu) / done * 1e6, done / (time.monotonic() - began)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--objects", type=int, default=1920)
    parser.add_argument("--size", type=int, default=25_000, help="object size, bytes")
    parser.add_argument("--latency-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.latency_server", "--port", str(port)]
    server = subprocess.Popen([*command, "--latency-ms", str(arguments.latency_ms)])
    try:
        os.sched_setaffinity(server.pid, {cores[-1]})
        os.sched_setaffinity(0, {cores[0]})
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers_http(f"{url}/_seen"), 30, "the server")
        settings = Settings(gcs_endpoint=url, gcs_bucket="benchmark", gcs_project="benchmark")
        ways: dict[str, Write] = {}
        for name, make, counts in (
            ("official client, threads", official, (32,)),
            ("http.client, threads", pooled, (8, 32, 64)),
            ("ours (libcurl), connections", ours, (8, 32, 64, 128)),
        ):
            ways |= {f"{name}: {count}": functools.partial(make, settings)(count) for count in counts}
        content = os.urandom(arguments.size)
        best: dict[str, tuple[float, float]] = {}
        for _ in range(arguments.rounds):
            for name, write in ways.items():
                found = measure(write, quote(name), arguments.objects, content)
                best[name] = min(best.get(name, found), found)
    finally:
        server.terminate()
        server.wait(10)
    rows = [(name, f"{cpu:.0f}", f"{rate:.0f}") for name, (cpu, rate) in best.items()]
    caption = f"{arguments.size} bytes, a server of {arguments.latency_ms:g} ms, best of {arguments.rounds} rounds"
    show("Client CPU per object", ("client", "CPU µs", "objects/s"), rows, caption)
    write_json(arguments.json, {"machine": machine(), "arguments": vars(arguments), "ways": best})


if __name__ == "__main__":
    main()
