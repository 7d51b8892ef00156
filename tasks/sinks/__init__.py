"""Where batches go. `build` makes the sink of a name; each client library is imported with its sink only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tasks.errors import SinkError
from tasks.settings import Settings
from tasks.sinks.base import Sink
from tasks.wire import SinkName


@dataclass(frozen=True, slots=True)
class Checked:
    """What a sink's `check` said: one line about the server, or what is wrong with it."""

    name: str
    ok: bool
    text: str


def build(name: str, settings: Settings) -> Sink[Any]:
    """The sink called `name` (a `SinkName`). Opens nothing.

    With `sink_kind=memory` it is the process's one memory sink of that name.
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


def check_all(settings: Settings) -> list[Checked]:
    """Asks every sink that is switched on, all at once, in the order of the settings."""

    def check(name: str) -> Checked:
        sink = build(name, settings)
        try:
            return Checked(name, True, sink.check())
        except SinkError as error:
            return Checked(name, False, str(error))
        finally:
            sink.close()

    with ThreadPoolExecutor(len(settings.sinks)) as pool:
        return list(pool.map(check, settings.sinks))
