"""A fleet of real workers, and settings with names that no other test uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks.settings import Settings
from tests.kit.fleet import fleet, fleet_options

__all__ = ["fleet", "fleet_options", "settings"]


@pytest.fixture
def settings(fresh_name: Callable[[str], str]) -> Callable[..., Settings]:
    """Makes settings: fresh bucket, database, data set and topics, and what is given."""

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
