"""What each sink gets of a segment: rows, facts and metrics, encoded once. docs/rows.md has the tables.

Every row has an identity that a second delivery repeats: nothing random and nothing of the clock is written.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from hashlib import md5
from typing import Any
from zlib import crc32

import msgspec

from ingest.core.model import Metric, Row
from ingest.core.parse.rrweb import Click, Fact, Size, Tap

UINT16_MAX, UINT32_MAX = 65535, 2**32 - 1
TRUSTED_SECONDS = 30 * 86400
TEXT_MAX, LIST_MAX, TAGS_MAX = 2048, 100, 128

_encode = msgspec.json.Encoder().encode


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Which segment of which replay, and where it lay in Kafka. `at`: its unix seconds, made believable."""

    org_id: int
    project_id: int
    replay_id: str
    segment_id: int
    retention_days: int
    key_id: int | None
    at: int
    partition: int
    offset: int


def believable(received: int, timestamp_ms: int) -> int:
    """Unix seconds of a segment: `received`, unless Kafka's own timestamp says that this cannot be.

    An absurd year would be refused by BigQuery, and would overflow a DateTime.
    """
    kafka = timestamp_ms // 1000
    if kafka > 0:
        return received if abs(received - kafka) <= TRUSTED_SECONDS else min(kafka, UINT32_MAX)
    return received if received <= UINT32_MAX else 0


def near(seconds: float, at: int) -> float:
    """The event's own time when it is believable beside its segment's, which stands in for it otherwise."""
    return seconds if abs(seconds - at) <= TRUSTED_SECONDS and 0 <= seconds <= UINT32_MAX else float(at)


def uuid_text(digits: str) -> str:
    """32 hexadecimal digits with dashes."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def hashed(text: str) -> str:
    """A UUID that depends on nothing but the text."""
    return uuid_text(md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest())


def coin(identity: Identity, salt: str, share: float) -> bool:
    """The same answer for the same segment on every delivery; True for about that share of them."""
    return crc32(f"{identity.replay_id}/{identity.segment_id}/{salt}".encode()) < share * 2**32


# ClickHouse


def segment_row(identity: Identity, object_name: str, stored: int, raw: int, video: int) -> Row:
    """Table replay_segments: what arrived, how large it was, where its bytes are."""
    row_id = f"{identity.replay_id}/{identity.segment_id}"
    fields = {
        "org_id": identity.org_id,
        "project_id": identity.project_id,
        "replay_id": uuid_text(identity.replay_id),
        "segment_id": identity.segment_id,
        "received": identity.at,
        "retention_days": identity.retention_days,
        "object": object_name,
        "size_compressed": stored,
        "size_uncompressed": raw,
        "size_video": video,
        "partition": identity.partition,
        "offset": identity.offset,
    }
    return Row("replay_segments", row_id, _encode(fields), identity.offset)


def outcome_row(identity: Identity, has_video: bool) -> Row:
    """Table replay_outcomes: what is billed, one row a replay."""
    fields = {
        "org_id": identity.org_id,
        "project_id": identity.project_id,
        "replay_id": uuid_text(identity.replay_id),
        "key_id": identity.key_id if identity.key_id is not None and identity.key_id >= 0 else None,
        "category": "replay_video" if has_video else "replay",
        "outcome": "accepted",
        "quantity": 1,
        "timestamp": identity.at,
    }
    return Row("replay_outcomes", identity.replay_id, _encode(fields), identity.offset)


def _replays_row(identity: Identity, event_hash: str, seconds: float, fields: dict[str, Any]) -> Row:
    fields |= {
        "replay_id": uuid_text(identity.replay_id),
        "event_hash": event_hash,
        "segment_id": identity.segment_id if identity.segment_id <= UINT16_MAX else None,
        "timestamp": int(near(seconds, identity.at)),
        "org_id": identity.org_id,
        "project_id": identity.project_id,
        "retention_days": identity.retention_days,
        "partition": identity.partition,
        "offset": identity.offset,
    }
    return Row("replays", event_hash, _encode(fields), identity.offset)


def click_row(identity: Identity, click: Click) -> Row:
    """Table replays: a click. Its later slow-click event has the same hash, and says more."""
    event_hash = hashed(f"{identity.replay_id}{click.timestamp}{click.node_id}")
    fields: dict[str, Any] = {
        "url": click.url,
        "click_node_id": click.node_id,
        "click_tag": click.tag,
        "click_id": click.id,
        "click_class": click.classes,
        "click_text": click.text,
        "click_role": click.role,
        "click_alt": click.alt,
        "click_testid": click.testid,
        "click_aria_label": click.aria_label,
        "click_title": click.title,
        "click_component_name": click.component_name,
        "click_is_dead": click.is_dead,
        "click_is_rage": click.is_rage,
    }
    return _replays_row(identity, event_hash, click.timestamp, fields)


def tap_row(identity: Identity, tap: Tap) -> Row:
    """Table replays: a tap on a phone."""
    event_hash = hashed(f"{identity.replay_id}{tap.timestamp}{tap.view_id}")
    fields: dict[str, Any] = {
        "tap_message": tap.message,
        "tap_view_class": tap.view_class,
        "tap_view_id": tap.view_id,
    }
    return _replays_row(identity, event_hash, tap.timestamp, fields)


def replay_row(identity: Identity, document: dict[str, Any]) -> Row:
    """Table replays: what the replay_event says of the session. An empty document gives the bare row."""
    event_hash = hashed(f"{identity.replay_id}/segment/{identity.segment_id}")
    start = _number(document.get("replay_start_timestamp"))
    fields: dict[str, Any] = {
        "replay_type": _text(document.get("replay_type")),
        "replay_start_timestamp": int(start) if start is not None and 0 <= start <= UINT32_MAX else None,
        "urls": [url[:TEXT_MAX] for url in _list(document.get("urls")) if isinstance(url, str)],
        "error_ids": _uuids(document.get("error_ids")),
        "trace_ids": _uuids(document.get("trace_ids")),
        "platform": _text(document.get("platform")),
        "release": _text(document.get("release")),
        "environment": _text(document.get("environment")),
        "dist": _text(document.get("dist")),
    }
    fields |= _user(_map(document.get("user")))
    fields |= _contexts(_map(document.get("contexts")))
    sdk = _map(document.get("sdk"))
    fields |= {"sdk_name": _text(sdk.get("name")), "sdk_version": _text(sdk.get("version"))}
    tags = [tag for tag in _list(document.get("tags")) if isinstance(tag, list) and len(tag) == 2][:TAGS_MAX]
    fields |= {"tags.key": [_text(tag[0]) for tag in tags], "tags.value": [_text(tag[1]) for tag in tags]}
    seconds = _number(document.get("timestamp"))
    return _replays_row(identity, event_hash, identity.at if seconds is None else seconds, fields)


def _user(user: dict[str, Any]) -> dict[str, Any]:
    """`user` is the first of id, username, email and address that there is."""
    geo = _map(user.get("geo"))
    address = _text(user.get("ip_address"))
    fields: dict[str, Any] = {
        "user_id": _text(user.get("id")),
        "user_name": _text(user.get("username")),
        "user_email": _text(user.get("email")),
        **{f"user_geo_{name}": _text(geo.get(name)) for name in ("city", "country_code", "region", "subdivision")},
    }
    try:
        version = ipaddress.ip_address(address).version
    except ValueError:
        address = ""
    else:
        fields[f"ip_address_v{version}"] = address
    fields["user"] = fields["user_id"] or fields["user_name"] or fields["user_email"] or address
    return fields


def _contexts(contexts: dict[str, Any]) -> dict[str, Any]:
    device, rates = _map(contexts.get("device")), _map(contexts.get("replay"))
    fields: dict[str, Any] = {}
    for name in ("os", "browser"):
        context = _map(contexts.get(name))
        fields |= {f"{name}_name": _text(context.get("name")), f"{name}_version": _text(context.get("version"))}
    fields |= {f"device_{name}": _text(device.get(name)) for name in ("name", "brand", "family", "model")}
    for name in ("error_sample_rate", "session_sample_rate"):
        fields[name] = _number(rates.get(name))
    return fields


# BigQuery


class _FactRow(msgspec.Struct, gc=False):
    row_id: str
    event_type: str
    timestamp: float
    org_id: int
    project_id: int
    replay_id: str
    segment_id: int
    retention_days: int
    attributes: str


def fact_row(identity: Identity, fact: Fact, index: int) -> Row:
    """Table replay_events: one fact. `index` is the event's place in the segment, -1 for the segment itself."""
    row_id = f"{identity.replay_id}-{identity.segment_id}-{index}-{fact.kind}"
    row = _FactRow(
        row_id,
        fact.kind,
        round(near(fact.timestamp, identity.at), 3),
        identity.org_id,
        identity.project_id,
        identity.replay_id,
        identity.segment_id,
        identity.retention_days,
        _encode(fact.attributes).decode(),
    )
    return Row("replay_events", row_id, _encode(row), identity.offset)


# DataDog


def metrics(
    stored: int, raw: int, video: int, sizes: Iterable[Size], rage: int, hydration: int, missing_event: bool
) -> tuple[Metric, ...]:
    """The product metrics of one segment; sizes in bytes."""
    made = [
        Metric("d", "replays.usecases.ingest.size_compressed", stored),
        Metric("d", "replays.usecases.ingest.size_uncompressed", raw),
    ]
    for size in sizes:
        if size.request is not None:
            made.append(Metric("d", "replays.usecases.ingest.request_body_size", size.request))
        if size.response is not None:
            made.append(Metric("d", "replays.usecases.ingest.response_body_size", size.response))
    if video:
        made.append(Metric("c", "replays.recording_consumer.replay_video_count", 1))
        made.append(Metric("d", "replays.recording_consumer.replay_video_size", video))
        made.append(Metric("d", "replays.recording_consumer.replay_video_event_size", raw))
    if rage:
        made.append(Metric("c", "replay.rage_click_detected", rage))
    if hydration:
        made.append(Metric("c", "replay.hydration_error_breadcrumb", hydration))
    if missing_event:
        made.append(Metric("c", "sentry.replays.consumer.recording.missing-replay-event", 1))
    if raw > OVERSIZED_BYTES:
        made.append(Metric("c", "replays.consumer.recording.oversized_segment", 1))
    return tuple(made)


OVERSIZED_BYTES = 20_000_000


# Values of any shape


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value[:TEXT_MAX]
    return "" if _number(value) is None else str(value)


def _number(value: Any) -> float | int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 else None


def _map(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value[:LIST_MAX] if isinstance(value, list) else []


def _uuids(value: Any) -> list[str]:
    """Those that are UUIDs, with dashes."""
    found = []
    for item in _list(value):
        digits = item.replace("-", "").lower() if isinstance(item, str) else ""
        if len(digits) == 32 and all(digit in "0123456789abcdef" for digit in digits):
            found.append(uuid_text(digits))
    return found
