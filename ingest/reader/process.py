"""Assembles the reader: its components, the loop, signal handlers and the exit code."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import msgspec
import structlog

from ingest.core import commands as do
from ingest.core import events as on
from ingest.core.model import Batch, Message, TopicPartition
from ingest.core.parse import REASONS, WARNINGS, UsualLimits
from ingest.core.pipeline import Pipeline
from ingest.observe.fleet import FleetWatch
from ingest.observe.health import HTTP_SETTING, Health, seconds_since_iteration, serve
from ingest.observe.heartbeat import Heartbeat, HeartbeatSource
from ingest.observe.logs import batch_line
from ingest.observe.metrics import Metrics
from ingest.observe.steps import Steps
from ingest.observe.stuck import StuckDetector
from ingest.observe.tracing import Tracing
from ingest.reader.assignment import ConsumerFailed
from ingest.reader.configuration import consumer_config, limits_of, rules_of
from ingest.reader.dispatch import Dispatcher
from ingest.reader.group_watch import GroupWatch, TopicDescriber
from ingest.reader.kafka import KafkaSource
from ingest.reader.parsing.deadlines import Deadlines
from ingest.reader.parsing.fallback import FallbackParser
from ingest.reader.parsing.inline import InlineParser, IsSuspect, ProcessParser
from ingest.reader.runtime import Runtime
from ingest.reader.settled import SettledOffset
from ingest.reader.stopwatch import TimedParser
from ingest.reader.tenant_gate import TenantGate
from ingest.reader.tenant_rules import NotLoaded, TenantRefresh
from ingest.settings import Settings
from tasks.connection import connect
from tasks.observe import logs, telemetry
from tasks.observe.loops import Guard, Loop
from tasks.observe.probe_server import ensure_probes_can_listen

log = structlog.get_logger(__name__)
EXIT_HALTED = 3
# Number of failed reader starts on a partition after which its messages are parsed in a child process.
FAILED_STARTS_MAX = 3


class ReaderFailed(Exception):
    """Raised if the reader cannot continue. The message states the cause and what to do."""


def reader_id(settings: Settings) -> str:
    """Returns the id of this process, which names its completion stream."""
    name = settings.kafka_instance_id or socket.gethostname()
    return f"{name}-{os.getpid()}-{secrets.token_hex(3)}"


def run(settings: Settings) -> int:
    """Consumes until SIGTERM or SIGINT. Returns the exit code: 3 if the reader was halted, otherwise 0.

    Raises ListenError if the probe port is in use, before connecting to anything.
    """
    ensure_probes_can_listen(settings.http_host, settings.http_port, setting=HTTP_SETTING)
    logs.configure(settings)
    telemetry.configure(settings, service="replays-reader")
    reader = Reader(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: reader.shut_down())
    return reader.run()


class Reader:
    """One reader process: creates all components, starts them in `run`, and closes them when `run` returns."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inbox: queue.SimpleQueue[on.Event] = queue.SimpleQueue()
        self._shut_down = False
        self.pipeline = Pipeline(limits_of(settings))
        self.source = KafkaSource(
            consumer_config(settings),
            settings.kafka_topic,
            self.inbox,
            settings.kafka_offset_reset,
            TopicDescriber(settings),
        )
        self.metrics = Metrics(settings, REASONS, WARNINGS, batch_line)
        self.metrics.watch(self.pipeline, self.source)
        self.tracing = Tracing()
        self.steps = Steps(self.pipeline) if settings.log_level == "debug" else None
        self.watch = FleetWatch(settings, self.metrics)
        self.group_watch = GroupWatch(settings, self.metrics, self.source)
        self.heartbeat = HeartbeatSource(settings, self.metrics, lambda: self.group_watch.unowned)
        self.guard = Guard(self.metrics.observer_failed)
        self.dispatcher = Dispatcher(
            settings,
            reader_id(settings),
            self.inbox,
            heartbeat=self._heartbeat,
            trace=self._trace,
            on_failure=self.metrics.loop_failed,
            unverified=self.metrics.unverified,
        )
        self.gate = TenantGate()
        self.settled = SettledOffset(self.pipeline, self.gate)
        self.parser = parser_of(settings, self.gate, self._is_suspect)
        self.fallback_parser = FallbackParser(
            rules_of(settings), Deadlines.before(settings.loop_silent_seconds_max), self.inbox.put
        )
        self.runtime = Runtime(
            self.pipeline,
            self.source,
            self.dispatcher,
            TimedParser(self.parser, self.metrics, self.guard),
            self.inbox,
            time.monotonic,
            self._observe,
            self.guard,
            self._observe_poll,
            self.fallback_parser,
            self.gate.screened,
        )

    def shut_down(self) -> None:
        """Settles batches in flight, commits and stops. Safe to call from a signal handler."""
        self._shut_down = True
        self.inbox.put(on.ShutdownRequested())

    def _wait_for_stop(self, seconds: float) -> bool:
        """Waits before the loop is started, without failing the liveness probe. Returns True as soon as a shutdown
        is requested, otherwise False after `seconds`."""
        ends_at = time.monotonic() + seconds
        while not self._shut_down and time.monotonic() < ends_at:
            self.runtime.last_iteration_at = time.monotonic()
            time.sleep(0.05)
        return self._shut_down

    def run(self) -> int:
        """Runs until shut down. Returns the exit code. Always closes everything that was started.

        Raises ReaderFailed, or ListenError if the probe port is in use.
        """
        with ExitStack() as closing:
            closing.callback(self._close, "telemetry", telemetry.flush)
            closing.callback(self._close, "parser", self.parser.close)
            closing.callback(self._close, "fallback_parser", self.fallback_parser.close)
            closing.callback(self._close, "runtime", self.runtime.close)
            return self._run(closing)

    def _run(self, closing: ExitStack) -> int:
        silent = seconds_since_iteration(lambda: self.runtime.last_iteration_at)
        stuck = StuckDetector(silent, self.settings.loop_silent_seconds_max, self.metrics.count_stuck_loop)
        refresh = TenantRefresh(connect(self.settings), self.settings, self.gate, self.metrics.loop_failed)
        loops = (stuck.loop, refresh.loop, self.watch.loop, self.group_watch.loop, *self.dispatcher.loops)
        try:
            probes = serve(Health(self.settings, self.metrics, silent, self._dependencies(loops)))
            closing.callback(self._close, "probes", probes.close)
            self.heartbeat.http = f"{probes.host}:{probes.port}"
            for name, part in (("tenant_rules", refresh), ("fleet_watch", self.watch), ("stuck_detector", stuck)):
                closing.callback(self._close, name, part.stop)
            stuck.start(signal_dumps=True)
            if not refresh.load(self._wait_for_stop):
                log.info("reader_stopped", clean=True, halted=None)
                return 0
            refresh.start()
            self.watch.start()
            self.dispatcher.start()
            self.source.subscribe(self.runtime.feed, self.runtime.drain)
            closing.callback(self._close, "group_watch", self.group_watch.stop)
            self.group_watch.start()
            log.info(
                "reader_started",
                topic=self.settings.kafka_topic,
                group=self.settings.kafka_group,
                reader=self.dispatcher.reader,
                http=self.heartbeat.http,
            )
            stop = self.runtime.run()
        except (ConsumerFailed, NotLoaded) as failure:
            raise ReaderFailed(str(failure)) from failure
        log.info("reader_stopped", clean=stop.clean, halted=self.pipeline.halted)
        return EXIT_HALTED if self.pipeline.halted else 0

    def _close(self, part: str, close: Callable[[], object]) -> None:
        """Closes one component. An error is logged and does not prevent the other components from being closed."""
        try:
            close()
        except Exception:
            log.exception("close_failed", part=part)

    def _dependencies(self, loops: Sequence[Loop]) -> Callable[[], dict[str, str]]:
        return lambda: {
            **self.watch.dependencies(),
            **{f"loop {loop.name}": loop.failure_text() for loop in loops},
        }

    def _heartbeat(self) -> Heartbeat:
        beat = self.guard.call("heartbeat", self.heartbeat) or Heartbeat()
        return msgspec.structs.replace(beat, decisions_settled=self.settled.offset)

    def _trace(self, batch: Batch) -> str:
        return self.guard.call("tracing", self.tracing.begin, batch) or ""

    def _observe(self, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        self.guard.call("metrics", self.metrics.observe, event, commands, now)
        self.guard.call("tracing", self.tracing.observe, event, commands, now)
        self.guard.call("log", self._log, commands)
        if self.steps is not None:
            self.guard.call("steps", self._log_steps, self.steps, event, commands, now)
        if isinstance(event, on.Ticked):
            self.settled.update_offset(now)

    def _log_steps(self, steps: Steps, event: on.Event, commands: Sequence[do.Command], now: float) -> None:
        for step in steps.observe(event, commands, now):
            log.debug("protocol_step", reader=self.dispatcher.reader, **step)

    def _is_suspect(self, source: TopicPartition) -> bool:
        """Returns True if readers died repeatedly on this partition without progress, possibly because of one of
        its messages."""
        return self.pipeline.failed_starts(source) >= FAILED_STARTS_MAX

    def _observe_poll(self, messages: Sequence[Message]) -> None:
        self.guard.call("metrics", self.metrics.polled, messages)
        self.guard.call("tracing", self.tracing.polled, messages)

    def _log(self, commands: Sequence[do.Command]) -> None:
        for command in commands:
            if isinstance(command, do.Halt):
                log.error("reader_halted", reason=command.reason, what_to_do="docs/runbook.md#replayshalted")
            elif isinstance(command, do.Shed) and command.shed:
                log.warning(
                    "project_shed",
                    project=command.project_id,
                    rejects=command.rejects,
                    messages=command.messages,
                    policy=self.settings.reject_policy,
                    what_to_do="docs/runbook.md#replaysprojectshed",
                )
            elif isinstance(command, do.Shed):
                log.info("project_no_longer_shed", project=command.project_id)
            elif isinstance(command, do.Recut):
                log.warning("batch_recut", batch=command.batch.id, into=command.into)
            elif isinstance(command, do.Park):
                log.warning(
                    "batch_parked",
                    batch=command.batch.id,
                    stage=command.stage.value,
                    attempt=command.attempt,
                    error=command.error[:500],
                    retry_seconds=round(command.retry_seconds, 1),
                )


def parser_of(
    settings: Settings, gate: TenantGate, is_suspect: IsSuspect = lambda source: False
) -> InlineParser | ProcessParser:
    """Returns the parser for messages within `UsualLimits`. It runs in this process or in parser processes, as
    configured."""
    rules, usual = rules_of(settings), UsualLimits(settings.parse_usual_bytes_max)
    if settings.parse_processes:
        seconds = Deadlines.before(settings.loop_silent_seconds_max).answer_seconds
        return ProcessParser(
            rules,
            settings.parse_processes,
            gate,
            time.monotonic,
            answer_seconds_max=seconds,
            usual=usual,
            is_suspect=is_suspect,
        )
    return InlineParser(rules, gate, time.monotonic, usual, is_suspect)
