"""Interprets recording events: clicks, taps, facts, sizes.

A malformed event is skipped and does not affect the others. Categories and field names are those of the Sentry
JavaScript SDK and rrweb. Times are Unix seconds. Only the fields needed by a category are decoded: console
arguments and captured response bodies are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from ingest.core.parse.budget import Budget
from ingest.core.parse.events import (
    WRONG_DATA,
    BreadcrumbData,
    BreadcrumbPayload,
    Canvas,
    Custom,
    Event,
    Heap,
    MalformedEvent,
    Meta,
    Options,
    Span,
    SpanData,
    SpanPayload,
)
from ingest.core.parse.shapes import NULL
from ingest.core.parse.values import built, fields

__all__ = ["Click", "Fact", "MalformedEvent", "Meaning", "Size", "Tap", "meanings"]

DEAD_CLICK_TAGS = frozenset(("a", "button", "input"))
DEAD_CLICK_MS_MIN = 7000
RAGE_CLICKS_MIN = 5
TEXT_MAX, TITLE_MAX, ROLE_MAX, MESSAGE_MAX, CLASSES_MAX = 1024, 64, 32, 1024, 10
# Ten class names and the spaces between them, with some margin.
CLASSES_CHARACTERS_MAX = 2 * CLASSES_MAX * (TEXT_MAX + 1)
SCALAR_CHARACTERS_MAX = 2048
# Maximum number of characters in a byte count.
SIZE_CHARACTERS_MAX = 64
FIELDS_MAX = 16
UINT32_MAX = 2**32 - 1
NUMBER_MAX = 2.0**63  # a float, because comparing a float with a large int is slow
# Larger timestamps are in milliseconds. Interpreted as Unix seconds, this value falls in the year 5138.
UNIX_MILLISECONDS_MIN = 1e11

OPTION_KEYS = (
    "blockAllMedia",
    "errorSampleRate",
    "maskAllInputs",
    "maskAllText",
    "networkCaptureBodies",
    "networkDetailHasUrls",
    "networkRequestHasHeaders",
    "networkResponseHasHeaders",
    "sessionSampleRate",
    "shouldRecordCanvas",
    "useCompression",
    "useCompressionOption",
)
VIDEO_KEYS = ("size", "duration", "encoding", "container", "width", "height", "frameCount", "frameRate")
SDK_CATEGORIES = ("sentry.", "replay.")
# SDKs before version 10 send first-input-delay instead of interaction-to-next-paint.
WEB_VITALS = (
    "largest-contentful-paint",
    "first-contentful-paint",
    "cumulative-layout-shift",
    "interaction-to-next-paint",
    "first-input-delay",
)
PAINT_SECONDS_MAX = 3600.0
# Navigations without a page load.
HISTORY_SPANS = ("navigation.push", "navigation.replace")
# Initiator types of Resource Timing; requests are handled separately (`REQUESTS`).
ASSETS = (
    *("script", "img", "image", "link", "css", "iframe", "frame", "video", "audio", "track", "icon", "body"),
    *("embed", "object", "input", "beacon", "ping", "early-hints", "other"),
)
STATES = (
    "device.battery",
    "device.orientation",
    "device.connectivity",
    "ui.scroll",
    "ui.swipe",
    "app.background",
    "app.foreground",
)


class Click(msgspec.Struct, frozen=True, gc=False):
    """Data of a click row: its element, as in the fact of the same click, and the text that only the row has.
    Timestamps are Unix seconds; the whole seconds are part of the row's identity."""

    timestamp: int
    timestamp_exact: float
    alt: str
    element: ClickFact


class Tap(msgspec.Struct, frozen=True, gc=False):
    """Data of a tap row (mobile)."""

    timestamp: int
    message: str
    view_class: str
    view_id: str


class Fact(msgspec.Struct, frozen=True, gc=False):
    """Data of a fact row. `sampled`: "" if the fact is always stored, otherwise the unit of sampling, "segment" or
    "event"."""

    kind: str
    timestamp: float
    attributes: msgspec.Struct | dict[str, Any]
    sampled: str = ""


class Size(msgspec.Struct, frozen=True, gc=False):
    """Body sizes of a request and its response, in bytes; None if unknown."""

    request: int | None
    response: int | None


Meaning = Click | Tap | Fact | Size
Meanings = tuple[Meaning, ...]


# Attributes of facts. Durations are in seconds, and sizes are in bytes.


class Count(msgspec.Struct, frozen=True, gc=False):
    """Number of events in the segment, kept or not."""

    count: int


class Request(msgspec.Struct, frozen=True, gc=False):
    """resource.fetch, resource.xhr"""

    url: str
    duration: float | None
    method: str
    status_code: float | None
    request_size: int | None
    response_size: int | None


class Asset(msgspec.Struct, frozen=True, gc=False):
    """resource.script, resource.img"""

    url: str
    duration: float | None
    size: float | None
    encoded_body_size: float | None
    decoded_body_size: float | None
    status_code: float | None


class Navigation(msgspec.Struct, frozen=True, gc=False):
    """navigation.span"""

    url: str
    duration: float | None
    op: str


class Vital(msgspec.Struct, frozen=True, gc=False):
    """web-vital.*"""

    rating: str
    op: str
    size: float | None
    value: float | None


class ClickFact(msgspec.Struct, frozen=True, gc=False, rename={"classes": "class"}):
    """Attributes of ui.click, ui.deadClick, ui.rageClick and ui.slowClickDetected. Texts are truncated."""

    node_id: int
    tag: str
    selector: str
    text: str
    component_name: str
    url: str
    is_dead: int
    is_rage: int
    id: str
    classes: list[str]
    role: str
    testid: str
    aria_label: str
    title: str


class MultiClickFact(ClickFact, frozen=True, gc=False):
    """multi_click, rage_click"""

    click_count: float | None


class TapFact(msgspec.Struct, frozen=True, gc=False):
    """ui.tap"""

    message: str
    view_class: str
    view_id: str


class Key(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """Attributes of ui.input and ui.keyDown. Only ui.keyDown has the key and its modifiers."""

    selector: str
    node_id: int | None
    tag: str
    key: str | None = None
    meta: bool | None = None
    shift: bool | None = None
    ctrl: bool | None = None
    alt: bool | None = None


class Breadcrumb(msgspec.Struct, frozen=True, gc=False):
    """breadcrumb: a custom breadcrumb of the application. `data`: the breadcrumb's first scalar fields."""

    category: str
    level: str
    message: str
    data: dict[str, Any]


class Line(msgspec.Struct, frozen=True, gc=False):
    """console"""

    level: str
    message: str


class Page(msgspec.Struct, frozen=True, gc=False):
    """viewport, in pixels"""

    href: str
    width: float | None
    height: float | None


_WRONG_SHAPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def meanings(event: Event, budget: Budget) -> Meanings:
    """Returns the rows of this event; none for kinds that are not extracted. Raises MalformedEvent and
    BudgetSpent."""
    if isinstance(event, Custom):
        data = event.data
        if isinstance(data, Span):
            return _span(data.payload, event)
        try:
            if isinstance(data, BreadcrumbData):
                crumb = _CRUMBS.get(data.payload.category, _custom_crumb)
                return crumb(data.payload, event, budget)
            if isinstance(data, Options):
                found = fields(data.payload, budget, OPTION_KEYS)
                attributes = {key: _scalar(found[key]) for key in OPTION_KEYS if key in found}
                return (Fact("sdk_options", _event_seconds(event), attributes, "segment"),)
            found = fields(data.payload, budget, VIDEO_KEYS)
        except _WRONG_SHAPE as error:
            raise MalformedEvent(str(error)) from None
        return (Fact("mobile_event", _event_seconds(event), {key: _scalar(found.get(key)) for key in VIDEO_KEYS}),)
    if isinstance(event, Meta):
        page = event.data
        return (
            Fact("viewport", _event_seconds(event), Page((page.href or "")[:TEXT_MAX], page.width, page.height)),
        )
    assert isinstance(event, Canvas), event
    return (Fact("canvas_size", _event_seconds(event), {"size": event.size_bytes}, "segment"),)


# Breadcrumbs


def _click(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    click = _click_row(payload, _dict(built(payload.data, budget)), 0, 0)
    if isinstance(click, Fact):
        return (click,)
    return click, Fact("ui.click", click.timestamp_exact, click.element)


def _slow_click(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    """A click is a dead click if the page does not react for seven seconds, and also a rage click if repeated five
    times or more."""
    data = _dict(built(payload.data, budget))
    node = _dict(data.get("node"))
    count = _amount(data, "clickCount", "clickcount")
    dead = (
        (_amount(data, "timeAfterClickMs", "timeafterclickms") or 0) >= DEAD_CLICK_MS_MIN
        and data.get("endReason") == "timeout"
        and isinstance(node.get("tagName"), str)
        and node["tagName"] in DEAD_CLICK_TAGS
    )
    rage = dead and (count or 0) >= RAGE_CLICKS_MIN
    click = _click_row(payload, data, int(dead), int(rage))
    if isinstance(click, Fact):
        return (click,)
    seconds, element = click.timestamp_exact, click.element
    if rage:
        return (
            click,
            Fact("ui.rageClick", seconds, element),
            Fact("rage_click", seconds, MultiClickFact(*(*msgspec.structs.astuple(element), count)), "event"),
        )
    return click, Fact("ui.deadClick" if dead else "ui.slowClickDetected", seconds, element)


def _multi_click(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    data = _dict(built(payload.data, budget))
    click = _click_row(payload, data, 0, 0)
    if isinstance(click, Fact):
        return (click,)
    count = _amount(data, "clickCount", "clickcount")
    clicks = MultiClickFact(*(*msgspec.structs.astuple(click.element), count))
    return (Fact("multi_click", click.timestamp_exact, clicks, "event"),)


def _amount(data: dict[str, Any], name: str, older_name: str) -> float | None:
    """Returns the number with this name, or with the lower-case name that some versions of the SDKs and of Relay
    send; 0 if both are absent.

    Returns None for a number that sinks cannot hold.
    """
    value = data.get(name) or data.get(older_name) or 0
    if type(value) is not int and type(value) is not float:
        raise MalformedEvent(f"{name} is not a number")
    held: float | None = _scalar(value)
    return held


def _click_row(payload: BreadcrumbPayload, data: dict[str, Any], dead: int, rage: int) -> Click | Fact:
    """Returns the click or, if the click's node id is negative, a fact that reports this id. Raises
    MalformedEvent."""
    node = _dict(data.get("node"))
    node_id = node.get("id")
    if type(node_id) is not int or node_id > UINT32_MAX:
        raise MalformedEvent("the node of a click has no id")
    timestamp = _identifying_seconds(payload)
    if node_id < 0:
        return Fact("negative-click-node-id", timestamp, {"node_id": max(node_id, -(2**63))})
    attributes = node.get("attributes")
    named = attributes if isinstance(attributes, dict) else {}
    get = named.get
    element = ClickFact(
        node_id,
        _text(node.get("tagName"), ROLE_MAX),
        (payload.message or "")[:TEXT_MAX],
        _text(node.get("textContent"), TEXT_MAX),
        _text(get("data-sentry-component"), TITLE_MAX),
        _text(data.get("url"), TEXT_MAX),
        dead,
        rage,
        _text(get("id"), TITLE_MAX),
        _classes(get("class")),
        _text(get("role"), ROLE_MAX),
        _text(get("testId") or get("data-testid") or get("data-test-id"), TITLE_MAX),
        _text(get("aria-label"), TITLE_MAX),
        _text(get("title"), TITLE_MAX),
    )
    return Click(int(timestamp), timestamp, _text(get("alt"), TITLE_MAX), element)


def _classes(names: Any) -> list[str]:
    """Returns the first ten class names, bounded in length; an empty list if `names` is not a string."""
    if not isinstance(names, str):
        return []
    return [name[:TEXT_MAX] for name in names[:CLASSES_CHARACTERS_MAX].split(" ") if name][:CLASSES_MAX]


def _tap(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    data = fields(payload.data, budget, ("view.class", "view.id"))
    timestamp = _identifying_seconds(payload)
    tap = Tap(
        timestamp=int(timestamp),
        message=(payload.message or "")[:TEXT_MAX],
        view_class=_text(data.get("view.class"), TEXT_MAX),
        view_id=_text(data.get("view.id"), TEXT_MAX),
    )
    return tap, Fact("ui.tap", timestamp, TapFact(tap.message, tap.view_class, tap.view_id))


_CrumbHandler = Callable[[BreadcrumbPayload, Custom, Budget], Meanings]


def _crumb(kind: str, names: dict[str, str], sampled: str = "") -> _CrumbHandler:
    """Returns a handler that copies fields of a breadcrumb's data to attributes with these names. The data may be
    absent."""

    def make(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
        found = {} if payload.data is NULL or not names else fields(payload.data, budget, names)
        attributes = {name: _scalar(found.get(field)) for field, name in names.items()}
        return (Fact(kind, _seconds(payload.timestamp, event), attributes, sampled),)

    return make


def _console(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    line = Line((payload.level or "")[:ROLE_MAX], (payload.message or "")[:MESSAGE_MAX])
    return (Fact("console", _seconds(payload.timestamp, event), line),)


def _hydration(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    url = _text(_object_or_empty(payload, budget, ("url",)).get("url"), TEXT_MAX)
    return (Fact("hydration_error", _seconds(payload.timestamp, event), {"url": url}),)


def _key(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    data = _object_or_empty(payload, budget, ("nodeId", "node", "key", "metaKey", "shiftKey", "ctrlKey", "altKey"))
    given = data.get("node")
    node: dict[str, Any] = given if isinstance(given, dict) else {}
    node_id = data.get("nodeId", node.get("id"))
    key = data.get("key")
    held = (data.get(name) for name in ("metaKey", "shiftKey", "ctrlKey", "altKey"))
    attributes = Key(
        (payload.message or "")[:TEXT_MAX],
        _scalar(node_id) if type(node_id) is int else None,
        _text(node.get("tagName"), ROLE_MAX),
        _text(key, ROLE_MAX) if key is not None else None,
        *(value if isinstance(value, bool) else None for value in held),
    )
    return (Fact(payload.category or "", _seconds(payload.timestamp, event), attributes),)


def _custom_crumb(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    """A custom breadcrumb. All custom breadcrumbs are one kind of fact, because applications may use any number of
    categories.

    SDK categories become facts only if they are listed in `_CRUMBS`.
    """
    if not payload.category or payload.category.startswith(SDK_CATEGORIES):
        return ()
    found = islice(_object_or_empty(payload, budget, FIELDS_MAX).items(), FIELDS_MAX)
    attributes = Breadcrumb(
        payload.category[:TITLE_MAX],
        (payload.level or "")[:ROLE_MAX],
        (payload.message or "")[:MESSAGE_MAX],
        {key[:TITLE_MAX]: held for key, value in found if (held := _scalar(value)) is not None},
    )
    return (Fact("breadcrumb", _seconds(payload.timestamp, event), attributes),)


def _state(payload: BreadcrumbPayload, event: Custom, budget: Budget) -> Meanings:
    found = islice(_object_or_empty(payload, budget, FIELDS_MAX).items(), FIELDS_MAX)
    attributes = {key[:TITLE_MAX]: _scalar(value) for key, value in found}
    return (Fact(payload.category or "", _seconds(payload.timestamp, event), attributes),)


def _object_or_empty(payload: BreadcrumbPayload, budget: Budget, names: tuple[str, ...] | int) -> dict[str, Any]:
    """Returns the fields of the payload's data, or an empty dict if the data is not an object. The caller handles
    categories in which data of any type is valid."""
    try:
        return fields(payload.data, budget, names)
    except MalformedEvent:
        return {}


_CRUMBS: dict[str | None, _CrumbHandler] = {
    "ui.click": _click,
    "ui.slowClickDetected": _slow_click,
    "ui.multiClick": _multi_click,
    "ui.tap": _tap,
    "replay.hydrate-error": _hydration,
    "replay.mutations": _crumb("mutations", {"count": "count", "limit": "limit"}, "segment"),
    "navigation": _crumb("navigation", {"from": "from", "to": "to"}),
    "console": _console,
    "ui.blur": _crumb("ui.blur", {}),
    "ui.focus": _crumb("ui.focus", {}),
    "ui.input": _key,
    "ui.keyDown": _key,
    "sentry.feedback": _crumb("sentry.feedback", {"feedbackId": "feedback_id"}),
    **dict.fromkeys(STATES, _state),
}


# Performance spans


def _span(payload: SpanPayload, event: Custom) -> Meanings:
    op, data = payload.op or "", payload.data
    start, end = payload.startTimestamp, payload.endTimestamp
    if start is None:
        seconds, duration = _event_seconds(event), None
    else:
        seconds = start if start <= UNIX_MILLISECONDS_MIN else start / 1000
        duration = None
        if end is not None:
            duration = round((end if end <= UNIX_MILLISECONDS_MIN else end / 1000) - seconds, 6)
            if not -NUMBER_MAX < duration < NUMBER_MAX:
                duration = None
    if op in REQUESTS:
        return _request(payload, data or NO_DATA, seconds, duration)
    make = _DATA_SPANS.get(op)
    if make is None:
        if op.startswith("navigation"):
            url = (payload.description or "")[:TEXT_MAX]
            return (Fact("navigation.span", seconds, Navigation(url, duration, op[:64])),)
        if not op.startswith("resource."):
            return ()
        make = _asset
    if data is WRONG_DATA:
        raise MalformedEvent("the data of a span is not an object")
    return make(payload, data or NO_DATA, seconds, duration)


def _request(payload: SpanPayload, data: SpanData, seconds: float, duration: float | None) -> Meanings:
    """SDK 7.44 and 7.45 wrote `requestBodySize`; later versions write `request.size`. The older key takes
    precedence."""
    request, response = data.requestBodySize, data.responseBodySize
    if request is None and data.request is not None:
        request = data.request.size
    if response is None and data.response is not None:
        response = data.response.size
    request, response = _size(request), _size(response)
    attributes = Request(
        (payload.description or "")[:TEXT_MAX],
        duration,
        (data.method or "")[:ROLE_MAX],
        data.statusCode,
        request,
        response,
    )
    return Size(request, response), Fact(payload.op or "", seconds, attributes)


def _asset(payload: SpanPayload, data: SpanData, seconds: float, duration: float | None) -> Meanings:
    attributes = Asset(
        (payload.description or "")[:TEXT_MAX],
        duration,
        data.size,
        data.encodedBodySize,
        data.decodedBodySize,
        data.statusCode,
    )
    kind = payload.op or ""
    return (Fact(kind if kind in _ASSET_KINDS else "resource.other", seconds, attributes),)


def _vital(payload: SpanPayload, data: SpanData, seconds: float, _: float | None) -> Meanings:
    """The value is in milliseconds, or it is a score. The event of a first contentful paint carries no value;
    `gather` computes it."""
    if payload.description not in WEB_VITALS:
        return ()
    attributes = Vital((data.rating or "")[:ROLE_MAX], payload.op or "", data.size, data.value)
    return (Fact(f"web-vital.{payload.description}", seconds, attributes),)


def paint_ms(loaded_at: float | None, painted_at: float) -> float | None:
    """Milliseconds from the start of a page load (`loaded_at`) to a paint of that page (`painted_at`), both in
    Unix seconds. None if `loaded_at` is unknown, later than `painted_at`, or more than PAINT_SECONDS_MAX
    earlier."""
    load_seconds = painted_at - loaded_at if loaded_at is not None else -1.0
    return round(1000 * load_seconds, 3) if 0.0 <= load_seconds <= PAINT_SECONDS_MAX else None


def _memory(_: SpanPayload, data: SpanData, seconds: float, __: float | None) -> Meanings:
    """Older SDKs wrote the three numbers directly into the data."""
    heap = data.memory or Heap(data.jsHeapSizeLimit, data.totalJSHeapSize, data.usedJSHeapSize)
    if heap == NO_HEAP:
        raise MalformedEvent("a memory span without a number")
    return (Fact("memory", seconds, heap),)


NO_DATA, NO_HEAP = SpanData(), Heap()
REQUESTS = frozenset(("resource.fetch", "resource.xhr"))
_ASSET_KINDS = frozenset(f"resource.{asset}" for asset in ASSETS)
_DATA_SPANS: dict[str, Callable[[SpanPayload, SpanData, float, float | None], Meanings]] = {
    "web-vital": _vital,
    "paint": _vital,
    **dict.fromkeys(WEB_VITALS, _vital),  # SDK 7 puts the name on the span itself
    "memory": _memory,
    **dict.fromkeys(_ASSET_KINDS, _asset),
}


def _size(value: Any) -> int | None:
    """Returns the value as `int`, converted if it is a string; None if it is not a number."""
    if type(value) is not int:
        if isinstance(value, str) and len(value) > SIZE_CHARACTERS_MAX:
            return None
        try:
            value = int(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return value if -(2**63) <= value < 2**63 else None


# Values of any shape


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedEvent("an object was expected")
    return value


def _text(value: Any, length_max: int) -> str:
    return value[:length_max] if isinstance(value, str) else ""


def _scalar(value: Any) -> Any:
    """Returns a string of limited length, or a number that all sinks can hold; None for anything else."""
    if isinstance(value, str):
        return value[:SCALAR_CHARACTERS_MAX]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else None
    return value if isinstance(value, float) and -1e300 < value < 1e300 else None


def _seconds(payload_time: float | None, event: Custom) -> float:
    """Returns the payload's timestamp in Unix seconds or, if it has none, the timestamp of its event.
    Milliseconds, which some SDKs and pages send, are converted."""
    if payload_time is None:
        return _event_seconds(event)
    return payload_time / 1000 if payload_time > UNIX_MILLISECONDS_MIN else payload_time


def _identifying_seconds(payload: BreadcrumbPayload) -> float:
    """Returns the timestamp of a click or tap in Unix seconds; it is part of the identity of the click or tap.
    Raises MalformedEvent if it is missing."""
    time = payload.timestamp
    if time is None:
        raise MalformedEvent("a click or tap without a timestamp, which is part of its identity")
    return time / 1000 if time > UNIX_MILLISECONDS_MIN else time


def _event_seconds(event: Event) -> float:
    """The time of an event in Unix seconds; 0 if missing. Timestamps are in milliseconds, except those of spans,
    which are in seconds."""
    time = event.timestamp
    if time is None:
        return 0.0
    return time / 1000 if time > UNIX_MILLISECONDS_MIN else time
