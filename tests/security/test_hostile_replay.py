"""While a hostile replay is stored on real servers, no command prints terminal control sequences."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import pytest
import structlog
from confluent_kafka import Consumer, Producer, TopicPartition

from ingest.cli.main import main
from ingest.settings import Settings
from ingest.testing.messages import breadcrumb, click_event, console_event, span_event, viewport_event
from tasks.kafka.letters import Label, Origin
from tasks.observe.logs import configure
from tasks.sinks import build
from tasks.wire import DeadLetter
from tests.kit.commands import CommandResult, command
from tests.kit.operator_system import OperatorSystem, open_operator_system
from tests.kit.stored_replays import message, store_replays
from tests.security.test_terminal import HOSTILE, unsafe_characters

REPLAY, PROJECT = "7" * 32, 7
TEXT = " ".join(HOSTILE.values()) + "\nforged line"
SENDABLE = TEXT.encode("utf-8", "replace").decode()  # Half a surrogate pair cannot be encoded as UTF-8.
# The commands that print no external text, or that start or change something.
OTHER_COMMANDS = {
    *("migrate", "completion", "flower", "batches retry", "batches abandon", "dlq replay", "web", "demo", "load"),
    "try",
    *("tenants kill", "tenants revive", "tenants limit", "local up", "local down", "local status", "local logs"),
}


def hostile_value() -> bytes:
    """A segment that contains TEXT in every field that a browser controls."""
    events = [
        viewport_event(TEXT),
        console_event(TEXT, TEXT),
        click_event(3, TEXT, {"id": TEXT, "class": TEXT, "aria-label": TEXT, TEXT: TEXT}),
        span_event("resource.fetch", TEXT, {"method": TEXT, "statusCode": 500}),
        span_event("navigation.push", TEXT),
        breadcrumb("navigation", {"from": TEXT, "to": TEXT}),
        breadcrumb("ui.tap", {"view.id": TEXT, "view.class": TEXT}, message=TEXT),
        breadcrumb("device.battery", {TEXT: TEXT}),
    ]
    people = {"id": TEXT, "username": TEXT, "email": TEXT, "ip_address": TEXT, "geo": {"country_code": TEXT}}
    named = {"name": TEXT, "version": TEXT}
    document = {
        "urls": [TEXT, TEXT],
        "user": people,
        "release": TEXT,
        "environment": TEXT,
        "platform": TEXT,
        "dist": TEXT,
        "tags": {TEXT: TEXT},
        "contexts": {"browser": named, "os": named, "device": {"model": TEXT}},
        "sdk": named,
        "trace_ids": [TEXT],
        "error_ids": [TEXT],
        "replay_type": TEXT,
        "segment_id": 0,
        "replay_id": REPLAY,
    }
    return message(REPLAY, 0, events, project_id=PROJECT, document=document)


def write_letter(settings: Settings, value: bytes) -> None:
    """Writes a dead letter whose reason, error, batch and headers were chosen by the attacker."""
    headers = ((SENDABLE, SENDABLE.encode()), ("x", b"\x1b]52;c;ZXZpbA==\x07\xff"))
    label = Label(SENDABLE, SENDABLE, Origin(settings.kafka_topic, 0, 0), SENDABLE, originals=headers)
    sink = build("dead_letter", settings)
    try:
        sink.write([DeadLetter(TEXT.encode("utf-8", "replace"), value, label.encode(), 0)], "hostile", 20)
    finally:
        sink.close()


def produce(settings: Settings, value: bytes) -> None:
    """Produces the message to the topic, and commits the log end offset for the group."""
    producer = Producer({"bootstrap.servers": settings.kafka_brokers})
    producer.produce(
        settings.kafka_topic,
        value,
        key=TEXT.encode("utf-8", "replace"),
        partition=0,
        headers=[("x", TEXT.encode("utf-8", "replace"))],
    )
    assert producer.flush(20) == 0
    consumer = Consumer({"bootstrap.servers": settings.kafka_brokers, "group.id": settings.kafka_group})
    place = TopicPartition(settings.kafka_topic, 0)
    _, end = consumer.get_watermark_offsets(place, timeout=20)
    consumer.commit(offsets=[TopicPartition(settings.kafka_topic, 0, end)], asynchronous=False)
    consumer.close()


@pytest.fixture(scope="module")
def operator_system(env: dict[str, str], stored: Settings) -> Iterator[OperatorSystem]:
    """Stores the hostile replay in the topic, the bucket, the tables, the dead letters and the audit trail."""
    value = hostile_value()
    store_replays(stored, [value])
    produce(stored, value)
    for content in (value, b"\x1b[2J\x1b]52;c;ZXZpbA==\x07" * 20):
        write_letter(stored, content)
    with open_operator_system(env, stored) as operator_system:
        operator_system.coordination.audit({"what": SENDABLE, "by": SENDABLE})
        yield operator_system


def commands(group: click.Group = main, *path: str) -> Iterator[str]:
    """Returns the full name of every command."""
    for name, found in group.commands.items():
        if isinstance(found, click.Group):
            yield from commands(found, *path, name)
        else:
            yield " ".join((*path, name))


def walk(operator_system: OperatorSystem, directory: str) -> dict[str, CommandResult]:
    """Runs every command that prints external text on the hostile replay, with text and with JSON output."""
    letters = command(operator_system.env, "dlq", "ls", "--json").json["letters"]
    (batch,) = operator_system.coordination.parked()
    arguments: dict[str, list[list[str]]] = {
        "check": [[]],
        "inspect": [[f"{directory}/hostile"]],
        "status": [[]],
        "top": [["--once"]],
        "batches ls": [[]],
        "batches show": [[batch]],
        "dlq ls": [[], ["--replayed", "--reason", SENDABLE]],
        "dlq show": [[letter["id"]] for letter in letters],
        "tenants ls": [[]],
        "audit": [[]],
        "reconcile": [[]],
        "shadow": [[]],
        "backfill": [["--project", str(PROJECT), "--dry-run"]],
        "erase": [[REPLAY, "--project", str(PROJECT), "--dry-run"]],
        "replays ls": [[], ["--text", "\x1b[2J"]],
        "replays show": [[REPLAY], ["\x1b[2J"]],
        "replays find": [["--text", "here"], ["--user", "here", "--url", "\x1b[2J"]],
        "events": [[REPLAY], [REPLAY, "--kind", "\x1b[2J"]],
        "fetch": [[REPLAY, "--output", directory]],
    }
    assert arguments.keys() | OTHER_COMMANDS == set(commands())
    done = {}
    for words, given in arguments.items():
        for some in given:
            for machine in ([], ["--json"]) if words != "top" else ([],):
                done[" ".join([words, *some, *machine])] = command(
                    operator_system.env, *words.split(), *some, *machine
                )
    return done


def test_no_command_steers_the_terminal(operator_system: OperatorSystem, tmp_path: Any):
    """Every command that prints external text prints and logs only printable characters."""
    operator_system.park(0, 1, error=SENDABLE)
    (tmp_path / "hostile").write_bytes(hostile_value())
    root = logging.getLogger()
    before, stream = root.handlers[:], io.StringIO()
    try:
        configure(Settings(log_format="text"), stream)
        done = walk(operator_system, str(tmp_path))
    finally:
        root.handlers[:] = before
        structlog.reset_defaults()

    steering = {
        words: unsafe_characters(result.out + result.err)
        for words, result in done.items()
        if unsafe_characters(result.out + result.err)
    }
    assert steering == {}
    assert unsafe_characters(stream.getvalue()) == set()
    # These commands printed the hostile text, with unprintable characters replaced, so the check above is not
    # vacuous.
    for words in ("status", f"events {REPLAY}", f"replays show {REPLAY}", "replays ls", "dlq ls", "batches ls"):
        assert "here" in done[words].out or "\N{REPLACEMENT CHARACTER}" in done[words].out, words
    for words, result in done.items():
        if words.endswith("--json") and result.code == 0:
            assert result.out.isascii(), words
            json.loads(result.out)


def test_raw_bytes_go_to_a_pipe_and_not_to_a_terminal(operator_system: OperatorSystem):
    """Raw bytes of a letter, which would clear the screen, are written to a pipe but not to a terminal."""
    letters = command(operator_system.env, "dlq", "ls", "--json").json["letters"]
    wanted = [sys.executable, "-m", "ingest.cli", "dlq", "show", letters[-1]["id"], "--raw"]
    env = {**os.environ, **operator_system.env}
    ours, theirs = pty.openpty()
    try:
        refused = subprocess.run(wanted, env=env, stdout=theirs, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(theirs)
        os.close(ours)
    piped = subprocess.run(wanted, env=env, capture_output=True, check=True)

    assert refused.returncode == 1
    assert b"does not write to a terminal" in refused.stderr
    assert piped.stdout.startswith(b"\x1b[2J")
