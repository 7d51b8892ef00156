"""Tracks each session that the endpoint receives, until every sink has stored the session.

A session is ready when each received segment is stored and durable in every sink.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from ingest.settings import Settings
from ingest.trial.endpoint.messages import ProducedMessage
from ingest.web.journey import Journeys, journeys
from ingest.web.model import NotFound, ReadError, SegmentFacts, SegmentState
from ingest.web.reads import Reads

SESSIONS_MAX = 200
SEGMENTS_MAX = 4000


@dataclass(slots=True)
class Session:
    """The segments of one replay that Kafka has acknowledged.

    `last_at`: time of the last acknowledgement, in seconds of the monotonic clock. `ready_seconds`: seconds from
    `last_at` until the session was found to be ready; None if it is not ready.
    """

    segments: set[int] = field(default_factory=set)
    last_at: float = 0.0
    ready_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a session: numbers of segments, and seconds since the last segment was received."""

    received: int
    stored: int
    durable: int
    seconds: float
    ready_seconds: float | None
    trouble: str = ""


class Sessions:
    """The most recent sessions. Several threads use this object."""

    def __init__(self, settings: Settings, project_id: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._project_id = project_id
        self._clock = clock
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Session] = OrderedDict()

    def add(self, produced: ProducedMessage) -> None:
        """Records a segment that Kafka has acknowledged."""
        with self._lock:
            session = self._known.pop(produced.replay_id, None) or Session()
            self._known[produced.replay_id] = session
            if len(session.segments) < SEGMENTS_MAX:
                session.segments.add(produced.segment_id)
            session.last_at, session.ready_seconds = self._clock(), None
            while len(self._known) > SESSIONS_MAX:
                self._known.popitem(last=False)

    def progress(self, replay_id: str, reads: Reads) -> Progress | None:
        """Reads the progress of a session from the stores. Returns None if no segment of the session was
        received."""
        with self._lock:
            session = self._known.get(replay_id)
            if session is None:
                return None
            expected, last_at = set(session.segments), session.last_at
        try:
            found = reads.segments(reads.replay(replay_id, self._project_id)).all
        except NotFound:
            return Progress(len(expected), 0, 0, self._clock() - last_at, None)
        except ReadError as error:
            return Progress(len(expected), 0, 0, self._clock() - last_at, None, str(error))
        stored = [one for one in found if one.segment_id in expected and one.state is SegmentState.STORED]
        places = [
            (one.partition, one.offset) for one in stored if one.partition is not None and one.offset is not None
        ]
        known = journeys(self._settings, places)
        durable = sum(is_durable(one, known) for one in stored)
        seconds = self._clock() - last_at
        if durable >= len(expected):
            with self._lock:
                if session.last_at == last_at and session.ready_seconds is None:
                    session.ready_seconds = seconds
        return Progress(len(expected), len(stored), durable, seconds, session.ready_seconds, known.error)


def is_durable(segment: SegmentFacts, known: Journeys) -> bool:
    """Returns whether every sink has the segment: its batch is complete, or its offset is committed."""
    if segment.partition is None or segment.offset is None:
        return False
    committed = known.committed.get(segment.partition)
    if committed is not None and segment.offset < committed:
        return True
    batch = known.of(segment.partition, segment.offset)
    return batch is not None and batch.durable
