"""`load` reports the path of the manifest, and overwrites no file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from ingest.local.launch import settings_of
from ingest.local.load.manifest import read_entries, read_header
from tasks.faults import WHAT_TO_DO, Cause, Server
from tasks.kafka.ranges import Bounds, RangeReader
from tests.kit.commands import command


@pytest.fixture
def load_env(kafka_brokers: str, fresh_name: Callable[[str], str]) -> dict[str, str]:
    return {"REPLAYS_KAFKA_BROKERS": kafka_brokers, "REPLAYS_KAFKA_TOPIC": fresh_name("topic")}


def test_each_load_reports_its_own_new_manifest(
    load_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each load writes a new manifest, and prints its absolute path as text and as JSON.

    An existing file is refused with exit code 2.
    """
    monkeypatch.chdir(tmp_path)

    first = command(load_env, "load", "--count", "3", "--profile", "small")
    second = command(load_env, "load", "--count", "3", "--profile", "small", "--json")
    before = (tmp_path / "manifest.jsonl").read_bytes()
    refused = command(load_env, "load", "--count", "3", "--manifest", "manifest.jsonl")

    assert first.out.endswith(f"manifest: {tmp_path / 'manifest.jsonl'}\n")
    assert second.json["manifest"] == str(tmp_path / "manifest-2.jsonl")
    assert len(list(read_entries(tmp_path / "manifest-2.jsonl"))) == second.json["messages"]
    assert (refused.code, "manifest.jsonl exists" in refused.err) == (2, True)
    assert (tmp_path / "manifest.jsonl").read_bytes() == before


def test_a_load_is_received_when_it_is_produced(
    load_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The segments' `received` times are the times at which the segments are produced to Kafka, so end-to-end
    delays measure only the system.

    The manifest records that `received` is the time of production.
    """
    monkeypatch.chdir(tmp_path)
    began = int(time.time())
    command(load_env, "load", "--count", "20", "--profile", "small")
    ended = time.time()

    segments = {
        (entry.partition, entry.offset)
        for entry in read_entries(tmp_path / "manifest.jsonl")
        if entry.kind != "reject"
    }
    settings = settings_of(load_env)
    with RangeReader(settings, settings.kafka_topic, group="load-test", bounds=Bounds(seconds_max=30.0)) as reader:
        found = {(one.partition, one.offset): one.value for one in reader.read_all()}
    received = [msgspec.msgpack.decode(found[place])["received"] for place in segments]

    assert len(received) >= 20
    assert began <= min(received) <= max(received) <= ended
    assert read_header(tmp_path / "manifest.jsonl").received_now


def test_without_a_broker_no_manifest_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """If no broker is reachable, nothing is produced, and no manifest is left. The error line is the same as in
    other commands.
    """
    monkeypatch.chdir(tmp_path)

    result = command({"REPLAYS_KAFKA_BROKERS": "127.0.0.1:1"}, "load", "--count", "3")

    assert result.code == 1
    (line,) = result.err.splitlines()
    assert line.startswith("replays-ingest: kafka: 127.0.0.1:1 does not respond: ")
    assert line.endswith(WHAT_TO_DO[Server.KAFKA, Cause.UNREACHABLE])
    assert list(tmp_path.iterdir()) == []
