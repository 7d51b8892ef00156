"""Running servers for every test that asks for one; see `tests.kit.servers`."""

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
