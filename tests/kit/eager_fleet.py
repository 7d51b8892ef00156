"""The reader's dispatcher and the real tasks in one process, with in-memory sinks and a small Redis.

Celery runs with `task_always_eager`, so no broker is involved. Staged bytes, done marks and the breaker work as in
production, so Redis is the only server that is needed.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis as Client

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, Stage
from ingest.local.servers.processes import Children
from ingest.local.servers.redis import Redis
from ingest.reader.dispatch import Dispatcher
from ingest.settings import Settings
from tasks.sinks import memory
from tasks.sinks.memory import MemorySink


@pytest.fixture(scope="session")
def eager_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis for the whole session, which each test empties."""
    directory = tmp_path_factory.mktemp("eager")
    with Children(directory / "logs") as children:
        server = Redis(children, directory / "redis")
        server.start()
        yield server


@dataclass
class EagerFleet:
    """The eager fleet's settings, Redis client, dispatcher and events."""

    settings: Settings
    client: Any
    inbox: queue.SimpleQueue[on.Event] = field(default_factory=queue.SimpleQueue)
    dispatcher: Dispatcher = field(init=False)

    def sink(self, name: str) -> MemorySink:
        """Returns the memory sink with the given name in this process."""
        return memory.sink(name)

    def settle(self, batch: Batch, stage: Stage = Stage.ROWS, attempt: int = 1) -> on.Event:
        """Dispatches one stage and returns its result event.

        The chord runs during the dispatch, so a failing chord results in DispatchFailed.
        """
        self.dispatcher.submit(do.Dispatch(batch, stage, attempt, 60.0))
        return self.inbox.get(timeout=20)


@pytest.fixture
def eager(eager_redis: Redis, monkeypatch: pytest.MonkeyPatch) -> Iterator[EagerFleet]:
    """A fleet that runs in one thread, with empty stores."""
    options = {
        "REDIS_URL": eager_redis.address,
        "SINK_KIND": "memory",
        "BLOBS_PER_TASK": "128",
        "TASK_RETRIES_MAX": "2",
        "TASK_BACKOFF_SECONDS": "0.01",
        "TASK_BACKOFF_SECONDS_MAX": "0.01",
        "BREAKER_FAILURES_MIN": "100",
    }
    for name, value in options.items():
        monkeypatch.setenv(f"REPLAYS_{name}", value)
    # The app is imported late, because it reads the settings on first use.
    from tasks.celery import app
    from tasks.tools import tools

    app.loader.import_default_modules()
    settings = Settings()
    made = EagerFleet(settings, Client.from_url(eager_redis.address))
    made.client.flushall()
    memory.reset()
    tools.take()
    before = {"task_always_eager": app.conf.task_always_eager, "broker_url": app.conf.broker_url}
    app.conf.update(task_always_eager=True, broker_url="memory://")
    made.dispatcher = Dispatcher(settings, "eager-reader", made.inbox, app=app)
    made.dispatcher.start()
    yield made
    made.dispatcher.stop(0.2)
    app.conf.update(before)
    tools.take()
