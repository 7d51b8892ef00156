"""Live terminal page: readers and partitions, sinks, parked batches, dead letters by reason.

`page` is a pure function of a Status; `run` refreshes until Ctrl-C.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence

import msgspec
from redis.exceptions import RedisError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from ingest.core.flight import Phase
from ingest.operate.columns import Column, FittedTable
from ingest.operate.status import ReaderStatus, Status, collect
from ingest.operate.terminal import Terminal
from ingest.operate.text import count_text, seconds_text, size_text
from ingest.settings import Settings
from tasks import dependencies
from tasks.breaker import BreakerPhase
from tasks.connection import CHECK_SECONDS_MAX, connect, fault_of
from tasks.dependencies import Dependencies
from tasks.faults import Server, start_reader_advice, start_worker_advice
from tasks.names import CONTROL_QUEUE, flush_queue
from tasks.observe.meters import LONG_SECONDS
from tasks.wire import SinkName

SVG_COLUMNS = 110
ROWS_MAX = 20  # maximum number of partitions, batches and reasons shown
LAG_SECONDS_GOOD, LAG_SECONDS_BAD = 10.0, 60.0
PARTITIONS = (
    Column("partition"),
    Column("reader", rank=4, room=16),
    Column("position", rank=5, numeric=True),
    Column("committed", numeric=True),
    Column("end", rank=3, numeric=True),
    Column("lag", numeric=True),
    Column("seconds", rank=1, numeric=True),
)
SINKS = (
    Column("sink"),
    Column("waiting", numeric=True),
    Column("workers", rank=2, numeric=True),
    Column("breaker", rank=1),
    Column("failures", rank=4, numeric=True),
    Column("next probe", rank=3, numeric=True),
    Column("p50", rank=5, numeric=True),
    Column("slowest", rank=6, numeric=True),
)
WORKERS = (
    Column("worker"),
    Column("queues", rank=2, room=16),
    Column("processes", rank=4, numeric=True),
    Column("up", rank=3, numeric=True),
    Column("seen", rank=1, numeric=True),
)
FLIGHTS = (
    Column("batch"),
    Column("phase"),
    Column("stage", rank=3),
    Column("chords", rank=5, numeric=True),
    Column("messages", rank=4, numeric=True),
    Column("bytes", rank=2, numeric=True),
    Column("age", rank=1, numeric=True),
)
PARKED = (
    Column("batch"),
    Column("stage", rank=4),
    Column("since", rank=3, numeric=True),
    Column("retry in", rank=2, numeric=True),
    Column("error", rank=1, room=16),
)
REJECTS = (Column("reason"), Column("messages", numeric=True))
COSTS = (
    Column("project"),
    Column("CPU", rank=1, numeric=True),
    Column("share", rank=2, numeric=True),
    Column("bytes/s", rank=3, numeric=True),
    Column("rows/s", rank=4, numeric=True),
)
BREAKER_STYLE = {BreakerPhase.CLOSED: "green", BreakerPhase.HALF_OPEN: "yellow", BreakerPhase.OPEN: "bold red"}


def page(status: Status) -> RenderableType:
    """Returns the whole page."""
    parts: list[RenderableType] = [_headline(status), _partitions(status), _sinks(status), _workers(status)]
    if any(reader.snapshot.flights for reader in status.readers):
        parts.append(_flights(status))
    if status.parked:
        parts.append(_parked(status))
    if status.rejects:
        parts.append(_rejects(status))
    if any(cost.cpu_seconds or cost.bytes_per_second for cost in status.costs):
        parts.append(_costs(status))
    return Group(*parts)


def run(
    settings: Settings,
    console: Console,
    *,
    once: bool = False,
    seconds: float = 1.0,
    describe: Callable[[str], str] = str,
) -> None:
    """Refreshes until interrupted. If `once` is true or the console cannot be refreshed, prints once and returns.

    While the page is being refreshed, Redis errors are shown as the text that `describe` returns; otherwise they
    are raised.
    """
    if once or not can_refresh(console):
        console.print(page(now(settings)))
        return
    watched, client = Dependencies(settings), connect(settings, retries=0, seconds_max=CHECK_SECONDS_MAX)

    def draw() -> RenderableType:
        return page(msgspec.structs.replace(collect(settings, client), faults=watched.faults(0)))

    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_draw_or_describe_fault(draw, describe), refresh=True)
            time.sleep(seconds)


def can_refresh(console: Console) -> bool:
    """Returns whether the output is a terminal that can be refreshed; on any other output, rich would print
    nothing until the end. Checks the file itself, because FORCE_COLOR makes rich treat a pipe as a terminal.
    """
    return console.file.isatty() and not console.is_dumb_terminal


def now(settings: Settings) -> Status:
    """Returns the state from Redis, with the faults found by testing the other servers. Raises RedisError."""
    found = collect(settings, connect(settings, retries=0, seconds_max=CHECK_SECONDS_MAX))
    faults = tuple(dependencies.faults(settings, dependencies.ALL_EXCEPT_REDIS))
    return msgspec.structs.replace(found, faults=faults)


def svg_page(settings: Settings) -> str:
    """Returns the current page as an SVG document."""
    console = Terminal(record=True, width=SVG_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(page(now(settings)))
    return console.export_svg(title="replays-ingest top", unique_id="top")


def _draw_or_describe_fault(draw: Callable[[], RenderableType], describe: Callable[[str], str]) -> RenderableType:
    try:
        return draw()
    except RedisError as error:
        return Panel(Text(describe(fault_of(error).line)), title="replays-ingest top", style="red")


def _headline(status: Status) -> RenderableType:
    active = [reader for reader in status.readers if not reader.silent]
    worst = max((p.lag_seconds for r in active for p in r.snapshot.partitions), default=0.0)
    redis = status.redis
    memory = f"{size_text(redis.used_bytes)}" + (f" of {size_text(redis.max_bytes)}" if redis.max_bytes else "")
    text = Text.assemble(
        ("replays-ingest", "bold"),
        f"  {time.strftime('%H:%M:%S', time.localtime(status.at))}   ",
        f"{len(active)} reader{'' if len(active) == 1 else 's'}   ",
        f"{sum(r.messages_per_second for r in active):,.0f} messages/s   ",
        f"{size_text(sum(r.bytes_per_second for r in active))}/s   ",
        "lag ",
        _lag_text(status, worst),
        f"   redis {memory}, {redis.unacknowledged_tasks} unacknowledged tasks",
    )
    lines: list[RenderableType] = [text]
    lines += [Text(fault.line, style="bold red") for fault in status.faults]
    for reader in status.readers:
        lines.append(_reader_line(reader))
    if not status.readers and any(fault.server is Server.KAFKA for fault in status.faults):
        lines.append(Text("no reader reports: a reader starts to read once Kafka can be used", style="bold red"))
    elif not status.readers:
        lines.append(
            Text(f"no reader is running: {start_reader_advice(local=status.from_local_stack)}", style="bold red")
        )
    if status.unowned:
        unowned_text = ", ".join(
            f"{unowned.partition} (lag {unowned.lag_messages:,})"
            if unowned.lag_messages >= 0
            else str(unowned.partition)
            for unowned in status.unowned[:ROWS_MAX]
        )
        lines.append(Text(f"partitions without an owner: {unowned_text}", style="bold red"))
    if status.queues_without_worker:
        queues = ", ".join(status.queues_without_worker)
        lines.append(Text(f"queues without a worker: {queues}", style="bold red"))
        advice = start_worker_advice(local=status.from_local_stack)
        lines.append(Text(f"{advice}; until then nothing is committed", style="red"))
    if status.parked:
        newest = max(status.parked, key=lambda batch: batch.parked_at)
        parked = f"parked: {count_text(len(status.parked), 'batch', 'batches')}, last error: {newest.error}"
        lines.append(Text(parked, style="bold red"))
    return Panel(Group(*lines), border_style="blue")


def _lag_text(status: Status, worst_seconds: float) -> Text:
    lag = status.lag_messages
    if lag is None:
        return Text("unknown", style="yellow")
    return Text(f"{lag:,} messages, {worst_seconds:.0f} s", style=lag_style(worst_seconds))


def _reader_line(reader: ReaderStatus) -> Text:
    snapshot = reader.snapshot
    state, style = "reading", "green"
    if reader.silent:
        state, style = f"SILENT for {reader.silent_seconds:.0f} s", "bold red"
    elif snapshot.halted:
        state, style = f"HALTED: {snapshot.halted}", "bold red"
    elif snapshot.stopping:
        state, style = "stopping", "yellow"
    elif snapshot.paused:
        state, style = "paused (in-flight limit)", "yellow"
    held = f"   {len(snapshot.flights)} in flight, {size_text(snapshot.held_bytes)}{_delays_text(reader)}"
    line = Text.assemble((f"{reader.reader}  ", "bold"), (state, style), held)
    shed = [str(project.project_id) for project in snapshot.rejects.worst if project.shed]
    if shed:
        more = ", ..." if snapshot.rejects.shed > len(shed) else ""
        line.append(f"   SHED, mostly rejects: project {', '.join(shed)}{more}", style="bold red")
    return line


def _delays_text(reader: ReaderStatus) -> str:
    """Returns the median and 99th percentile of the time from Relay's `received` until a segment is durable; empty
    before the first segment.
    """
    if reader.end_to_end_p50_seconds is None:
        return ""
    p50, p99 = (delay_text(each) for each in (reader.end_to_end_p50_seconds, reader.end_to_end_p99_seconds))
    return f"   received to durable p50 {p50}, p99 {p99}"


def delay_text(edge_seconds: float | None) -> str:
    """Formats the upper bound of a histogram bucket for delays: `<2 s`, `<15 min`.

    For the last bound, and for None (above all bounds), returns `over 4 h`, because the last bound is too large to
    be informative.
    """
    if edge_seconds is None or edge_seconds >= LONG_SECONDS[-1]:
        return f"over {LONG_SECONDS[-2] / 3600:g} h"
    if edge_seconds < 120:
        return f"<{edge_seconds:g} s"
    return f"<{edge_seconds / 60:g} min" if edge_seconds < 3600 else f"<{edge_seconds / 3600:g} h"


def _partitions(status: Status) -> RenderableType:
    table = _table("partitions", PARTITIONS)
    rows = [(p, r) for r in status.readers for p in r.snapshot.partitions]
    rows.sort(key=lambda row: (-row[0].lag_seconds, row[0].partition))
    for partition, reader in rows[:ROWS_MAX]:
        table.add_row(
            str(partition.partition),
            Text(f"{age_mark(reader)}{reader.reader}", style="red" if reader.silent else ""),
            f"{partition.position:,}",
            "-" if partition.committed is None else f"{partition.committed:,}",
            "-" if partition.high < 0 else f"{partition.high:,}",
            "unknown" if partition.high < 0 else f"{partition.lag_messages:,}",
            Text("unknown", style="yellow")
            if partition.high < 0
            else Text(f"{partition.lag_seconds:.1f}", style=lag_style(partition.lag_seconds)),
            style="dim" if reader.silent else "",
        )
    return _add_omitted_rows(table, len(rows))


def _sinks(status: Status) -> RenderableType:
    table = _table("sinks", SINKS)
    for sink in status.sinks:
        table.add_row(
            sink.sink,
            f"{sink.queue_depth:,}",
            Text(str(sink.workers), style="" if sink.workers or not sink.switched_on else "bold red"),
            Text(sink.breaker, style=BREAKER_STYLE[sink.breaker]),
            str(sink.failures),
            f"{sink.probe_in_seconds:.0f} s" if sink.breaker is not BreakerPhase.CLOSED else "",
            seconds_text(sink.flush_p50_seconds),
            seconds_text(sink.flush_max_seconds),
        )
    return table


def _workers(status: Status) -> RenderableType:
    table = _table("workers", WORKERS)
    every = {CONTROL_QUEUE, *(flush_queue(SinkName(sink.sink)) for sink in status.sinks if sink.switched_on)}
    for worker in status.workers[:ROWS_MAX]:
        table.add_row(
            Text(worker.worker, style="red" if worker.silent else ""),
            "all" if set(worker.queues) >= every else " ".join(worker.queues),
            str(worker.processes),
            f"{max(0.0, status.at - worker.started_at):.0f} s",
            Text(f"{worker.silent_seconds:.0f} s ago", style="bold red" if worker.silent else ""),
        )
    return _add_omitted_rows(table, len(status.workers))


def _flights(status: Status) -> RenderableType:
    table = _table("in flight", FLIGHTS)
    rows = sorted(
        ((f, r) for r in status.readers for f in r.snapshot.flights), key=lambda row: -row[0].age_seconds
    )
    for flight, reader in rows[:ROWS_MAX]:
        table.add_row(
            # The topic is left out of the id, because no command takes the id of a batch in flight.
            age_mark(reader) + flight.batch_id.removeprefix(f"{reader.topic}-"),
            Text(flight.phase, style="red" if flight.phase is Phase.PARKED else ""),
            flight.stage,
            str(flight.attempt),
            str(flight.messages),
            size_text(flight.size_bytes),
            f"{flight.age_seconds:.1f} s",
            style="dim" if reader.silent else "",
        )
    return _add_omitted_rows(table, len(rows))


def _parked(status: Status) -> RenderableType:
    table = _table("parked", PARKED)
    for batch in status.parked[:ROWS_MAX]:
        table.add_row(
            Text(batch.batch_id, style="red"),
            batch.stage,
            f"{max(0.0, status.at - batch.parked_at):.0f} s",
            f"{max(0.0, batch.retry_at - status.at):.0f} s",
            batch.error,
        )
    return _add_omitted_rows(table, len(status.parked))


def _rejects(status: Status) -> RenderableType:
    table = _table("dead letters since the readers started", REJECTS)
    for reason, messages in sorted(status.rejects.items(), key=lambda item: -item[1])[:ROWS_MAX]:
        table.add_row(reason, f"{messages:,}")
    return _add_omitted_rows(table, len(status.rejects))


def _costs(status: Status) -> RenderableType:
    table = _table("cost by project, last minutes", COSTS)
    total = sum(cost.cpu_seconds for cost in status.costs)
    for cost in status.costs[: ROWS_MAX - 2] + status.costs[ROWS_MAX - 2 :][-2:]:
        table.add_row(
            cost.project,
            f"{cost.cpu_seconds * 1000:,.1f} ms/s",
            f"{cost.cpu_seconds / total:.0%}" if total else "",
            size_text(cost.bytes_per_second),
            f"{cost.rows_per_second:,.0f}",
        )
    return _add_omitted_rows(table, len(status.costs))


def _table(title: str, columns: Sequence[Column]) -> FittedTable:
    return FittedTable(columns, title=title, expand=True)


def _add_omitted_rows(table: FittedTable, rows: int) -> FittedTable:
    if rows > ROWS_MAX:
        table.caption = f"and {rows - ROWS_MAX} more"
    return table


def age_mark(reader: ReaderStatus) -> str:
    """Returns a prefix for lines with stale values: the age of the reader's last report. Returns "" if the values
    are current."""
    return f"({reader.silent_seconds:.0f} s old) " if reader.silent else ""


def lag_style(lag_seconds: float) -> str:
    """Returns the style for a lag: green, yellow or red."""
    if lag_seconds >= LAG_SECONDS_BAD:
        return "bold red"
    return "yellow" if lag_seconds >= LAG_SECONDS_GOOD else "green"
