"""Starts the processes of a measured system, ours or a peer, on the measured cores."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.servers import Bench
from benchmarks.shapes import Shape
from ingest.local.servers.processes import HOST, Child, LocalError

STREAMS_PYTHON = Path(".bench/streams/bin/python")
QUIET_WORKER = ("--without-gossip", "--without-mingle", "--without-heartbeat")

Role = tuple[str, Child]


def start(bench: Bench, shape: Shape, env: Mapping[str, str], tag: str) -> list[Role]:
    """Starts the system, and returns (role, process) of each process that this program starts itself."""
    if shape.system == "ours":
        return _start_own_system(bench, shape, env, tag)
    if shape.system == "p5":
        return _tasks(bench, shape, env, tag)
    if shape.system == "p4":
        return _peers(bench, shape, env, tag, [_streams_python(), "-m", "benchmarks.peers_streams"])
    return _peers(bench, shape, env, tag, [sys.executable, "-m", "benchmarks.peers_pipeline", shape.system])


def _pinned(shape: Shape) -> list[str]:
    return ["taskset", "-c", ",".join(map(str, shape.cores))]


def _start_own_system(bench: Bench, shape: Shape, env: Mapping[str, str], tag: str) -> list[Role]:
    """Starts workers and readers. They are assigned to the shards in turn."""
    started = []
    for role, count in (("worker", shape.workers), ("reader", shape.readers)):
        for number in range(count):
            name = f"{tag}-{role}-{number}"
            python = shape.python or sys.executable
            command = [python, "-m", "ingest.cli"]
            if role == "worker":
                celery = [python, "-m", "celery", "-A", "tasks", "worker", "--loglevel=WARNING"]
                command = [*celery, "-n", f"{name}@{HOST}"]
            shard = {**env, "REPLAYS_REDIS_URL": bench.redis_urls[number % shape.shards]}
            started.append((role, bench.stack.children.start(name, [*_pinned(shape), *command], env=shard)))
    return started


def _options(shape: Shape, env: Mapping[str, str]) -> list[str]:
    options = {
        "--brokers": env["REPLAYS_KAFKA_BROKERS"],
        "--topic": env["REPLAYS_KAFKA_TOPIC"],
        "--group": env["REPLAYS_KAFKA_GROUP"],
        "--endpoint": env["REPLAYS_GCS_ENDPOINT"],
        "--threads": str(shape.threads),
    }
    return [text for pair in options.items() for text in pair]


def _peers(bench: Bench, shape: Shape, env: Mapping[str, str], tag: str, command: list[str]) -> list[Role]:
    """Starts a peer that runs one process per reader."""
    whole = [*_pinned(shape), *command, *_options(shape, env)]
    return [
        ("peer", bench.stack.children.start(f"{tag}-{shape.system}-{number}", whole))
        for number in range(shape.readers)
    ]


def _tasks(bench: Bench, shape: Shape, env: Mapping[str, str], tag: str) -> list[Role]:
    """Starts P5: Celery workers, and the loops that publish tasks."""
    peer_env = {
        "PEER_REDIS": bench.redis_urls[0],
        "PEER_ENDPOINT": env["REPLAYS_GCS_ENDPOINT"],
        "PEER_TAG": tag,
    }
    celery = [sys.executable, "-m", "celery", "-A", "benchmarks.peers_celery", "worker", "--loglevel=WARNING"]
    started = []
    for number in range(shape.workers):
        name = f"{tag}-worker-{number}"
        command = [*celery, *QUIET_WORKER, "--concurrency", str(shape.processes), "-n", f"{name}@{HOST}"]
        child = bench.stack.children.start(name, [*_pinned(shape), *command], env=peer_env)
        started.append(("worker", child))
    for number in range(shape.readers):
        command = [sys.executable, "-m", "benchmarks.peers_celery", *_options(shape, env)]
        child = bench.stack.children.start(f"{tag}-loop-{number}", [*_pinned(shape), *command], env=peer_env)
        started.append(("peer", child))
    return started


def _streams_python() -> str:
    """Returns the interpreter of P4's own environment. Raises LocalError if it is missing."""
    if not STREAMS_PYTHON.exists():
        raise LocalError(f"{STREAMS_PYTHON} is missing. Create the environment of P4 with `make bench-streams`.")
    return str(STREAMS_PYTHON.absolute())
