"""What an event of a recording means: clicks, taps, facts, sizes.

A wrong shape anywhere costs that event alone. Categories and field names are those of the Sentry JavaScript SDK
and rrweb. Times are unix seconds. Only what a category needs is decoded: the arguments of a console message or the
body of a captured response are skipped, not built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ingest.core.parse.scan import Canvas, Custom, Event, Meta

DEAD_CLICK_TAGS = frozenset(("a", "button", "input"))
DEAD_CLICK_MS_MIN = 7000
RAGE_CLICKS_MIN = 5
TEXT_MAX, TITLE_MAX, ROLE_MAX, MESSAGE_MAX, CLASSES_MAX = 1024, 64, 32, 1024, 10
SCALAR_MAX = 2048
FIELDS_MAX = 16
UINT32_MAX = 2**32 - 1
# Above this a number of an event's own timestamp is milliseconds: as seconds it would be the year 5138.
MILLISECONDS_MIN = 1e11

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
HEAP_KEYS = ("jsHeapSizeLimit", "totalJSHeapSize", "usedJSHeapSize")
TESTID_KEYS = ("testId", "data-testid", "data-test-id")
WEB_VITALS = frozenset(
    ("largest-contentful-paint", "first-contentful-paint", "cumulative-layout-shift", "interaction-to-next-paint")
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


class Malformed(Exception):
    """This event has not the shape that its kind has."""


class Click(msgspec.Struct, frozen=True, gc=False):
    """One click row to be: texts are truncated, `timestamp` is in unix seconds."""

    timestamp: int
    node_id: int
    is_dead: int
    is_rage: int
    tag: str
    id: str
    classes: list[str]
    text: str
    role: str
    alt: str
    testid: str
    aria_label: str
    title: str
    component_name: str
    selector: str
    url: str


class Tap(msgspec.Struct, frozen=True, gc=False):
    """One tap row to be (mobile)."""

    timestamp: int
    message: str
    view_class: str
    view_id: str


class Fact(msgspec.Struct, frozen=True, gc=False):
    """One row of analytics to be. `sampled`: "" always, "segment" or "event" by that coin."""

    kind: str
    timestamp: float
    attributes: dict[str, Any]
    sampled: str = ""


class Size(msgspec.Struct, frozen=True, gc=False):
    """A request's and a response's body size in bytes, each None when unknown."""

    request: int | None
    response: int | None


Meaning = Click | Tap | Fact | Size
Meanings = tuple[Meaning, ...]


class _Payload(msgspec.Struct, gc=False):
    category: Any = None
    op: Any = None
    message: Any = None
    level: Any = None
    description: Any = None
    timestamp: Any = None
    startTimestamp: Any = None
    endTimestamp: Any = None
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Data(msgspec.Struct, gc=False):
    tag: Any = None
    payload: _Payload | None = None


class _Tagged(msgspec.Struct, gc=False):
    tag: Any = None
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _Side(msgspec.Struct, gc=False):
    size: Any = None


class _Request(msgspec.Struct, gc=False):
    method: Any = None
    statusCode: Any = None
    requestBodySize: Any = None
    responseBodySize: Any = None
    request: _Side | None = None
    response: _Side | None = None


class _Asset(msgspec.Struct, gc=False):
    size: Any = None
    encodedBodySize: Any = None
    decodedBodySize: Any = None
    statusCode: Any = None


class _Vital(msgspec.Struct, gc=False):
    rating: Any = None
    size: Any = None
    value: Any = None


class _Viewport(msgspec.Struct, gc=False):
    href: Any = None
    width: Any = None
    height: Any = None


_decode_data = msgspec.json.Decoder(_Data).decode
_decode_tagged = msgspec.json.Decoder(_Tagged).decode
_decode_request = msgspec.json.Decoder(_Request).decode
_decode_asset = msgspec.json.Decoder(_Asset).decode
_decode_vital = msgspec.json.Decoder(_Vital).decode
_decode_viewport = msgspec.json.Decoder(_Viewport).decode
_decode_any = msgspec.json.Decoder().decode
_WRONG_SHAPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def meanings(event: Event) -> Meanings:
    """What this event means, nothing for kinds that are not extracted. Raises Malformed."""
    try:
        if type(event) is Custom:
            return _custom(event)
        if type(event) is Meta:
            return _viewport(event)
    except _WRONG_SHAPE as error:
        raise Malformed(str(error)) from None
    assert type(event) is Canvas, event
    return (Fact("canvas_size", _own_seconds(event), {"size": event.size_bytes}, "segment"),)


def _viewport(event: Meta) -> Meanings:
    data = _decode_viewport(event.data)
    attributes = {
        "href": _text(data.href, TEXT_MAX),
        "width": _integer(data.width),
        "height": _integer(data.height),
    }
    return (Fact("viewport", _own_seconds(event), attributes),)


def _custom(event: Custom) -> Meanings:
    try:
        data = _decode_data(event.data)
    except msgspec.ValidationError:
        if _decode_tagged(event.data).tag in ("breadcrumb", "performanceSpan", "options", "video"):
            raise
        return ()
    tag, payload = data.tag, data.payload
    if tag == "performanceSpan":
        op = _payload(payload).op
        span = _SPANS.get(op) if isinstance(op, str) else None
        if span is not None:
            return span(_payload(payload), event)
        return _navigation_span(_payload(payload), event) if _is_navigation(op) else ()
    if tag == "breadcrumb":
        category = _payload(payload).category
        crumb = _CRUMBS.get(category) if isinstance(category, str) else None
        return crumb(_payload(payload), event) if crumb is not None else ()
    if tag == "options":
        options = _dict(_decode_any(_decode_tagged(event.data).payload))
        attributes = {key: _scalar(options[key]) for key in OPTION_KEYS if key in options}
        return (Fact("sdk_options", _own_seconds(event), attributes, "segment"),)
    if tag == "video":
        video = _dict(_decode_any(_decode_tagged(event.data).payload))
        return (Fact("mobile_event", _own_seconds(event), {key: _scalar(video.get(key)) for key in VIDEO_KEYS}),)
    return ()


def _payload(payload: _Payload | None) -> _Payload:
    if payload is None:
        raise Malformed("an event without a payload")
    return payload


# Breadcrumbs


def _click(payload: _Payload, event: Custom) -> Meanings:
    click = _click_row(payload, _dict(_decode_any(payload.data)), 0, 0)
    if isinstance(click, Fact):
        return (click,)
    return click, Fact("ui.click", _seconds(payload.timestamp, event), _click_attributes(click))


def _slow_click(payload: _Payload, event: Custom) -> Meanings:
    """Dead: nothing answered for seven seconds. Rage: and it was clicked five times or more meanwhile."""
    data = _dict(_decode_any(payload.data))
    node = _dict(data.get("node"))
    count = _amount(data, "clickCount", "clickcount")
    dead = (
        _amount(data, "timeAfterClickMs", "timeafterclickms") >= DEAD_CLICK_MS_MIN
        and data.get("endReason") == "timeout"
        and isinstance(node.get("tagName"), str)
        and node["tagName"] in DEAD_CLICK_TAGS
    )
    rage = dead and count >= RAGE_CLICKS_MIN
    click = _click_row(payload, data, int(dead), int(rage))
    if isinstance(click, Fact):
        return (click,)
    seconds, attributes = _seconds(payload.timestamp, event), _click_attributes(click)
    if rage:
        sampled = Fact("rage_click", seconds, {**attributes, "click_count": count}, "event")
        return click, Fact("ui.rageClick", seconds, attributes), sampled
    return click, Fact("ui.deadClick" if dead else "ui.slowClickDetected", seconds, attributes)


def _multi_click(payload: _Payload, event: Custom) -> Meanings:
    data = _dict(_decode_any(payload.data))
    click = _click_row(payload, data, 0, 0)
    if isinstance(click, Fact):
        return (click,)
    attributes = {**_click_attributes(click), "click_count": _amount(data, "clickCount", "clickcount")}
    return (Fact("multi_click", _seconds(payload.timestamp, event), attributes, "event"),)


def _amount(data: dict[str, Any], name: str, older_name: str) -> float:
    """A number by its name or, as some SDKs and Relays wrote it, in small letters; 0 when it is absent."""
    value = data.get(name) or data.get(older_name) or 0
    if type(value) is not int and type(value) is not float:
        raise Malformed(f"{name} is not a number")
    return value


def _click_row(payload: _Payload, data: dict[str, Any], dead: int, rage: int) -> Click | Fact:
    """The click, or the fact that its node is below 0. Raises Malformed."""
    node = _dict(data.get("node"))
    node_id = node.get("id")
    if type(node_id) is not int or node_id > UINT32_MAX:
        raise Malformed("the node of a click has no id")
    timestamp = _strict_seconds(payload.timestamp)
    if node_id < 0:
        return Fact("negative-click-node-id", timestamp, {"node_id": max(node_id, -(2**63))})
    attributes = node.get("attributes")
    named = attributes if isinstance(attributes, dict) else {}
    testid = next((named[key] for key in TESTID_KEYS if named.get(key)), "")
    classes = named.get("class")
    return Click(
        timestamp=int(timestamp),
        node_id=node_id,
        is_dead=dead,
        is_rage=rage,
        tag=_text(node.get("tagName"), ROLE_MAX),
        id=_text(named.get("id"), TITLE_MAX),
        classes=_classes(classes) if isinstance(classes, str) else [],
        text=_text(node.get("textContent"), TEXT_MAX),
        role=_text(named.get("role"), ROLE_MAX),
        alt=_text(named.get("alt"), TITLE_MAX),
        testid=_text(testid, TITLE_MAX),
        aria_label=_text(named.get("aria-label"), TITLE_MAX),
        title=_text(named.get("title"), TITLE_MAX),
        component_name=_text(named.get("data-sentry-component"), TITLE_MAX),
        selector=_text(payload.message, TEXT_MAX),
        url=_text(data.get("url"), TEXT_MAX),
    )


def _classes(names: str) -> list[str]:
    """The first ten, each bounded like any text: a page may have made up what it likes."""
    return [name[:TEXT_MAX] for name in names.split(" ") if name][:CLASSES_MAX]


def _click_attributes(click: Click) -> dict[str, Any]:
    return {
        "node_id": click.node_id,
        "tag": click.tag,
        "selector": click.selector,
        "text": click.text,
        "component_name": click.component_name,
        "url": click.url,
        "is_dead": click.is_dead,
        "is_rage": click.is_rage,
    }


def _tap(payload: _Payload, event: Custom) -> Meanings:
    data = _dict(_decode_any(payload.data))
    timestamp = _strict_seconds(payload.timestamp)
    tap = Tap(
        timestamp=int(timestamp),
        message=_text(payload.message, TEXT_MAX),
        view_class=_text(data.get("view.class"), TEXT_MAX),
        view_id=_text(data.get("view.id"), TEXT_MAX),
    )
    attributes = {"message": tap.message, "view_class": tap.view_class, "view_id": tap.view_id}
    return tap, Fact("ui.tap", timestamp, attributes)


_Make = Callable[[_Payload, Custom], Meanings]


def _crumb(kind: str, names: dict[str, str], sampled: str = "") -> _Make:
    """A breadcrumb whose attributes are fields of its data, by other names; the data may be absent."""

    def make(payload: _Payload, event: Custom) -> Meanings:
        data = _decode_any(payload.data) if names else None
        found = {} if data is None else _dict(data)
        attributes = {name: _scalar(found.get(field)) for field, name in names.items()}
        return (Fact(kind, _seconds(payload.timestamp, event), attributes, sampled),)

    return make


def _console(payload: _Payload, event: Custom) -> Meanings:
    attributes = {"level": _text(payload.level, ROLE_MAX), "message": _text(payload.message, MESSAGE_MAX)}
    return (Fact("console", _seconds(payload.timestamp, event), attributes),)


def _hydration(payload: _Payload, event: Custom) -> Meanings:
    data = _decode_any(payload.data)
    url = _text(data.get("url"), TEXT_MAX) if isinstance(data, dict) else ""
    return (Fact("hydration_error", _seconds(payload.timestamp, event), {"url": url}),)


def _state(payload: _Payload, event: Custom) -> Meanings:
    data = _decode_any(payload.data)
    fields = list(data.items())[:FIELDS_MAX] if isinstance(data, dict) else []
    attributes = {key[:TITLE_MAX]: _scalar(value) for key, value in fields}
    return (Fact(payload.category, _seconds(payload.timestamp, event), attributes),)


_CRUMBS: dict[str, _Make] = {
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
    "sentry.feedback": _crumb("sentry.feedback", {"feedbackId": "feedback_id"}),
    **dict.fromkeys(STATES, _state),
}


# Performance spans


def _is_navigation(op: Any) -> bool:
    return isinstance(op, str) and op.startswith("navigation")


def _navigation_span(payload: _Payload, event: Custom) -> Meanings:
    attributes = {
        "url": _text(payload.description, TEXT_MAX),
        "duration": _duration(payload),
        "op": payload.op[:TITLE_MAX],
    }
    return (Fact("navigation.span", _seconds(payload.startTimestamp, event), attributes),)


def _asset(payload: _Payload, event: Custom) -> Meanings:
    data = _decode_asset(payload.data)
    attributes = {
        "url": _text(payload.description, TEXT_MAX),
        "duration": _duration(payload),
        "size": _integer(data.size),
        "encoded_body_size": _integer(data.encodedBodySize),
        "decoded_body_size": _integer(data.decodedBodySize),
        "status_code": _integer(data.statusCode),
    }
    return (Fact(payload.op, _seconds(payload.startTimestamp, event), attributes),)


def _vital(payload: _Payload, event: Custom) -> Meanings:
    name = payload.description
    if not isinstance(name, str) or name not in WEB_VITALS:
        return ()
    data = _decode_vital(payload.data)
    attributes = {
        "rating": _text(data.rating, ROLE_MAX),
        "op": payload.op,
        "size": _number(data.size),
        "value": _number(data.value),
    }
    return (Fact(f"web-vital.{name}", _seconds(payload.startTimestamp, event), attributes),)


def _memory(payload: _Payload, event: Custom) -> Meanings:
    data = _dict(_decode_any(payload.data))
    heap = data["memory"] if isinstance(data.get("memory"), dict) else data
    attributes = {name: _integer(heap.get(name)) for name in HEAP_KEYS}
    return (Fact("memory", _seconds(payload.startTimestamp, event), attributes),)


def _request(payload: _Payload, event: Custom) -> Meanings:
    try:
        data = _decode_request(payload.data)
    except msgspec.ValidationError:
        data = _odd_request(_decode_any(payload.data))
    # SDK 7.44 and 7.45 wrote `requestBodySize`; later ones `request.size`. The older key wins.
    request, response = data.requestBodySize, data.responseBodySize
    if request is None and data.request is not None:
        request = data.request.size
    if response is None and data.response is not None:
        response = data.response.size
    size = Size(_size(request), _size(response))
    attributes = {
        "url": _text(payload.description, TEXT_MAX),
        "method": _text(data.method, ROLE_MAX),
        "status_code": _integer(data.statusCode),
        "duration": _duration(payload),
        "request_size": size.request,
        "response_size": size.response,
    }
    return size, Fact(payload.op, _seconds(payload.startTimestamp, event), attributes)


def _odd_request(data: Any) -> _Request:
    """The data of a request when it, or one of its sides, is no object: what is not readable is unknown."""
    data = data if isinstance(data, dict) else {}
    sides = {name: data.get(name) for name in ("request", "response")}
    return _Request(
        method=data.get("method"),
        statusCode=data.get("statusCode"),
        requestBodySize=data.get("requestBodySize"),
        responseBodySize=data.get("responseBodySize"),
        **{name: _Side(side.get("size")) for name, side in sides.items() if isinstance(side, dict)},
    )


def _size(value: Any) -> int | None:
    """What `int()` makes of it, or None: sizes come as numbers and as text."""
    if type(value) is not int:
        try:
            value = int(value)
        except (TypeError, ValueError, OverflowError):
            return None
    return value if -(2**63) <= value < 2**63 else None


def _duration(payload: _Payload) -> float | None:
    """Seconds."""
    start, end = _number(payload.startTimestamp), _number(payload.endTimestamp)
    return None if start is None or end is None else round(end - start, 6)


_SPANS: dict[str, _Make] = {
    "resource.fetch": _request,
    "resource.xhr": _request,
    "resource.script": _asset,
    "resource.img": _asset,
    "web-vital": _vital,
    "paint": _vital,
    "memory": _memory,
}


# Values of any shape


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed("an object was expected")
    return value


def _text(value: Any, length_max: int) -> str:
    return value[:length_max] if isinstance(value, str) else ""


def _number(value: Any) -> float | int | None:
    """A number that a double can hold, or None."""
    kind = type(value)
    return value if (kind is float or kind is int) and -1e300 < value < 1e300 else None


def _integer(value: Any) -> int | None:
    kind = type(value)
    return int(value) if (kind is int or kind is float) and -(2**63) <= value < 2**63 else None


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return value[:SCALAR_MAX]
    return value if value is None or isinstance(value, bool) else _number(value)


def _strict_seconds(value: Any) -> float | int:
    """The time of a click or tap, which is part of its identity: nothing can stand in for it."""
    number = _number(value)
    if number is None:
        raise Malformed("a click or tap without a timestamp")
    return number


def _seconds(payload_seconds: Any, event: Custom) -> float:
    """Unix seconds: what the payload says, or its event does."""
    number = _number(payload_seconds)
    return _own_seconds(event) if number is None else number


def _own_seconds(event: Event) -> float:
    """Unix seconds of an event, which counts milliseconds, except on spans; 0 when it says nothing."""
    number = _number(event.timestamp)
    if number is None:
        return 0.0
    return number / 1000 if number > MILLISECONDS_MIN else number
