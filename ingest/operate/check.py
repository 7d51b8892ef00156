"""Checks everything that readers and workers need. Each check yields a finding that states what to do."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote, urlsplit

from ingest.operate import rehearsal
from ingest.operate.finding import Finding, Severity
from ingest.operate.text import counted, size_text
from ingest.settings import Settings
from tasks.connection import advice, connect, prove_writable, refusal
from tasks.kafka.options import without_secrets as without_option_secrets
from tasks.kafka.topics import ClusterUnreachable, Topics
from tasks.sinks import Level
from tasks.sinks import check as check_sink
from tasks.wire import SinkName

CALL_SECONDS_MAX = 10.0
DOWN_SECONDS_MAX = 3.0  # brokers that refuse connections for this long are down
REDIS_KIND = "redis kind"
SECRET_CHARACTERS_MIN = 4  # hiding shorter texts would garble messages
RUN_CALLS_MAX = 6  # maximum duration of a flush task's run, in sink timeouts


def run(settings: Settings) -> list[Finding]:
    """All findings of `findings`, as a list."""
    return list(findings(settings))


def findings(settings: Settings) -> Iterator[Finding]:
    """Yields each finding as soon as it is known.

    Checks settings, connections, Kafka, Redis, workers and every sink, with the operations that readers and
    workers use. Takes a few seconds and removes what it created; what it cannot remove is reported as a finding.
    """
    secrets = secret_values(settings)
    for finding in _all(settings):
        yield finding.redacted(secrets)


def _all(settings: Settings) -> Iterator[Finding]:
    yield Finding("settings", Severity.OK, "valid")
    yield from deadlines(settings)
    yield from _links(settings)
    kafka = _guarded("kafka", lambda: _kafka(settings))
    yield from kafka
    if not any(finding.bad for finding in kafka):
        yield from _guarded("consumer group", lambda: rehearsal.group(settings))
        yield from _guarded("partition owners", lambda: rehearsal.owners(settings))
    redis = _guarded("redis", lambda: _redis(settings))
    yield from redis
    if not any(finding.name in ("redis", REDIS_KIND) and finding.bad for finding in redis):
        yield from _guarded("staging", lambda: rehearsal.staging(settings))
        yield from _guarded("tasks", lambda: rehearsal.task(settings))
        yield from _guarded("workers", lambda: rehearsal.fleet(settings))
    for name in settings.sinks:
        if name == "dead_letter" and kafka[0].bad:
            yield Finding(name, Severity.BAD, "its topic is in the unreachable Kafka cluster", "see kafka")
            continue
        yield from _guarded(name, lambda name=name: _sink(settings, name))  # type: ignore[misc]
    if settings.metrics_dogstatsd and SinkName.DATADOG not in settings.sinks:
        yield from _guarded("metrics to dogstatsd", lambda: _sink(settings, SinkName.DATADOG))


def secret_values(settings: Settings) -> frozenset[str]:
    """The secrets in these settings, including those in addresses, which error texts may quote."""
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


def _guarded(name: str, check_one: Callable[[], Iterable[Finding]]) -> list[Finding]:
    try:
        return list(check_one())
    except Exception as failure:  # any error is a finding, so that the other checks still run
        return [
            Finding(
                name,
                Severity.BAD,
                f"{type(failure).__name__}: {failure}",
                advice(failure),
            )
        ]


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


def is_loopback(host: str) -> bool:
    """True if traffic to this host name or address does not leave the machine."""
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _links(settings: Settings) -> Iterable[Finding]:
    """A warning for each unencrypted connection that leaves the machine."""
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
        yield Finding(
            "kafka",
            Severity.BAD,
            str(failure),
            "start a broker, or correct REPLAYS_KAFKA_BROKERS and the security settings",
        )
        return
    yield Finding("kafka", Severity.OK, counted(cluster.brokers, "broker"))
    for topic in (settings.kafka_topic, settings.dlq_topic):
        found = cluster.topics.get(topic)
        if found is None:
            advice = "create it, or run `replays-ingest migrate --topics`"
            yield Finding(f"topic {topic}", Severity.BAD, "not there", advice)
        else:
            yield Finding(f"topic {topic}", Severity.OK, counted(found.partitions, "partition"))


def _redis(settings: Settings) -> Iterable[Finding]:
    client = connect(settings)
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


def _sink(settings: Settings, name: str) -> Iterable[Finding]:
    checked = check_sink(name, settings)
    if checked.level is Level.ERROR:
        advice = "" if "`" in checked.text else "see the message"
        advice = "no response: check that it is running, and the address" if checked.transient else advice
        yield Finding(name, Severity.BAD, checked.text, advice)
        return
    left_out = f" (not tested: {'; '.join(checked.not_tested)})" if checked.not_tested else ""
    yield Finding(name, Severity.OK, checked.text + left_out)
    for warning in checked.warnings:
        yield Finding(name, Severity.WARNING, warning)
