"""Tests which properties REPLAYS_KAFKA_OPTIONS must not contain, and how a refusal is worded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer

from ingest.reader.configuration import consumer_config
from ingest.settings import Settings, load
from tasks.guarded import CALLBACKS, GUARDED, refusal
from tasks.loading import SettingsError, load_fleet
from tasks.sinks.dead_letter.sink import producer_options

VALUES = {
    "acks": "all",
    "request.required.acks": "all",
    "auto.offset.reset": "latest",
    "group.protocol": "classic",
    "offset.store.method": "broker",
    "partition.assignment.strategy": "range",
    "partitioner": "random",
    "group.id": "other",
    "group.instance.id": "one",
    "group.protocol.type": "consumer",
    "transactional.id": "one",
}
IN_THE_CLIENT = {name for name, reason in GUARDED.items() if reason == CALLBACKS} | {"default.topic.config"}


def set_options(monkeypatch: pytest.MonkeyPatch, options: dict[str, object]) -> None:
    monkeypatch.setenv("REPLAYS_KAFKA_OPTIONS", json.dumps(options))


@pytest.mark.parametrize("name", [*GUARDED, "test.mock.num.brokers", "rebalance_cb", "error_cb", "stats_cb"])
def test_each_is_refused_by_name_with_the_reason(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The reader and the fleet both refuse each guarded property with an error that names the property, because
    both have clients that would accept it.
    """
    set_options(monkeypatch, {"client.rack": "a", name: "true"})

    for read in (load, load_fleet):
        with pytest.raises(SettingsError) as caught:
            read()
        assert f"REPLAYS_KAFKA_OPTIONS: {name} cannot be set: {refusal(name)}" in str(caught.value)


@pytest.mark.parametrize("name", sorted(GUARDED.keys() - IN_THE_CLIENT))
def test_each_is_a_property_that_a_client_would_accept(name: str) -> None:
    """A client would accept each guarded property; a misspelt name in the list would protect nothing."""
    options = {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", "log_level": "0", name: VALUES.get(name, "1")}
    if name.startswith("enable.") or name in ("auto.commit.enable", "delivery.report.only.error"):
        options[name] = "true"
    if name.endswith(".ms"):
        options[name] = "10000"

    assert any(is_taken(client, options) for client in (Consumer, Producer))


def is_taken(client: type[Consumer | Producer], options: dict[str, str]) -> bool:
    try:
        made = client(options)
    except KafkaException:
        return False
    if isinstance(made, Consumer):
        made.close()
    return True


def test_all_mistakes_are_listed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All mistakes are listed at once, including values of the wrong JSON type."""
    set_options(monkeypatch, {"enable.auto.commit": True, "auto.offset.reset": "latest", "acks": 0})

    with pytest.raises(SettingsError) as caught:
        load()

    for name in ("enable.auto.commit", "auto.offset.reset", "acks"):
        assert name in str(caught.value)


def test_a_refusal_repeats_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for a refused property does not show any value, because any value, even one of the wrong type, may
    contain a password.
    """
    for wrong in ({"acks": "0"}, {"sasl.oauthbearer.scope": ["hunter2"]}):
        set_options(monkeypatch, {"sasl.oauthbearer.client.secret": "hunter2", **wrong})
        with pytest.raises(SettingsError) as caught:
            load()
        assert "hunter2" not in str(caught.value)


def test_every_command_exits_with_2() -> None:
    """Every command exits with 2 and prints one line that says what to do, without a traceback."""
    command = Path(sys.executable).with_name("replays-ingest")
    for arguments in ([], ["check"], ["status"]):
        result = subprocess.run(
            [command, *arguments],
            env={"REPLAYS_KAFKA_OPTIONS": '{"enable.auto.commit": "true"}'},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 2, result.stderr
        assert "enable.auto.commit cannot be set" in result.stderr + result.stdout
        assert "Traceback" not in result.stderr


def test_numbers_and_booleans_of_tuning_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values of tuning properties may be JSON numbers and booleans."""
    set_options(monkeypatch, {"fetch.min.bytes": 1, "socket.keepalive.enable": False, "client.rack": "a"})

    config = consumer_config(load())

    assert config["fetch.min.bytes"] == "1"
    assert config["socket.keepalive.enable"] == "false"
    Consumer(config).close()


def test_options_cannot_override_the_guarantee() -> None:
    """Options cannot override the properties that at-least-once delivery needs, even in settings that were never
    validated.
    """
    unchecked = Settings().model_copy(update={"kafka_options": {"acks": "0", "statistics.interval.ms": "1000"}})

    options = producer_options(unchecked)

    assert (options["acks"], options["enable.idempotence"], options["statistics.interval.ms"]) == ("all", True, 0)
