"""Tests what `check`, `top`, `status`, the operator's page and the logs report for each fault that a first-time
user may cause.

A fault is a change that a user might make by mistake to the settings of a working system. Each report must appear
within ANSWER_SECONDS_MAX, and must name the server and what to do.
"""

from __future__ import annotations

import json
import queue
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.kafka import Kafka
from ingest.local.servers.processes import Child, Children, free_port, wait_until
from ingest.local.stack import Stack
from ingest.operate.check import findings
from ingest.operate.finding import Finding, Severity
from ingest.reader.tenant_gate import TenantGate
from ingest.reader.tenant_rules import TenantRefresh
from ingest.settings import Settings
from tasks import dependencies
from tasks.connection import connect
from tasks.faults import WHAT_TO_DO, Cause, Server
from tasks.kafka.decisions import load
from tasks.kafka.ranges import KafkaRefused, KafkaUnreachable
from tasks.kafka.topics import ClusterUnreachable, Topics
from tasks.migrate.kafka import migrate_topics
from tests.kit.flower import COMMANDS
from tests.kit.operator_system import set_up_operator_system
from tests.kit.paths import ROOT
from tests.kit.refusing_broker import refusing_broker
from tests.kit.scripted_server import Answer, answering
from tests.kit.web_pages import Client, served

ANSWER_SECONDS_MAX = 5.0
# The time that a process may need to start on a busy machine.
START_SECONDS_MAX = 5.0
END_SECONDS_MAX = 20.0
DATABASE = 14
LOGIN = "ann:a-long-password"
CLOSED = "127.0.0.1:1"
REFUSED_LOGIN = b"""Code: 516. DB::Exception: default: Authentication failed: password is incorrect, or there is no user with such name.

If you have installed ClickHouse and forgot password you can reset it in the configuration file.
The password for default user is typically located at /etc/clickhouse-server/users.d/default-password.xml
and deleting this file will reset the password.
See also /etc/clickhouse-server/users.xml on the server where ClickHouse is installed.

. (AUTHENTICATION_FAILED) (version 25.8.1.1 (official build))
"""  # noqa: E501


@dataclass(frozen=True, slots=True)
class FirstFault:
    """`finding`: the name of the finding in `check`. `said`: the text that every report contains. `what_to_do`:
    the advice.

    `event`: the value of the field `event` in the log line. `in_reader`, `in_worker`: whether that process
    encounters the fault.
    """

    finding: str
    said: str
    what_to_do: str
    event: str
    in_reader: bool = True
    in_worker: bool = True

    @property
    def is_redis(self) -> bool:
        return self.finding == Server.REDIS


def of_server(server: Server, cause: Cause, said: str, *, in_reader: bool = True) -> FirstFault:
    return FirstFault(server, said, WHAT_TO_DO[server, cause], f"{server}_unusable", in_reader)


FAULTS = {
    "no worker": FirstFault(
        "workers", "worker", "start `celery -A tasks worker`", "queues_without_worker", True, False
    ),
    "no broker": of_server(Server.KAFKA, Cause.UNREACHABLE, "does not respond"),
    "silent broker": of_server(Server.KAFKA, Cause.SILENT, "does not respond"),
    "wrong kafka password": of_server(Server.KAFKA, Cause.LOGIN, "Invalid username or password"),
    "no redis": of_server(Server.REDIS, Cause.UNREACHABLE, "Connection refused"),
    "silent redis": of_server(Server.REDIS, Cause.UNREACHABLE, "Timeout"),
    "wrong redis password": of_server(Server.REDIS, Cause.LOGIN, "invalid username-password pair"),
    "wrong clickhouse password": of_server(
        Server.CLICKHOUSE, Cause.LOGIN, "password is incorrect", in_reader=False
    ),
}
named = pytest.mark.parametrize("name", FAULTS)


@pytest.fixture(scope="module")
def working(stack: Stack) -> dict[str, str]:
    """The REPLAYS_* variables of a system without a fault, in which no reader and no worker is running."""
    stack.start(["gcs", "clickhouse", "redis", "kafka"])
    names = isolated(f"faults{uuid.uuid4().hex[:8]}", stack.addresses["redis"], DATABASE)
    ports = {"REPLAYS_HTTP_PORT": "0", "REPLAYS_WORKER_HTTP_PORT": "0", "REPLAYS_WORKER_PROCESSES": "1"}
    own = {"REPLAYS_SINKS": "gcs,clickhouse,dead_letter", "REPLAYS_FLOWER_BASIC_AUTH": LOGIN, "COLUMNS": "250"}
    env = {**stack.settings(), **names, **ports, **own}
    set_up_operator_system(env)
    return env


@pytest.fixture(scope="module")
def changes(working: dict[str, str]) -> Iterator[dict[str, dict[str, str]]]:
    """The environment variables that cause each fault."""
    refused = Answer(403, REFUSED_LOGIN, {"X-ClickHouse-Exception-Code": "516"})
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # accepts connections and never answers
        refusing_broker() as secured,
        answering(lambda request: refused) as (clickhouse, _),
    ):
        redis = working["REPLAYS_REDIS_URL"]
        yield {
            "no worker": {},
            "no broker": {"REPLAYS_KAFKA_BROKERS": CLOSED},
            "silent broker": {"REPLAYS_KAFKA_BROKERS": f"127.0.0.1:{silent.getsockname()[1]}"},
            "wrong kafka password": {
                "REPLAYS_KAFKA_BROKERS": secured,
                "REPLAYS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
                "REPLAYS_KAFKA_SASL_MECHANISM": "PLAIN",
                "REPLAYS_KAFKA_SASL_USERNAME": "somebody",
                "REPLAYS_KAFKA_SASL_PASSWORD": "wrong-password",
            },
            "no redis": {"REPLAYS_REDIS_URL": f"redis://{CLOSED}/0"},
            "silent redis": {"REPLAYS_REDIS_URL": f"redis://127.0.0.1:{silent.getsockname()[1]}/0"},
            "wrong redis password": {"REPLAYS_REDIS_URL": redis.replace("redis://", "redis://somebody:wrong@")},
            "wrong clickhouse password": {
                "REPLAYS_CLICKHOUSE_URL": clickhouse,
                "REPLAYS_CLICKHOUSE_PASSWORD": "wrong-password",
            },
        }


@pytest.fixture
def broken(working: dict[str, str], changes: dict[str, dict[str, str]], name: str) -> dict[str, str]:
    """The environment variables of the system, changed so that the system has the fault `name`."""
    return {**working, **changes[name]}


def replays_ingest(children: Children, env: Mapping[str, str], *words: str) -> Child:
    """Starts `replays-ingest` with the arguments `words`, and writes the command's output to a log file."""
    return children.start("command", [sys.executable, "-m", "ingest.cli", *words], env=env, cwd=ROOT)


def lines_of(child: Child) -> list[str]:
    return child.log_path.read_text("utf-8", "replace").splitlines()


def events_of(child: Child) -> Iterator[dict[str, str]]:
    """The structured log lines of a process."""
    for line in lines_of(child):
        if line.startswith("{"):
            yield json.loads(line)


def answered(child: Child, condition: Callable[[], bool], what: str) -> None:
    """Waits until the condition holds."""
    wait_until(lambda: condition() or not child.alive, START_SECONDS_MAX + ANSWER_SECONDS_MAX, what)
    assert condition(), lines_of(child)


@named
def test_check_reports_the_fault_in_one_finding(name: str, broken: dict[str, str]) -> None:
    """`check` reports the fault in one finding, which says what to do. Apart from this finding, `check` reports
    only the missing worker as an error, and one warning about everything that could not be tested because of the
    fault.
    """
    expected, arrived = FAULTS[name], queue.SimpleQueue[Finding | None]()

    def work() -> None:
        for finding in findings(settings_of(broken)):
            arrived.put(finding)
        arrived.put(None)

    threading.Thread(target=work, daemon=True).start()
    found = []
    while not found or found[-1].name != expected.finding:
        one = arrived.get(timeout=ANSWER_SECONDS_MAX)
        assert one is not None, found
        found.append(one)
    while (one := arrived.get(timeout=END_SECONDS_MAX)) is not None:
        found.append(one)

    (reported,) = [finding for finding in found if finding.name == expected.finding]
    assert (reported.level, reported.advice) == (Severity.BAD, expected.what_to_do)
    assert expected.said in reported.said
    others = {"workers"} - ({"workers"} if expected.is_redis else set())
    assert {finding.name for finding in found if finding.is_bad} == {expected.finding, *others}
    left_out = [finding.said for finding in found if finding.name == "not tested"]
    assert len(left_out) == (expected.finding in (Server.REDIS, Server.KAFKA))
    assert all(f"see {expected.finding}" in said for said in left_out)
    assert "/etc/clickhouse-server" not in " ".join(finding.said for finding in found)


@named
@pytest.mark.parametrize("words", [("top", "--once"), ("status",)], ids=" ".join)
def test_top_and_status_report_the_fault(
    name: str, words: tuple[str, ...], broken: dict[str, str], children: Children
) -> None:
    """One line of the output of `top` and `status` names the server and says what to do. If Kafka is at fault, no
    line advises starting a reader, because a reader could not read either.
    """
    expected = FAULTS[name]
    shown = replays_ingest(children, broken, *words)

    answered(shown, lambda: any(expected.what_to_do in line for line in lines_of(shown)), "the advice")
    wait_until(lambda: not shown.alive, END_SECONDS_MAX, "the command to end")
    text = "\n".join(lines_of(shown))
    assert expected.said in text
    assert text.count(expected.what_to_do) == 1
    if expected.finding == Server.KAFKA:
        assert "no reader is running: start" not in text


@named
def test_the_operators_page_reports_the_fault(name: str, broken: dict[str, str]) -> None:
    """The page shows the fault as an alert at the top, with a link to the runbook; without Redis, it shows only
    the fault.
    """
    expected = FAULTS[name]
    with served(settings_of(broken)) as client:
        operator = Client(client.address, LOGIN)
        texts: list[str] = []

        def look() -> bool:
            seen = operator.get("/api/operate")
            texts[:] = [seen.error] if seen.status == 503 else [alert["text"] for alert in seen.json["alerts"]]
            return any(expected.what_to_do in text for text in texts)

        wait_until(look, ANSWER_SECONDS_MAX, f"the advice in {texts}")

    (line,) = [text for text in texts if expected.what_to_do in text]
    assert expected.said in line
    assert len(texts) == 1 or not expected.is_redis


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.in_reader])
def test_the_readers_log_reports_the_fault_once(name: str, broken: dict[str, str], children: Children) -> None:
    """The reader logs the fault once, and says what to do.

    If Kafka refuses the login, the reader exits, because waiting does not help, and the last line of its output
    says what to do.
    """
    expected = FAULTS[name]
    reader = replays_ingest(children, broken)

    answered(reader, lambda: any(expected.what_to_do in line for line in lines_of(reader)), "the advice")
    if name == "wrong kafka password":
        wait_until(lambda: not reader.alive, END_SECONDS_MAX, "the reader to end")
        assert reader.returncode == 1
        assert lines_of(reader)[-1].startswith("replays-ingest: kafka: ")
        return
    (line,) = [line for line in events_of(reader) if line["event"] == expected.event]
    assert line["what_to_do"].startswith(expected.what_to_do)
    assert expected.said in json.dumps(line)


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.in_worker])
def test_the_workers_log_reports_the_fault_once(name: str, broken: dict[str, str], children: Children) -> None:
    """The worker logs the fault once, before it takes tasks. Celery's own line about each attempt to reach Redis
    is not logged.
    """
    expected = FAULTS[name]
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-c", "1"]
    worker = children.start("worker", command, env=broken, cwd=ROOT)

    answered(worker, lambda: any(expected.what_to_do in line for line in lines_of(worker)), "the advice")
    if not expected.is_redis:
        wait_until(
            lambda: any(line["event"] == "worker_ready" for line in events_of(worker)), END_SECONDS_MAX, "it"
        )
    (line,) = [line for line in events_of(worker) if line["event"] == expected.event]
    assert line["what_to_do"] == expected.what_to_do
    assert expected.said in line["error"]
    assert "Cannot connect" not in "\n".join(lines_of(worker))


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.is_redis])
@pytest.mark.parametrize("command", list(COMMANDS))
def test_flowers_log_reports_the_fault_of_redis_once(
    name: str, command: str, broken: dict[str, str], children: Children
) -> None:
    """Flower logs the Redis fault once, as the reader and the workers do. Flower's own lines about each connection
    attempt are not logged.
    """
    expected = FAULTS[name]
    env = {**broken, "REPLAYS_FLOWER_PORT": str(free_port())}
    flower = children.start("flower", COMMANDS[command], env=env, cwd=ROOT)

    answered(flower, lambda: any(expected.what_to_do in line for line in lines_of(flower)), "the advice")
    (line,) = [line for line in events_of(flower) if line["event"] == expected.event]
    assert line["what_to_do"] == expected.what_to_do
    assert expected.said in line["error"]


def test_dependencies_are_asked_again(working: dict[str, str]) -> None:
    """A fault that has ended is no longer reported, and one that begins later is."""
    settings = settings_of(working)
    assert list(dependencies.faults(settings, dependencies.ALL)) == []
    away = settings.model_copy(update={"kafka_brokers": CLOSED, "clickhouse_url": f"http://{CLOSED}"})

    watched = dependencies.Dependencies(away)
    found = watched.faults(ANSWER_SECONDS_MAX)
    watched.stop()

    assert {fault.server for fault in found} == {Server.KAFKA, Server.CLICKHOUSE}
    assert all(fault.what_to_do == WHAT_TO_DO[fault.server, Cause.UNREACHABLE] for fault in found)


def test_a_running_reader_reports_a_broker_that_goes_away(
    working: dict[str, str], children: Children, tmp_path: Path
) -> None:
    """Although the client first reports a missing topic, the reader's report names the unavailable broker."""
    broker = Kafka(children, tmp_path / "kafka")
    broker.start()
    settings = settings_of({**working, "REPLAYS_KAFKA_BROKERS": broker.address})
    list(migrate_topics(settings, dry_run=False, source=False))
    refresh = TenantRefresh(connect(settings), settings, TenantGate())
    assert refresh.load(lambda seconds: True)
    broker.child.kill()

    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(KafkaUnreachable) as failed:
                refresh.refresh()

    advice = WHAT_TO_DO[Server.KAFKA, Cause.UNREACHABLE]
    assert str(failed.value).endswith(advice)
    assert [line["what_to_do"] for line in lines if line["event"] == "kafka_unusable"] == [advice]


@pytest.mark.kafka
@pytest.mark.timeout(120)
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
def test_apache_kafkas_refusal_of_a_password_is_recognized(
    mechanism: str, children: Children, tmp_path: Path
) -> None:
    """Apache Kafka refuses a password in the same way as the scripted broker above."""
    server = JavaKafka(children, tmp_path / "kafka", security="SASL_PLAINTEXT")
    server.start()
    settings = Settings.model_validate(
        {
            "kafka_brokers": server.secure_address,
            "kafka_security_protocol": "SASL_PLAINTEXT",
            "kafka_sasl_mechanism": mechanism,
            "kafka_sasl_username": "replays",
            "kafka_sasl_password": "wrong-password",
        }
    )

    with pytest.raises(ClusterUnreachable) as listed:
        Topics(settings).inventory(ANSWER_SECONDS_MAX)
    with pytest.raises(KafkaRefused) as read:
        load(settings)

    for fault in (listed.value.fault, read.value.fault):
        assert fault is not None
        assert fault.what_to_do == WHAT_TO_DO[Server.KAFKA, Cause.LOGIN]
