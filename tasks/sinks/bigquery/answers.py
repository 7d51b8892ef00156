"""Interprets responses of tabledata.insertAll.

The proof is BigQuery's response resource, recognized by its `kind`. Rows not listed in `insertErrors` are stored.
https://cloud.google.com/bigquery/docs/reference/rest/v2/tabledata/insertAll
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.sinks.google.errors import blame_of_reasons, classify_answer
from tasks.sinks.http.answers import Answer, unproven_success
from tasks.sinks.outcome import Blame, Failure

PROOF = (
    "Status 200 with `insertAll`'s own response in JSON, recognized by its `kind`. Every row that "
    "`insertErrors` does not list is stored; `insertErrors` must not list rows that were not sent."
)
KIND = "bigquery#tableDataInsertAllResponse"
# The reason that BigQuery reports for a valid row if it refuses the whole request because of another row.
STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Refusal:
    """One row that was not stored. `failure` is None if the row was refused only because of other rows in the same
    request.
    """

    index: int
    failure: Failure | None


def refusals_of(answer: Answer, rows: int) -> list[Refusal] | Failure:
    """Returns the refused rows of a request with `rows` rows (none if all are stored), or the error of the whole
    request."""
    if not answer.ok:
        return classify_answer(answer)
    if answer.status != 200:
        return unproven_success(answer, "status")
    said = answer.json_object()
    if said is None or said.get("kind") != KIND:
        return unproven_success(answer, f"it is no {KIND}")
    errors = said.get("insertErrors") or []
    if not isinstance(errors, list):
        return unproven_success(answer, "insertErrors is no list")
    found: dict[int, Refusal] = {}
    for error in errors:
        index = error.get("index", 0) if isinstance(error, dict) else None
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < rows:
            return unproven_success(answer, f"insertErrors names row {index!r} of {rows}")
        found[index] = Refusal(index, _row_error(error))
    return list(found.values())


def _row_error(error: Mapping[str, Any]) -> Failure | None:
    """Classifies the refusal of one row."""
    given = error.get("errors")
    entries = [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
    reasons = [str(entry.get("reason", "")) for entry in entries]
    if reasons and set(reasons) == {STOPPED}:
        return None
    text = "; ".join(map(_described, entries)) or "refused without a reason"
    if "no such field" in text.lower():
        # The reader is newer than the table, so every row has that field, and no row is at fault.
        return Failure(Blame.TABLE, f"{text}; run `replays-ingest migrate`")
    blame = blame_of_reasons([reason for reason in reasons if reason != STOPPED])
    return Failure(Blame.ROW if blame in (None, Blame.SIZE) else blame, text)


def _described(error: Mapping[str, Any]) -> str:
    place = f" at {error['location']}" if error.get("location") else ""
    return f"{error.get('reason', '')}{place}: {error.get('message', '')}"
