"""Parsers built from public packages, for comparison with ours: they extract the same facts from a message.

`P1 typed` has the design that consumers of this topic use in production: msgpack into a dict, the topic's JSON
schema checked by code that fastjsonschema compiles, zlib, and a msgspec tagged union for the events. If an event
does not fit the union, the whole document is decoded generically. `P1 full JSON` is the previous design, which
decodes the whole recording into dicts. The two peers then extract clicks, taps, sizes and facts, and encode rows
as dicts.

For a valid message, the two peers produce the same output as our parser (`Found`); benchmarks/parse.py checks this
first.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import md5
from typing import Any, Union

import fastjsonschema  # type: ignore[import-untyped]
import msgpack  # type: ignore[import-untyped]
import msgspec
import orjson

SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "additionalProperties": True,
    "properties": {
        "type": {"type": "string", "const": "replay_recording_not_chunked"},
        "replay_id": {"type": "string"},
        "key_id": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "org_id": {"type": "integer", "minimum": 0},
        "project_id": {"type": "integer", "minimum": 0},
        "received": {"type": "integer", "minimum": 0},
        "retention_days": {"type": "integer"},
        "payload": {},
        "replay_event": {},
        "replay_video": {},
        "version": {"type": "integer"},
        "relay_snuba_publish_disabled": {"type": "boolean"},
    },
    "required": ["type", "replay_id", "org_id", "project_id", "received", "retention_days", "payload"],
}
_validate = fastjsonschema.compile(SCHEMA)
_encode = orjson.dumps


@dataclass(slots=True)
class Found:
    """The output for one message: rows as JSON by kind of sink, and body sizes."""

    clicks: int = 0
    taps: int = 0
    rows: list[bytes] = field(default_factory=list)
    facts: list[bytes] = field(default_factory=list)
    sizes: list[tuple[Any, Any]] = field(default_factory=list)
    blob: bytes = b""
    name: str = ""


# The tagged union of events. Types without fields are skipped.


class DomLoaded(msgspec.Struct, gc=False, tag_field="type", tag=0):
    """Skipped."""


class Load(msgspec.Struct, gc=False, tag_field="type", tag=1):
    """Skipped."""


class FullSnapshot(msgspec.Struct, gc=False, tag_field="type", tag=2):
    """Skipped."""


class Source(msgspec.Struct, gc=False):
    """The source of an incremental event."""

    source: int | None = None


class Incremental(msgspec.Struct, gc=False, tag_field="type", tag=3):
    """An incremental snapshot. Only the source of the event is decoded."""

    data: Source | None = None


class Meta(msgspec.Struct, gc=False, tag_field="type", tag=4):
    """A viewport."""

    data: dict[str, Any]
    timestamp: float = 0.0


class Plugin(msgspec.Struct, gc=False, tag_field="type", tag=6):
    """Skipped."""


class Breadcrumb(msgspec.Struct, gc=False, tag_field="tag", tag="breadcrumb"):
    """A breadcrumb event, whose payload may have any shape."""

    payload: dict[str, Any]


class Span(msgspec.Struct, gc=False, tag_field="tag", tag="performanceSpan"):
    """A performance span, whose payload may have any shape."""

    payload: dict[str, Any]


class Options(msgspec.Struct, gc=False, tag_field="tag", tag="options"):
    """An event with the SDK's options, whose payload may have any shape."""

    payload: dict[str, Any]


class Video(msgspec.Struct, gc=False, tag_field="tag", tag="video"):
    """A video event, whose payload may have any shape."""

    payload: dict[str, Any]


class Custom(msgspec.Struct, gc=False, tag_field="type", tag=5):
    """An event of the SDK."""

    data: Breadcrumb | Span | Options | Video
    timestamp: float = 0.0


_union = Union[DomLoaded, Load, FullSnapshot, Incremental, Meta, Custom, Plugin]  # noqa: UP007
_decode_union = msgspec.json.Decoder(list[_union]).decode


def open_message(value: bytes) -> tuple[dict[str, Any], int, bytes, bytes]:
    """Returns (message, segment_id, body, raw). Exceptions from the libraries propagate."""
    message = msgpack.unpackb(value)
    _validate(message)
    head, body = message["payload"].split(b"\n", 1)
    segment_id = json.loads(head)["segment_id"]
    raw = body if body[:1] == b"[" else zlib.decompress(body)
    return message, segment_id, body, raw


def typed(value: bytes) -> Found:
    """Parses a message as `P1 typed`."""
    message, segment_id, body, raw = open_message(value)
    found = _begin(message, segment_id, body, raw)
    try:
        events = _decode_union(raw)
    except msgspec.MsgspecError:
        return _full(message, segment_id, raw, found)
    _facts_of(message, segment_id, _typed_events(events), found)
    return found


def full_json(value: bytes) -> Found:
    """Parses a message as `P1 full JSON`."""
    message, segment_id, body, raw = open_message(value)
    return _full(message, segment_id, raw, _begin(message, segment_id, body, raw))


def _full(message: dict[str, Any], segment_id: int, raw: bytes, found: Found) -> Found:
    try:
        events = json.loads(raw)
    except ValueError:
        return found
    _facts_of(message, segment_id, _plain_events(events), found)
    return found


def _typed_events(events: list[Any]) -> Iterable[tuple[int, str, Any, float]]:
    for index, event in enumerate(events):
        if isinstance(event, Custom):
            yield index, event.data.__struct_config__.tag, event.data.payload, event.timestamp  # type: ignore[misc]
        elif isinstance(event, Meta):
            yield index, "meta", event.data, event.timestamp


def _plain_events(events: list[Any]) -> Iterable[tuple[int, str, Any, float]]:
    for index, event in enumerate(events):
        if not isinstance(event, dict) or not isinstance(data := event.get("data"), dict):
            continue
        if event.get("type") == 5:
            yield index, data.get("tag", ""), data.get("payload"), event.get("timestamp", 0)
        elif event.get("type") == 4:
            yield index, "meta", data, event.get("timestamp", 0)


def _begin(message: dict[str, Any], segment_id: int, body: bytes, raw: bytes) -> Found:
    """Returns the blob and the rows that do not depend on events."""
    video = message.get("replay_video")
    found = Found()
    if video:
        found.blob = zlib.compress(b"\x01" + len(video).to_bytes(4, "big") + video + raw)
    else:
        found.blob = zlib.compress(raw) if body is raw else body
    replay_id = str(uuid.UUID(message["replay_id"]))
    shared = {
        "org_id": message["org_id"],
        "project_id": message["project_id"],
        "replay_id": replay_id,
        "segment_id": segment_id,
        "retention_days": message["retention_days"],
    }
    sizes = {"size_compressed": len(found.blob), "size_uncompressed": len(raw), "size_video": len(video or b"")}
    name = f"{message['retention_days']}/{message['project_id']}/{message['replay_id']}/{segment_id}"
    found.name = name
    found.rows.append(_encode({**shared, **sizes, "received": message["received"], "object": name}))
    found.rows.append(_encode({**shared, **_document(message.get("replay_event"))}))
    if segment_id == 0:
        found.rows.append(_encode({**shared, "outcome": "accepted", "category": "replay", "quantity": 1}))
    return found


def _document(text: bytes | None) -> dict[str, Any]:
    try:
        document = json.loads(text or b"{}")
    except ValueError:
        return {}
    if not isinstance(document, dict):
        return {}
    user, contexts, sdk = (
        one if isinstance(one := document.get(name), dict) else {} for name in ("user", "contexts", "sdk")
    )
    geo = user.get("geo") or {}
    columns = {
        name: document.get(name)
        for name in ("replay_type", "replay_start_timestamp", "platform", "release", "environment", "dist", "urls")
    }
    for name in ("error_ids", "trace_ids"):
        columns[name] = [str(uuid.UUID(one)) for one in document.get(name) or ()]
    columns |= {
        "user_id": user.get("id"),
        "user_name": user.get("username"),
        "user_email": user.get("email"),
        "ip_address_v4": user.get("ip_address"),
        "user": user.get("id") or user.get("username") or user.get("email") or user.get("ip_address"),
        "sdk_name": sdk.get("name"),
        "sdk_version": sdk.get("version"),
    }
    columns |= {f"user_geo_{name}": geo.get(name) for name in ("city", "country_code", "region", "subdivision")}
    for name in ("browser", "os"):
        context = contexts.get(name) or {}
        columns |= {f"{name}_name": context.get("name"), f"{name}_version": context.get("version")}
    device, rates = contexts.get("device") or {}, contexts.get("replay") or {}
    columns |= {f"device_{name}": device.get(name) for name in ("name", "brand", "family", "model")}
    columns |= {name: rates.get(name) for name in ("error_sample_rate", "session_sample_rate")}
    tags = document.get("tags") or []
    columns |= {"tags.key": [tag[0] for tag in tags], "tags.value": [tag[1] for tag in tags]}
    return columns


def _facts_of(
    message: dict[str, Any], segment_id: int, events: Iterable[tuple[int, str, Any, float]], found: Found
) -> None:
    for index, tag, payload, timestamp in events:
        try:
            kind, attributes = _fact(message, tag, payload, found)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue
        if kind is not None:
            _put(message, segment_id, index, kind, timestamp, attributes, found)
    found.facts.append(b"{}")  # the count of events


def _put(
    message: dict[str, Any],
    segment_id: int,
    index: int,
    kind: str,
    timestamp: float,
    attributes: dict[str, Any],
    found: Found,
) -> None:
    row = {
        "row_id": f"{message['replay_id']}-{segment_id}-{index}-{kind}",
        "event_type": kind,
        "timestamp": timestamp,
        "org_id": message["org_id"],
        "project_id": message["project_id"],
        "replay_id": message["replay_id"],
        "segment_id": segment_id,
        "retention_days": message["retention_days"],
        "attributes": _encode(attributes).decode(),
    }
    found.facts.append(_encode(row))


VITALS = (
    "largest-contentful-paint",
    "first-contentful-paint",
    "cumulative-layout-shift",
    "interaction-to-next-paint",
)
PLAIN_CRUMBS = frozenset(
    (
        "navigation", "console", "ui.blur", "ui.focus", "sentry.feedback", "device.battery", "device.orientation",
        "device.connectivity", "ui.scroll", "ui.swipe", "app.background", "app.foreground", "replay.hydrate-error",
    )
)  # fmt: skip


def _fact(message: dict[str, Any], tag: str, payload: Any, found: Found) -> tuple[Any, dict[str, Any]]:
    """Returns (kind, attributes) of one event. The kind is None for events that produce no fact."""
    if tag == "meta":
        return "viewport", {name: payload.get(name) for name in ("href", "width", "height")}
    if tag == "breadcrumb":
        return _crumb(message, payload["category"], payload, found)
    if tag == "performanceSpan":
        return _span(payload["op"], payload, found)
    if tag == "video":
        return "mobile_event", {name: payload.get(name) for name in ("size", "duration", "width", "height")}
    return None, {}


def _crumb(message: dict[str, Any], category: str, payload: dict[str, Any], found: Found) -> tuple[Any, Any]:
    if category in ("ui.click", "ui.slowClickDetected"):
        return _click(message, category, payload, found)
    if category == "ui.tap":
        data = payload["data"]
        tap = {"message": payload["message"], "view_class": data["view.class"], "view_id": data["view.id"]}
        _row(message, f"{int(payload['timestamp'])}{tap['view_id']}", tap, found)
        found.taps += 1
        return category, tap
    if category == "console":
        return category, {"level": payload.get("level"), "message": (payload.get("message") or "")[:1024]}
    if category in PLAIN_CRUMBS:
        data = payload.get("data")
        return category, dict(data) if isinstance(data, dict) else {}
    return None, {}


def _click(message: dict[str, Any], category: str, payload: dict[str, Any], found: Found) -> tuple[Any, Any]:
    data = payload["data"]
    node = data["node"]
    if node["id"] < 0:
        return "negative-click-node-id", {"node_id": node["id"]}
    attributes = node.get("attributes", {})
    dead = rage = False
    if category == "ui.slowClickDetected":
        after_ms = data.get("timeAfterClickMs") or data.get("timeafterclickms") or 0
        target = node.get("tagName") in ("a", "button", "input")
        dead = data.get("endReason") == "timeout" and target and after_ms >= 7000
        rage = dead and (data.get("clickCount") or data.get("clickcount") or 0) >= 5
    click = {
        "node_id": node["id"],
        "tag": node.get("tagName", "")[:32],
        "id": attributes.get("id", "")[:64],
        "class": [one for one in attributes.get("class", "").split(" ") if one][:10],
        "text": node.get("textContent", "")[:1024],
        "role": attributes.get("role", "")[:32],
        "alt": attributes.get("alt", "")[:64],
        "testid": (attributes.get("testId") or attributes.get("data-testid") or "")[:64],
        "aria_label": attributes.get("aria-label", "")[:64],
        "title": attributes.get("title", "")[:64],
        "component_name": attributes.get("data-sentry-component", "")[:64],
        "is_dead": int(dead),
        "is_rage": int(rage),
        "url": data.get("url"),
    }
    if found.clicks < 20:
        found.clicks += 1
        _row(message, f"{int(payload['timestamp'])}{node['id']}", click, found)
    kind = "ui.rageClick" if rage else "ui.deadClick" if dead else category
    return kind, {name: click[name] for name in ("node_id", "tag", "text", "component_name", "url")}


def _row(message: dict[str, Any], name: str, columns: dict[str, Any], found: Found) -> None:
    event_hash = uuid.UUID(md5(f"{message['replay_id']}{name}".encode()).hexdigest())
    shared = {name: message[name] for name in ("org_id", "project_id", "retention_days")}
    row = {**columns, **shared, "replay_id": str(uuid.UUID(message["replay_id"])), "event_hash": str(event_hash)}
    found.rows.append(_encode(row))


def _span(op: str, payload: dict[str, Any], found: Found) -> tuple[Any, dict[str, Any]]:
    data = payload.get("data") or {}
    described: dict[str, Any] = {"url": payload.get("description")}
    if "startTimestamp" in payload and "endTimestamp" in payload:
        described["duration"] = payload["endTimestamp"] - payload["startTimestamp"]
    if op in ("resource.fetch", "resource.xhr"):
        request, response = _side(data, "request"), _side(data, "response")
        found.sizes.append((request, response))
        described |= {"method": data.get("method"), "status_code": data.get("statusCode")}
        return op, {**described, "request_size": request, "response_size": response}
    if op.startswith("resource."):
        names = ("size", "encodedBodySize", "decodedBodySize", "statusCode")
        return op, {**described, **{name: data.get(name) for name in names}}
    if op.startswith("navigation"):
        return "navigation.span", described
    if op in ("web-vital", "paint"):
        if payload["description"] not in VITALS:
            return None, {}
        return f"web-vital.{payload['description']}", {
            name: data.get(name) for name in ("rating", "size", "value")
        }
    if op == "memory":
        heap = data.get("memory", data)
        return op, {name: heap[name] for name in ("jsHeapSizeLimit", "totalJSHeapSize", "usedJSHeapSize")}
    return None, {}


def _side(data: dict[str, Any], side: str) -> int | None:
    size = data.get(f"{side}BodySize")
    if size is None:
        size = (data.get(side) or {}).get("size")
    try:
        return int(size)
    except (TypeError, ValueError):
        return None
