"""Fixtures: a fleet of real workers, a library of replays, an operator environment, and settings with unique
names.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator

import pytest

from ingest.local.fleet import isolated
from ingest.local.stack import Stack
from ingest.settings import Settings as ReaderSettings
from tasks.settings import Settings
from tests.kit.fleet import fleet, fleet_options, fleet_redis
from tests.kit.library import Library, fill
from tests.kit.operator_system import OperatorSystem, open_operator_system, set_up_operator_system

__all__ = [
    "fleet",
    "fleet_options",
    "fleet_redis",
    "library",
    "operator_env",
    "operator_settings",
    "operator_system",
    "settings",
]
LIBRARY_DATABASE, OPERATOR_DATABASE = 9, 10
SINKS = "gcs,clickhouse,dead_letter"
LOGINS = "bob:other, ann:a-long-password"


@pytest.fixture
def settings(fresh_name: Callable[[str], str]) -> Callable[..., Settings]:
    """A function that creates settings with a fresh bucket, database, dataset and topics, and the given values."""

    def make(**given: object) -> Settings:
        fresh = {
            "gcs_bucket": fresh_name("bucket"),
            "clickhouse_database": fresh_name("db").replace("-", "_"),
            "bigquery_dataset": fresh_name("set").replace("-", "_"),
            "kafka_topic": fresh_name("topic"),
            "sink_timeout_seconds": 10.0,
        }
        return Settings(**{**fresh, **given})  # type: ignore[arg-type]

    return make


def variables(stack: Stack, name: str, database: int) -> dict[str, str]:
    """The REPLAYS_* variables of the session's servers, with unique names."""
    stack.start(["gcs", "clickhouse", "redis", "kafka"])
    names = isolated(f"{name}{uuid.uuid4().hex[:8]}", stack.addresses["redis"], database)
    return {**stack.settings(), **names, "REPLAYS_SINKS": SINKS}


@pytest.fixture(scope="session")
def library(stack: Stack) -> Library:
    """The replays of `tests.kit.library`, which tests share because reading changes nothing."""
    return fill(variables(stack, "library", LIBRARY_DATABASE))


@pytest.fixture(scope="session")
def operator_env(stack: Stack) -> dict[str, str]:
    """The environment variables of the operator environment (`tests.kit.operator_system`). The web pages accept
    the passwords in LOGINS."""
    return {**variables(stack, "operator_system", OPERATOR_DATABASE), "REPLAYS_FLOWER_BASIC_AUTH": LOGINS}


@pytest.fixture(scope="session")
def operator_settings(operator_env: dict[str, str]) -> ReaderSettings:
    """The settings of the operator environment, whose topics, bucket and tables exist."""
    return set_up_operator_system(operator_env)


@pytest.fixture
def operator_system(operator_env: dict[str, str], operator_settings: ReaderSettings) -> Iterator[OperatorSystem]:
    """The operator environment with a running reader, no parked batches, no rules and an empty audit trail.

    Dead letters from other tests are not removed.
    """
    with open_operator_system(operator_env, operator_settings) as running:
        yield running
