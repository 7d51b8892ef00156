"""Operators' decisions survive the loss of all data in Redis, and all keys in Redis expire except Kombu's and the
copy of these decisions.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

from ingest.local.servers.fault_proxy import NoFault, Refuse
from ingest.reader.tenant_gate import Limit
from ingest.reader.tenant_rules import TenantStore
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.operate import retry
from tasks.operators import names
from tests.kit.whole_system import System, until

FLUSHES = 2
# The keys of Kombu: queues, their bindings, and messages held by workers. All other keys must expire.
KOMBU = ("celery:flush.", "celery:control", "celery:_kombu.binding", "celery:unacked")


def lasting_keys(client: Any, prefix: str) -> set[str]:
    """Returns the keys without an expiry, except Kombu's and the copy of operators' decisions."""
    allowed = tuple(f"{prefix}:{name}" for name in KOMBU)
    found = {key.decode() for key in client.scan_iter("*") if client.ttl(key) == -1}
    return {key for key in found if not key.startswith(allowed)} - set(names(prefix))


def segments_of(system: System, project: int) -> int:
    return int(system.query(f"SELECT count() FROM replay_segments FINAL WHERE project_id = {project}")[0][0])


def test_a_disabled_project_and_the_audit_trail_survive_an_emptied_redis(tmp_path: Path) -> None:
    """If Redis is emptied repeatedly under load, a disabled project stays disabled and gets no row."""
    with System(tmp_path, flush_deadline_seconds="10") as system:
        redis: Any = connect(system.settings)
        system.load(60, seed=1)
        system.wait_until_committed()
        sizes = system.query("SELECT project_id, count() AS n FROM replay_segments GROUP BY project_id ORDER BY n")
        project = int(sizes[-1][0])
        assert len(sizes) > 1

        system.command("tenants", "kill", str(project), "--yes", "--by", "ann")
        seeds = count(2)

        def followed() -> bool:
            system.load(20, seed=next(seeds))
            return system.metric("replays_reader_drops_total", reason="killed") > 0

        until(followed, 60, "the reader to follow")
        system.wait_until_committed()
        before = segments_of(system, project)
        dropped = system.metric("replays_reader_drops_total", reason="killed")
        for _ in range(FLUSHES):
            redis.flushall()
            system.load(30, seed=next(seeds))
        redis.flushall()
        system.wait_until_committed()

        assert system.metric("replays_reader_drops_total", reason="killed") > dropped
        assert segments_of(system, project) == before
        assert TenantStore(redis, system.settings).rules().killed == {project}
        assert [action["what"] for action in system.json("audit")] == ["tenant_kill"]


def test_every_key_of_the_running_system_expires(tmp_path: Path) -> None:
    """The test includes a sink that refuses writes and a parked batch that is retried.

    All keys expire except Kombu's and the decisions.
    """
    with System(tmp_path, task_retries_max="1") as system:
        redis: Any = connect(system.settings)
        coordination = Coordination(redis, system.settings)
        TenantStore(redis, system.settings).limit(424242, Limit(5.0, 50.0), "ann")
        system.proxies["clickhouse"].set(Refuse())
        system.load(40)
        until(lambda: bool(coordination.parked()), 90, "a batch to be parked")
        until(lambda: bool(redis.exists(names("replays")[2])), 30, "a reader's copy of the decisions")

        retry(coordination, next(iter(coordination.parked())), "ann")

        assert lasting_keys(redis, "replays") == set()
        system.proxies["clickhouse"].set(NoFault())
        system.wait_until_committed()
        assert lasting_keys(redis, "replays") == set()
        assert redis.exists(*names("replays")) == len(names("replays"))
