"""Checks that a table accepts the rows of this release: type, columns, and a known-good row.

The good row is never stored: it is sent with an invalid row in a request that is refused as a whole
(`skipInvalidRows` false), and BigQuery reports it as `stopped` instead of `invalid`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.sinks.bigquery.answers import refusals_of
from tasks.sinks.google.errors import classify_answer
from tasks.sinks.http.answers import Answer, unproven_success
from tasks.sinks.outcome import Blame, Failure

SCHEMA = Path(__file__).parents[1] / "schema" / "bigquery"
NO_SUCH_COLUMN = "replays_ingest_check_no_such_column"
CHECK_ID = "replays-ingest-check"

CANONICAL_TYPES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
# Types that also accept every value that this release writes:
# https://cloud.google.com/bigquery/docs/managing-table-schemas
COMPATIBLE_TYPES = {
    "INTEGER": {"INTEGER", "NUMERIC", "BIGNUMERIC", "FLOAT"},
    "JSON": {"JSON", "STRING"},
}


def columns_of(table: str) -> dict[str, dict[str, Any]]:
    """Returns the columns that this release writes, by name, as `schema/bigquery` describes them."""
    description = json.loads((SCHEMA / f"{table}.json").read_text())
    return {field["name"]: field for field in description["fields"]}


def good_row(table: str, now: float) -> dict[str, Any]:
    """Returns a row with every column that this release writes, each with a value that its type accepts."""
    values = {
        "STRING": CHECK_ID,
        "INTEGER": 1,
        "TIMESTAMP": datetime.fromtimestamp(now, UTC).isoformat(),
        "JSON": "{}",
    }
    return {name: values[field["type"]] for name, field in columns_of(table).items()}


def dry_run_insert(table: str) -> bytes:
    """Returns the body of an insertAll request that stores nothing but shows whether a valid row is accepted."""
    rows = [
        {"insertId": CHECK_ID, "json": good_row(table, time.time())},
        {"json": {NO_SUCH_COLUMN: True}},
    ]
    return json.dumps({"skipInvalidRows": False, "ignoreUnknownValues": False, "rows": rows}).encode()


def failure_of_dry_run(answer: Answer) -> Failure | None:
    """Returns the problem revealed by the response to a `dry_run_insert`, or None if the good row is accepted."""
    found = refusals_of(answer, rows=2)
    if isinstance(found, Failure):
        return found.blamed(Blame.TABLE) if found.blame.blames_items else found
    failure = next((refusal.failure for refusal in found if refusal.index == 0), None)
    if failure is None:
        return None
    text = f"it refuses a row that is known to be good: {failure.message}"
    return Failure(Blame.TABLE if failure.blame.blames_items else failure.blame, text)


def fault_of_resource(table: str, answer: Answer) -> Failure | None:
    """Returns the problem that the table's resource reveals, such as a missing column. Returns None if the columns
    match.
    """
    if not answer.ok:
        return classify_answer(answer)
    resource = answer.json_object()
    if resource is None or resource.get("kind") != "bigquery#table":
        return unproven_success(answer, "it is no bigquery#table")
    problems = list(mismatches(table, resource))
    return Failure(Blame.TABLE, "; ".join(problems)) if problems else None


def mismatches(table: str, resource: Mapping[str, Any]) -> Iterator[str]:
    """Yields one phrase for each difference between a table (its JSON resource) and the rows of this release."""
    kind = str(resource.get("type", "TABLE"))
    if kind != "TABLE":
        yield f"it is a {kind}, rows can be streamed into a TABLE only"
        return
    wanted = columns_of(table)
    present = {str(field["name"]).lower(): field for field in resource.get("schema", {}).get("fields", ())}
    missing = [name for name in wanted if name.lower() not in present]
    if missing:
        yield f"it lacks {', '.join(f'{table}.{name}' for name in missing)}; run `replays-ingest migrate`"
    for name, field in present.items():
        given = next((column for column in wanted if column.lower() == name), None)
        if given is not None:
            yield from _column_mismatches(wanted[given], field)
        elif field.get("mode") == "REQUIRED":
            yield f"column {field['name']} is REQUIRED and this release does not write it: make it NULLABLE"


def _column_mismatches(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> Iterator[str]:
    name, kind = wanted["name"], str(present.get("type", "")).upper()
    kind = CANONICAL_TYPES.get(kind, kind)
    if kind not in COMPATIBLE_TYPES.get(wanted["type"], {wanted["type"]}):
        yield f"column {name} is {kind}, this release writes {wanted['type']}: copy the table into a new one"
    if present.get("mode") == "REPEATED":
        yield f"column {name} is REPEATED, this release writes one value"
    if present.get("mode") == "REQUIRED" and wanted.get("mode") != "REQUIRED":
        yield f"column {name} is REQUIRED and this release may leave it out: make it NULLABLE"
