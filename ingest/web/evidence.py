"""Finds evidence in sessions without playing them: the events around one event, and events that contain a search
text.

Everything is read within the bounds of `ingest.web.timeline`, page by page, and unread parts are reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from ingest.web.model import Filter, NotFound, Replay, Segments
from ingest.web.reads import Reads
from ingest.web.timeline import MARKS_MAX, Mark, Timeline

MATCHES_MAX = 20
# Maximum number of timeline pages to search per replay.
PAGES_MAX = 4
_EVENT = re.compile(r"[0-9]{1,18}-[0-9]{1,9}")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?s?")


class EventContext(msgspec.Struct):
    """The events within `window_ms` before and after `at_ms` (Unix milliseconds).

    `event`: the requested event, or None if a time was requested. `page`: the URL of the page that was open at
    that time, "" if unknown. `start_ms`, `end_ms`: start and end of the whole recording. `missing`, `unreadable`,
    `cut`: segments that are not stored, cannot be read, or were read partially. `truncated`: whether there are
    more events than listed.
    """

    replay_id: str
    project_id: int
    event: str | None
    at_ms: int
    window_ms: int
    page: str
    start_ms: int
    end_ms: int
    marks: list[Mark]
    missing: list[int]
    unreadable: dict[int, str]
    cut: dict[int, str]
    malformed: int
    truncated: bool


class Match(msgspec.Struct):
    """An event whose title or details contain the searched text."""

    event: str
    at_ms: int
    kind: str
    segment_id: int
    title: str


@dataclass(frozen=True, slots=True)
class FoundReplay:
    """A replay and the first MATCHES_MAX matching events. `complete`: all events of the replay were searched."""

    replay: Replay
    matches: tuple[Match, ...]
    complete: bool


@dataclass(frozen=True, slots=True)
class FoundPage:
    """One page of matching replays, latest first. `next_offset`: start of the next page, None after the last.

    `incomplete`: ids of the replays on this page in which no match was found and not all events could be searched.
    """

    found: tuple[FoundReplay, ...]
    next_offset: int | None
    incomplete: tuple[str, ...]


def parse_position(text: str) -> str | float:
    """Parses a position in a replay: the id of an event, such as `4-17`, or seconds after the start, such as
    `12.3`. Raises ValueError."""
    if _EVENT.fullmatch(text):
        return text
    if _SECONDS.fullmatch(text):
        return float(text.rstrip("s"))
    raise ValueError(f"{text!r} is neither the id of an event, like 4-17, nor seconds after the start, like 12.3")


def events_around(reads: Reads, replay: Replay, where: str | float, window_ms: int) -> EventContext:
    """Returns the events around an event or a time. Raises ReadError, and NotFound if the event does not exist."""
    segments = reads.segments(replay)
    event = where if isinstance(where, str) else None
    center_ms = _time_of(reads, segments, event) if event is not None else None
    found: EventContext | None = None
    for page in _pages(reads, segments):
        if found is None:
            at_ms = center_ms if center_ms is not None else page.start_ms + round(float(where) * 1000)
            found = EventContext(
                replay_id=replay.replay_id,
                project_id=replay.project_id,
                event=event,
                at_ms=at_ms,
                window_ms=window_ms,
                page="",
                start_ms=page.start_ms,
                end_ms=page.end_ms,
                marks=[],
                missing=list(segments.missing),
                unreadable={},
                cut={},
                malformed=0,
                truncated=False,
            )
        _add(found, page)
    assert found is not None  # there is always a first page, even if it is empty
    return found


def find(reads: Reads, chosen: Filter, text: str = "") -> FoundPage:
    """Returns the replays that match the filter; if `text` is given, only those whose events contain it
    (case-insensitively).

    A page covers `chosen.limit` replays that match the filter; if `text` is given, the page may contain fewer
    replays, or none. Raises ReadError.
    """
    page = reads.replays(chosen)
    found: list[FoundReplay] = []
    incomplete: list[str] = []
    for replay in page.replays:
        matches, complete = _search(reads, replay, text.casefold()) if text else ((), True)
        if matches or not text:
            found.append(FoundReplay(replay, matches, complete))
        elif not complete:
            incomplete.append(replay.replay_id)
    next_offset = chosen.offset + len(page.replays) if page.more else None
    return FoundPage(tuple(found), next_offset, tuple(incomplete))


def _pages(reads: Reads, segments: Segments, first: int = 0) -> Iterator[Timeline]:
    following: int | None = first
    while following is not None:
        page = reads.timeline(segments, following)
        yield page
        following = page.next_segment


def _time_of(reads: Reads, segments: Segments, event: str) -> int:
    page = reads.timeline(segments, int(event.partition("-")[0]))
    for mark in page.marks:
        if mark.event == event:
            return mark.at_ms
    raise NotFound(f"no event {event} in this replay: `events` lists them")


def _add(found: EventContext, page: Timeline) -> None:
    """Adds the events of this page that are within the window."""
    found.start_ms = min(found.start_ms or page.start_ms, page.start_ms or found.start_ms)
    found.end_ms = max(found.end_ms, page.end_ms)
    found.unreadable |= page.unreadable
    found.cut |= page.cut
    found.malformed += page.malformed
    found.truncated = found.truncated or page.truncated
    for mark in page.marks:
        if mark.kind in ("page", "navigation") and mark.at_ms <= found.at_ms:
            found.page = mark.title
        if abs(mark.at_ms - found.at_ms) > found.window_ms:
            continue
        if len(found.marks) < MARKS_MAX:
            found.marks.append(mark)
        else:
            found.truncated = True
    found.marks.sort(key=lambda mark: mark.at_ms)


def _search(reads: Reads, replay: Replay, text: str) -> tuple[tuple[Match, ...], bool]:
    """Returns the first events that contain the text, and whether all events were searched."""
    matches: list[Match] = []
    try:
        segments = reads.segments(replay)
        complete = not segments.missing
        for number, page in enumerate(_pages(reads, segments), 1):
            complete = complete and not (page.unreadable or page.cut or page.truncated or page.malformed)
            for mark in page.marks:
                if _holds(mark, text):
                    matches.append(Match(mark.event, mark.at_ms, mark.kind, mark.segment_id, mark.title))
                if len(matches) == MATCHES_MAX:
                    return tuple(matches), False
            if number == PAGES_MAX and page.next_segment is not None:
                return tuple(matches), False
    except NotFound:  # the replay expired or was erased after it was listed
        return tuple(matches), False
    return tuple(matches), complete


def _holds(mark: Mark, text: str) -> bool:
    return text in mark.title.casefold() or any(
        text in value.casefold() for value in mark.detail.values() if isinstance(value, str)
    )
