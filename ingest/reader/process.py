"""The reader put together: shells around the pipeline, the loop, signals, and the exit code."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import time
from collections.abc import Sequence

import structlog

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.parse import REASONS, WARNINGS
from ingest.core.pipeline import Pipeline
from ingest.observe.fleet import FleetWatch
from ingest.observe.health import Health, serve, turned_seconds
from ingest.observe.heartbeat import HeartbeatSource
from ingest.observe.logs import batch_line
from ingest.observe.metrics import Metrics
from ingest.observe.stuck import StuckDetector
from ingest.observe.tracing import Tracing
from ingest.reader.configuration import consumer_config, limits_of, rules_of
from ingest.reader.dispatch import Dispatcher
from ingest.reader.group_watch import GroupWatch
from ingest.reader.kafka import ConsumerFailed, KafkaSource
from ingest.reader.parsing.inline import InlineParser, ProcessParser
from ingest.reader.runtime import Runtime
from ingest.reader.stopwatch import TimedParser
from ingest.reader.tenant_gate import TenantGate
from ingest.reader.tenant_rules import TenantRefresh, TenantStore
from ingest.settings import Settings
from tasks.connection import connect
from tasks.observe import logs, telemetry

log = structlog.get_logger(__name__)
EXIT_HALTED = 3


class ReaderFailed(Exception):
    """The reader cannot go on. The text says why and what to do."""


def reader_id(settings: Settings) -> str:
    """Who this process is to the fleet: a new stream of completions for each life of it."""
    name = settings.kafka_instance_id or socket.gethostname()
    return f"{name}-{os.getpid()}-{secrets.token_hex(3)}"


def run(settings: Settings) -> int:
    """Consumes until SIGTERM or SIGINT. Returns the exit code: 0 drained or out of time, 3 had halted."""
    logs.configure(settings)
    telemetry.configure(settings, service="replays-reader")
    reader = Reader(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: reader.shut_down())
    return reader.run()


class Reader:
    """One reader process: everything is made here, started by `run`, and closed when that returns."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
        self.pipeline = Pipeline(limits_of(settings))
        self.source = KafkaSource(
            consumer_config(settings), settings.kafka_topic, self.inbox, settings.kafka_offset_reset
        )
        self.metrics = Metrics(settings, REASONS, WARNINGS, batch_line)
        self.metrics.watch(self.pipeline, self.source)
        self.tracing = Tracing()
        self.watch = FleetWatch(settings, self.metrics)
        self.group_watch = GroupWatch(settings, self.metrics, self.source)
        self.heartbeat = HeartbeatSource(settings, self.metrics)
        self.dispatcher = Dispatcher(
            settings, reader_id(settings), self.inbox, heartbeat=self.heartbeat, trace=self.tracing.begin
        )
        self.gate = TenantGate()
        self.parser = parser_of(settings, self.gate)
        self.runtime = Runtime(
            self.pipeline,
            self.source,
            self.dispatcher,
            TimedParser(self.parser, self.metrics, also=self.tracing.polled),
            self.inbox,
            time.monotonic,
            self._observe,
        )

    def shut_down(self) -> None:
        """Safe to be called from a signal handler: settles what is in flight, commits, stops."""
        self.inbox.put(on.ShutdownRequested())

    def run(self) -> int:
        """Until shut down. Returns the exit code."""
        silent = turned_seconds(lambda: self.runtime.turned_at)
        probes = serve(Health(self.settings, self.metrics, silent, self.watch.dependencies))
        self.heartbeat.http = f"{probes.host}:{probes.port}"
        stuck = StuckDetector(silent, self.settings.loop_silent_seconds_max, self.metrics.stuck)
        refresh = TenantRefresh(TenantStore(connect(self.settings), self.settings.key_prefix), self.gate)
        try:
            stuck.start(signal_dumps=True)
            refresh.start()
            self.watch.start()
            self.dispatcher.start()
            self.source.subscribe(self.runtime.feed, self.runtime.drain)
            self.group_watch.start()
            log.info(
                "reader_started",
                topic=self.settings.kafka_topic,
                group=self.settings.kafka_group,
                reader=self.dispatcher.reader,
                http=self.heartbeat.http,
            )
            stop = self.runtime.run()
        except ConsumerFailed as failure:
            raise ReaderFailed(str(failure)) from failure
        finally:
            self.group_watch.stop()
            refresh.stop()
            self.watch.stop()
            stuck.stop()
            self.parser.close()
            probes.close()
            telemetry.flush()
        log.info("reader_stopped", clean=stop.clean, halted=self.pipeline.halted)
        return EXIT_HALTED if self.pipeline.halted else 0

    def _observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        self.metrics.observe(event, commands, now)
        self.tracing.observe(event, commands, now)
        for command in commands:
            if isinstance(command, do.Halt):
                log.error("reader_halted", reason=command.reason, what_to_do="docs/runbook.md#replayshalted")
            elif isinstance(command, do.Park):
                log.warning(
                    "batch_parked",
                    batch=command.batch.id,
                    stage=command.stage.value,
                    attempt=command.attempt,
                    error=command.error[:500],
                    retry_seconds=round(command.retry_seconds, 1),
                )


def parser_of(settings: Settings, gate: TenantGate) -> InlineParser | ProcessParser:
    """Where parsing runs, by the setting."""
    rules = rules_of(settings)
    if settings.parse_processes:
        return ProcessParser(rules, settings.parse_processes, gate, time.monotonic)
    return InlineParser(rules, gate, time.monotonic)
