"""Timeline of a replay from its recordings: clicks, network, console, vitals, memory, navigation.

The timeline is built from stored segments, so it is available as soon as a segment can be played, even if the
analytics tables are unavailable. The number of marks, the length of their text and the parsing effort are limited.
Categories, field names and units are those of the Sentry JavaScript SDK and rrweb. Malformed events are left out
and counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ingest.core.parse.budget import Budget, BudgetSpent
from ingest.core.parse.rrweb import HISTORY_SPANS, SDK_CATEGORIES, WEB_VITALS, paint_ms
from ingest.core.stored_recording import BlobError
from ingest.web.blobs import PLAYABLE_TYPES, UNIX_MILLISECONDS_MIN, VIEWER_UNITS, BudgetExhausted, split
from ingest.web.model import ReportedError
from tasks.units import MiB

MARKS_MAX = 20_000
TEXT_CHARACTERS_MAX = 400
DETAILS_MAX = 12
HEADERS_MAX = 30
BODY_CHARACTERS_MAX = 4000
ERRORS_MAX = 1000
# Maximum total number of characters of all marks. A single mark may be several kilobytes long.
CHARACTERS_MAX = 12_000_000
# Maximum size of a decoded event; larger events count as malformed. SDKs truncate request bodies at 150 kB.
EVENT_BYTES_MAX = 1 * MiB
# Measured costs in parser units: per decoded event, and per byte.
_UNITS_EVENT, _UNITS_BYTE = 3.0, 0.02

DEAD_CLICK_TAGS = frozenset(("a", "button", "input"))
DEAD_CLICK_MS_MIN = 7000
RAGE_CLICKS_MIN = 5
# Maximum time between the two events that report one navigation, for a history push and for a page load.
PUSH_MS_MAX = 500
LOAD_MS_MAX = 30_000
FULL_SNAPSHOT, INCREMENTAL, META, CUSTOM = 2, 3, 4, 5
MOUSE_INTERACTION, MOUSE_CLICK = 2, 2
STATES = frozenset(
    (
        *("device.battery", "device.orientation", "device.connectivity", "ui.scroll", "ui.swipe"),
        *("app.background", "app.foreground", "ui.blur", "ui.focus"),
    )
)
_KEYS = {"ui.input": "input", "ui.keyDown": "key"}
CLICK_RANKS = {"click": 0, "slow_click": 1, "dead_click": 2, "rage_click": 3}

_TIME = rb'"timestamp": ?([0-9]{1,15}(?:\.[0-9]{1,9})?)'
_first_fields = re.compile(rb'\{"type": ?([0-9]{1,3}), ?(?:' + _TIME + rb",)?")
_last_field = re.compile(rb"\}, ?" + _TIME + rb"\}$")
_LAST_FIELD_BYTES = 64

Detail = dict[str, str | int | float | bool | None]


class HttpMessage(msgspec.Struct):
    """What the SDK captured of a request or a response. `body` has at most BODY_CHARACTERS_MAX characters.

    `warnings`: the SDK's warnings, such as URL_SKIPPED, and BODY_CUT if the captured body was truncated to
    BODY_CHARACTERS_MAX.
    """

    headers: dict[str, str]
    body: str
    warnings: list[str]

    @property
    def characters(self) -> int:
        return len(self.body) + sum(len(name) + len(value) for name, value in self.headers.items())


class CapturedRequest(msgspec.Struct):
    """Headers and bodies of a request and its response, for URLs that the application lets the SDK capture."""

    request: HttpMessage | None
    response: HttpMessage | None


class Mark(msgspec.Struct):
    """One event of the timeline. `at_ms`: unix milliseconds. `level`: "", "warn" or "bad".

    `event`: the segment and the index of the event in the segment, for example `4-17`; a fact's `row_id` contains
    the same two numbers. `event` is empty for an error, because errors come from ClickHouse and not from the
    recording.

    `times`: number of clicks that share one identity (the same second and node); ClickHouse, too, counts these
    clicks as one.
    """

    at_ms: int
    kind: str
    segment_id: int
    title: str
    level: str = ""
    duration_ms: int | None = None
    times: int = 1
    detail: Detail = {}
    event: str = ""
    captured: CapturedRequest | None = None


class Memory(msgspec.Struct, frozen=True, array_like=True):
    """One sample of the size of the JavaScript heap, in bytes."""

    at_ms: int
    used_bytes: int
    total_bytes: int


class Timeline(msgspec.Struct):
    """`start_ms`, `end_ms`: start and end of the recording; 0 if no event has a time. `snapshots`: times from
    which the recording can be rendered.

    `unreadable`: segments with invalid JSON, and the error of each. `cut`: segments of which only a part was read,
    and the reason. `truncated`: whether there were more than MARKS_MAX marks or CHARACTERS_MAX characters.
    `next_segment`: the first segment of the next page; None on the last page.
    """

    start_ms: int
    end_ms: int
    marks: list[Mark]
    memory: list[Memory]
    snapshots: list[int]
    malformed: int
    unreadable: dict[int, str]
    truncated: bool
    cut: dict[int, str] = {}
    next_segment: int | None = None

    def counts(self) -> dict[str, int]:
        """Marks by kind."""
        found: dict[str, int] = {}
        for mark in self.marks:
            found[mark.kind] = found.get(mark.kind, 0) + 1
        return found


class MalformedEvent(ValueError):
    """Raised if an event is malformed."""


class _Head(msgspec.Struct):
    type: int
    timestamp: float | None = None


class _Pointer(msgspec.Struct):
    source: int
    type: int | None = None
    id: int | None = None
    x: float | None = None
    y: float | None = None


class _IncrementalEvent(msgspec.Struct):
    data: _Pointer


def _decode_head(raw: msgspec.Raw | bytes | bytearray) -> _Head:
    """Returns the type and time of an event.

    If the event is nested too deeply for the decoder, type and time are read from the event's first and last
    bytes.
    """
    try:
        return msgspec.json.decode(raw, type=_Head)
    except RecursionError:
        text = bytes(raw)
        began, ended = _first_fields.match(text), _last_field.search(text, max(0, len(text) - _LAST_FIELD_BYTES))
        at = (began and began[2]) or (ended and ended[1])
        if began is None or at is None:
            raise
        return _Head(int(began[1]), float(at))


class _Reader:
    """Collects marks from the events."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._characters = 0
        self.marks: list[Mark] = []
        self.memory: list[Memory] = []
        self.snapshots: list[int] = []
        self.start_ms: int | None = None
        self.end_ms = 0
        self.malformed = 0
        self.truncated = False
        self.segment_id = 0
        self.index = 0
        self._loaded_at: float | None = None
        self._clicks: dict[tuple[int, int], Mark] = {}
        self._pointer: list[Mark] = []

    def read_event(self, raw: msgspec.Raw | bytes | bytearray) -> None:
        try:
            head = _decode_head(raw)
            at_ms = _milliseconds(head.timestamp)
            if head.type in PLAYABLE_TYPES and (head.timestamp or 0) > UNIX_MILLISECONDS_MIN:
                self.start_ms = at_ms if self.start_ms is None else min(self.start_ms, at_ms)
                self.end_ms = max(self.end_ms, at_ms)
            if head.type in (META, CUSTOM):
                self._expect_affordable(memoryview(raw).nbytes)
            if head.type == FULL_SNAPSHOT:
                if len(self.snapshots) < MARKS_MAX:
                    self.snapshots.append(at_ms)
            elif head.type == INCREMENTAL:
                self._incremental(raw, at_ms)
            elif head.type == META:
                data = _dict(_dict(msgspec.json.decode(raw)).get("data"))
                size: Detail = {"width": _number(data.get("width")), "height": _number(data.get("height"))}
                self._add(Mark(at_ms, "page", self.segment_id, _text(data.get("href")), detail=size))
            elif head.type == CUSTOM:
                self._custom(_dict(_dict(msgspec.json.decode(raw)).get("data")), at_ms)
        except (msgspec.DecodeError, MalformedEvent, RecursionError, OverflowError):
            self.malformed += 1

    def _expect_affordable(self, size_bytes: int) -> None:
        if size_bytes > EVENT_BYTES_MAX:
            raise MalformedEvent(f"an event of {size_bytes} bytes")
        self._budget.spend(_UNITS_EVENT + _UNITS_BYTE * size_bytes)

    def finish(self, unreadable: dict[int, str], cut: dict[int, str]) -> Timeline:
        if not self._clicks:
            # Recordings without SDK breadcrumbs still contain mouse clicks.
            for mark in self._pointer:
                self._add(mark)
        self.marks.sort(key=lambda mark: mark.at_ms)
        self.marks = _navigations_merged(self.marks)
        self.memory.sort(key=lambda sample: sample.at_ms)
        if self.start_ms is None and self.marks:
            self.start_ms, self.end_ms = self.marks[0].at_ms, self.marks[-1].at_ms
        return Timeline(
            start_ms=self.start_ms or 0,
            end_ms=self.end_ms,
            marks=self.marks,
            memory=self.memory,
            snapshots=sorted(self.snapshots),
            malformed=self.malformed,
            unreadable=unreadable,
            truncated=self.truncated,
            cut=cut,
        )

    def _add(self, mark: Mark) -> bool:
        """Returns False if the limit was reached."""
        details = sum(
            len(key) + (len(value) if isinstance(value, str) else 8) for key, value in mark.detail.items()
        )
        both = (mark.captured.request, mark.captured.response) if mark.captured else ()
        details += sum(message.characters for message in both if message)
        self._characters += len(mark.title) + details
        mark.event = mark.event or self._event()
        if len(self.marks) >= MARKS_MAX or self._characters > CHARACTERS_MAX:
            self.truncated = True
            return False
        self.marks.append(mark)
        return True

    def _event(self) -> str:
        return f"{self.segment_id}-{self.index}"

    def _incremental(self, raw: msgspec.Raw | bytes | bytearray, at_ms: int) -> None:
        pointer = msgspec.json.decode(raw, type=_IncrementalEvent).data
        if pointer.source == MOUSE_INTERACTION and pointer.type == MOUSE_CLICK and len(self._pointer) < MARKS_MAX:
            detail: Detail = {"node": pointer.id, "x": pointer.x, "y": pointer.y}
            self._pointer.append(
                Mark(at_ms, "click", self.segment_id, "mouse click", detail=detail, event=self._event())
            )

    def _custom(self, data: dict[str, Any], at_ms: int) -> None:
        tag = data.get("tag")
        if tag == "breadcrumb":
            self._breadcrumb(_dict(data.get("payload")), at_ms)
        elif tag == "performanceSpan":
            self._span(_dict(data.get("payload")), at_ms)
        elif tag in ("options", "video"):
            title = "SDK options" if tag == "options" else "video"
            self._add(Mark(at_ms, tag, self.segment_id, title, detail=_scalars(_dict(data.get("payload")))))

    # Breadcrumbs

    def _breadcrumb(self, payload: dict[str, Any], event_ms: int) -> None:
        category = payload.get("category")
        seconds = payload.get("timestamp")
        at_ms = event_ms if seconds is None else _milliseconds(seconds)
        data = payload.get("data")
        if category in ("ui.click", "ui.slowClickDetected"):
            self._click(payload, _dict(data), at_ms, slow=category != "ui.click")
        elif category == "console":
            level = _text(payload.get("level"))
            rank = {"error": "bad", "fatal": "bad", "warning": "warn", "warn": "warn"}.get(level, "")
            self._add(
                Mark(
                    at_ms, "console", self.segment_id, _text(payload.get("message")), rank, detail={"level": level}
                )
            )
        elif category in _PLAIN:
            kind, level, title = _PLAIN[category]
            found = data if isinstance(data, dict) else {}
            self._add(Mark(at_ms, kind, self.segment_id, title(payload, found), level, detail=_scalars(found)))
        elif category in STATES:
            detail = _scalars(data) if isinstance(data, dict) else {}
            self._add(Mark(at_ms, "state", self.segment_id, _text(category), detail=detail))
        elif isinstance(category, str) and category and not category.startswith(SDK_CATEGORIES):
            kind, text = _KEYS.get(category, "breadcrumb"), _text(payload.get("message"))
            if kind == "breadcrumb":
                text = ": ".join(filter(None, (_text(category), text)))
            detail = _scalars(data) if isinstance(data, dict) else {}
            self._add(Mark(at_ms, kind, self.segment_id, text, detail=detail))

    def _click(self, payload: dict[str, Any], data: dict[str, Any], at_ms: int, *, slow: bool) -> None:
        """Adds a click. If a slow-click event for the same click follows, it updates the mark of the click,
        because both events have the same row identity.
        """
        node = _dict(data.get("node"))
        node_id = node.get("id")
        if type(node_id) is not int or node_id < 0:
            raise MalformedEvent("the node of a click has no id")
        kind, detail = "click", _node(node)
        if slow:
            waited = _amount(data, "timeAfterClickMs", "timeafterclickms")
            count = _amount(data, "clickCount", "clickcount")
            dead = (
                data.get("endReason") == "timeout"
                and node.get("tagName") in DEAD_CLICK_TAGS
                and waited >= DEAD_CLICK_MS_MIN
            )
            kind = ("rage_click" if count >= RAGE_CLICKS_MIN else "dead_click") if dead else "slow_click"
            detail |= {"clicks": count, "nothing for ms": waited, "ended by": _text(data.get("endReason"))}
        title = _text(payload.get("message")) or _text(node.get("tagName"))
        level = {"rage_click": "bad", "dead_click": "warn"}.get(kind, "")
        known = self._clicks.get((at_ms // 1000, node_id))
        if known is None:
            mark = Mark(at_ms, kind, self.segment_id, title, level, detail=detail)
            if self._add(mark):
                self._clicks[at_ms // 1000, node_id] = mark
            return
        known.times += not slow
        if CLICK_RANKS[kind] > CLICK_RANKS[known.kind]:
            known.kind, known.level = kind, level
            known.detail = known.detail | detail

    # Performance spans

    def _span(self, payload: dict[str, Any], event_ms: int) -> None:
        op, url = _text(payload.get("op")), _text(payload.get("description"))
        start, end = payload.get("startTimestamp"), payload.get("endTimestamp")
        at_ms = event_ms if start is None else _milliseconds(start)
        duration_ms = None if start is None or end is None else max(0, _milliseconds(end) - at_ms)
        given = payload.get("data")
        data: dict[str, Any] = given if isinstance(given, dict) else {}
        if op == "memory":
            found = data.get("memory")
            heap = found if isinstance(found, dict) else data
            sample = Memory(at_ms, _integer(heap.get("usedJSHeapSize")), _integer(heap.get("totalJSHeapSize")))
            if len(self.memory) < MARKS_MAX:
                self.memory.append(sample)
            else:
                self.truncated = True
        elif op in ("resource.fetch", "resource.xhr"):
            self._add(_request(op, url, data, at_ms, duration_ms, self.segment_id))
        elif op.startswith("resource."):
            status = _number(data.get("statusCode"))
            detail = {"type": op[9:], "status": status, "bytes": _number(data.get("size"))}
            self._add(
                Mark(at_ms, "asset", self.segment_id, url, _status_level(status), duration_ms, detail=detail)
            )
        elif op.startswith("navigation"):
            if op not in HISTORY_SPANS:
                self._loaded_at = at_ms / 1000
            self._add(Mark(at_ms, "navigation", self.segment_id, url, "", duration_ms, detail={"type": op}))
        elif op in ("web-vital", "paint") or op in WEB_VITALS:
            rating = _text(data.get("rating"))
            level = {"poor": "bad", "needs-improvement": "warn"}.get(rating, "")
            value = _number(data.get("value"))
            if value is None:
                value = _number(data.get("size"))
            if value is None and op == "paint":
                value = paint_ms(self._loaded_at, at_ms / 1000)
            self._add(Mark(at_ms, "vital", self.segment_id, url, level, detail={"value": value, "rating": rating}))


def read(segments: Iterable[tuple[int, bytes]], budget: Budget | None = None) -> Timeline:
    """Returns the timeline of these recordings, which are pairs (segment id, JSON) in segment order.

    The budget applies to all recordings together. Events read before an error or the end of the budget are
    included.
    """
    budget = Budget(VIEWER_UNITS) if budget is None else budget
    reader = _Reader(budget)
    unreadable: dict[int, str] = {}
    cut: dict[int, str] = {}
    for segment_id, recording in segments:
        reader.segment_id = segment_id
        try:
            for reader.index, event in enumerate(split(recording, budget)):
                reader.read_event(event)
        except BudgetExhausted as error:
            cut[segment_id] = str(error)
        except BudgetSpent:
            cut[segment_id] = "the rest is not read: too expensive"
        except BlobError as error:
            unreadable[segment_id] = str(error)
        recording = b""
    return reader.finish(unreadable, cut)


def add_errors(timeline: Timeline, errors: Sequence[ReportedError]) -> None:
    """Adds a mark for each of the first ERRORS_MAX errors, at the earliest time at which the error could have
    happened.
    """
    found = [
        Mark(
            round(1000 * one.since),
            "error",
            one.segment_id,
            one.error_id,
            "bad",
            detail={"within_ms": round(1000 * (one.until - one.since))},
        )
        for one in errors[:ERRORS_MAX]
    ]
    timeline.truncated = timeline.truncated or len(errors) > ERRORS_MAX
    timeline.marks = sorted([*timeline.marks, *found], key=lambda mark: mark.at_ms)


def _navigations_merged(marks: list[Mark]) -> list[Mark]:
    """Merges the marks of each navigation into one.

    SDKs report a history push as a breadcrumb and a span, and a page load as a span and an rrweb event. The span
    is kept because it has the complete URL, and additional fields of the other mark are added to it. `marks` are
    in chronological order.
    """
    kept: list[Mark] = []
    last: Mark | None = None  # the last navigation or page that was kept
    for mark in marks:
        if mark.kind in ("navigation", "page"):
            if last is not None and _is_same_navigation(last, mark):
                first, second = (last, mark) if "type" in last.detail else (mark, last)
                last.title, last.duration_ms = first.title, first.duration_ms
                last.detail = second.detail | first.detail
                continue
            last = mark
        kept.append(mark)
    return kept


def _is_same_navigation(one: Mark, other: Mark) -> bool:
    """Returns whether one of these two marks is a span and the other mark reports the same navigation."""
    if ("type" in one.detail) == ("type" in other.detail):
        return False
    span, companion = (one, other) if "type" in one.detail else (other, one)
    if companion.kind == "page":
        is_late = not 0 <= companion.at_ms - span.at_ms <= LOAD_MS_MAX
        return not is_late and companion.title == span.title
    return abs(one.at_ms - other.at_ms) <= PUSH_MS_MAX and span.title.endswith(companion.title)


Title = Callable[[dict[str, Any], dict[str, Any]], str]
_PLAIN: dict[str, tuple[str, str, Title]] = {
    "navigation": ("navigation", "", lambda _, data: _text(data.get("to"))),
    "ui.multiClick": ("multi_click", "", lambda payload, _: _text(payload.get("message"))),
    "ui.tap": ("tap", "", lambda payload, data: _text(payload.get("message")) or _text(data.get("view.id"))),
    "replay.hydrate-error": ("hydration_error", "bad", lambda _, data: _text(data.get("url"))),
    "replay.mutations": (
        "mutations",
        "warn",
        lambda _, data: f"{_text(str(data.get('count')))} mutations at once",
    ),
    "sentry.feedback": ("feedback", "", lambda _, data: f"feedback {_text(data.get('feedbackId'))}"),
}

KINDS = frozenset(
    (
        *(kind for kind, _, _ in _PLAIN.values()),
        *_KEYS.values(),
        *CLICK_RANKS,
        *(
            "asset",
            "breadcrumb",
            "console",
            "error",
            "navigation",
            "network",
            "options",
            "page",
            "state",
            "video",
            "vital",
        ),
    )
)
"""Every kind that a mark can have."""


def _request(
    op: str, url: str, data: dict[str, Any], at_ms: int, duration_ms: int | None, segment_id: int
) -> Mark:
    """SDK 7.44 and 7.45 wrote `requestBodySize`; later versions write `request.size`. The older key takes
    precedence."""

    def size(older: str, newer: str) -> int | None:
        value = data.get(older)
        if value is None:
            inner = data.get(newer)
            value = inner.get("size") if isinstance(inner, dict) else None
        try:
            return int(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            return None

    status = _number(data.get("statusCode"))
    detail: Detail = {
        "type": op[9:],
        "method": _text(data.get("method")) or "GET",
        "status": status,
        "request bytes": size("requestBodySize", "request"),
        "response bytes": size("responseBodySize", "response"),
    }
    if status == 0:  # what an SDK sends for a request that failed without a response
        detail["failed"] = "no response"
    level = "bad" if status == 0 else _status_level(status)
    captured = CapturedRequest(_http_message(data.get("request")), _http_message(data.get("response")))
    has_some = captured.request is not None or captured.response is not None
    return Mark(
        at_ms,
        "network",
        segment_id,
        url,
        level,
        duration_ms,
        detail=detail,
        captured=captured if has_some else None,
    )


def _http_message(value: Any) -> HttpMessage | None:
    """Returns the captured part of a request or response; None if no header, body or warning was captured."""
    if not isinstance(value, dict):
        return None
    headers = value.get("headers")
    meta = value.get("_meta")
    warnings = meta.get("warnings") if isinstance(meta, dict) else None
    body = value.get("body")
    text = "" if body is None else body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)
    found = HttpMessage(
        {name[:64]: _text(text) for name, text in list(headers.items())[:HEADERS_MAX]}
        if isinstance(headers, dict)
        else {},
        text[:BODY_CHARACTERS_MAX],
        [_text(one) for one in warnings[:DETAILS_MAX]] if isinstance(warnings, list) else [],
    )
    if len(text) > BODY_CHARACTERS_MAX:
        found.warnings.append("BODY_CUT")
    return found if found.headers or found.body or found.warnings else None


def _status_level(status: float | None) -> str:
    return "" if status is None or status < 400 else "warn" if status < 500 else "bad"


def _node(node: dict[str, Any]) -> Detail:
    attributes = node.get("attributes")
    named = attributes if isinstance(attributes, dict) else {}
    detail: Detail = {"element": _text(node.get("tagName")), "text": _text(node.get("textContent"))}
    for name in ("id", "class", "aria-label", "data-testid", "data-sentry-component"):
        if named.get(name):
            detail[name] = _text(named[name])
    return detail


def _amount(data: dict[str, Any], name: str, older_name: str) -> float:
    value = data.get(name) or data.get(older_name) or 0
    if type(value) is not int and type(value) is not float:
        raise MalformedEvent(f"{name} is not a number")
    return value


def _scalars(data: dict[str, Any]) -> Detail:
    """Returns the first DETAILS_MAX scalar fields."""
    found: Detail = {}
    for key, value in data.items():
        if len(found) < DETAILS_MAX and (value is None or isinstance(value, (str, int, float, bool))):
            found[key[:64]] = value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else value
    return found


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedEvent("an object was expected")
    return value


def _text(value: Any) -> str:
    return value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and abs(value) < 1e18 else None


def _integer(value: Any) -> int:
    number = _number(value)
    if number is None:
        raise MalformedEvent("a number was expected")
    return int(number)


def _milliseconds(value: Any) -> int:
    """Converts a time in seconds or milliseconds to Unix milliseconds; returns 0 if it is missing."""
    if value is None:
        return 0
    number = _number(value)
    if number is None:
        raise MalformedEvent("a time is not a number")
    return int(number if number > UNIX_MILLISECONDS_MIN else number * 1000)
