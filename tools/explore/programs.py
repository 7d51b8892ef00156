"""Runs the real code of workers and of dispatch, one round trip to Redis or a sink at a time.

A program is code that uses Redis and a sink. Each step runs it from its beginning with the responses received so
far, up to its next request. The state of a program is therefore the list of responses that it has received, and no
call stack has to be copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

from celery.exceptions import Retry

from tasks import run as flush
from tasks.breaker import Breaker
from tasks.coordination import Coordination
from tasks.errors import TransientSinkError
from tasks.observe.watch import Watch
from tasks.settings import Settings
from tasks.staging import INLINE_BYTES_MAX, Staging
from tasks.wire import (
    Blob,
    ChordName,
    Item,
    Manifest,
    Metric,
    MetricKind,
    Row,
    Stage,
    TaskEntry,
    encode_items,
    reference,
)
from tools.explore.hashes import Client, Effect, ResponsePending

# The blobs are read in a separate round trip, because they are large.
TASKS: dict[str, list[Item]] = {
    "blobs/gcs/0": [Blob("30/1/replay/0", bytes(INLINE_BYTES_MAX), 0)],
    "rows/clickhouse/0": [Row("replays", "replay/0", b"{}", 0)],
    "rows/datadog/0": [Metric(MetricKind.COUNTER, "segments", 1.0)],
}
PAYLOADS = {name: encode_items(items) for name, items in TASKS.items()}
UNTIL = 1 << 40
SETTINGS = Settings.model_construct(task_retries_max=1)


class Chord(NamedTuple):
    """One chord: the number of the reader process that started it (which is also its epoch), its stage and
    attempt.
    """

    reader: int
    rows: bool
    attempt: int

    @property
    def stage(self) -> Stage:
        return Stage.ROWS if self.rows else Stage.BLOBS

    @property
    def name(self) -> ChordName:
        return ChordName(
            reference(manifest(self.reader)), self.stage, self.attempt, f"{self.reader}{self.attempt}"
        )


class Program(NamedTuple):
    """A running program: a flush task (`run`), the callback of a chord (`report`), or a reader's `dispatch` or
    `discard`.
    """

    kind: str
    chord: Chord
    task: str = ""
    tries: int = 0


class NextStep(NamedTuple):
    """The next step of a program: an effect, or its end with a result."""

    effect: Effect | None
    result: Any = None


def manifest(reader: int) -> Manifest:
    """Returns the manifest that the given reader writes for the batch. The manifests of different readers differ
    only in the reader's name and the epoch.
    """
    entries = tuple(TaskEntry(name, len(TASKS[name]), len(PAYLOADS[name])) for name in TASKS)
    return Manifest("t-0-0-1", "digest", "t", 0, 0, 1, f"reader{reader}", reader, entries)


def tasks_of(rows: bool) -> list[str]:
    """Returns the names of the tasks of a stage."""
    return [entry.name for entry in manifest(0).of_stage(Stage.ROWS if rows else Stage.BLOBS)]


class Programs:
    """Runs each program once for each list of responses, and keeps the results."""

    def __init__(self) -> None:
        self._known: dict[tuple[Program, tuple[Any, ...]], NextStep] = {}

    def __len__(self) -> int:
        return len(self._known)

    def next(self, program: Program, answers: tuple[Any, ...]) -> NextStep:
        """Returns the next step of the given program after the given responses."""
        key = (program, answers)
        if key not in self._known:
            try:
                self._known[key] = NextStep(None, START[program.kind](program, Client(answers)))
            except ResponsePending as waits:
                self._known[key] = NextStep(waits.effect)
        return self._known[key]


# Programs: `dispatch` works like `ingest.reader.dispatch.Dispatcher`, and `report` works like
# `tasks.control.report_stage`.


def dispatch(program: Program, client: Client) -> tuple[str, ...]:
    """Stages the items of tasks that have no done mark. Returns the tasks to start; if there are none, the stage
    is durable.
    """
    chord, staging = program.chord, Staging(client, SETTINGS)  # type: ignore[arg-type]
    missing = staging.unmarked(manifest(chord.reader), tasks_of(chord.rows))
    if missing:
        staging.stage(manifest(chord.reader), chord.name, {name: PAYLOADS[name] for name in missing})
    return tuple(missing)


def discard(program: Program, client: Client) -> str:
    """Discards the settled batch."""
    Staging(client, SETTINGS).discard(manifest(program.chord.reader))  # type: ignore[arg-type]
    return "discarded"


def report(program: Program, client: Client) -> str:
    """Reports the state of a stage to the reader, as the callback of its chord."""
    report = Staging(client, SETTINGS).report(program.chord.name, unexplained="unexplained")  # type: ignore[arg-type]
    if report is None:
        return "no reader"
    Coordination(client, SETTINGS).send_completion(report.reader, report.completion)  # type: ignore[arg-type]
    return report.completion.kind


def run(program: Program, client: Client) -> str:
    """Runs a flush task once. Returns `done`, `again` or `failed`."""
    task = SimpleNamespace(
        request=SimpleNamespace(
            id=f"{program.chord.name.token}-{program.task}", retries=program.tries, is_eager=True
        ),
        retry=lambda exc, countdown: Retry(exc=exc, when=countdown),
    )
    with within(client):
        try:
            return flush.run(task, program.chord.name.batch, program.task, UNTIL)  # type: ignore[arg-type]
        except Retry:
            return "again"
        except Exception as error:
            return f"failed: {type(error).__name__}"


START = {"dispatch": dispatch, "discard": discard, "report": report, "run": run}


class Sink:
    """A simulated sink. Each write is an `Effect`, as is each round trip to Redis. The response to a write is
    empty, or the reason why the write fails.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    def write(self, items: Sequence[Item], token: str, deadline_seconds: float) -> None:
        """Writes items, which are durable when it returns."""
        error = self._client.ask("write")
        if error:
            raise TransientSinkError(error)


@contextmanager
def _unobserved(*_: Any) -> Iterator[Watch]:
    """Disables metrics, logs and traces, which are not part of the model."""
    yield Watch()


@contextmanager
def within(client: Client) -> Iterator[None]:
    """Makes `tasks.run` use the given client and sink instead of those of the process."""
    tools = SimpleNamespace(
        settings=SETTINGS,
        staging=Staging(client, SETTINGS),  # type: ignore[arg-type]
        breaker=Breaker(client, SETTINGS),  # type: ignore[arg-type]
        sink=lambda name: Sink(client),
    )
    module: Any = flush
    before = module.tools, module.observed_run
    module.tools, module.observed_run = SimpleNamespace(get=lambda: tools), _unobserved
    try:
        yield
    finally:
        module.tools, module.observed_run = before
