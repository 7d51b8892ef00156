"""Kills processes that run BigQuery's flush task, each at a chosen point, and then checks the table.

    python -m tools.bigquery_kills [--times 200] [--seed 1]

Each batch is staged in a real Redis, and a separate process runs its task against the BigQuery server of the
embedded stack, with REPLAYS_BIGQUERY_WRITE=storage. Half of the batches are staged as protobuf, as in this
release, and the others as JSON, as in older releases. The process kills itself (SIGKILL) at one of the points
below, once or twice, and other processes then run the task to completion. The table itself, without the view, must
then contain each row exactly once. In additional runs, Redis loses the batch between the append and the done mark:
the table then contains repeated rows, and the view must return each row exactly once. The exit code is 1 if a row
is missing or repeated.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ingest.core.parse.rows import moment
from ingest.local.launch import settings_of
from ingest.local.stack import Stack
from tasks.connection import connect
from tasks.migrate.bigquery import migrate_tables
from tasks.proto_rows import FACT_COLUMNS, MICROSECONDS, FactEncoder
from tasks.settings import Settings
from tasks.sinks.bigquery.sink import client
from tasks.staging import Staging
from tasks.wire import (
    ChordName,
    EncodedRows,
    Manifest,
    ProtoRows,
    Row,
    SinkName,
    Stage,
    TaskEntry,
    TaskName,
    encode_items,
    reference,
)

TASK = str(TaskName(Stage.ROWS, SinkName.BIGQUERY, 0))
TABLE = "replay_events"
NOON = 1_795_000_000
ROWS_MAX = 40
DEADLINE_SECONDS = 3600
PROCESS_SECONDS_MAX = 120
PRELOADED_MODULES = ["tasks.flush", "tasks.sinks.bigquery.storage_write"]
# The maximum delay between passing a request to gRPC and killing the process. The delay is long enough that some
# requests have been sent, and some have also been applied, before the process dies.
KILL_DELAY_SECONDS_MAX = 0.01
RUNS_MAX = 6


class Point(StrEnum):
    """The point at which the process dies."""

    RECORD = "before the record"
    RECORDED = "after the record, before the append"
    SENT = "while the append is under way"
    APPLIED = "after the append, before its response is used"
    MARK = "after the response, before the done mark"
    MARKED = "after the done mark"


@dataclass(frozen=True, slots=True)
class Death:
    """A point at which a process is killed. `seconds`: delay before the kill, used only for SENT."""

    point: Point
    seconds: float


def die(*_: Any) -> None:
    """Kills this process with SIGKILL, as if the machine had crashed."""
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(PROCESS_SECONDS_MAX)


def wrap_method(
    owner: Any, name: str, before: Callable[[], None] | None, after: Callable[[], None] | None
) -> None:
    """Wraps a method of our code, to call functions before and after it."""
    original = getattr(owner, name)

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if before is not None:
            before()
        result = original(*arguments, **named)
        if after is not None:
            after()
        return result

    setattr(owner, name, wrapped)


def plan(death: Death) -> None:
    """Makes this process die at the given point."""
    from tasks.sinks.bigquery.streams import Connection
    from tasks.task_record import StagedRecord

    match death.point:
        case Point.RECORD:
            wrap_method(StagedRecord, "store", die, None)
        case Point.RECORDED:
            wrap_method(StagedRecord, "store", None, die)
        case Point.SENT:
            timer = threading.Timer(death.seconds, die)
            wrap_method(Connection, "send", timer.start, die)
        case Point.APPLIED:
            wrap_method(Connection, "send", None, die)
        case Point.MARK:
            wrap_method(Staging, "mark", die, None)
        case Point.MARKED:
            wrap_method(Staging, "mark", None, die)


def run_task(environment: Mapping[str, str], batch: str, death: Death | None) -> None:
    """Runs the flush task once, in a separate process. The exit code is 0 if the task succeeded."""
    os.environ.update(environment)
    from tasks.flush import flush_bigquery

    if death is not None:
        plan(death)
    until = int(time.time()) + DEADLINE_SECONDS
    result = flush_bigquery.apply(kwargs={"batch": batch, "task": TASK, "until": until})
    # gRPC threads would delay the exit of the process.
    os._exit(0 if result.successful() else 1)


class KillRun:
    """The batches of one run, and the result of each."""

    def __init__(self, environment: Mapping[str, str], seed: int) -> None:
        self.environment = dict(environment)
        self.settings: Settings = settings_of(self.environment)
        self.random = random.Random(seed)
        self.rows: dict[int, int] = {}
        self.killed: Counter[Point] = Counter()
        self.failures: list[str] = []
        redis: Any = connect(self.settings)
        self.redis = redis
        self.staging = Staging(redis, self.settings)
        # The fork server imports everything once, with the settings of this run.
        os.environ.update(self.environment)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOADED_MODULES)

    def batch(self) -> tuple[Manifest, bytes]:
        """Returns a new batch and the bytes of its task."""
        number = len(self.rows)
        self.rows[number] = count = self.random.randint(1, ROWS_MAX)
        as_json = [fact(number, place) for place in range(count)]
        payload = encode_items(as_json if number % 2 else proto_facts(number, count))
        entry = TaskEntry(TASK, count, len(payload))
        return Manifest(
            f"kills-0-{number}-{number}", "d", "kills", 0, number, number, "reader", 1, (entry,)
        ), payload

    def stage(self, manifest: Manifest, payload: bytes) -> None:
        """Stages the batch in the same way as a reader."""
        self.staging.stage(manifest, ChordName(reference(manifest), Stage.ROWS, 1, "token"), {TASK: payload})

    def run(self, manifest: Manifest, death: Death | None) -> int:
        """Runs the task in a separate process. Returns the exit code of the process: if a signal ended the
        process, the code is the negative signal number.
        """
        process = self.context.Process(target=run_task, args=(self.environment, reference(manifest), death))
        process.start()
        process.join(PROCESS_SECONDS_MAX)
        if process.exitcode is None:
            process.kill()
            process.join()
            self.failures.append(f"{manifest.batch_id}: a process did not end")
        if death is not None and process.exitcode == -signal.SIGKILL:
            self.killed[death.point] += 1
        return process.exitcode or 0

    def finish(self, manifest: Manifest) -> None:
        """Runs the task until it succeeds."""
        for _ in range(RUNS_MAX):
            if self.run(manifest, None) == 0:
                return
        self.failures.append(f"{manifest.batch_id}: its task failed {RUNS_MAX} times")

    def kill(self, point: Point) -> None:
        """Runs a batch whose task is killed at the given point, and sometimes a second time at a random point."""
        manifest, payload = self.batch()
        self.stage(manifest, payload)
        self.run(manifest, self.death(point))
        if self.random.random() < 0.25:
            self.run(manifest, self.death(self.random.choice(list(Point))))
        self.finish(manifest)

    def death(self, point: Point) -> Death:
        """Returns a `Death` for the given point, with a random delay."""
        return Death(point, self.random.uniform(0, KILL_DELAY_SECONDS_MAX))

    def empty(self) -> None:
        """Runs a batch whose task is killed after the append, while Redis loses all data."""
        manifest, payload = self.batch()
        self.stage(manifest, payload)
        self.run(manifest, Death(self.random.choice([Point.APPLIED, Point.MARK]), 0.0))
        self.redis.delete(self.staging.key(reference(manifest)))
        self.stage(manifest, payload)
        self.finish(manifest)

    def compare(self, table: str, first: int) -> Counter[str]:
        """Counts the rows of the batches, starting at `first`: rows in the table, missing rows and repeated
        rows.
        """
        server: Any = client(self.settings)
        name = f"`{self.settings.bigquery_project}.{self.settings.bigquery_dataset}.{table}`"
        sql = f"SELECT row_id, COUNT(*) FROM {name} WHERE segment_id >= {first} GROUP BY 1"
        found: dict[str, int] = dict(row.values() for row in server.query_and_wait(sql))
        server.close()
        expected = {
            row_name(number, place)
            for number, count in self.rows.items()
            if number >= first
            for place in range(count)
        }
        return Counter(
            rows=sum(found.values()),
            missing=len(expected - set(found)),
            repeated=sum(count - 1 for count in found.values()),
            unknown=len(set(found) - expected),
        )


def row_name(batch: int, place: int) -> str:
    """Returns the identity of a row."""
    return f"{batch}-{place}"


def fact(batch: int, place: int) -> Row:
    """Returns a row of a batch."""
    row = {
        "row_id": row_name(batch, place),
        "event_type": "ui.click",
        "timestamp": moment(NOON + place),
        "org_id": 1,
        "project_id": 2,
        "replay_id": f"{batch:032x}",
        "segment_id": batch,
        "attributes": "{}",
    }
    return Row(TABLE, f"2-{row_name(batch, place)}", json.dumps(row).encode(), place)


def proto_facts(batch: int, count: int) -> EncodedRows:
    """Returns the same rows as protobuf, as the reader stages them."""
    encoder = FactEncoder(1, 2, f"{batch:032x}", batch, 30)
    rows = b"".join(
        encoder.framed_fact(row_name(batch, place).encode(), "ui.click", (NOON + place) * MICROSECONDS, b"{}")
        for place in range(count)
    )
    return EncodedRows(ProtoRows(TABLE, FACT_COLUMNS, tuple((place, 1) for place in range(count)), rows))


def judge(environment: Mapping[str, str], times: int, seed: int) -> int:
    """Runs all batches on the given servers, prints the figures, and returns the exit code."""
    kills = KillRun(environment, seed)
    list(migrate_tables(kills.settings, dry_run=False))
    for point in Point:
        for _ in range(times):
            kills.kill(point)
        print(f"{kills.killed[point]:6} processes killed {point}", flush=True)
    table = kills.compare(TABLE, 0)
    print(f"       the table: {dict(table)}", flush=True)
    first = len(kills.rows)
    for _ in range(times):
        kills.empty()
    emptied, view = kills.compare(TABLE, first), kills.compare(f"{TABLE}_exact", 0)
    print(f"{times:6} times Redis lost the batch after the append\n       the table: {dict(emptied)}")
    print(f"       the view: {dict(view)}")
    wrong = table["missing"] + table["repeated"] + table["unknown"]
    wrong += emptied["missing"] + view["missing"] + view["repeated"] + view["unknown"]
    if any(kills.killed[point] < times for point in Point):
        kills.failures.append("some processes ended before they could be killed")
    if not emptied["repeated"]:
        kills.failures.append("no row was repeated although Redis lost batches: the test shows nothing")
    for failure in kills.failures:
        print(failure)
    return 1 if wrong or kills.failures else 0


def main() -> None:
    """Starts the servers, runs all batches, and exits with 1 if a check failed, otherwise with 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=200, help="batches killed at each point")
    parser.add_argument("--seed", type=int, default=1, help="random seed")
    arguments = parser.parse_args()
    with Stack() as stack:
        stack.start(["redis", "bigquery"])
        sys.exit(judge(variables(stack.settings()), arguments.times, arguments.seed))


def variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of the processes that are killed."""
    return {
        **settings,
        "REPLAYS_BIGQUERY_WRITE": "storage",
        "REPLAYS_SINKS": "bigquery,dead_letter",
        "REPLAYS_LOG_LEVEL": "error",
    }


if __name__ == "__main__":
    main()
