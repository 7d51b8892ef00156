"""Running servers for every test that asks for one; see `tests.kit.servers`.

Tests run with the longest files first: several processes take whole files, and the run ends with the last of them.
"""

import pytest

from ingest.local.servers.processes import Children
from tests.kit.dead_letters import topics
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

# Folders and files by the time of their longest test, the longest first; whatever is not listed comes after.
LONG = ("e2e/test_gameday.py", "e2e", "mutation", "simulation", "integration/tasks", "integration")
# CPU time depends on who else uses the caches: measured when real systems no longer run beside it.
LAST = "cost"


def pytest_configure(config: pytest.Config) -> None:
    """What tests start as `Child` is forked from a process that has imported it."""
    Children.start_program = staticmethod(PARENTS.start)
    config.add_cleanup(PARENTS.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Orders files, and leaves the order within a file as it is."""
    items.sort(key=lambda item: _rank(item.nodeid.removeprefix("tests/")))


def _rank(node: str) -> int:
    if node.startswith(LAST):
        return len(LONG) + 1
    return next((rank for rank, start in enumerate(LONG) if node.startswith(start)), len(LONG))


def pytest_report_header() -> str:
    return f"simulated worlds: {VARIABLE}={simulation_start()}"
