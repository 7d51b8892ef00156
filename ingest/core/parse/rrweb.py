"""What each event of a recording means.

`scan` walks the array once and hands on only what says something: Sentry's custom events (type 5), canvas
mutations (type 3, source 9) and viewports (type 4); everything else is skipped without being built. `meanings`
says what one of them means. A wrong shape anywhere costs that event alone. Categories and field names are those of
the Sentry JavaScript SDK and rrweb; seconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

CUSTOM, INCREMENTAL, META = 5, 3, 4
CANVAS_MUTATION = 9
_SOURCE_FIRST = b'{"source":'

DEAD_CLICK_TAGS = frozenset(("a", "button", "input"))
DEAD_CLICK_MS_MIN = 7000
RAGE_CLICKS_MIN = 5
TEXT_MAX, TITLE_MAX, ROLE_MAX, MESSAGE_MAX, CLASSES_MAX = 1024, 64, 32, 1024, 10
UINT32_MAX = 2**32 - 1

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
WEB_VITALS = frozenset(
    ("largest-contentful-paint", "first-contentful-paint", "cumulative-layout-shift", "interaction-to-next-paint")
)
STATES = frozenset(
    (
        "device.battery",
        "device.orientation",
        "device.connectivity",
        "ui.scroll",
        "ui.swipe",
        "app.background",
        "app.foreground",
    )
)


class Malformed(Exception):
    """This event has not the shape that its kind has."""


class _Event(msgspec.Struct, gc=False):
    type: int = -1
    timestamp: float = 0.0
    data: msgspec.Raw = msgspec.Raw(b"null")


class _Payload(msgspec.Struct, gc=False):
    category: Any = None
    op: Any = None
    message: Any = None
    level: Any = None
    description: Any = None
    timestamp: Any = None
    startTimestamp: Any = None
    endTimestamp: Any = None
    data: Any = None


class _Custom(msgspec.Struct, gc=False):
    tag: Any = None
    payload: msgspec.Raw = msgspec.Raw(b"null")


class _Incremental(msgspec.Struct, gc=False):
    source: Any = None


class Interesting(msgspec.Struct, gc=False):
    """One event worth a look: its place in the array, rrweb type, timestamp in milliseconds and data (JSON)."""

    index: int
    type: int
    timestamp_ms: float
    data: bytes | memoryview | msgspec.Raw


class Click(msgspec.Struct, frozen=True, gc=False):
    """One click row to be: texts are truncated, `timestamp` is in unix seconds."""

    timestamp: int
    node_id: int
    is_dead: int
    is_rage: int
    tag: str
    id: str
    classes: tuple[str, ...]
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

_decode_events = msgspec.json.Decoder(list[_Event]).decode
_decode_raws = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_event = msgspec.json.Decoder(_Event).decode
_decode_custom = msgspec.json.Decoder(_Custom).decode
_decode_payload = msgspec.json.Decoder(_Payload).decode
_decode_source = msgspec.json.Decoder(_Incremental).decode
_decode_any = msgspec.json.Decoder().decode
_SHAPE_ERRORS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def scan(raw: bytes, canvas: bool) -> tuple[list[Interesting], int, int]:
    """(events worth a look, events in all, malformed ones). Canvas mutations, a look each, only if `canvas`.

    Raises msgspec.DecodeError (or ValidationError) when `raw` is no JSON array, RecursionError when it is nested
    too deeply.
    """
    malformed = 0
    try:
        events: list[Any] = _decode_events(raw)
    except (msgspec.ValidationError, UnicodeDecodeError):
        events = []
        for item in _decode_raws(raw):
            try:
                events.append(_decode_event(item))
            except _SHAPE_ERRORS:
                events.append(None)
                malformed += 1
    found = []
    for index, event in enumerate(events):
        if event is None:
            continue
        kind = event.type
        if kind in (CUSTOM, META) or (canvas and kind == INCREMENTAL and _is_canvas(event.data)):
            found.append(Interesting(index, kind, event.timestamp, event.data))
    return found, len(events), malformed


def _is_canvas(data: msgspec.Raw) -> bool:
    """rrweb writes `source` first, so its digit mostly answers; any other order is decoded."""
    head = bytes(memoryview(data)[:12])
    if head.startswith(_SOURCE_FIRST) and head[11:12] in (b",", b"}"):
        return head[10:11] == b"9"
    try:
        return bool(_decode_source(data).source == CANVAS_MUTATION)
    except _SHAPE_ERRORS:
        return False


def meanings(event: Interesting) -> Iterator[Meaning]:
    """What this event means, nothing for kinds that are not extracted. Raises Malformed."""
    try:
        if event.type == META:
            yield _viewport(event)
        elif event.type == INCREMENTAL:
            size = len(memoryview(event.data))
            yield Fact("canvas_size", _seconds(None, event), {"size": size}, "segment")
        else:
            yield from _custom(event)
    except _SHAPE_ERRORS as error:
        raise Malformed(str(error)) from None


def _viewport(event: Interesting) -> Fact:
    data = _dict(_decode_any(event.data))
    attributes: dict[str, Any] = {"href": _text(data.get("href"), TEXT_MAX)}
    attributes.update({name: _integer(data.get(name)) for name in ("width", "height")})
    return Fact("viewport", _seconds(None, event), attributes)


def _custom(event: Interesting) -> Iterator[Meaning]:
    custom = _decode_custom(event.data)
    if custom.tag == "breadcrumb":
        payload = _decode_payload(custom.payload)
        make = _CRUMBS.get(payload.category) if isinstance(payload.category, str) else None
        if make is not None:
            yield from make(payload, event)
    elif custom.tag == "performanceSpan":
        payload = _decode_payload(custom.payload)
        if isinstance(payload.op, str):
            yield from _span(payload, event)
    elif custom.tag == "options":
        options = _dict(_decode_any(custom.payload))
        attributes = {key: options[key] for key in OPTION_KEYS if key in options}
        yield Fact("sdk_options", _seconds(None, event), attributes, "segment")
    elif custom.tag == "video":
        video = _dict(_decode_any(custom.payload))
        names = ("size", "duration", "encoding", "container", "width", "height", "frameCount", "frameRate")
        yield Fact("mobile_event", _seconds(None, event), {name: video.get(name) for name in names})


# Breadcrumbs


def _click(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    click = _click_row(payload, 0, 0)
    yield click
    if isinstance(click, Click):
        yield Fact("ui.click", _seconds(payload.timestamp, event), _click_attributes(click))


def _slow_click(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    data = _dict(payload.data)
    node = _dict(data.get("node"))
    after_ms = _number(data.get("timeAfterClickMs", data.get("timeafterclickms")))
    count = _number(data.get("clickCount", data.get("clickcount"))) or 0
    dead = (
        data.get("endReason") == "timeout"
        and node.get("tagName") in DEAD_CLICK_TAGS
        and after_ms is not None
        and after_ms >= DEAD_CLICK_MS_MIN
    )
    rage = dead and count >= RAGE_CLICKS_MIN
    click = _click_row(payload, int(dead), int(rage))
    yield click
    if not isinstance(click, Click):
        return
    seconds, attributes = _seconds(payload.timestamp, event), _click_attributes(click)
    kind = "ui.rageClick" if rage else "ui.deadClick" if dead else "ui.slowClickDetected"
    yield Fact(kind, seconds, attributes)
    if rage:
        yield Fact("rage_click", seconds, {**attributes, "click_count": count}, "event")


def _multi_click(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    click = _click_row(payload, 0, 0)
    if isinstance(click, Click):
        count = _integer(_dict(payload.data).get("clickCount"))
        attributes = {**_click_attributes(click), "click_count": count}
        yield Fact("multi_click", _seconds(payload.timestamp, event), attributes, "event")
    else:
        yield click


def _click_row(payload: _Payload, dead: int, rage: int) -> Click | Fact:
    """The click, or the fact that its node is below 0. Raises Malformed."""
    data = _dict(payload.data)
    node = _dict(data.get("node"))
    node_id = node.get("id")
    if type(node_id) is not int or node_id > UINT32_MAX:
        raise Malformed("the node of a click has no id")
    timestamp = _number(payload.timestamp)
    if timestamp is None:
        raise Malformed("a click without a timestamp")
    if node_id < 0:
        return Fact("negative-click-node-id", timestamp, {"node_id": node_id})
    attributes = node.get("attributes")
    named = attributes if isinstance(attributes, dict) else {}
    testid = ""
    for key in ("testId", "data-testid", "data-test-id"):
        if named.get(key):
            testid = _text(named[key], TITLE_MAX)
            break
    classes = named.get("class")
    return Click(
        timestamp=int(timestamp),
        node_id=node_id,
        is_dead=dead,
        is_rage=rage,
        tag=_text(node.get("tagName"), ROLE_MAX),
        id=_text(named.get("id"), TITLE_MAX),
        classes=tuple(part for part in classes.split(" ") if part)[:CLASSES_MAX]
        if isinstance(classes, str)
        else (),
        text=_text(node.get("textContent"), TEXT_MAX),
        role=_text(named.get("role"), ROLE_MAX),
        alt=_text(named.get("alt"), TITLE_MAX),
        testid=testid,
        aria_label=_text(named.get("aria-label"), TITLE_MAX),
        title=_text(named.get("title"), TITLE_MAX),
        component_name=_text(named.get("data-sentry-component"), TITLE_MAX),
        selector=_text(payload.message, TEXT_MAX),
        url=_text(data.get("url"), TEXT_MAX),
    )


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


def _tap(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    data = _dict(payload.data)
    timestamp = _number(payload.timestamp)
    if timestamp is None:
        raise Malformed("a tap without a timestamp")
    tap = Tap(
        timestamp=int(timestamp),
        message=_text(payload.message, TEXT_MAX),
        view_class=_text(data.get("view.class"), TEXT_MAX),
        view_id=_text(data.get("view.id"), TEXT_MAX),
    )
    yield tap
    attributes = {"message": tap.message, "view_class": tap.view_class, "view_id": tap.view_id}
    yield Fact("ui.tap", _seconds(timestamp, event), attributes)


def _crumb(
    kind: str, names: dict[str, str], sampled: str = ""
) -> Callable[[_Payload, Interesting], Iterator[Meaning]]:
    """A breadcrumb whose attributes are fields of its data, by other names; the data may be absent."""

    def make(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
        data = _dict(payload.data) if names and payload.data is not None else {}
        attributes = {name: _scalar(data.get(field)) for field, name in names.items()}
        yield Fact(kind, _seconds(payload.timestamp, event), attributes, sampled)

    return make


def _console(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    attributes = {"level": _text(payload.level, ROLE_MAX), "message": _text(payload.message, MESSAGE_MAX)}
    yield Fact("console", _seconds(payload.timestamp, event), attributes)


def _hydration(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    data = payload.data if isinstance(payload.data, dict) else {}
    url = _text(data.get("url"), TEXT_MAX)
    yield Fact("hydration_error", _seconds(payload.timestamp, event), {"url": url})


def _state(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    data = payload.data if isinstance(payload.data, dict) else {}
    attributes = {str(key)[:64]: _scalar(value) for key, value in list(data.items())[:16]}
    yield Fact(str(payload.category), _seconds(payload.timestamp, event), attributes)


_CRUMBS: dict[str, Callable[[_Payload, Interesting], Iterator[Meaning]]] = {
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


def _span(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    op = payload.op
    if op in ("resource.fetch", "resource.xhr"):
        yield from _request(payload, event)
    elif op in ("resource.script", "resource.img"):
        data = _dict(payload.data)
        attributes = {"url": _text(payload.description, TEXT_MAX), "duration": _duration(payload)}
        for field, name in (
            ("size", "size"),
            ("encodedBodySize", "encoded_body_size"),
            ("decodedBodySize", "decoded_body_size"),
            ("statusCode", "status_code"),
        ):
            attributes[name] = _integer(data.get(field))
        yield Fact(op, _seconds(payload.startTimestamp, event), attributes)
    elif op.startswith("navigation"):
        attributes = {"url": _text(payload.description, TEXT_MAX), "duration": _duration(payload), "op": op[:64]}
        yield Fact("navigation.span", _seconds(payload.startTimestamp, event), attributes)
    elif op in ("web-vital", "paint") and payload.description in WEB_VITALS:
        data = _dict(payload.data)
        attributes = {"rating": _text(data.get("rating"), ROLE_MAX), "op": op}
        attributes.update({name: _number(data.get(name)) for name in ("size", "value")})
        yield Fact(f"web-vital.{payload.description}", _seconds(payload.startTimestamp, event), attributes)
    elif op == "memory":
        data = _dict(payload.data)
        heap = data["memory"] if isinstance(data.get("memory"), dict) else data
        names = ("jsHeapSizeLimit", "totalJSHeapSize", "usedJSHeapSize")
        yield Fact(
            "memory", _seconds(payload.startTimestamp, event), {name: _integer(heap.get(name)) for name in names}
        )


def _request(payload: _Payload, event: Interesting) -> Iterator[Meaning]:
    data = payload.data if isinstance(payload.data, dict) else {}
    size = Size(_body_size(data, "request"), _body_size(data, "response"))
    yield size
    attributes = {
        "url": _text(payload.description, TEXT_MAX),
        "method": _text(data.get("method"), ROLE_MAX),
        "status_code": _integer(data.get("statusCode")),
        "duration": _duration(payload),
        "request_size": size.request,
        "response_size": size.response,
    }
    yield Fact(str(payload.op), _seconds(payload.startTimestamp, event), attributes)


def _body_size(data: dict[str, Any], side: str) -> int | None:
    """SDK 7.44 and 7.45 wrote `requestBodySize`; later ones `request.size`. The older key wins."""
    old = data.get(f"{side}BodySize")
    if old is not None:
        return _integer(old)
    new = data.get(side)
    return _integer(new.get("size")) if isinstance(new, dict) else None


def _duration(payload: _Payload) -> float | None:
    """Seconds."""
    start, end = _number(payload.startTimestamp), _number(payload.endTimestamp)
    return None if start is None or end is None else round(end - start, 6)


# Values of any shape


def _dict(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Malformed("an object was expected")
    return value


def _text(value: Any, length_max: int) -> str:
    return value[:length_max] if isinstance(value, str) else ""


def _number(value: Any) -> float | int | None:
    """A finite number, or text that says one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if -1e300 < value < 1e300 else None


def _integer(value: Any) -> int | None:
    number = _number(value)
    return None if number is None or not -(2**63) <= number < 2**63 else int(number)


def _scalar(value: Any) -> Any:
    if isinstance(value, str):
        return value[:TEXT_MAX]
    return value if value is None or isinstance(value, bool) else _number(value)


def _seconds(payload_seconds: Any, event: Interesting) -> float:
    """Unix seconds: what the payload says, or the event, which counts milliseconds (seconds on spans)."""
    number = _number(payload_seconds)
    if number is not None:
        return float(number)
    return event.timestamp_ms / 1000 if event.timestamp_ms > 1e11 else event.timestamp_ms
