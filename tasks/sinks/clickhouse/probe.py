"""A probe row that belongs to no replay. `check` writes, reads back and deletes it, in a partition that contains
only such rows.

The row has the shortest retention that the schema allows, one day, so it expires if it cannot be deleted.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tasks.sinks.clickhouse.answers import exception_of, failure_of
from tasks.sinks.clickhouse.table import COLUMNS, PROBE_UUID
from tasks.sinks.http.answers import Answer, failure_of_status, unproven_success
from tasks.sinks.outcome import Blame, Failure

TABLE = "replay_segments"
# No project has the number 0, and no recording has a retention of one day.
PROJECT_ID = 0
RETENTION_DAYS = 1

Insert = Callable[[str, bytes], Answer | Failure]
"""(table, JSONEachRow lines)"""
Query = Callable[[str], Answer | Failure]


@dataclass(slots=True)
class ProbeResult:
    """Result of the probe. `failure`: why the row could not be written."""

    failure: Failure | None = None
    steps: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    not_tested: list[str] = field(default_factory=list)


def probe(insert: Insert, query: Query) -> ProbeResult:
    """Writes one row and deletes it, as far as the account's permissions allow."""
    found, number = ProbeResult(), random.getrandbits(53)
    end = insert(TABLE, _row(number))
    found.failure = end if isinstance(end, Failure) else failure_of(end, rows=1)
    if found.failure is not None:
        return found
    found.steps.append("written")
    where = f"project_id = {PROJECT_ID} AND replay_id = '{PROBE_UUID}' AND segment_id = {number}"
    partition = _read_back(found, query(f"SELECT DISTINCT _partition_id FROM {TABLE} WHERE {where} FORMAT JSON"))
    if partition is not None:
        deletion = f"ALTER TABLE {TABLE} DELETE IN PARTITION ID '{partition}' WHERE {where}"
        _delete(found, query(f"{deletion} SETTINGS mutations_sync = 1"))
    return found


def _row(number: int) -> bytes:
    """Returns one row; `number` distinguishes it from the probes of other checks."""
    row = {name: value for name, (_, value) in COLUMNS[TABLE].items()}
    identity = {"project_id": PROJECT_ID, "segment_id": number, "retention_days": RETENTION_DAYS}
    return json.dumps(row | identity | {"received": int(time.time())}).encode()


def _read_back(found: ProbeResult, end: Answer | Failure) -> str | None:
    """Returns the partition that contains the row; None if it cannot be read."""
    failure = failure_of_query(end)
    if failure is not None and failure.blame is Blame.CREDENTIALS:
        found.not_tested.append(f"reading a row back and deleting it: grant SELECT on {TABLE} ({failure.message})")
        return None
    if failure is not None:
        found.warnings.append(f"a row that was written could not be read back: {failure.message}")
        return None
    assert isinstance(end, Answer)
    rows = (end.json_object() or {}).get("data")
    if not rows:
        found.warnings.append(
            "a row that was written is not found: check whether a load balancer leads to replicas that lag"
        )
        return None
    found.steps.append("read back")
    return str(rows[0]["_partition_id"])


def _delete(found: ProbeResult, end: Answer | Failure) -> None:
    failure = failure_of_query(end)
    if failure is None:
        found.steps.append("deleted")
        return
    left = f"a row of project {PROJECT_ID} is left in {TABLE}, where it expires within a day"
    if failure.blame is Blame.CREDENTIALS:
        found.not_tested.append(f"deleting a row: grant ALTER DELETE on {TABLE}; {left}")
    else:
        found.warnings.append(f"{left}: {failure.message}")


def failure_of_query(end: Answer | Failure) -> Failure | None:
    """Returns the problem with the response to a statement. Returns None for a valid ClickHouse response."""
    if isinstance(end, Failure):
        return end
    failure = exception_of(end)
    if failure is not None:
        return failure
    if not end.ok:
        return failure_of_status(end)
    if end.status != 200 or (end.body and end.json_object() is None):
        return unproven_success(end, "the response is not a query result")
    return None
