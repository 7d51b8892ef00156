"""Tests `replays-ingest migrate` on all servers at once, and the sinks' checks after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ingest.local.servers.clickhouse import ClickHouse
from ingest.local.servers.processes import Children
from ingest.local.servers.statsd import Statsd
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.migrate import migrate
from tasks.settings import Settings
from tasks.sinks import build, check_all
from tasks.wire import Row


@pytest.fixture
def settings_of_all_servers(
    settings: Callable[..., Settings],
    kafka_brokers: str,
    gcs_endpoint: str,
    clickhouse_url: str,
    bigquery_endpoint: str,
    statsd: Statsd,
) -> Settings:
    """Settings with the address of every server. No server has a schema yet."""
    host, _, port = statsd.address.rpartition(":")
    return settings(
        kafka_brokers=kafka_brokers,
        gcs_endpoint=gcs_endpoint,
        clickhouse_url=clickhouse_url,
        bigquery_endpoint=bigquery_endpoint,
        datadog_host=host,
        datadog_port=int(port),
    )


def test_after_migrating_every_check_passes(settings_of_all_servers: Settings) -> None:
    """Every check passes after `migrate`; before `migrate`, the checks of all sinks except Datadog fail.

    A dry run changes nothing. A second run does nothing.
    """
    before = {checked.name: checked.ok for checked in check_all(settings_of_all_servers)}
    planned = list(migrate(settings_of_all_servers, dry_run=True, topics=True))
    unchanged = {checked.name: checked.ok for checked in check_all(settings_of_all_servers)}
    done = list(migrate(settings_of_all_servers, topics=True))
    after = check_all(settings_of_all_servers)
    again = list(migrate(settings_of_all_servers, topics=True))

    assert before == unchanged == {name: name == "datadog" for name in before}
    assert [line.replace(": would ", ": ") for line in planned] == done
    assert all(checked.ok for checked in after), after
    assert not [line for line in again if "create" in line or "apply" in line or "add to" in line]


def test_disabled_sinks_are_skipped(settings_of_all_servers: Settings) -> None:
    only = settings_of_all_servers.model_copy(update={"sinks": ("clickhouse", "dead_letter")})

    lines = list(migrate(only, dry_run=True))

    assert {line.split(":")[0] for line in lines} == {"clickhouse", "kafka"}


def test_an_unavailable_server_ends_the_run_with_its_name(settings_of_all_servers: Settings) -> None:
    away = settings_of_all_servers.model_copy(update={"clickhouse_url": "http://127.0.0.1:1"})

    with pytest.raises(TransientSinkError, match="clickhouse"):
        list(migrate(away))


def test_a_wrong_password_is_configuration(
    settings: Callable[..., Settings], children: Children, tmp_path: Path
) -> None:
    """A wrong password causes a configuration error, whose message does not contain the password."""
    server = ClickHouse(children, tmp_path / "clickhouse", password="right-one")
    server.start()
    wrong = settings(clickhouse_url=server.address, clickhouse_password="wrong-one", clickhouse_database="default")
    right = settings(clickhouse_url=server.address, clickhouse_password="right-one")

    with pytest.raises(PermanentSinkError) as refused:
        build("clickhouse", wrong).write([Row("replays", "1", b"{}", 1)], "token", 10)
    migrated = list(migrate(right.model_copy(update={"sinks": ("clickhouse",)})))

    assert refused.value.configuration
    assert "wrong-one" not in str(refused.value)
    assert migrated
