"""Builders of Kafka messages for tests, from a single breadcrumb up to the msgpack value.

    envelope(frame(recording([click_event(node_id=7), hydration_error_event()]), segment_id=3))

Each builder takes keyword arguments for the fields that a test needs, and has realistic defaults for all others.
Every field accepts any value, so malformed messages can be built in the same way as valid ones. The results are
deterministic and do not depend on the current time.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

RRwebEvent = dict[str, Any]

REPLAY_ID = "515539018c9b4260a6f999572f1661ee"
RECEIVED = 1_790_000_000
"""Default time of everything that is built, in Unix seconds."""
ENVELOPE_TYPE = "replay_recording_not_chunked"
LEFT_OUT: Any = ...
"""A field of `envelope` with this value is omitted."""

_json = msgspec.json.Encoder().encode


# The Kafka value


def envelope(payload: Any, **fields: Any) -> bytes:
    """Returns the msgpack map in which Relay sends a payload. Fields set to LEFT_OUT are omitted."""
    fields_sent = {
        "type": ENVELOPE_TYPE,
        "replay_id": REPLAY_ID,
        "key_id": 7,
        "org_id": 1,
        "project_id": 11,
        "received": RECEIVED,
        "retention_days": 30,
        "payload": payload,
        "replay_event": replay_event(),
        "replay_video": None,
        "version": 1,
        "relay_snuba_publish_disabled": True,
        **fields,
    }
    return msgspec.msgpack.encode({name: value for name, value in fields_sent.items() if value is not LEFT_OUT})


def frame(body: bytes, segment_id: int = 0, *, headers: bytes | None = None) -> bytes:
    """Returns the payload, which consists of a header line, given or generated, and the body."""
    line = b'{"segment_id":%d}' % segment_id if headers is None else headers
    return line + b"\n" + body


def body(events: Sequence[Any] | bytes, *, compressed: bool = True) -> bytes:
    """Returns the rrweb events, or the given bytes, as a zlib stream or uncompressed."""
    text = events if isinstance(events, bytes) else _json(events)
    return zlib.compress(text) if compressed else text


def recording(
    events: Sequence[Any] | bytes = (), segment_id: int = 0, *, compressed: bool = True, **fields: Any
) -> bytes:
    """Returns a whole message with these rrweb events, or with these bytes in place of the events."""
    return envelope(frame(body(events, compressed=compressed), segment_id), **fields)


def video_recording(
    video: bytes = b"\x00\x00\x00\x18ftypmp42",
    events: Sequence[Any] | bytes = (),
    segment_id: int = 0,
    **fields: Any,
) -> bytes:
    """Returns a whole message of a mobile replay."""
    return recording(events or [video_event(size=len(video))], segment_id, replay_video=video, **fields)


def replay_event(**fields: Any) -> bytes:
    """Returns the replay event, the JSON document that describes the session.

    Fields set to LEFT_OUT are omitted.
    """
    fields_sent = {
        "type": "replay_event",
        "replay_id": REPLAY_ID,
        "replay_type": "session",
        "segment_id": 0,
        "timestamp": RECEIVED + 0.25,
        "replay_start_timestamp": RECEIVED - 5.0,
        "urls": ["https://shop.example/"],
        "error_ids": ["d5ec6b0a0a8f4d2b9f6e2e0fd3b9c1aa"],
        "trace_ids": [],
        "platform": "javascript",
        "release": "shop@4.12.0",
        "environment": "production",
        "dist": "42",
        "tags": [["plan", "gold"]],
        "user": {
            "id": "u-1",
            "username": "ada",
            "email": "ada@shop.example",
            "ip_address": "192.0.2.7",
            "geo": {"city": "Porto", "country_code": "PT", "region": "Portugal", "subdivision": "Norte"},
        },
        "sdk": {"name": "sentry.javascript.react", "version": "9.40.0"},
        "contexts": {
            "browser": {"name": "Firefox", "version": "143.0"},
            "os": {"name": "Linux", "version": ""},
            "device": {"name": "Pixel", "brand": "Google", "family": "Pixel", "model": "9"},
            "replay": {"error_sample_rate": 1.0, "session_sample_rate": 0.1},
        },
        **fields,
    }
    return _json({name: value for name, value in fields_sent.items() if value is not LEFT_OUT})


# rrweb events


def custom_event(tag: Any, payload: Any, timestamp: Any = RECEIVED * 1000) -> RRwebEvent:
    """Returns a custom event of the SDK (type 5)."""
    return {"type": 5, "timestamp": timestamp, "data": {"tag": tag, "payload": payload}}


def viewport_event(href: str = "https://shop.example/", width: Any = 1280, height: Any = 720) -> RRwebEvent:
    """Returns an event with the URL and the size of the page (type 4)."""
    return {"type": 4, "timestamp": RECEIVED * 1000, "data": {"href": href, "width": width, "height": height}}


def snapshot_event(children: Sequence[Any] = ()) -> RRwebEvent:
    """Returns a full snapshot of a page (type 2)."""
    document = {"type": 0, "id": 1, "childNodes": list(children)}
    return {"type": 2, "timestamp": RECEIVED * 1000, "data": {"node": document, "initialOffset": {"top": 0}}}


def mutation_event(count: int = 1) -> RRwebEvent:
    """Returns an incremental snapshot with changed text (type 3, source 0)."""
    texts = [{"id": number, "value": "text"} for number in range(count)]
    return {"type": 3, "timestamp": RECEIVED * 1000, "data": {"source": 0, "texts": texts}}


def canvas_event(commands: int = 1) -> RRwebEvent:
    """Returns a canvas mutation (type 3, source 9)."""
    drawn = [{"property": "fillRect", "args": [0, 0, 1, 1]}] * commands
    return {"type": 3, "timestamp": RECEIVED * 1000, "data": {"source": 9, "id": 4, "type": 0, "commands": drawn}}


# Breadcrumbs


def breadcrumb(category: Any, data: Any = LEFT_OUT, **fields: Any) -> RRwebEvent:
    """Returns a breadcrumb with that category."""
    payload = {"type": "default", "category": category, "timestamp": RECEIVED + 0.5, "data": data, **fields}
    return custom_event("breadcrumb", {name: value for name, value in payload.items() if value is not LEFT_OUT})


def node(node_id: Any = 7, tag: Any = "button", **attributes: Any) -> dict[str, Any]:
    """Returns a clicked node. Underscores in attribute names become hyphens."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    return {"id": node_id, "tagName": tag, "textContent": "Buy now", "attributes": named}


def click_event(node_id: Any = 7, tag: Any = "button", attributes: Mapping[str, Any] | None = None) -> RRwebEvent:
    """Returns a `ui.click` breadcrumb."""
    clicked = {**node(node_id, tag), "attributes": dict(attributes or {})}
    data = {"nodeId": node_id, "node": clicked, "url": "https://shop.example/"}
    return breadcrumb("ui.click", data, message="div > button.buy")


def slow_click_event(node_id: Any = 7, tag: Any = "button", **data: Any) -> RRwebEvent:
    """Returns `ui.slowClickDetected` for a click to which the page eventually reacted."""
    fields_sent = {
        "node": node(node_id, tag),
        "url": "https://shop.example/",
        "route": "/",
        "timeAfterClickMs": 3100,
        "endReason": "mutation",
        "clickCount": 1,
        **data,
    }
    return breadcrumb("ui.slowClickDetected", fields_sent, message="div > button.buy")


def dead_click_event(node_id: Any = 7, tag: Any = "button", **data: Any) -> RRwebEvent:
    """Returns the report of a click to which the page did not react for seven seconds."""
    return slow_click_event(node_id, tag, **{"timeAfterClickMs": 7000, "endReason": "timeout", **data})


def rage_click_event(node_id: Any = 7, tag: Any = "button", **data: Any) -> RRwebEvent:
    """Returns the report of a dead click that was repeated five times."""
    return dead_click_event(node_id, tag, **{"clickCount": 5, **data})


def multi_click_event(node_id: Any = 7, count: Any = 3) -> RRwebEvent:
    """Returns a `ui.multiClick` breadcrumb."""
    data = {"node": node(node_id), "url": "https://shop.example/", "clickCount": count, "metric": True}
    return breadcrumb("ui.multiClick", data, message="div > button.buy")


def tap_event(view_id: Any = "add", view_class: Any = "Button") -> RRwebEvent:
    """Returns a `ui.tap` breadcrumb as a mobile SDK sends it."""
    return breadcrumb("ui.tap", {"view.class": view_class, "view.id": view_id}, message="add_item")


def hydration_error_event(url: Any = "https://shop.example/cart") -> RRwebEvent:
    """Returns a `replay.hydrate-error` breadcrumb."""
    return breadcrumb("replay.hydrate-error", {"url": url})


def mutations_event(count: Any = 1738, limit: Any = False) -> RRwebEvent:
    """Returns `replay.mutations`, which reports many changes to the page in a short time."""
    return breadcrumb("replay.mutations", {"count": count, "limit": limit})


def console_event(message: Any = "it broke", level: Any = "error") -> RRwebEvent:
    """Returns a `console` breadcrumb."""
    return breadcrumb("console", {"logger": "console", "arguments": [message]}, message=message, level=level)


# Spans, options, video


def span_event(op: Any, description: Any, data: Any = LEFT_OUT, **fields: Any) -> RRwebEvent:
    """Returns a performance span that lasts a quarter of a second. The timestamp of its event is in seconds."""
    payload = {
        "op": op,
        "description": description,
        "startTimestamp": RECEIVED + 0.5,
        "endTimestamp": RECEIVED + 0.75,
        "data": data,
        **fields,
    }
    kept = {name: value for name, value in payload.items() if value is not LEFT_OUT}
    return custom_event("performanceSpan", kept, RECEIVED + 0.5)


def fetch_event(data: Any = LEFT_OUT, op: str = "resource.fetch") -> RRwebEvent:
    """Returns the span of a request with this data, or with method and status only."""
    return span_event(
        op, "https://api.shop.example/cart", {"method": "GET", "statusCode": 200} if data is LEFT_OUT else data
    )


def asset_event(op: str = "resource.script", **data: Any) -> RRwebEvent:
    """Returns the span of a loaded asset: a script or an image."""
    fields_sent = {"size": 31872, "encodedBodySize": 31356, "decodedBodySize": 90210, "statusCode": 200, **data}
    return span_event(op, "https://shop.example/app.js", fields_sent)


def vital_event(name: Any = "largest-contentful-paint", **data: Any) -> RRwebEvent:
    """Returns a web vital."""
    return span_event(
        "web-vital", name, {"value": 1250.5, "size": 1250.5, "rating": "good", "nodeIds": [3], **data}
    )


def memory_event(*, nested: bool = True) -> RRwebEvent:
    """Returns the span that reports the JavaScript heap size; with `nested=False`, in the form of older SDKs."""
    heap = {"jsHeapSizeLimit": 4294705152, "totalJSHeapSize": 21_000_000, "usedJSHeapSize": 17_000_000}
    return span_event("memory", "memory", {"memory": heap} if nested else heap)


def options_event(**options: Any) -> RRwebEvent:
    """Returns the event in which the SDK reports its configuration."""
    return custom_event("options", {"shouldRecordCanvas": True, "sessionSampleRate": 0.1, **options})


def video_event(**fields: Any) -> RRwebEvent:
    """Returns the event with which mobile SDKs describe the attached video."""
    fields_sent = {
        "size": 16,
        "duration": 5000,
        "encoding": "h264",
        "container": "mp4",
        "width": 360,
        "height": 800,
    }
    return custom_event("video", {**fields_sent, "frameCount": 5, "frameRate": 1, "left": 0, "top": 0, **fields})


# Malformed messages

REJECTED: tuple[tuple[str, str, bytes], ...] = (
    ("nothing", "not_msgpack", b""),
    ("a byte that msgpack never uses", "not_msgpack", b"\xc1"),
    ("truncated", "not_msgpack", recording()[:60]),
    ("trailing bytes", "not_msgpack", recording() + b"\x00"),
    ("a msgpack string", "schema", msgspec.msgpack.encode("hello")),
    ("a msgpack list", "schema", msgspec.msgpack.encode([1])),
    ("another type", "schema", recording(type="replay_recording_chunk")),
    ("no type", "schema", recording(type=LEFT_OUT)),
    ("no replay_id", "schema", recording(replay_id=LEFT_OUT)),
    ("replay_id with dashes", "schema", recording(replay_id="51553901-8c9b-4260-a6f9-99572f1661ee")),
    ("replay_id too short", "schema", recording(replay_id=REPLAY_ID[:-1])),
    ("replay_id with a path", "schema", recording(replay_id="../" + REPLAY_ID[3:])),
    ("replay_id of digits that are not ASCII", "schema", recording(replay_id="٣" * 32)),
    ("no org_id", "schema", recording(org_id=LEFT_OUT)),
    ("org_id below 0", "schema", recording(org_id=-1)),
    ("project_id as text", "schema", recording(project_id="11")),
    ("project_id true", "schema", recording(project_id=True)),
    ("received null", "schema", recording(received=None)),
    ("received below 0", "schema", recording(received=-1)),
    ("retention_days beyond its column", "schema", recording(retention_days=2**16)),
    ("no payload", "schema", envelope(LEFT_OUT)),
    ("payload as text", "schema", envelope('{"segment_id":0}\n[]')),
    ("replay_event as text", "schema", recording(replay_event="{}")),
    ("replay_video as text", "schema", recording(replay_video="video")),
    ("key_id as text", "schema", recording(key_id="7")),
    ("no header line", "no_header", envelope(b"hello")),
    ("empty payload", "no_header", envelope(b"")),
    ("header not JSON", "bad_header", envelope(frame(body([]), headers=b"{segment_id:3}"))),
    ("header empty", "bad_header", envelope(frame(body([]), headers=b""))),
    ("header a list", "bad_header", envelope(frame(body([]), headers=b"[3]"))),
    ("segment_id missing", "bad_header", envelope(frame(body([]), headers=b'{"sequence":3}'))),
    ("segment_id null", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":null}'))),
    ("segment_id NaN", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":NaN}'))),
    ("segment_id text", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":"three"}'))),
    ("segment_id true", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":true}'))),
    ("segment_id a fraction", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":1.5}'))),
    ("segment_id below 0", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":-1}'))),
    ("a lone surrogate", "bad_header", envelope(frame(body([]), headers=rb'{"segment_id":1,"a":"\ud83d"}'))),
    ("header not UTF-8", "bad_header", envelope(frame(body([]), headers=b'{"segment_id":1,"a":"\xff"}'))),
    ("no body", "body_not_zlib", envelope(frame(b""))),
    ("a body of text", "body_not_zlib", envelope(frame(b"hello"))),
    ("gzip", "body_not_zlib", envelope(frame(zlib.compress(b"[]", wbits=31)))),
    ("deflate without its header", "body_not_zlib", envelope(frame(zlib.compress(b"[]", wbits=-15)))),
    ("a wrong checksum", "body_not_zlib", envelope(frame(body([])[:-1] + b"\xff"))),
    ("zlib truncated", "body_truncated", envelope(frame(body([snapshot_event()])[:-5]))),
    ("zlib without its checksum", "body_truncated", envelope(frame(body([])[:-4]))),
)
"""(description of the defect, expected reason, Kafka value)"""

MALFORMED_EVENTS: tuple[Any, ...] = (
    None,
    7,
    "event",
    [],
    {},
    {"type": "5"},
    {"type": None},
    {"type": 5.5},
    {"type": 5, "data": 3},
    {"type": 5, "data": {"tag": "breadcrumb"}},
    custom_event("breadcrumb", None),
    custom_event("breadcrumb", "text"),
    custom_event("breadcrumb", []),
    custom_event("performanceSpan", 1),
    custom_event("performanceSpan", [1]),
    custom_event("options", "all"),
    custom_event("options", None),
    custom_event("video", [1]),
    breadcrumb("ui.click"),
    breadcrumb("ui.click", None),
    breadcrumb("ui.click", "div"),
    breadcrumb("ui.click", {}),
    breadcrumb("ui.click", {"node": None}),
    breadcrumb("ui.click", {"node": "body"}),
    breadcrumb("ui.click", {"node": {}}),
    breadcrumb("ui.click", {"node": {"id": "7"}}),
    breadcrumb("ui.click", {"node": {"id": 1.5}}),
    breadcrumb("ui.click", {"node": {"id": True}}),
    breadcrumb("ui.click", {"node": {"id": 2**32}}),
    breadcrumb("ui.click", {"node": node()}, timestamp=None),
    breadcrumb("ui.click", {"node": node()}, timestamp="1790000000"),
    slow_click_event(timeAfterClickMs="7000"),
    slow_click_event(clickCount=[5]),
    slow_click_event(node=None),
    breadcrumb("ui.multiClick", None),
    multi_click_event(count="3"),
    breadcrumb("ui.tap", None),
    breadcrumb("ui.tap", {"view.id": "add"}, timestamp={}),
    breadcrumb("navigation", "home"),
    span_event("memory", "memory", None),
    {"type": 4, "data": "viewport"},
)
"""rrweb events of an invalid shape. Each is dropped with a warning, without affecting the rest of its segment."""
