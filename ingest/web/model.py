"""Data types that `Reads` accepts and returns: filters, replays, segments.

Times are Unix seconds unless a name ends with another unit. A replay's id is 32 hex digits without dashes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from ingest.web.selector import Selector
from tasks.stored import StoredLocation

PAGES_MAX = 200
REPLAY_ID = re.compile(r"[0-9a-f]{32}")


class NotFound(LookupError):
    """Raised if the replay or segment does not exist."""


class ReplayErased(NotFound):
    """Raised if the replay was erased by an operator."""


class ReadError(RuntimeError):
    """Raised if a server did not respond or returned an error. The text contains the server's name and the
    error."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Selects replays. All given fields must match; `since` and `until` bound the time of the replay's last event.

    With a selector, `rage` and `dead` refer to clicks on that element.
    """

    project_id: int | None = None
    rage: bool = False
    dead: bool = False
    errors: bool = False
    release: str = ""
    text: str = ""
    url: str = ""
    user: str = ""
    selector: Selector | None = None
    error_id: str = ""
    since: float | None = None
    until: float | None = None
    limit: int = 50
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay from ClickHouse, with exact counts despite duplicates.

    `pages`: the first PAGES_MAX page visits, in the order of segments. `clicks` includes dead and rage clicks, and
    `dead_clicks` includes rage clicks. `bytes_stored` and `bytes_inflated` are sums over the replay's segments.
    """

    project_id: int
    replay_id: str
    started_at: float
    ended_at: float
    segments: int
    segment_id_max: int
    pages: tuple[str, ...]
    clicks: int
    dead_clicks: int
    rage_clicks: int
    taps: int
    errors: int
    user: str
    release: str
    environment: str
    platform: str
    browser: str
    system: str
    country: str
    replay_type: str
    is_video: bool
    bytes_stored: int
    bytes_inflated: int
    retention_days: int

    @property
    def duration_seconds(self) -> float:
        return max(0.0, self.ended_at - self.started_at)


class SegmentState(StrEnum):
    """`stored`: both the object and the row exist. All other values name what is missing."""

    STORED = "stored"
    MISSING = "missing"
    NO_ROW = "no_row"
    NO_OBJECT = "no_object"


@dataclass(frozen=True, slots=True)
class SegmentCopy:
    """One delivery of a segment whose row ClickHouse has not (yet) removed as a duplicate."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class SegmentFacts:
    """One segment, or a gap in the segments.

    `durable_gcs_at`: when the object was last written. `durable_clickhouse_at`: latest time at which the row was
    stored; merges of table parts can only make this time later. `copies`: more than one if the segment was
    redelivered.
    """

    segment_id: int
    state: SegmentState
    object: str = ""
    received_at: float | None = None
    partition: int | None = None
    offset: int | None = None
    bytes_stored: int = 0
    bytes_inflated: int = 0
    bytes_video: int = 0
    durable_gcs_at: float | None = None
    durable_clickhouse_at: float | None = None
    copies: tuple[SegmentCopy, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportedError:
    """An error that the SDK sent while it recorded this segment, that is, between `since` and `until`.

    With each segment, SDKs report the ids of errors but not their times. `since` and `until` are the ends of the
    previous segment and of this segment, in whole seconds.
    """

    error_id: str
    segment_id: int
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Segments:
    """All segments of a replay in order, with the gaps between them.

    `places`: locations of stored segments, by segment number. `errors`: reported errors, in segment order.
    """

    all: tuple[SegmentFacts, ...]
    notes: tuple[str, ...] = ()
    places: Mapping[int, StoredLocation] = field(default_factory=dict)
    errors: tuple[ReportedError, ...] = ()

    @property
    def missing(self) -> tuple[int, ...]:
        """Segments without an object, which cannot be played."""
        gone = (SegmentState.MISSING, SegmentState.NO_OBJECT)
        return tuple(segment.segment_id for segment in self.all if segment.state in gone)

    @property
    def duplicates(self) -> tuple[int, ...]:
        """Segments that were delivered more than once, although each is stored once."""
        return tuple(segment.segment_id for segment in self.all if len(segment.copies) > 1)

    @property
    def readable(self) -> tuple[SegmentFacts, ...]:
        return tuple(
            segment for segment in self.all if segment.state in (SegmentState.STORED, SegmentState.NO_ROW)
        )


def replay_id_of(text: str) -> str:
    """Returns the id in lower case, without dashes. Raises NotFound if `text` is not a replay id."""
    plain = text.strip().replace("-", "").lower()
    if not REPLAY_ID.fullmatch(plain):
        raise NotFound(f"{text!r} is not a replay id (32 hex digits, with or without dashes)")
    return plain
