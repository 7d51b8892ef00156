"""Tests the round trips of a flush task to Redis, and what happens if the breaker's part of a script fails."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ingest.settings import Settings
from tasks import run as flush
from tasks.breaker import Breaker, PermitKind
from tasks.retries import GaveUp
from tasks.staging import INLINE_BYTES_MAX, Forged, Run, Staging, StagingError
from tasks.wire import (
    MANIFEST,
    ChordName,
    Manifest,
    Row,
    SinkName,
    Stage,
    TaskEntry,
    encode_items,
    reference,
)
from tests.kit.eager_fleet import EagerFleet

CLICKHOUSE = "rows/clickhouse/0"
BREAKER = "replays:breaker:clickhouse"


class StagedTask:
    """A staged task for ClickHouse with one row of the given size."""

    def __init__(self, eager: EagerFleet, size_bytes: int = 10) -> None:
        self.payload = encode_items([Row("replay_segments", "a/0", b" " * size_bytes, 0)])
        entry = TaskEntry(CLICKHOUSE, 1, len(self.payload))
        manifest = Manifest("topic-0-0-9", "digest", "topic", 0, 0, 9, "eager-reader", 1, (entry,))
        self.batch, self.client = reference(manifest), eager.client
        self.staging, self.breaker = Staging(eager.client, eager.settings), Breaker(eager.client, eager.settings)
        name = ChordName(self.batch, Stage.ROWS, 1, "t")
        self.staging.stage(manifest, name, {CLICKHOUSE: self.payload})

    def begin(self) -> Run | None:
        """Begins the task, including the breaker's part of the script."""
        return self.staging.begin(self.batch, CLICKHOUSE, "id", self.breaker.request(SinkName.CLICKHOUSE))

    def open_breaker(self, until: str) -> None:
        """Opens the breaker until the given time, in Unix seconds."""
        self.client.hset(BREAKER, mapping={"opened_until": until, "cool": "5", "error": "down"})

    def next_permit(self) -> PermitKind:
        """Returns the permit that another task would get now."""
        return self.breaker.request_permit(SinkName.CLICKHOUSE).kind


def run_task(batch: str) -> str:
    """Runs the task once, as a Celery task with the id "id"."""
    task: Any = SimpleNamespace(request=SimpleNamespace(id="id", retries=0, is_eager=True))
    return flush.run(task, batch, CLICKHOUSE, 1 << 40)


def requests(eager: EagerFleet, act: Callable[[], object]) -> list[str]:
    """Returns the names of the commands that clients sent for keys of batches and breakers during `act`."""
    with eager.client.monitor() as monitor:
        act()
        eager.client.echo("the end")
        found = []
        while (entry := monitor.next_command())["command"] != "ECHO the end":
            about_batch = any(part in entry["command"] for part in ("replays:batch:", "replays:breaker:"))
            if entry["client_type"] != "lua" and about_batch:
                found.append(entry["command"].split()[0])
    return found


@pytest.mark.parametrize(("size_bytes", "reads"), [(10, []), (INLINE_BYTES_MAX, ["HGET"])], ids=["small", "large"])
def test_a_task_needs_one_round_trip_before_its_write_and_one_after_it(
    eager: EagerFleet, size_bytes: int, reads: list[str]
) -> None:
    """A payload above INLINE_BYTES_MAX is read separately, because Lua would copy the payload."""
    staged = StagedTask(eager, size_bytes)
    run_task(staged.batch)  # loads the scripts
    eager.client.delete(staged.staging.key(staged.batch))
    staged = StagedTask(eager, size_bytes)

    assert requests(eager, lambda: run_task(staged.batch)) == ["EVALSHA", *reads, "EVALSHA"]
    assert len(eager.sink("clickhouse").calls) == 2
    assert eager.client.hkeys(staged.staging.key(staged.batch)) == [
        MANIFEST.encode(),
        b"chord/rows",
        f"done/{CLICKHOUSE}".encode(),
    ]


def test_a_task_that_is_done_takes_no_permit(eager: EagerFleet) -> None:
    """If the task is already done, it takes no permit, so another task can run the probe."""
    staged = StagedTask(eager)
    run_task(staged.batch)
    staged.open_breaker("1")

    assert staged.begin() is None
    assert staged.next_permit() is PermitKind.PROBE


def test_a_task_that_is_not_staged_takes_no_permit(eager: EagerFleet) -> None:
    staged = StagedTask(eager)
    eager.client.hdel(staged.staging.key(staged.batch), CLICKHOUSE)
    staged.open_breaker("1")

    with pytest.raises(StagingError, match="not staged"):
        staged.begin()
    assert staged.next_permit() is PermitKind.PROBE


def test_no_payload_is_sent_while_the_breaker_is_open(eager: EagerFleet) -> None:
    staged = StagedTask(eager)
    staged.open_breaker("1e12")

    run = staged.begin()

    assert run is not None
    assert run.permit is not None
    assert (run.permit.kind, run.permit.error) == (PermitKind.OPEN, "down")
    assert run.inline_payload is None


def test_a_successful_probe_closes_the_breaker_together_with_the_mark(eager: EagerFleet) -> None:
    staged = StagedTask(eager)
    staged.open_breaker("1")

    sent = requests(eager, lambda: run_task(staged.batch))

    assert [name for name in sent if name != "EVALSHA"] == []
    assert not eager.client.exists(BREAKER)


def test_a_forged_manifest_gives_the_probe_back(eager: EagerFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the task cannot start because its manifest has no seal, another task can run the probe immediately."""
    staged = StagedTask(eager)
    staged.open_breaker("1")
    monkeypatch.setenv("REPLAYS_SHARED_KEY", "k" * 32)
    staged.staging = Staging(eager.client, Settings(), lambda purpose: None)

    with pytest.raises(Forged):
        staged.begin()
    assert staged.next_permit() is PermitKind.PROBE


def test_a_task_that_kills_its_worker_gives_the_probe_back(eager: EagerFleet) -> None:
    """If a task is abandoned before its sink is called, another task can run the probe immediately."""
    staged = StagedTask(eager)
    staged.open_breaker("1")
    starts = eager.settings.task_starts_max
    eager.client.hset(staged.staging.key(staged.batch), f"starts/{CLICKHOUSE}/id", starts)

    with pytest.raises(GaveUp, match="kills its worker"):
        run_task(staged.batch)
    assert staged.next_permit() is PermitKind.PROBE


@pytest.mark.parametrize("broken", ["wrong type", "no rights"])
def test_a_breaker_that_cannot_be_used_prevents_neither_write_nor_mark(eager: EagerFleet, broken: str) -> None:
    """If the breaker's key has the wrong type, or Redis denies access to the key, the task still completes."""
    staged, client = StagedTask(eager), eager.client
    client.set(BREAKER, "x", ex=600)
    try:
        if broken == "no rights":
            client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~replays:batch:*", "~replays:sinks")
        assert run_task(staged.batch) == "done"
    finally:
        client.execute_command("ACL", "SETUSER", "default", "~*")

    assert len(eager.sink("clickhouse").rows) == 1
    assert client.hexists(staged.staging.key(staged.batch), f"done/{CLICKHOUSE}")
    assert client.get(BREAKER) == b"x"
