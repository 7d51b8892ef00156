"""The access list of deploy/redis is enough for reader and fleet, and not more than their own keys."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Stage
from ingest.observe.fleet import FleetWatch
from ingest.observe.metrics import Metrics
from ingest.operate import status
from ingest.settings import Settings
from tests.kit.batches import make_batch
from tests.kit.fleet import Fleet
from tests.kit.paths import ROOT

USERS = ROOT / "deploy" / "redis" / "users.acl"
PASSWORD = "CHANGE-ME"


def guard(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Redis:
    """Redis as it is deployed; returns an administrator's client, the fleet gets the user of the file."""
    keeper: Any = fleet.client
    keeper.execute_command("ACL", "SETUSER", "keeper", "on", "nopass", "~*", "&*", "+@all")
    admin = Redis.from_url(fleet.redis.address.replace("redis://", "redis://keeper:x@"))
    for line in USERS.read_text().splitlines():
        _, name, *rules = line.split()
        admin.execute_command("ACL", "SETUSER", name, "reset" if name != "default" else "resetpass", *rules)
    url = fleet.redis.address.replace("redis://", f"redis://replays:{PASSWORD}@")
    monkeypatch.setenv("REPLAYS_REDIS_URL", url)
    fleet.environment["REPLAYS_REDIS_URL"] = url
    fleet.settings = Settings()
    return admin


def test_a_batch_flows_with_nothing_but_the_listed_rights(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """Chords, retries, parking, heartbeats, status: Redis refused no command."""
    admin = guard(fleet, monkeypatch)
    fleet.worker()
    dispatcher = fleet.dispatcher()
    batch = make_batch(rejects=1)

    assert isinstance(fleet.settle(dispatcher, batch, Stage.BLOBS), on.FlushSucceeded)
    assert isinstance(fleet.settle(dispatcher, batch, Stage.ROWS), on.FlushSucceeded)
    dispatcher.submit(do.Park(batch, Stage.ROWS, 1, "x", 1.0))
    fleet.wait(lambda: bool(status.collect(fleet.settings).parked), "the batch to be parked")
    dispatcher.submit(do.Discard(batch))
    fleet.wait(lambda: not status.collect(fleet.settings).parked, "it to be gone")
    fleet.script("gcs", "transient")
    assert isinstance(fleet.settle(dispatcher, make_batch(start=100), Stage.BLOBS), on.FlushFailed)
    watch = FleetWatch(fleet.settings, Metrics(fleet.settings))
    watch.look()

    assert watch.dependencies() == {"redis": ""}
    assert admin.execute_command("ACL", "LOG") == []


def test_other_keys_and_dangerous_commands_are_out_of_reach(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """A stolen password opens nothing but this system's own keys."""
    guard(fleet, monkeypatch)
    ours = Redis.from_url(fleet.settings.redis_url.get_secret_value())

    for command in (["GET", "other:key"], ["FLUSHALL"], ["CONFIG", "SET", "maxmemory", "1"], ["KEYS", "*"]):
        with pytest.raises(NoPermissionError):
            ours.execute_command(*command)


def test_the_password_of_the_example_is_the_one_that_says_change_me():
    """So that nobody takes the file as it is for a secret."""
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() in USERS.read_text()
