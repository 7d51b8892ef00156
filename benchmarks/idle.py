"""Measures the memory of an idle system: one reader, one worker with its processes, and Redis.

    python -m benchmarks.idle [--python PROGRAM] [--processes 2,8] [--json FILE]

Memory is the proportional set size (PSS), measured once the reader and the worker are ready and the total has been
stable for some seconds. With --python, the reader and the worker run in another environment, for example one
without extras, as in production: the extra `local` installs pandas and pyarrow, which google-cloud-bigquery then
imports.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

from benchmarks.common import machine, show, write_json
from benchmarks.launch import start
from benchmarks.servers import Bench
from benchmarks.shapes import Shape
from benchmarks.system import Meter
from benchmarks.workload import make_topic
from ingest.local.launch import settings_of
from ingest.local.servers.base import answers_http
from ingest.local.servers.processes import HOST, free_port, wait_until

SINKS = "gcs,clickhouse,bigquery,datadog,dead_letter"
READY_SECONDS_MAX = 90.0
STABLE_SAMPLES = 10
STABLE_SECONDS_MAX = 60.0
STABLE_BYTES = 1_000_000


def measure(shape: Shape) -> dict[str, int]:
    """Returns the PSS of each role, in bytes. Raises LocalError if the reader or the worker does not become
    ready.
    """
    tag = f"idle{shape.processes}"
    ports = {"REPLAYS_HTTP_PORT": str(free_port()), "REPLAYS_WORKER_HTTP_PORT": str(free_port())}
    with Bench(shape.cores, 1.0) as bench:
        env = bench.environment() | {"REPLAYS_KEY_PREFIX": tag, **shape.settings(), **ports}
        make_topic(settings_of(dict(env)), shape.partitions)
        children = start(bench, shape, env, tag)
        try:
            for port in ports.values():
                url = f"http://{HOST}:{port}/readyz"
                wait_until(lambda url=url: answers_http(url), READY_SECONDS_MAX, url)  # type: ignore[misc]
            return _stable(Meter({role: [child.pid] for role, child in children} | {"redis": bench.redis_pids}))
        finally:
            for _, child in children:
                child.stop(15)


def _stable(meter: Meter) -> dict[str, int]:
    """Samples every second until the total has been stable for STABLE_SAMPLES, but for at most
    STABLE_SECONDS_MAX.
    """
    totals: list[int] = []
    ends_at = time.monotonic() + STABLE_SECONDS_MAX
    while time.monotonic() < ends_at:
        meter.sample()
        totals.append(sum(meter.rss_now.values()))
        last = totals[-STABLE_SAMPLES:]
        if len(last) == STABLE_SAMPLES and max(last) - min(last) < STABLE_BYTES:
            break
        time.sleep(1.0)
    return dict(meter.rss_now)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", default="2,8", help="numbers of worker processes, comma-separated")
    parser.add_argument("--python", default="", help="interpreter of reader and worker")
    parser.add_argument("--sinks", default=SINKS)
    parser.add_argument("--json", help="write the figures to this file")
    arguments = parser.parse_args()
    cores = tuple(sorted(os.sched_getaffinity(0))[:1])
    results: dict[str, Any] = {}
    for text in arguments.processes.split(","):
        shape = Shape(sinks=arguments.sinks, processes=int(text), python=arguments.python, cores=cores)
        results[text] = measure(shape)
    lines = [
        [
            text,
            *(f"{found[role] / 1e6:.0f}" for role in ("reader", "worker", "redis")),
            f"{sum(found.values()) / 1e6:.0f}",
        ]
        for text, found in results.items()
    ]
    show("Idle system, MB", ("worker processes", "reader", "worker", "redis", "total"), lines)
    write_json(arguments.json, {"machine": machine(), "arguments": vars(arguments), "memory_bytes": results})


if __name__ == "__main__":
    main()
