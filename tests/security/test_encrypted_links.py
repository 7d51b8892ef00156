"""The system connects to servers that require encryption and authentication, with the permissions that
docs/hardening.md lists.

The broker is Apache Kafka with SASL over TLS and with ACLs. Redis runs with the deployed ACL. Redis and ClickHouse
are behind TLS proxies, because the embedded servers are built without TLS.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from ingest.local.compare.letters import read_letters
from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.reconcile import reconcile
from ingest.local.launch import settings_of
from ingest.local.load.expectation import Expectation
from ingest.local.load.produce import PROFILES, produce
from ingest.local.servers import java_kafka
from ingest.local.servers.java_kafka import JavaKafka
from ingest.local.servers.processes import Children, wait_until
from ingest.local.servers.tls import TlsProxy
from ingest.local.stack import Stack
from ingest.operate import check
from ingest.operate.dlq import Selection, letters
from ingest.settings import Settings
from tasks.connection import connect
from tasks.errors import SinkError
from tasks.migrate import migrate
from tasks.sinks.dead_letter.sink import DeadLetterSink
from tasks.wire import DeadLetter
from tests.kit.prestarted import PARENTS
from tests.kit.secured_servers import (
    AUTHORIZED,
    KAFKA_PASSWORD,
    KAFKA_USER,
    REDIS_PASSWORD,
    GuardedRedis,
    Programs,
    grant,
    guarded_redis,
    kafka_variables,
    token_endpoint,
)
from tests.kit.servers import kill_all

SHORT_TIMES = {
    "REPLAYS_BATCH_AGE_SECONDS_MAX": "0.5",
    "REPLAYS_KAFKA_SESSION_TIMEOUT_SECONDS": "10",
    "REPLAYS_DRAIN_DEADLINE_SECONDS": "4",
    "REPLAYS_LOG_FORMAT": "json",
    "REPLAYS_HTTP_PORT": "0",
}


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JavaKafka]:
    """Apache Kafka with SASL_SSL and an authorizer.

    The fixture skips the test with a reason if Kafka cannot run; in CI it must run.
    """
    reason = java_kafka.available()
    if reason and not os.environ.get("CI"):
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("secured-kafka")
    with Children(directory / "logs") as owner:
        users = {KAFKA_USER: KAFKA_PASSWORD}
        server = JavaKafka(
            owner, directory / "kafka", security="SASL_SSL", users=users, unsigned_tokens=True, options=AUTHORIZED
        )
        server.start()
        yield server
        kill_all(owner)


@pytest.fixture
def redis(kafka: JavaKafka, children: Children, tmp_path: Path) -> Iterator[GuardedRedis]:
    assert kafka.certificates is not None
    with guarded_redis(children, tmp_path / "guarded", kafka.certificates) as guarded:
        yield guarded


def topics(kafka: JavaKafka, topic: str) -> None:
    """Creates the topics as the administrator, because the system's own user must not create topics."""
    keeper = settings_of(
        {"REPLAYS_KAFKA_BROKERS": kafka.address, "REPLAYS_KAFKA_TOPIC": topic, "REPLAYS_SINKS": "dead_letter"}
    )
    for _ in migrate(keeper, topics=True):
        pass


def findings(variables: dict[str, str]) -> dict[str, check.Finding]:
    """Returns the findings of `check` about Kafka and Redis, by name."""
    settings = settings_of({"REPLAYS_SINKS": "dead_letter", **variables})
    return {finding.name: finding for finding in check.run(settings)}


@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_recordings_flow_over_encrypted_links_with_the_least_rights(
    kafka: JavaKafka,
    redis: GuardedRedis,
    stack: Stack,
    children: Children,
    tmp_path: Path,
    fresh_name: Callable[[str], str],
):
    """With only the permissions listed in docs/hardening.md, the reader, the worker, Flower, `check` and `dlq` all
    work.

    All messages arrive, Redis denies no command, and no secret is logged.
    """
    stack.start(["gcs", "clickhouse", "bigquery", "statsd"])
    topic, group = fresh_name("recordings"), fresh_name("readers")
    names = {
        "REPLAYS_KAFKA_TOPIC": topic,
        "REPLAYS_KAFKA_GROUP": group,
        "REPLAYS_GCS_BUCKET": fresh_name("bucket"),
        "REPLAYS_CLICKHOUSE_DATABASE": fresh_name("replays"),
        "REPLAYS_BIGQUERY_DATASET": fresh_name("replays"),
    }
    plain = {**stack.settings(), **SHORT_TIMES, **names, "REPLAYS_KAFKA_BROKERS": kafka.address}
    keeper = settings_of(plain)
    for _ in migrate(keeper, topics=True):
        pass
    grant(kafka, topic, group)
    assert kafka.certificates is not None
    clickhouse_port = int(stack.addresses["clickhouse"].rpartition(":")[2])
    with TlsProxy(clickhouse_port, kafka.certificates) as clickhouse:
        secured = {
            **plain,
            **kafka_variables(kafka),
            **redis.variables,
            "REPLAYS_CLICKHOUSE_URL": f"https://127.0.0.1:{clickhouse.port}",
            "REPLAYS_CLICKHOUSE_TLS_CA_FILE": str(kafka.certificates.ca),
        }
        found = check.run(settings_of(secured))
        missing = {finding.name.split()[0] for finding in found if finding.level != "ok"}
        assert missing == {"workers", "partition"}, found  # No worker and no reader is running yet.
        programs = Programs(children, secured)
        flower = programs.start()
        manifest = tmp_path / "manifest.jsonl"
        made = produce(keeper, PROFILES["small"], 120, 5, manifest_path=manifest)

        wait_until_committed(keeper, made.ends, programs)
        report = reconcile(
            keeper, Expectation.from_manifest(manifest, settings=keeper), statsd_url="", exact_metrics=False
        )
        workers = flower_answers(flower, "/api/workers?refresh=1")
        secure = settings_of(secured)
        unreplayed = list(letters(secure, Selection()))
        listed = command(secured, "status", "--json")
        programs.stop()

    assert report.ok, [made for made in report.checks if not made.ok]
    assert made.rejects
    assert len(unreplayed) == made.rejects
    assert list(workers)
    assert json.loads(listed)["readers"]
    assert redis.keeper.execute_command("ACL", "LOG") == []
    for secret in (KAFKA_PASSWORD, REDIS_PASSWORD):
        assert secret not in programs.logs()


def wait_until_committed(settings: Settings, ends: dict[int, int], programs: Programs) -> None:
    """Waits until the group's committed offsets equal the log end offsets."""
    asking = CommittedOffsets(settings)
    wanted = {(settings.kafka_topic, partition): end for partition, end in ends.items()}
    try:
        wait_until(lambda: asking.of(sorted(wanted)) == wanted, 120, "the commits")
    except Exception:
        print(programs.logs()[-8000:])
        raise
    finally:
        asking.close()


def flower_answers(url: str, path: str) -> Any:
    """Waits until Flower has data, and returns its JSON."""
    request = urllib.request.Request(url + path)
    request.add_header("Authorization", "Basic " + base64.b64encode(b"test:only-for-now").decode())
    found: list[Any] = []

    def has_data() -> bool:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                found[:] = [json.loads(answer.read())]
        except OSError:
            return False
        return bool(found[0])

    wait_until(has_data, 60, f"Flower's {path}")
    return found[0]


def command(env: dict[str, str], *arguments: str) -> str:
    """Runs `replays-ingest ARGUMENTS` and returns its output."""
    result = PARENTS.run([sys.executable, "-m", "ingest.cli", *arguments], {**os.environ, **env})
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_scram_authenticates_the_dead_letter_producer(
    kafka: JavaKafka, mechanism: str, fresh_name: Callable[[str], str]
):
    """With either SCRAM hash, a user with only the permissions that docs/hardening.md lists can produce a durable
    dead letter.
    """
    topic = fresh_name("recordings")
    topics(kafka, topic)
    grant(kafka, topic, "readers")
    settings = settings_of(
        {**kafka_variables(kafka, mechanism), "REPLAYS_KAFKA_TOPIC": topic, "REPLAYS_KAFKA_GROUP": "readers"}
    )

    write_letter(settings)

    letters, _ = read_letters(settings)
    assert [letter.reason for letter in letters.values()] == ["not_msgpack"]


def write_letter(settings: Settings) -> None:
    """Writes one reject through the fleet's sink."""
    headers = (("reason", b"not_msgpack"), ("topic", b"source"), ("partition", b"0"), ("offset", b"7"))
    sink = DeadLetterSink(settings)
    try:
        sink.check()
        sink.write([DeadLetter(None, b"\xc1", headers, 7)], "token", 20.0)
    finally:
        sink.close()


@pytest.mark.kafka
def test_a_topic_without_a_grant_stays_closed(kafka: JavaKafka, fresh_name: Callable[[str], str]):
    """An authenticated user without a grant gets no access to a topic, and `check` reports which topic is
    denied.
    """
    topic = fresh_name("recordings")
    topics(kafka, topic)
    variables = {**kafka_variables(kafka), "REPLAYS_KAFKA_TOPIC": topic}

    found = findings(variables)

    assert found["kafka"].level == "ok"
    assert found[f"topic {topic}"].is_bad
    with pytest.raises(SinkError, match=f"{topic}-dlq"):
        write_letter(settings_of(variables))


WRONG: dict[str, tuple[dict[str, str], str]] = {
    "another password": ({"REPLAYS_KAFKA_SASL_PASSWORD": "wrong"}, "[Aa]uthentication failed"),
    "another user": ({"REPLAYS_KAFKA_SASL_USERNAME": "nobody"}, "[Aa]uthentication failed"),
    "no authority": ({"REPLAYS_KAFKA_SSL_CA_FILE": ""}, "certificate verify failed|ssl.ca.location"),
    "no encryption": (
        {"REPLAYS_KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT", "REPLAYS_KAFKA_SSL_CA_FILE": ""},
        "[Dd]isconnected|security.protocol",
    ),
}


@pytest.mark.kafka
@pytest.mark.parametrize("wrong", WRONG)
def test_check_reports_why_the_broker_refuses(kafka: JavaKafka, wrong: str):
    """If a broker refuses the client, `check` reports the cause, instead of only reporting that no broker
    responded.
    """
    changes, expected = WRONG[wrong]
    variables = {name: value for name, value in {**kafka_variables(kafka), **changes}.items() if value}

    found = findings(variables)["kafka"]

    assert found.is_bad
    assert re.search(expected, found.said), found.said
    assert KAFKA_PASSWORD not in found.said


@pytest.mark.kafka
def test_a_token_of_an_oauth_server_opens_the_broker(
    kafka: JavaKafka, monkeypatch: pytest.MonkeyPatch, fresh_name: Callable[[str], str]
):
    """With OAUTHBEARER configured as on the settings page, the client fetches tokens with the
    client-credentials grant.
    """
    topic = fresh_name("recordings")
    topics(kafka, topic)
    grant(kafka, topic, "readers")
    variables = {**kafka_variables(kafka), "REPLAYS_KAFKA_TOPIC": topic, "REPLAYS_KAFKA_GROUP": "readers"}
    del variables["REPLAYS_KAFKA_SASL_USERNAME"], variables["REPLAYS_KAFKA_SASL_PASSWORD"]
    variables["REPLAYS_KAFKA_SASL_MECHANISM"] = "OAUTHBEARER"
    with token_endpoint(KAFKA_USER) as (url, asked):
        options = {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "ingest",
            "sasl.oauthbearer.client.secret": "oauth-secret",
            "sasl.oauthbearer.token.endpoint.url": url,
        }
        for name, value in {**variables, "REPLAYS_KAFKA_OPTIONS": json.dumps(options)}.items():
            monkeypatch.setenv(name, value)
        settings = Settings()

        write_letter(settings)
        letters, _ = read_letters(settings)

    assert len(letters) == 1
    assert set(asked) == {"Basic " + base64.b64encode(b"ingest:oauth-secret").decode()}


@pytest.mark.kafka
def test_redis_is_trusted_only_with_its_certificate(redis: GuardedRedis, kafka: JavaKafka):
    """A client that does not trust the server's CA, uses the wrong password, or does not use TLS cannot connect to
    Redis.
    """
    good = {**redis.variables, "REPLAYS_KAFKA_BROKERS": kafka.address}
    without_authority = {name: value for name, value in good.items() if name != "REPLAYS_REDIS_TLS_CA_FILE"}
    wrong_password = {**good, "REPLAYS_REDIS_URL": redis.url.replace(REDIS_PASSWORD, "wrong")}
    plain = {**without_authority, "REPLAYS_REDIS_URL": redis.url.replace("rediss://", "redis://")}

    assert connect(settings_of(good)).ping()
    with pytest.raises(RedisError, match="certificate verify failed"):
        connect(settings_of(without_authority)).ping()
    with pytest.raises(RedisError, match="username-password"):
        connect(settings_of(wrong_password)).ping()
    with pytest.raises(RedisError):
        connect(settings_of(plain)).ping()
