"""Running servers for every test that asks for one; see `tests.kit.servers`."""

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
]


def pytest_report_header() -> str:
    return f"simulated worlds: {VARIABLE}={simulation_start()}"
