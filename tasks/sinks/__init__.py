"""Sinks. `build` creates a sink by name; each client library is imported only with its sink."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tasks.errors import SinkError, TransientSinkError
from tasks.settings import Settings
from tasks.sinks.base import Report, Sink
from tasks.wire import SinkName


class Level(Enum):
    """State of a sink. WARNING: writes work, but something needs attention. ERROR: writes do not work."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SinkCheckResult:
    """The result of one sink's check.

    `text`: one line about the server or its problem. `transient`: the error may be temporary. `warnings` and
    `not_tested`: see `tasks.sinks.base.Report`.
    """

    name: str
    level: Level
    text: str
    transient: bool = False
    warnings: tuple[str, ...] = ()
    not_tested: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if writes work."""
        return self.level is not Level.ERROR


def build(name: str, settings: Settings) -> Sink[Any]:
    """Returns the sink called `name` (a `SinkName`). Opens nothing.

    With `sink_kind=memory`, returns the process's single memory sink of that name.
    """
    if settings.sink_kind == "memory":
        from tasks.sinks import memory

        return memory.sink(name)
    match name:
        case SinkName.GCS:
            from tasks.sinks.gcs.sink import GcsSink

            return GcsSink(settings)
        case SinkName.CLICKHOUSE:
            from tasks.sinks.clickhouse.sink import ClickHouseSink

            return ClickHouseSink(settings)
        case SinkName.BIGQUERY if settings.bigquery_write == "storage":
            from tasks.sinks.bigquery.storage_write import StorageWriteSink

            return StorageWriteSink(settings)
        case SinkName.BIGQUERY:
            from tasks.sinks.bigquery.sink import BigQuerySink

            return BigQuerySink(settings)
        case SinkName.DATADOG:
            from tasks.sinks.datadog import DatadogSink

            return DatadogSink(settings)
        case SinkName.DEAD_LETTER:
            from tasks.sinks.dead_letter.sink import DeadLetterSink

            return DeadLetterSink(settings)
    raise ValueError(f"no sink is called {name!r}")


def check(name: str, settings: Settings) -> SinkCheckResult:
    """Tests the sink called `name`; writes and deletes a probe if possible."""
    sink = build(name, settings)
    try:
        report: Report = sink.check()
    except SinkError as error:
        return SinkCheckResult(name, Level.ERROR, str(error), transient=isinstance(error, TransientSinkError))
    finally:
        sink.close()
    level = Level.WARNING if report.warnings else Level.OK
    return SinkCheckResult(name, level, report.text, warnings=report.warnings, not_tested=report.not_tested)


def check_all(settings: Settings) -> list[SinkCheckResult]:
    """Checks all enabled sinks concurrently, and returns the results in the order of the settings."""
    with ThreadPoolExecutor(len(settings.sinks)) as pool:
        return list(pool.map(lambda name: check(name, settings), settings.sinks))
