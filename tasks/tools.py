"""Shared objects of a worker process (staging, breakers, coordination, sinks), created on first use."""

from __future__ import annotations

from typing import Any

from tasks.breaker import Breaker
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.loading import load_fleet
from tasks.observe import metrics
from tasks.settings import Settings
from tasks.sinks import build
from tasks.sinks.base import Sink
from tasks.sinks.per_process import PerProcessValue
from tasks.staging import Staging
from tasks.wire import SinkName

# Redis calls after a finished write are retried more often, because without its done mark the write is repeated.
REDIS_RETRIES = 6


class WorkerContext:
    """One instance per process. Sinks are built on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        patient = connect(settings, retries=REDIS_RETRIES)
        self.staging = Staging(patient, settings, metrics.observe_unverified_entry)
        self.coordination = Coordination(patient, settings, metrics.observe_unverified_entry)
        self.breaker = Breaker(connect(settings, retries=0), settings)
        self._sinks: dict[SinkName, Sink[Any]] = {}

    def sink(self, name: SinkName) -> Sink[Any]:
        """Returns the sink of that name, built on first use."""
        if name not in self._sinks:
            self._sinks[name] = build(name, self.settings)
        return self._sinks[name]


# Created after the fork, because connections must not be shared with the parent.
tools: PerProcessValue[WorkerContext] = PerProcessValue(lambda: WorkerContext(load_fleet()))
