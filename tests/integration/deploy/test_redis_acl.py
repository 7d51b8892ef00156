"""The access list in deploy/redis grants the reader, the fleet and the viewer the rights that they need, and
access only to their own keys.
"""

from __future__ import annotations

import hashlib
import re
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


# The subcommands that the file grants by name. Redis 7.0 supports such grants, but does not start if a subcommand
# is unknown.
SUBCOMMANDS_OF_7_0 = {"script|load", "script|exists"}


def guard(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Redis:
    """Configures Redis as deployed, with one user for workers and another for the reader.

    Returns an administrator's client.
    """
    keeper: Any = fleet.client
    keeper.execute_command("ACL", "SETUSER", "keeper", "on", "nopass", "~*", "&*", "+@all")
    admin = Redis.from_url(fleet.redis.address.replace("redis://", "redis://keeper:x@"))
    for line in USERS.read_text().splitlines():
        _, name, *rules = line.split()
        admin.execute_command("ACL", "SETUSER", name, "reset" if name != "default" else "resetpass", *rules)
    fleet.environment["REPLAYS_REDIS_URL"] = url_of(fleet, "replays-worker")
    fleet.settings = settings_as(fleet, "replays-reader", monkeypatch)
    return admin


def url_of(fleet: Fleet, user: str) -> str:
    return fleet.redis.address.replace("redis://", f"redis://{user}:{PASSWORD}@")


def settings_as(fleet: Fleet, user: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("REPLAYS_REDIS_URL", url_of(fleet, user))
    return Settings()


def test_the_listed_rights_are_sufficient_for_a_batch(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """With the listed rights, chords, retries, parking, heartbeats and status all work: Redis refused no
    command.
    """
    admin = guard(fleet, monkeypatch)
    viewer = settings_as(fleet, "replays-viewer", monkeypatch)
    fleet.worker()
    dispatcher = fleet.dispatcher()
    batch = make_batch(rejects=1)

    assert isinstance(fleet.settle(dispatcher, batch, Stage.BLOBS), on.FlushSucceeded)
    assert isinstance(fleet.settle(dispatcher, batch, Stage.ROWS), on.FlushSucceeded)
    dispatcher.submit(do.Park(batch, Stage.ROWS, 1, "x", 1.0))
    fleet.wait(lambda: bool(status.collect(viewer).parked), "the batch to be parked")
    dispatcher.submit(do.Discard(batch))
    fleet.wait(lambda: not status.collect(viewer).parked, "it to be gone")
    fleet.script("gcs", "transient")
    assert isinstance(fleet.settle(dispatcher, make_batch(start=100), Stage.BLOBS), on.FlushFailed)
    watch = FleetWatch(fleet.settings, Metrics(fleet.settings))
    watch.check()

    assert watch.dependencies() == {"redis": ""}
    assert admin.execute_command("ACL", "LOG") == []


USERS_OF_THE_FILE = ("replays", "replays-reader", "replays-worker", "replays-viewer")


def test_other_keys_and_dangerous_commands_are_refused(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """With a stolen password, only this system's own keys can be accessed, and no other client's connection can
    be closed.
    """
    guard(fleet, monkeypatch)

    for user in USERS_OF_THE_FILE:
        ours = Redis.from_url(url_of(fleet, user))
        for command in (
            ["GET", "other:key"],
            ["FLUSHALL"],
            ["CONFIG", "SET", "maxmemory", "1"],
            ["KEYS", "*"],
            ["CLIENT", "KILL", "ID", "1"],
            ["CLIENT", "LIST"],
            ["CLIENT", "PAUSE", "1"],
        ):
            with pytest.raises(NoPermissionError):
                ours.execute_command(*command)


def test_each_program_can_write_only_its_own_keys(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """A worker cannot disable a project or park a batch, a reader cannot reset a breaker, and a viewer cannot
    write.
    """
    guard(fleet, monkeypatch)
    refused = {
        "replays-worker": ("replays:operators", "replays:tenants:bucket:1", "replays:parked", "replays:readers"),
        "replays-reader": ("replays:breaker:gcs", "replays:sinks"),
        "replays-viewer": ("replays:reader:reader-1", "replays:batch:{t-0-0-9}:d", "replays:celery:control"),
    }

    for user, keys in refused.items():
        client = Redis.from_url(url_of(fleet, user))
        for key in keys:
            with pytest.raises(NoPermissionError):
                client.set(key, "forged")


def test_a_viewer_sees_parked_batches_next_to_expired_entries(fleet: Fleet, monkeypatch: pytest.MonkeyPatch):
    """A viewer can list parked batches even if there are entries with expired leases, although only a user with
    write access can delete such entries.
    """
    guard(fleet, monkeypatch)
    Redis.from_url(url_of(fleet, "replays")).hset(
        "replays:parked", "t-0-0-9", '{"batch_id":"t-0-0-9","leased_until":1,"parked_at":1,"retry_at":1}'
    )

    assert list(status.collect(settings_as(fleet, "replays-viewer", monkeypatch)).parked) == []


def test_the_file_works_with_redis_7_0():
    """The file does not contain `client|setinfo`, which was added in 7.2: Redis 7.0 would refuse the file and
    not start.
    """
    named = set(re.findall(r"[+-](\S+\|\S+)", USERS.read_text()))

    assert named <= SUBCOMMANDS_OF_7_0


def test_the_example_password_says_change_me():
    """The example password says "change me", so that it can be recognized as an example."""
    assert hashlib.sha256(PASSWORD.encode()).hexdigest() in USERS.read_text()
