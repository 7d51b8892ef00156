"""Sends product metrics to the Datadog agent, over DogStatsD.

The protocol offers no proof of a write: UDP does not report lost packets, and the agent neither confirms packets
nor detects repeated ones. Therefore, a write counts as durable once the kernel has accepted it. The flush task
then sets its done mark, which prevents a second send; if the worker dies in between, the metrics are sent again.
Over a Unix socket, the kernel reports a missing agent, and the write is retried. No item is ever at fault.

The client runs without its additional features: no aggregation (it would merge batches), no thread (it would not
survive a fork), no telemetry and no origin detection (they change the packet sizes computed here).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence

from datadog.dogstatsd.base import UDP_OPTIMAL_PAYLOAD_LENGTH, UDS_OPTIMAL_PAYLOAD_LENGTH, DogStatsd

from tasks.settings import Settings
from tasks.sinks import agent
from tasks.sinks.base import Report
from tasks.sinks.outcome import Blame, Failure, Outcome, seconds_until
from tasks.sinks.per_process import PerProcessValue
from tasks.wire import Metric, MetricKind

# At least the total length of `:`, `|c`, `|#`, the newline, and the longest text form of a float (24 characters).
LINE_OVERHEAD_BYTES = 32
SOCKET_SECONDS = 1.0
PROOF = (
    "None, by design of DogStatsD: only the kernel's acceptance of the packet is known. Over a Unix socket, this "
    "also shows that an agent is running."
)


class DatadogSink:
    """Writes counters and distributions, several per packet. Over UDP, the packet size is limited so that a packet
    fits into one Ethernet frame.
    """

    name = "datadog"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._over_udp = not settings.datadog_socket
        self._packet_bytes = UDP_OPTIMAL_PAYLOAD_LENGTH if self._over_udp else UDS_OPTIMAL_PAYLOAD_LENGTH
        self._statsd = PerProcessValue(self._open)
        self._lock = threading.Lock()

    def _open(self) -> DogStatsd:
        settings = self._settings
        return DogStatsd(
            host=settings.datadog_host,
            port=settings.datadog_port,
            socket_path=settings.datadog_socket or None,
            max_buffer_len=self._packet_bytes,
            disable_buffering=False,
            flush_interval=0,
            disable_aggregation=True,
            disable_telemetry=True,
            origin_detection_enabled=False,
            socket_timeout=SOCKET_SECONDS,
        )

    def write(self, items: Sequence[Metric], token: str, deadline_seconds: float) -> None:
        """Sends `items`. TransientSinkError.failed lists the metrics that were not sent (Unix socket only)."""
        ends_at = time.monotonic() + deadline_seconds
        outcome, statsd = Outcome(self.name), self._statsd.get()
        for positions in self._packets(items):
            if seconds_until(ends_at) <= 0:
                outcome.note(Failure(Blame.NETWORK, "no time left"), positions)
            elif not self._send(statsd, [items[place] for place in positions]) and not self._over_udp:
                failure = Failure(Blame.NETWORK, f"no process listens on {self._settings.datadog_socket}")
                outcome.note(failure, positions)
        outcome.raise_if_any()

    def _send(self, statsd: DogStatsd, items: Sequence[Metric]) -> bool:
        """Sends one packet. Returns False if the kernel refused the packet."""
        with self._lock:  # two concurrent writes must not share a packet
            for item in items:
                send = statsd.increment if item.kind is MetricKind.COUNTER else statsd.distribution
                send(item.name, _number(item.value), tags=list(item.tags))
            return bool(statsd.flush())

    def _packets(self, items: Sequence[Metric]) -> Iterator[list[int]]:
        """Positions that share a packet, in order."""
        packet: list[int] = []
        size_bytes = 0
        for position, item in enumerate(items):
            line_bytes = LINE_OVERHEAD_BYTES + len(item.name.encode())
            line_bytes += sum(len(tag.encode()) + 1 for tag in item.tags)
            if packet and size_bytes + line_bytes > self._packet_bytes:
                yield packet
                packet, size_bytes = [], 0
            packet.append(position)
            size_bytes += line_bytes
        if packet:
            yield packet

    def examine(self, items: Sequence[Metric], deadline_seconds: float) -> None:
        """Does nothing, because metrics are never refused."""

    def check(self) -> Report:
        """Tests whether an agent is listening, as far as the transport allows."""
        return agent.report(self._settings)

    def close(self) -> None:
        statsd = self._statsd.take()
        if statsd is not None:
            statsd.stop()


def _number(value: float) -> float | int:
    """Formats whole numbers without a fraction."""
    return int(value) if float(value).is_integer() else value
