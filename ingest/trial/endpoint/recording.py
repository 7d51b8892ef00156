"""Converts a recording item to the payload of a Kafka message: the header line and a zlib stream.

Like Relay, the endpoint compresses a recording that was sent as plain JSON. A recording that was sent compressed
is checked and kept as it is. Unlike Relay, the endpoint does not read the events, so nothing is scrubbed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from ingest.core.parse.recording import inflate, is_plain, split
from ingest.core.parse.rules import MessageRejected
from ingest.trial.endpoint.refusals import Reason, RequestRefused
from tasks.units import MiB

COMPRESSED_BYTES_MAX = 10 * MiB
INFLATED_BYTES_MAX = 100 * MiB
SEGMENT_ID_MAX = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Recording:
    """`payload`: header line, newline, zlib stream."""

    segment_id: int
    payload: bytes


def recording(item: memoryview) -> Recording:
    """Returns the recording of an item. Raises RequestRefused with reason recording_invalid or
    recording_too_large."""
    try:
        segment_id, body = split(item)
        if not is_plain(body) and len(body) > COMPRESSED_BYTES_MAX:
            raise RequestRefused(
                Reason.RECORDING_TOO_LARGE, f"the compressed recording exceeds {COMPRESSED_BYTES_MAX} bytes"
            )
        raw = inflate(body, INFLATED_BYTES_MAX)
    except MessageRejected as error:
        if error.reason == "body_too_large":
            text = f"the recording has more than {INFLATED_BYTES_MAX} bytes of JSON"
            raise RequestRefused(Reason.RECORDING_TOO_LARGE, text) from None
        raise RequestRefused(
            Reason.RECORDING_INVALID, f"the recording is invalid: {_REASON_TEXTS[error.reason]}"
        ) from None
    if segment_id > SEGMENT_ID_MAX:
        raise RequestRefused(Reason.RECORDING_INVALID, f"segment_id exceeds {SEGMENT_ID_MAX}")
    if not raw.startswith(b"["):
        raise RequestRefused(Reason.RECORDING_INVALID, "the recording is not a JSON array")
    packed = zlib.compress(raw) if is_plain(body) else bytes(body)
    if len(packed) > COMPRESSED_BYTES_MAX:
        raise RequestRefused(
            Reason.RECORDING_TOO_LARGE, f"the recording compresses to more than {COMPRESSED_BYTES_MAX} bytes"
        )
    return Recording(segment_id, b'{"segment_id":%d}\n' % segment_id + packed)


_REASON_TEXTS = {
    "no_header": "it has no header line",
    "bad_header": "its header line is not a JSON object with an integer segment_id of 0 or more",
    "body_not_zlib": "its body is neither a zlib stream nor a JSON array",
    "body_truncated": "its zlib stream is truncated",
}
