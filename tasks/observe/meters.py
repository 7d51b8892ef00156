"""Metric definitions and instruments, for Prometheus and, if enabled, DogStatsD. A metric is defined once, as
data. Names contain dots, which become underscores in Prometheus; the name of a counter gets the suffix `_total`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from tasks.settings import Settings


class Kind(StrEnum):
    """Metric type."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class MultiprocessMode(StrEnum):
    """How gauges of several processes are merged: `multiprocess_mode` of the Prometheus client."""

    LIVE_SUM = "livesum"
    LIVE_MAX = "livemax"


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
LONG_SECONDS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
BYTES = tuple(float(2**power) for power in range(12, 29, 2))
COUNTS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0)


@dataclass(frozen=True, slots=True)
class Definition:
    """Definition of one metric. `unit`: unit of the metric's values."""

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    across_processes: MultiprocessMode = MultiprocessMode.LIVE_SUM

    @property
    def base_name(self) -> str:
        """Metric name for the Prometheus client."""
        return self.name.replace(".", "_").replace("-", "_")

    @property
    def prometheus_names(self) -> tuple[str, ...]:
        """Series names in Prometheus."""
        if self.kind is Kind.COUNTER:
            return (f"{self.base_name}_total",)
        if self.kind is Kind.GAUGE:
            return (self.base_name,)
        return tuple(f"{self.base_name}_{part}" for part in ("bucket", "sum", "count"))


class DogStatsdClient(Protocol):
    """The methods of a DogStatsD client that this module uses."""

    def increment(self, metric: str, value: float, tags: list[str]) -> None: ...
    def gauge(self, metric: str, value: float, tags: list[str]) -> None: ...
    def distribution(self, metric: str, value: float, tags: list[str]) -> None: ...


def dogstatsd(settings: Settings) -> DogStatsdClient | None:
    """Returns a DogStatsD client; None if DogStatsD is disabled. Sending never blocks and never raises."""
    if not settings.metrics_dogstatsd:
        return None
    # Importing the whole package would take 20 MB, because it includes an HTTP client.
    from datadog.dogstatsd.base import DogStatsd

    mirror: DogStatsdClient = DogStatsd(
        host=settings.datadog_host,
        port=settings.datadog_port,
        socket_path=settings.datadog_socket or None,
        disable_telemetry=True,
    )
    return mirror


class Meters:
    """The instruments of one process. Thread-safe. Unknown names and wrong label counts raise an exception
    immediately.
    """

    def __init__(
        self, definitions: Iterable[Definition], registry: CollectorRegistry, mirror: DogStatsdClient | None = None
    ) -> None:
        # Disables the `_created` series of every counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._mirror = mirror
        self._definitions = {definition.name: definition for definition in definitions}
        self._metrics: dict[str, Any] = {}
        self._children: dict[tuple[str, tuple[str, ...]], Any] = {}
        for definition in self._definitions.values():
            self._metrics[definition.name] = _instrument(definition, registry)

    def count(self, name: str, amount: float = 1.0, *labels: str) -> None:
        """Adds to a counter."""
        self._child(name, labels).inc(amount)
        if self._mirror is not None and amount:
            self._mirror.increment(name, amount, tags=self._tags(name, labels))

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge."""
        self._child(name, labels).set(value)
        if self._mirror is not None:
            self._mirror.gauge(name, value, tags=self._tags(name, labels))

    def add(self, name: str, amount: float, *labels: str) -> None:
        """Raises or lowers a gauge. Prometheus only, because a single process cannot compute the total."""
        self._child(name, labels).inc(amount)

    def observe(self, name: str, value: float, *labels: str, times: int = 1) -> None:
        """Adds a value to a histogram, `times` times. DogStatsD receives it once."""
        child = self._child(name, labels)
        for _ in range(times):
            child.observe(value)
        if self._mirror is not None:
            self._mirror.distribution(name, value, tags=self._tags(name, labels))

    def touch(self, name: str, *labels: str) -> None:
        """Creates the series at zero, so that Prometheus records its first increment."""
        self._child(name, labels)

    def forget(self, name: str, *labels: str) -> None:
        """Removes the series, for example the lag of a revoked partition."""
        if self._children.pop((name, labels), None) is not None:
            self._metrics[name].remove(*labels)

    def _child(self, name: str, labels: tuple[str, ...]) -> Any:
        child = self._children.get((name, labels))
        if child is None:
            metric = self._metrics[name]
            child = self._children[name, labels] = metric.labels(*labels) if labels else metric
        return child

    def _tags(self, name: str, labels: tuple[str, ...]) -> list[str]:
        return [f"{key}:{value}" for key, value in zip(self._definitions[name].labels, labels, strict=True)]


def _instrument(definition: Definition, registry: CollectorRegistry) -> Any:
    name, text, labels = definition.base_name, definition.help, definition.labels
    if definition.kind is Kind.COUNTER:
        return Counter(name, text, labels, registry=registry)
    if definition.kind is Kind.GAUGE:
        return Gauge(name, text, labels, registry=registry, multiprocess_mode=definition.across_processes.value)
    return Histogram(name, text, labels, registry=registry, buckets=definition.buckets or SECONDS)
