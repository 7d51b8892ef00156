"""Provides running servers to the tests (see `tests.kit.servers`).

The files with the longest tests run first: each worker takes a whole file, and the run ends with the slowest
worker.
"""

import os

import hypothesis
import pytest

from ingest.local.servers.processes import Children
from tests.kit.dead_letters import topics
from tests.kit.paths import ROOT
from tests.kit.prestarted import PARENTS
from tests.kit.seeds import VARIABLE, simulation_start
from tests.kit.servers import (
    apache_kafka,
    bigquery_endpoint,
    children,
    clickhouse_url,
    fresh_name,
    gcs_endpoint,
    kafka_brokers,
    redis_url,
    stack,
    statsd,
    statsd_server,
)

# By default, Hypothesis fails a test whose example takes 200 ms, which depends on how busy the machine is.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")

__all__ = [
    "apache_kafka",
    "bigquery_endpoint",
    "children",
    "clickhouse_url",
    "fresh_name",
    "gcs_endpoint",
    "kafka_brokers",
    "redis_url",
    "stack",
    "statsd",
    "statsd_server",
    "topics",
]

# Folders and files, ordered by the duration of their longest test, longest first. All others, except RUN_LAST, run
# after these.
SLOWEST_FIRST = ("e2e/test_gameday.py", "e2e", "mutation", "simulation", "integration/tasks", "integration")
# These tests measure CPU time, which is affected by processes that share the CPU caches, so they run after the
# tests with real systems.
RUN_LAST = "cost"


def pytest_configure(config: pytest.Config) -> None:
    """Programs that tests start as `Child` are forked from a process that has already imported them."""
    # Commands without configured servers would otherwise act on the developer's own local stack.
    os.environ.setdefault("REPLAYS_LOCAL_DIRECTORY", str(ROOT / ".no-local-stack"))
    Children.start_program = staticmethod(PARENTS.start)
    config.add_cleanup(PARENTS.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the tests by file, as SLOWEST_FIRST and RUN_LAST define, and keeps the order within each file."""
    items.sort(key=lambda item: _rank(item.nodeid.removeprefix("tests/")))


def _rank(node: str) -> int:
    if node.startswith(RUN_LAST):
        return len(SLOWEST_FIRST) + 1
    return next((rank for rank, start in enumerate(SLOWEST_FIRST) if node.startswith(start)), len(SLOWEST_FIRST))


def pytest_report_header() -> str:
    return f"simulated worlds: {VARIABLE}={simulation_start()}"
