"""The endpoint's reasons for refusing a request. Each reason has an HTTP status and a counter."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """Name of the reason in counters, and its HTTP status."""

    UNKNOWN_KEY = ("unknown_key", 403)
    UNKNOWN_PROJECT = ("unknown_project", 403)
    UNKNOWN_HOST = ("unknown_host", 421)
    UNKNOWN_ENCODING = ("unknown_encoding", 415)
    BODY_INVALID = ("body_invalid", 400)
    BODY_TOO_LARGE = ("body_too_large", 413)
    ENVELOPE_INVALID = ("envelope_invalid", 400)
    ENVELOPE_TOO_LARGE = ("envelope_too_large", 413)
    REPLAY_EVENT_INVALID = ("replay_event_invalid", 400)
    REPLAY_EVENT_TOO_LARGE = ("replay_event_too_large", 413)
    RECORDING_INVALID = ("recording_invalid", 400)
    RECORDING_TOO_LARGE = ("recording_too_large", 413)
    VIDEO_INVALID = ("video_invalid", 400)
    MESSAGE_TOO_LARGE = ("message_too_large", 413)
    BUSY = ("busy", 503)
    KAFKA = ("kafka", 503)

    def __init__(self, label: str, status: int) -> None:
        self.label = label
        self.status = status


class RequestRefused(ValueError):
    """Raised if a request is refused. The text states the reason in one line and contains no bytes of the
    request."""

    def __init__(self, reason: Reason, text: str) -> None:
        super().__init__(text)
        self.reason = reason
