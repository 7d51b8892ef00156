"""Interprets responses and errors of AppendRows and FinalizeWriteStream.

https://cloud.google.com/bigquery/docs/reference/storage/rpc/google.cloud.bigquery.storage.v1#storageerror
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import grpc
from google.api_core import exceptions as from_api
from google.cloud.bigquery_storage_v1.types import StorageError
from grpc_status import rpc_status

from tasks.sinks.bigquery.append_record import Append
from tasks.sinks.google.errors import classify
from tasks.sinks.outcome import Action, Blame, Failure

PROOF = (
    "With `REPLAYS_BIGQUERY_WRITE=storage`, the proof is the append's result with the offset that was sent, or "
    "`ALREADY_EXISTS` for that offset, which was never used for other rows. If the stream accepts no "
    "more appends, it is finalized, and BigQuery returns the stream's row count: if the count includes the rows, "
    "they are stored; otherwise they are written to another stream."
)
Code = StorageError.StorageErrorCode
BLAME_BY_CODE: dict[Any, Blame] = {
    Code.TABLE_NOT_FOUND: Blame.TABLE,
    Code.SCHEMA_MISMATCH_EXTRA_FIELDS: Blame.TABLE,
    Code.INVALID_STREAM_TYPE: Blame.REQUEST,
    Code.CMEK_NOT_PROVIDED: Blame.CREDENTIALS,
    Code.INVALID_CMEK_PROVIDED: Blame.CREDENTIALS,
    Code.CMEK_ENCRYPTION_ERROR: Blame.SERVER,
    Code.KMS_SERVICE_ERROR: Blame.SERVER,
    Code.KMS_PERMISSION_DENIED: Blame.CREDENTIALS,
}
ENDED_CODES = frozenset(
    {
        Code.STREAM_FINALIZED,
        Code.STREAM_ALREADY_COMMITTED,
        Code.INVALID_STREAM_STATE,
        Code.OFFSET_OUT_OF_RANGE,
    }
)
_TOO_LARGE = ("larger than max", "too large", "exceeds the limit", "size exceeds")


class Verdict(Enum):
    """What a response says about one append."""

    APPLIED = "its rows are stored"
    REFUSED = "its rows are not stored, because of at least one of them"
    ENDED = "the stream takes no append at this offset: finalizing it shows whether the rows are stored"
    MISSING = "the stream does not exist"
    FAILED = "unknown, or not now"


@dataclass(frozen=True, slots=True)
class Judgment:
    """`failure` is None only if the verdict is APPLIED. `rows`: refused rows by their index in the append, with
    the reason."""

    verdict: Verdict
    failure: Failure | None = None
    rows: tuple[tuple[int, str], ...] = ()


APPLIED = Judgment(Verdict.APPLIED)


def judge(response: Any, append: Append) -> Judgment:
    """Interprets one AppendRowsResponse (the protobuf message)."""
    kind = response.WhichOneof("response")
    if kind == "append_result":
        result = response.append_result
        if result.HasField("offset") and result.offset.value == append.offset:
            return APPLIED
        text = f"the result names offset {result.offset.value}, not {append.offset}"
        return Judgment(Verdict.FAILED, Failure(Blame.NETWORK, text, unproven=True))
    if kind != "error":
        failure = Failure(Blame.NETWORK, "a response without result or error", unproven=True)
        return Judgment(Verdict.FAILED, failure)
    status = _status_code(response.error.code)
    error: Exception = from_api.from_grpc_status(status, response.error.message)  # type: ignore[no-untyped-call]
    rows = tuple(
        (row.index, f"{row.message or 'refused without a reason'}")
        for row in response.row_errors
        if 0 <= row.index < append.count
    )
    return _judged(error, storage_code(response.error.details), rows)


def judge_error(error: BaseException) -> Judgment:
    """Interprets an exception that the client library raised for one append or for its connection."""
    return _judged(error, storage_code(details_of(error)), ())


def details_of(error: BaseException) -> Any:
    """Returns the gRPC status details from an exception of the client library; empty if there are none."""
    details: Any = ()
    for cause in getattr(error, "errors", ()) or ():
        try:
            status = rpc_status.from_call(cause)
        except (ValueError, AttributeError, TypeError):
            continue
        details = status.details if status is not None else ()
    return details


def _judged(error: BaseException, code: Any, rows: tuple[tuple[int, str], ...]) -> Judgment:
    text = str(error)
    failure = classify(error)
    if code == Code.OFFSET_ALREADY_EXISTS or isinstance(error, from_api.AlreadyExists):
        return APPLIED
    if rows:
        return Judgment(Verdict.REFUSED, failure.blamed(Blame.BATCH), rows)
    if code in BLAME_BY_CODE:
        todo = "; run `replays-ingest migrate`" if code == Code.SCHEMA_MISMATCH_EXTRA_FIELDS else ""
        return Judgment(Verdict.FAILED, Failure(BLAME_BY_CODE[code], f"{Code(code).name}: {text}{todo}"))
    if code in ENDED_CODES or isinstance(error, from_api.OutOfRange) or "finalized" in text.lower():
        return Judgment(Verdict.ENDED, failure.blamed(Blame.SERVER))
    if code == Code.STREAM_NOT_FOUND or isinstance(error, from_api.NotFound):
        return Judgment(Verdict.MISSING, failure.blamed(Blame.SERVER))
    if any(words in text.lower() for words in _TOO_LARGE):
        return Judgment(Verdict.REFUSED, failure.blamed(Blame.SIZE))
    if failure.blame.action is Action.SPLIT:
        return Judgment(Verdict.REFUSED, failure)
    return Judgment(Verdict.FAILED, failure)


def _status_code(code: int) -> Any:
    """Returns the gRPC status code with this number; UNKNOWN if there is none."""
    return next((status for status in grpc.StatusCode if status.value[0] == code), grpc.StatusCode.UNKNOWN)


def storage_code(details: Any) -> Any:
    """Returns the StorageErrorCode in the details of a status; None if there is none."""
    for entry in details:
        if entry.type_url.endswith("/google.cloud.bigquery.storage.v1.StorageError"):
            return StorageError.deserialize(entry.value).code
    return None


__all__ = ["APPLIED", "PROOF", "Judgment", "Verdict", "details_of", "judge", "judge_error", "storage_code"]
