"""Errors that a first-time user makes: no broker, a wrong password, no worker. Each report says what to do."""

from __future__ import annotations

import io

import pytest
from pydantic import SecretStr
from rich.console import Console
from structlog.testing import capture_logs

from ingest.observe.fleet import FleetWatch
from ingest.observe.metrics import Metrics
from ingest.operate import status
from ingest.operate.check import findings
from ingest.operate.finding import Finding
from ingest.operate.top import page
from ingest.settings import Settings
from tests.kit.commands import command

UNREACHABLE_ADDRESS = "127.0.0.1:1"


@pytest.fixture
def settings(redis_url: str) -> Settings:
    """Settings with a reachable Redis, in which no other server is reachable."""
    return Settings(
        kafka_brokers=UNREACHABLE_ADDRESS,
        redis_url=SecretStr(redis_url),
        key_prefix="first-faults",
        sinks=("clickhouse", "dead_letter"),
        clickhouse_url=f"http://{UNREACHABLE_ADDRESS}",
    )


def watch(settings: Settings) -> FleetWatch:
    """Writes the log lines of a reader about Redis and workers."""
    return FleetWatch(settings, Metrics(settings))


def first_finding(settings: Settings, name: str) -> Finding:
    """Returns the first finding with this name, without waiting for later ones."""
    return next(finding for finding in findings(settings) if finding.name == name)


def test_no_broker_is_reported_with_what_to_do(settings: Settings):
    """If no broker is reachable, `check` says which setting to correct and how."""
    found = first_finding(settings, "kafka")

    assert found.bad
    assert "start a broker, or correct REPLAYS_KAFKA_BROKERS" in found.line().plain


def test_no_worker_is_reported_by_the_page_and_by_the_log(settings: Settings):
    """If no worker runs, the page and the log name the queues without a worker and the command to start one."""
    drawn = io.StringIO()
    watching = watch(settings)

    Console(file=drawn, width=200).print(page(status.collect(settings)))
    with capture_logs() as lines:
        watching.check()
        watching.check()

    assert "queues without a worker: flush.clickhouse, flush.dead_letter, control" in drawn.getvalue()
    assert "start `celery -A tasks worker`" in drawn.getvalue()
    (line,) = [line for line in lines if line["event"] == "queues_without_worker"]
    assert line["queues"] == ["flush.clickhouse", "flush.dead_letter", "control"]
    assert "celery -A tasks worker" in line["what_to_do"]


def test_a_wrong_password_is_reported_everywhere(settings: Settings, redis_url: str):
    """If the password of Redis is wrong, `check`, `top` and the log say which setting to correct."""
    wrong = redis_url.replace("redis://", "redis://somebody:wrong@")
    mistaken = settings.model_copy(update={"redis_url": SecretStr(wrong)})
    watching = watch(mistaken)

    with capture_logs() as lines:
        watching.check()
    shown = command({"REPLAYS_REDIS_URL": wrong}, "top", "--once")

    expected = "correct the user or password in REPLAYS_REDIS_URL"
    assert expected in first_finding(mistaken, "redis").line().plain
    assert (shown.code, expected in shown.err) == (1, True)
    (line,) = [line for line in lines if line["event"] == "redis_unusable"]
    assert line["what_to_do"] == expected
