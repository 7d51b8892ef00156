"""Running servers for tests: one embedded stack per session, each part started on first use.

A fixture yields the address of a running server. Tests share the servers, so they use fresh names (`fresh_name`)
instead of cleaning up. A test that kills or restarts a server creates its own server with `children`.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.local.servers import java_kafka
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import Children
from ingest.local.servers.statsd import Statsd
from ingest.local.stack import Stack


def kill_all(children: Children) -> None:
    """Kills all programs at the end of a test, because other tests cover graceful stops."""
    for child in children:
        children.release(child)
        child.kill()


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """An empty stack in a temporary directory; the fixtures below start its parts."""
    with Stack() as running:
        yield running
        kill_all(running.children)


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    """Starts servers and programs for one test; all of them are killed after it."""
    with Children(tmp_path / "logs") as owner:
        yield owner
        kill_all(owner)


@pytest.fixture(scope="session")
def kafka_brokers(stack: Stack) -> str:
    """The bootstrap.servers value of Tansu."""
    return stack.start(["kafka"]).addresses["kafka"]


@pytest.fixture(scope="session")
def redis_url(stack: Stack) -> str:
    """The redis:// URL of database 0."""
    return stack.start(["redis"]).addresses["redis"]


@pytest.fixture(scope="session")
def gcs_endpoint(stack: Stack) -> str:
    """The URL of the Cloud Storage server, which has no bucket yet."""
    return stack.start(["gcs"]).addresses["gcs"]


@pytest.fixture(scope="session")
def clickhouse_url(stack: Stack) -> str:
    """The URL of ClickHouse's HTTP interface."""
    return stack.start(["clickhouse"]).addresses["clickhouse"]


@pytest.fixture(scope="session")
def bigquery_endpoint(stack: Stack) -> str:
    """The URL of the BigQuery server, which has no dataset yet."""
    return stack.start(["bigquery"]).addresses["bigquery"]


@pytest.fixture(scope="session")
def statsd_server(stack: Stack) -> Statsd:
    """The DogStatsD listener of the session."""
    server = stack.start(["statsd"]).servers["statsd"]
    assert isinstance(server, Statsd)
    return server


@pytest.fixture
def statsd(statsd_server: Statsd) -> Statsd:
    """The DogStatsD listener, emptied before the test: `address` is host:port; `metrics()`, `sum(name)` and
    `packets()` return what the listener received.
    """
    statsd_server.reset()
    return statsd_server


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JavaKafka]:
    """Apache Kafka. The fixture skips the test with a reason if Kafka cannot run; in CI it must run."""
    reason = java_kafka.available()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("apache-kafka")
    with Children(directory / "logs") as owner:
        server = JavaKafka(owner, directory / "kafka")
        server.start()
        yield server
        kill_all(owner)


@pytest.fixture
def fresh_name() -> Callable[[str], str]:
    """A function that creates names that no other test uses, valid for topics, buckets, tables and databases:
    `fresh_name("clicks")`.
    """
    numbers = itertools.count()
    tag = uuid.uuid4().hex[:10]
    return lambda prefix: f"{prefix}_{tag}_{next(numbers)}"
