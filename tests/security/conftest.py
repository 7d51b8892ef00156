"""A separate bucket and database for attacks on commands and pages that read replays."""

from __future__ import annotations

import uuid

import pytest

from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.stack import Stack
from ingest.settings import Settings
from tasks.migrate import migrate
from tests.kit.eager_fleet import eager, eager_redis  # noqa: F401

DATABASE = 11


@pytest.fixture(scope="session")
def env(stack: Stack) -> dict[str, str]:
    """The REPLAYS_* variables for running servers. The topic, consumer group, bucket and database have unique
    names; the topics, the bucket and the tables already exist.
    """
    stack.start(["gcs", "clickhouse", "redis", "kafka"])
    names = isolated(f"attacked{uuid.uuid4().hex[:8]}", stack.addresses["redis"], DATABASE)
    made = {**stack.settings(), **names, "REPLAYS_SINKS": "gcs,clickhouse,dead_letter"}
    for _ in migrate(settings_of(made), topics=True):
        pass
    return made


@pytest.fixture(scope="session")
def stored(env: dict[str, str]) -> Settings:
    """The settings of a process with the variables in `env`."""
    return settings_of(env)
