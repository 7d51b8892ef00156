"""A process loads only the client libraries that it uses, because each takes 5 to 40 MB of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.kit.paths import ROOT

GOOGLE = {"google.api_core", "google.auth", "google.protobuf", "grpc", "requests"}
# Libraries that the sinks and the optional features use, and libraries that those libraries load if installed.
LIBRARIES = GOOGLE | {
    "aiohttp",
    "clickhouse_connect",
    "confluent_kafka",
    "datadog",
    "duckdb",
    "flower",
    "google.cloud.bigquery",
    "google.cloud.bigquery_storage_v1",
    "google.cloud.storage",
    "numpy",
    "opentelemetry.sdk",
    "pandas",
    "pyarrow",
    "pycurl",
    "sentry_sdk",
    "tornado",
    "urllib3",
}
# google-cloud-bigquery loads these if pandas is installed. The product does not depend on pandas.
ANALYTICS = {"google.cloud.bigquery_storage_v1", "numpy", "pandas", "pyarrow"}

READER = """
import ingest.cli.main, ingest.cli.run
from ingest.reader.process import Reader
from ingest.settings import Settings

reader = Reader(Settings())
"""
# Loads the modules that `celery -A tasks worker -Q ...` loads before it starts its pool.
WORKER = """
import sys
from celery import signals
from tasks.celery import app

class Sender:
    pass

Sender.app = app
app.loader.import_default_modules()
app.amqp.queues.select(sys.argv[1].split(",") if sys.argv[1] else None)
signals.worker_init.send(sender=Sender)
"""
SHOW = """
import json, sys
print(json.dumps(sorted(sys.modules)))
"""


def loaded(program: str, *arguments: str, **settings: str) -> set[str]:
    """Runs the program without servers, and returns which of the LIBRARIES it loaded."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("REPLAYS_", "OTEL_"))}
    env |= {"REPLAYS_REDIS_URL": "redis://127.0.0.1:1/0", "REPLAYS_KAFKA_BROKERS": "127.0.0.1:1"}
    command = [sys.executable, "-c", program + SHOW, *arguments]
    ended = subprocess.run(command, env={**env, **settings}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return LIBRARIES & set(json.loads(ended.stdout.splitlines()[-1]))


def test_the_reader_loads_the_library_of_no_sink() -> None:
    """Of all client libraries, the reader loads only the Kafka client."""
    assert loaded(READER) == {"confluent_kafka"}


@pytest.mark.parametrize(
    ("queues", "libraries"),
    [
        ("control", set()),
        ("flush.datadog", {"datadog", "requests", "urllib3"}),
        ("flush.dead_letter", {"confluent_kafka"}),
        ("flush.clickhouse,control", {"clickhouse_connect", "pycurl", "urllib3"}),
        ("flush.gcs", {*GOOGLE, "google.cloud.storage", "pycurl", "urllib3"}),
        ("flush.bigquery", {*GOOGLE, "google.cloud.bigquery", "pycurl", "urllib3"}),
    ],
)
def test_a_worker_loads_the_libraries_of_its_queues(queues: str, libraries: set[str]) -> None:
    """A worker loads the libraries of the sinks whose queues it consumes, before it starts its processes."""
    assert loaded(WORKER, queues) - ANALYTICS == libraries


def test_a_worker_of_all_queues_loads_the_libraries_of_enabled_sinks() -> None:
    """A disabled sink has no queue."""
    assert loaded(WORKER, "", REPLAYS_SINKS="gcs,dead_letter") == {
        *GOOGLE,
        "confluent_kafka",
        "google.cloud.storage",
        "pycurl",
        "urllib3",
    }


def test_dogstatsd_is_loaded_if_metrics_are_sent_to_it() -> None:
    assert "datadog" in loaded(READER, REPLAYS_METRICS_DOGSTATSD="true")


def test_a_worker_has_parsed_what_each_of_its_processes_would_parse() -> None:
    """billiard parses a C declaration in each process. The C parser is loaded before the processes start."""
    program = (
        WORKER
        + """
import cffi
from pathlib import Path

parsed = sum("pycparser" in name for name in sys.modules)
ffi = cffi.FFI()
ffi.cdef("int prctl (int __option, ...);")
assert parsed == sum("pycparser" in name for name in sys.modules) > 0, parsed
"""
    )
    loaded(program, "control")
