"""Operators' decisions on a real broker are durable in a topic, copied to Redis, and copied again when Redis
loses them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Client

from ingest.local.servers.processes import Children
from ingest.local.servers.redis import Redis
from ingest.reader.tenant_gate import Limit, TenantGate
from ingest.reader.tenant_rules import NotLoaded, TenantRefresh, TenantStore
from ingest.settings import Settings
from tasks.errors import PermanentSinkError
from tasks.kafka.decisions import DecisionReader, DecisionsUnreadable, DecisionWriter, load
from tasks.kafka.producing import AcknowledgedProducer, NotProduced
from tasks.kafka.topics import Topics
from tasks.migrate.kafka import migrate_topics
from tasks.operators import AUDIT_ENTRIES_MAX, AUDIT_PRUNE_BATCH_SIZE, DecisionCopy, Operators, names


def never_stopping(seconds: float) -> bool:
    """Returns False, because no test stops the reader."""
    return False


@pytest.fixture
def settings(kafka_brokers: str, fresh_name: Callable[[str], str], tmp_path: Path, children: Children) -> Settings:
    """Settings with a Redis for this test and topics as created by `migrate`."""
    redis = Redis(children, tmp_path / "redis")
    redis.start()
    made = Settings(kafka_brokers=kafka_brokers, kafka_topic=fresh_name("decided"), redis_url=redis.address)  # type: ignore[arg-type]
    list(migrate_topics(made, dry_run=False, source=False))
    return made


@pytest.fixture
def client(settings: Settings) -> Any:
    return Client.from_url(settings.redis_url.get_secret_value())


def following_gate(client: Any, settings: Settings) -> tuple[TenantRefresh, TenantGate]:
    """Returns a reader's gate that has loaded all decisions."""
    gate = TenantGate()
    refresh = TenantRefresh(client, settings, gate)
    assert refresh.load(never_stopping)
    return refresh, gate


def test_a_new_reader_finds_the_decisions_with_an_empty_redis(client: Any, settings: Settings) -> None:
    """A new reader with an empty Redis finds the decisions in the topic, and so do commands."""
    store = TenantStore(client, settings)
    store.kill(7, "ann")
    store.kill(8, "ann")
    store.revive(8, "bob")
    store.limit(9, Limit(5.0, 50.0), "bob")
    client.flushall()

    refresh, gate = following_gate(client, settings)

    assert gate.rules.killed == {7}
    assert gate.rules.limits == {9: Limit(5.0, 50.0)}
    assert TenantStore(client, settings).rules() == gate.rules
    actions = Operators(client, settings).audited()
    assert [(action["what"], action["project"], action["by"]) for action in actions] == [
        ("tenant_limit", "9", "bob"),
        ("tenant_revive", "8", "bob"),
        ("tenant_kill", "8", "ann"),
        ("tenant_kill", "7", "ann"),
    ]
    refresh.stop()


def test_a_running_reader_keeps_decisions_and_restores_the_copy(client: Any, settings: Settings) -> None:
    """After Redis has been emptied, a running reader keeps its decisions and restores the copy in Redis, so the
    project stays disabled.
    """
    store = TenantStore(client, settings)
    store.kill(7, "ann")
    refresh, gate = following_gate(client, settings)
    refresh.refresh()
    before = DecisionCopy(client, settings).in_force()
    client.flushall()

    refresh.refresh()

    assert gate.rules.killed == {7}
    assert DecisionCopy(client, settings).in_force() == before
    assert len(DecisionCopy(client, settings).audited(10)) == 1
    store.revive(7, "ann")
    refresh.refresh()
    assert not gate.active
    assert DecisionCopy(client, settings).in_force() == {}
    refresh.stop()


def test_a_decision_holds_although_redis_was_unavailable(client: Any, settings: Settings) -> None:
    """A decision made while Redis was unavailable takes effect, because the reader follows the topic and
    updates the copy.
    """
    refresh, gate = following_gate(client, settings)
    refresh.refresh()
    away = Client.from_url("redis://127.0.0.1:1")

    Operators(away, settings).decide({"killed/7": {"at": 1.0, "by": "ann"}}, {"what": "tenant_kill", "by": "ann"})

    refresh.refresh()
    assert gate.rules.killed == {7}
    assert set(DecisionCopy(client, settings).in_force()) == {"killed/7"}
    refresh.stop()


def test_no_decision_is_made_while_the_topic_is_unavailable(client: Any, settings: Settings) -> None:
    """While the topic is unavailable, no decision is made: the error says what to do, and Redis is unchanged."""
    gone = settings.model_copy(update={"kafka_operators_topic": "no-such-topic"})

    with pytest.raises(NotProduced, match="no-such-topic is missing: run `replays-ingest migrate`"):
        TenantStore(client, gone).kill(7, "ann")

    assert client.keys("*") == []


def test_a_reader_does_not_start_without_the_decisions(client: Any, settings: Settings) -> None:
    """A reader does not start if the operators' topic is missing, or contains decisions written by a newer
    release."""
    gone = settings.model_copy(update={"kafka_operators_topic": "no-such-topic"})
    with pytest.raises(NotLoaded, match="run `replays-ingest migrate`"):
        TenantRefresh(client, gone, TenantGate()).load(never_stopping)

    DecisionWriter(settings).write({"killed/7": {"version": 2}})
    with pytest.raises(NotLoaded, match="upgrade first"):
        TenantRefresh(client, settings, TenantGate()).load(never_stopping)
    AcknowledgedProducer(settings).produce(settings.operators_topic, b"moved/7", b"{}", ())
    with pytest.raises(DecisionsUnreadable):
        load(settings)


def test_an_action_is_listed_once_although_a_reader_copies_it_too(client: Any, settings: Settings) -> None:
    """An action is listed once, although the command writes it to Redis and a reader writes it again from the
    topic.
    """
    refresh, _ = following_gate(client, settings)
    refresh.refresh()
    behind = client.get(names(settings.key_prefix)[2])
    Operators(client, settings).audit({"what": "retry", "by": "ann"})
    client.set(names(settings.key_prefix)[2], behind)

    refresh.refresh()

    assert [action["what"] for action in Operators(client, settings).audited()] == ["retry"]


def test_decisions_that_would_expire_are_refused(settings: Settings) -> None:
    """`migrate` refuses an operators' topic that is not compacted, because its decisions would expire."""
    other = settings.model_copy(update={"kafka_operators_topic": f"{settings.kafka_topic}-deleted"})
    Topics(other).create(other.operators_topic, 1, {"cleanup.policy": "delete"}, 20)
    if Topics(other).config(other.operators_topic, 20).get("cleanup.policy") is None:
        pytest.skip("this broker does not show a topic's settings")

    with pytest.raises(PermanentSinkError, match="decisions would expire"):
        list(migrate_topics(other, dry_run=False, source=False))


def test_two_readers_and_a_command_leave_one_copy(client: Any, settings: Settings) -> None:
    """Although two readers and a command restore the copy, no action is listed twice."""
    first, _ = following_gate(client, settings)
    second, _ = following_gate(client, settings)
    Operators(client, settings).audit({"what": "retry", "by": "ann"})
    for each_refresh in (first, second, first):
        each_refresh.refresh()
    client.flushall()
    for each_refresh in (second, first):
        each_refresh.refresh()

    assert [action["what"] for action in Operators(client, settings).audited()] == ["retry"]
    assert {key.decode() for key in client.keys("*")} <= set(names(settings.key_prefix))
    first.stop()
    second.stop()


def test_the_audit_trail_is_bounded_in_the_topic_too(
    client: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The audit trail is also bounded in the topic: only the oldest actions are deleted."""
    monkeypatch.setattr("tasks.operators.AUDIT_ENTRIES_MAX", 5)
    monkeypatch.setattr("tasks.operators.AUDIT_PRUNE_BATCH_SIZE", 3)
    operators = Operators(client, settings)
    operators.decide({"killed/7": {"at": 1.0, "by": "ann"}})
    for number in range(9):
        operators.audit({"what": f"action {number}"})

    reader = DecisionReader(settings)
    reader.read()
    kept = [value["what"] for key, value in sorted(reader.decisions.of("audit").items())]
    reader.close()
    assert 5 <= len(kept) <= 8
    assert kept[-1] == "action 8"
    assert list(reader.decisions.of("killed")) == ["killed/7"]
    assert (AUDIT_ENTRIES_MAX, AUDIT_PRUNE_BATCH_SIZE) == (10_000, 100)
