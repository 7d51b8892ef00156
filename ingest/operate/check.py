"""Checks everything that readers and workers need. Each check yields a finding that states what to do."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from urllib.parse import unquote, urlsplit

from redis.exceptions import RedisError

from ingest.operate import rehearsal
from ingest.operate.finding import Finding, Severity
from ingest.operate.text import count_text, size_text
from ingest.settings import Settings
from tasks.connection import CHECK_SECONDS_MAX, advice, connect, fault_of, prove_writable, refusal
from tasks.faults import WHAT_TO_DO, Cause, Server
from tasks.kafka.options import without_secrets as without_option_secrets
from tasks.kafka.topics import ClusterUnreachable, Topics
from tasks.sinks import Level
from tasks.sinks import check as check_sink
from tasks.wire import SinkName

CALL_SECONDS_MAX = 3.0
DOWN_SECONDS_MAX = 1.0  # brokers that refuse connections for this long are considered down
CHECKS_AT_ONCE = 8
REDIS_KIND = "redis kind"
SECRET_CHARACTERS_MIN = 4  # hiding shorter secrets would make messages unreadable
NO_RESPONSE: dict[str, str] = {SinkName.CLICKHOUSE: WHAT_TO_DO[Server.CLICKHOUSE, Cause.UNREACHABLE]}
RUN_CALLS_MAX = 6  # maximum duration of one run of a flush task, as a multiple of the sink timeout


def run(settings: Settings) -> list[Finding]:
    """Returns everything that `findings` yields, as a list."""
    return list(findings(settings))


def findings(settings: Settings) -> Iterator[Finding]:
    """Yields each finding as soon as it is known.

    Checks settings, connections, Kafka, Redis, workers and every sink, with the operations that readers and
    workers use. The checks take a few seconds. The checks remove everything that they created; anything that
    cannot be removed is reported as a finding.
    """
    secrets = secret_values(settings)
    for finding in _all_findings(settings):
        yield finding.redacted(secrets)


def _all_findings(settings: Settings) -> Iterator[Finding]:
    """The servers are checked concurrently, so that a slow or missing server does not delay the findings about the
    other servers. Joining a consumer group takes the longest and is reported last.
    """
    yield Finding("settings", Severity.OK, "valid")
    yield from deadlines(settings)
    yield from _unencrypted_connections(settings)
    with ThreadPoolExecutor(CHECKS_AT_ONCE, thread_name_prefix="check") as pool:
        kafka = pool.submit(_run_check, "kafka", lambda: _kafka(settings))
        redis = pool.submit(_redis_findings, settings)
        sinks = [
            pool.submit(_run_check, title, partial(_sink, settings, name, title))
            for title, name in _tested_sinks(settings)
            if name != SinkName.DEAD_LETTER
        ]
        through_kafka = pool.submit(_kafka_dependent_findings, settings, kafka)
        for ended in (redis, kafka, *sinks, through_kafka):
            yield from ended.result()


def _redis_findings(settings: Settings) -> list[Finding]:
    """Checks Redis, and everything that depends on Redis."""
    found = _run_check("redis", lambda: _redis(settings))
    if any(finding.name in ("redis", REDIS_KIND) and finding.is_bad for finding in found):
        return [*found, _not_tested("redis", "staging", "tasks", "workers")]
    return [
        *found,
        *_run_check("staging", lambda: rehearsal.check_staging(settings)),
        *_run_check("tasks", lambda: rehearsal.check_task(settings)),
        *_run_check("workers", lambda: rehearsal.check_workers(settings)),
    ]


def _kafka_dependent_findings(settings: Settings, kafka: Future[list[Finding]]) -> list[Finding]:
    """Checks the dead letters, the consumer group and the owners of the partitions, if Kafka can be used."""
    letters = [name for name in settings.sinks if name == SinkName.DEAD_LETTER]
    if kafka.result()[0].is_bad:
        return [_not_tested("kafka", *letters, "consumer group", "partition owners")]
    found = [finding for name in letters for finding in _run_check(name, partial(_sink, settings, name, name))]
    if any(finding.is_bad for finding in kafka.result()):
        return found
    return [
        *found,
        *_run_check("consumer group", lambda: rehearsal.check_group(settings)),
        *_run_check("partition owners", lambda: rehearsal.check_owners(settings)),
    ]


def _tested_sinks(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yields (name of the finding, name of the sink)."""
    for name in settings.sinks:
        yield name, name
    if settings.metrics_dogstatsd and SinkName.DATADOG not in settings.sinks:
        yield "metrics to dogstatsd", SinkName.DATADOG


def _not_tested(cause: str, *names: str) -> Finding:
    """Returns one finding for all checks that were skipped because the check `cause` failed."""
    return Finding("not tested", Severity.WARNING, f"{', '.join(names)}: see {cause}")


def secret_values(settings: Settings) -> frozenset[str]:
    """Returns the secrets in these settings, including secrets in addresses, which error texts may quote."""
    found: set[str] = set()
    for value in dict(settings).values():
        reveal = getattr(value, "get_secret_value", None)
        text = reveal() if reveal else value
        if reveal:
            found |= {text, text.partition(":")[2] if "://" not in text else ""}
        if isinstance(text, str) and "://" in text:
            found.add(text.partition("://")[2].rpartition("@")[0].partition(":")[2])
    found.add(settings.redis_address.password)
    options = settings.kafka_options
    found |= {options[name] for name, hidden in without_option_secrets(options).items() if hidden != options[name]}
    found |= {unquote(value) for value in found}
    return frozenset(value for value in found if len(value) >= SECRET_CHARACTERS_MIN)


def _run_check(name: str, check_one: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check_one())
    except Exception as failure:  # any error is a finding, so that the other checks still run
        if isinstance(failure, RedisError):
            found = fault_of(failure)
            return [Finding(name, Severity.BAD, found.problem, found.what_to_do)]
        return [Finding(name, Severity.BAD, f"{type(failure).__name__}: {failure}", advice(failure))]


def deadlines(settings: Settings) -> Iterable[Finding]:
    """Checks settings that depend on each other."""
    run_seconds_max = RUN_CALLS_MAX * settings.sink_timeout_seconds
    if settings.task_visibility_seconds <= run_seconds_max:
        yield Finding(
            "visibility of tasks",
            Severity.WARNING,
            f"{settings.task_visibility_seconds} s is not longer than the longest run of a flush task "
            f"({RUN_CALLS_MAX} times the sink timeout, {run_seconds_max:g} s): running tasks would be redelivered",
            "raise REPLAYS_TASK_VISIBILITY_SECONDS or lower REPLAYS_SINK_TIMEOUT_SECONDS",
        )
    if not settings.task_events:
        yield Finding("task events", Severity.OK, "off (REPLAYS_TASK_EVENTS): Flower lists no tasks")


def is_loopback(host: str) -> bool:
    """Returns True if traffic to this host name or address does not leave the machine."""
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _unencrypted_connections(settings: Settings) -> Iterable[Finding]:
    """Yields a warning for each unencrypted connection that leaves the machine."""
    redis = settings.redis_address
    plain = []
    if not settings.redis_tls and not all(is_loopback(host) for host, _ in redis.hosts):
        plain.append(("redis", "use rediss:// in REPLAYS_REDIS_URL, or set REPLAYS_REDIS_SENTINEL_TLS"))
    if settings.redis_tls and redis.verification == "none":
        advice = "remove ssl_cert_reqs from REPLAYS_REDIS_URL and set REPLAYS_REDIS_TLS_CA_FILE"
        yield Finding("link to redis", Severity.WARNING, "the server's certificate is not verified", advice)
    if "SSL" not in settings.kafka_security_protocol:
        hosts = [broker.rsplit(":", 1)[0] for broker in settings.kafka_brokers.split(",")]
        if not all(is_loopback(host.strip()) for host in hosts):
            plain.append(("kafka", "set REPLAYS_KAFKA_SECURITY_PROTOCOL to SASL_SSL or SSL"))
    for name in ("clickhouse_url", "gcs_endpoint", "bigquery_endpoint", "bigquery_storage_endpoint"):
        url = urlsplit(getattr(settings, name))
        if url.scheme == "http" and not is_loopback(url.hostname or ""):
            plain.append((name, f"use https:// in REPLAYS_{name.upper()}"))
    for name, advice in plain:
        yield Finding(f"link to {name}", Severity.WARNING, "not encrypted, and leaves this machine", advice)


def _kafka(settings: Settings) -> Iterable[Finding]:
    try:
        cluster = Topics(settings).inventory(CALL_SECONDS_MAX, down_seconds_max=DOWN_SECONDS_MAX)
    except ClusterUnreachable as failure:
        yield Finding("kafka", Severity.BAD, failure.fault.problem, failure.fault.what_to_do)
        return
    yield Finding("kafka", Severity.OK, count_text(cluster.brokers, "broker"))
    for topic in (settings.kafka_topic, settings.dlq_topic):
        found = cluster.topics.get(topic)
        if found is None:
            advice = "create it, or run `replays-ingest migrate --topics`"
            yield Finding(f"topic {topic}", Severity.BAD, "not there", advice)
        else:
            yield Finding(f"topic {topic}", Severity.OK, count_text(found.partitions, "partition"))


def _redis(settings: Settings) -> Iterable[Finding]:
    client = connect(settings, retries=0, seconds_max=CHECK_SECONDS_MAX)
    refused = refusal(client)
    if refused:
        yield Finding(REDIS_KIND, Severity.BAD, refused)
        return
    prove_writable(client, f"{settings.key_prefix}:probe")
    info = client.info("memory")
    policy = info.get("maxmemory_policy", "unknown")
    limit = int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    yield Finding(
        "redis", Severity.OK, f"version {client.info('server').get('redis_version')}, {size_text(used)} used"
    )
    if policy != "noeviction":
        yield Finding(
            "redis eviction",
            Severity.BAD,
            f"maxmemory-policy is {policy}: Redis may evict queues and chords",
            "set maxmemory-policy noeviction",
        )
    else:
        yield Finding("redis eviction", Severity.OK, "noeviction")
    if limit and limit < 2 * settings.in_flight_bytes_max:
        yield Finding(
            "redis memory",
            Severity.WARNING,
            f"maxmemory is {size_text(limit)}",
            f"one reader may stage {size_text(settings.in_flight_bytes_max)}; give it at least twice that",
        )


def _sink(settings: Settings, name: str, title: str) -> Iterable[Finding]:
    checked = check_sink(name, settings)
    if checked.level is Level.ERROR:
        said, _, advice = checked.text.rpartition("; ")
        if advice not in WHAT_TO_DO.values():
            said, advice = checked.text, "" if "`" in checked.text else "see the message"
            if checked.transient:
                advice = NO_RESPONSE.get(name, "no response: check that it is running, and the address")
        yield Finding(title, Severity.BAD, said, advice)
        return
    left_out = f" (not tested: {'; '.join(checked.not_tested)})" if checked.not_tested else ""
    yield Finding(title, Severity.OK, checked.text + left_out)
    for warning in checked.warnings:
        yield Finding(title, Severity.WARNING, warning)
