"""Converts an envelope to Kafka messages in the format of the topic ingest-replay-recordings.

A replay is a `replay_recording` item with its `replay_event` item, or a `replay_video` item, which contains both
parts and the video. Items of other types (errors, sessions, traces) have no destination here and are counted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from ingest.trial.endpoint.envelope import Envelope
from ingest.trial.endpoint.recording import Recording, recording
from ingest.trial.endpoint.refusals import Reason, RequestRefused
from ingest.trial.endpoint.replay_event import Client, normalized

MESSAGE_BYTES_MAX = 15_000_000
"""Limit of the topic (`max.message.bytes`)."""
MESSAGE_TYPE = "replay_recording_not_chunked"
REPLAY_TYPES = frozenset(("replay_event", "replay_recording", "replay_video"))
KNOWN_TYPES = frozenset(
    (
        *("attachment", "check_in", "client_report", "event", "feedback", "log", "profile", "session", "sessions"),
        *("span", "statsd", "trace_metric", "transaction", "user_report"),
    )
)


@dataclass(frozen=True, slots=True)
class Project:
    """The project that receives the replays sent to a DSN."""

    project_id: int
    org_id: int = 1
    key_id: int = 1
    retention_days: int = 30


@dataclass(frozen=True, slots=True)
class ProducedMessage:
    """One Kafka value, and the id of the segment in it."""

    replay_id: str
    segment_id: int
    value: bytes


class _Video(msgspec.Struct):
    """The msgpack map in a `replay_video` item."""

    replay_event: bytes
    replay_recording: bytes
    replay_video: bytes


_decode_video = msgspec.msgpack.Decoder(_Video).decode


def message(envelope: Envelope, project: Project, client: Client) -> ProducedMessage | None:
    """Returns the replay in an envelope; None if the envelope has no replay. Raises RequestRefused."""
    event, recorded, film = (envelope.of(kind) for kind in ("replay_event", "replay_recording", "replay_video"))
    if event is None and recorded is None and film is None:
        return None
    replay_id = envelope.event_id
    if not replay_id:
        raise RequestRefused(
            Reason.ENVELOPE_INVALID, "the envelope's header has no valid event_id, which is the replay's id"
        )
    video = b""
    if film is not None:
        if event is not None or recorded is not None:
            raise RequestRefused(Reason.ENVELOPE_INVALID, "a replay_video item has its own event and recording")
        event, recorded, video = _video(film)
    if recorded is None:
        raise RequestRefused(
            Reason.ENVELOPE_INVALID, "the envelope has a replay_event item without a replay_recording item"
        )
    document = None if event is None else normalized(event, replay_id, client)
    return _produced(recording(recorded), document, video, replay_id, project, client)


def ignored(envelope: Envelope) -> Counter[str]:
    """Returns how many items of each type have no destination here; unknown types are counted as "other"."""
    kinds = (item.type for item in envelope.items if item.type not in REPLAY_TYPES)
    return Counter(kind if kind in KNOWN_TYPES else "other" for kind in kinds)


def _video(item: memoryview) -> tuple[memoryview, memoryview, bytes]:
    try:
        found = _decode_video(item)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        text = "the replay_video item is not a msgpack map of replay_event, replay_recording and replay_video"
        raise RequestRefused(Reason.VIDEO_INVALID, text) from None
    if not found.replay_video:
        raise RequestRefused(Reason.VIDEO_INVALID, "the replay_video item has an empty video")
    return memoryview(found.replay_event), memoryview(found.replay_recording), found.replay_video


def _produced(
    recorded: Recording, document: bytes | None, video: bytes, replay_id: str, project: Project, client: Client
) -> ProducedMessage:
    fields: dict[str, Any] = {
        "type": MESSAGE_TYPE,
        "replay_id": replay_id,
        "key_id": project.key_id,
        "org_id": project.org_id,
        "project_id": project.project_id,
        "received": int(client.received_at),
        "retention_days": project.retention_days,
        "payload": recorded.payload,
        "replay_event": document,
        "replay_video": video or None,
        "version": 1,
    }
    value = msgspec.msgpack.encode(fields)
    if len(value) > MESSAGE_BYTES_MAX:
        raise RequestRefused(Reason.MESSAGE_TOO_LARGE, f"the Kafka message exceeds {MESSAGE_BYTES_MAX} bytes")
    return ProducedMessage(replay_id, recorded.segment_id, value)
