"""A fleet for one test: Redis, the reader's dispatcher, and workers whose sinks write to files."""

from __future__ import annotations

import json
import queue
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis as Client

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, Stage
from ingest.local.servers.processes import Child, Children, wait_until
from ingest.local.servers.redis import Redis
from ingest.local.servers.sentinel import MASTER, RedisGroup
from ingest.reader.dispatch import Dispatcher
from ingest.settings import Settings
from tasks.connection import connect
from tasks.kafka.topics import Topics
from tests.kit.paths import ROOT


@dataclass
class Fleet:
    """The parts of a fleet: its settings, Redis, processes, dispatchers and events."""

    settings: Settings
    redis: Redis | RedisGroup
    children: Children
    sinks: Path
    environment: dict[str, str]
    inbox: queue.SimpleQueue[on.Event] = field(default_factory=queue.SimpleQueue)
    events: list[on.Event] = field(default_factory=list)
    _dispatchers: list[Dispatcher] = field(default_factory=list)

    @property
    def client(self) -> Any:
        if isinstance(self.redis, RedisGroup):
            return connect(self.settings, retries=6)
        return Client.from_url(self.redis.address)

    def dispatcher(self, reader: str = "reader-1") -> Dispatcher:
        """Starts a dispatcher, which is stopped after the test."""
        made = Dispatcher(self.settings, reader, self.inbox)
        made.start()
        self._dispatchers.append(made)
        return made

    def worker(
        self, name: str = "worker", *, app: str = "tests.kit.scripted_sinks", options: tuple[str, ...] = ()
    ) -> Child:
        """Starts a worker and returns it once it is ready."""
        child = self.start_worker(name, app=app, options=options)
        wait_until(lambda: b" ready." in child.log_path.read_bytes(), 90, f"{name} to be ready")
        return child

    def start_worker(
        self, name: str = "worker", *, app: str = "tests.kit.scripted_sinks", options: tuple[str, ...] = ()
    ) -> Child:
        """Starts a worker without waiting for it."""
        command = [sys.executable, "-m", "celery", "-A", app, "worker", "-l", "INFO", "-n", f"{name}@%h"]
        return self.children.start(name, [*command, *options], env=self.environment, cwd=ROOT)

    def script(self, sink: str, what: str) -> None:
        """Sets how the sink behaves from its next call on."""
        (self.sinks / f"{sink}.do").write_text(what)

    def calls(self, sink: str, what: str = "kept") -> list[dict[str, Any]]:
        """Returns the lines of the given kind in the sink's file."""
        path = self.sinks / f"{sink}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in map(json.loads, lines) if line["what"] == what]

    def next_event(self, deadline_seconds: float = 30.0) -> on.Event:
        """Waits for the next event that the dispatcher receives, and returns it."""
        event = self.inbox.get(timeout=deadline_seconds)
        self.events.append(event)
        return event

    def wait(self, condition: Callable[[], bool], what: str, deadline_seconds: float = 30.0) -> None:
        """Waits until the condition holds."""
        wait_until(condition, deadline_seconds, what)

    def settle(
        self, dispatcher: Dispatcher, batch: Batch, stage: Stage = Stage.ROWS, attempt: int = 1
    ) -> on.Event:
        """Dispatches a batch and returns the first event of this attempt.

        Failures of earlier attempts are ignored, as in the core, because Celery reports a killed process twice
        (first the time limit, then the lost process), and the second report may arrive at any time.
        """
        dispatcher.submit(do.Dispatch(batch, stage, attempt, self.settings.flush_deadline_seconds))
        while True:
            event = self.next_event()
            if not (isinstance(event, on.FlushFailed) and event.attempt < attempt):
                return event

    def settle_all(
        self, dispatcher: Dispatcher, batches: Sequence[Batch], deadline_seconds: float = 90.0
    ) -> dict[str, int]:
        """Dispatches batches like the core, with retries after a failure or a deadline, until all batches have
        succeeded.

        Returns the number of attempts by batch id.
        """
        open_, attempts = {batch.id: batch for batch in batches}, dict.fromkeys((b.id for b in batches), 0)
        due = dict.fromkeys(open_, 0.0)
        ends_at = time.monotonic() + deadline_seconds
        while open_:
            now = time.monotonic()
            assert now < ends_at, f"not settled: {sorted(open_)}\n{self.events[-5:]}"
            for batch_id in [each for each in open_ if due[each] <= now]:
                attempts[batch_id] += 1
                due[batch_id] = now + self.settings.flush_deadline_seconds
                dispatcher.submit(
                    do.Dispatch(
                        open_[batch_id], Stage.ROWS, attempts[batch_id], self.settings.flush_deadline_seconds
                    )
                )
            with suppress(queue.Empty):
                event = self.next_event(0.2)
                if isinstance(event, on.FlushSucceeded):
                    open_.pop(event.batch_id, None)
                elif isinstance(event, on.DispatchFailed | on.FlushFailed) and event.batch_id in open_:
                    due[event.batch_id] = now + 0.5
        return attempts

    def close(self) -> None:
        """Kills all programs, so that the test does not wait for a warm shutdown."""
        for made in self._dispatchers:
            made.stop(0.2)
        for child in self.children:
            child.kill()


@pytest.fixture
def fleet_options() -> dict[str, str]:
    """Additional settings by name, without the prefix REPLAYS_. Test modules override this fixture."""
    return {}


@pytest.fixture
def fleet_redis(tmp_path: Path, children: Children) -> Redis | RedisGroup:
    """The fleet's Redis. Test modules override this fixture to use another server."""
    return Redis(children, tmp_path / "redis")


@pytest.fixture
def fleet(
    tmp_path: Path,
    children: Children,
    fleet_redis: Redis | RedisGroup,
    fleet_options: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    kafka_brokers: str,
    fresh_name: Callable[[str], str],
) -> Iterator[Fleet]:
    """A fleet with Redis and the topic of operators' decisions, without workers."""
    redis = fleet_redis
    redis.start()
    sinks = tmp_path / "sinks"
    sinks.mkdir()
    options = {
        "REDIS_URL": redis.address,
        **({"REDIS_SENTINEL_MASTER": MASTER} if isinstance(redis, RedisGroup) else {}),
        "REDIS_TIMEOUT_SECONDS": "2",
        "KAFKA_BROKERS": kafka_brokers,
        "KAFKA_OPERATORS_TOPIC": fresh_name("operators"),
        "TASK_VISIBILITY_SECONDS": "5",
        "TASK_BACKOFF_SECONDS": "0.2",
        "TASK_BACKOFF_SECONDS_MAX": "0.5",
        "BLOBS_PER_TASK": "128",
        "TASK_RETRIES_MAX": "3",
        "WORKER_PROCESSES": "2",
        "FLUSH_DEADLINE_SECONDS": "30",
        "BREAKER_FAILURES_MIN": "100",
        **fleet_options,
    }
    environment = {f"REPLAYS_{name}": value for name, value in options.items()}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    environment |= {"REPLAYS_TEST_SINKS": str(sinks)}
    running = Fleet(Settings(), redis, children, sinks, environment)
    Topics(running.settings).create(running.settings.operators_topic, 1, {"cleanup.policy": "compact"}, 20)
    yield running
    running.close()
