"""Normalizes the replay event of an SDK, as Relay does before it produces the Kafka message.

Tags become pairs of strings, ids become 32 lowercase hex digits, and `{{auto}}` becomes the client's address.
Browser, operating system and device come from the user agent. Unknown fields are kept.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from ingest.trial.endpoint.envelope import hex_id
from ingest.trial.endpoint.recording import SEGMENT_ID_MAX
from ingest.trial.endpoint.refusals import Reason, RequestRefused
from ingest.trial.endpoint.user_agent import Product, browser_of, device_of, system_of
from tasks.units import MiB

EVENT_BYTES_MAX = 1 * MiB
LIST_MAX = 100
TAGS_MAX = 200
TAG_CHARACTERS_MAX = 200
AUTO_ADDRESS = "{{auto}}"
# SDKs for these platforms that are too old to send `infer_ip` expect the user's IP address to be stored.
_PLATFORMS_WITH_ADDRESS = frozenset(("javascript", "cocoa", "objc"))


@dataclass(frozen=True, slots=True)
class Client:
    """Properties of the client that sent the request. `received_at`: Unix seconds."""

    address: str
    user_agent: str
    received_at: float


def normalized(payload: memoryview, replay_id: str, client: Client) -> bytes:
    """Returns the normalized event as JSON. Raises RequestRefused with the reason replay_event_invalid or
    replay_event_too_large.
    """
    if len(payload) > EVENT_BYTES_MAX:
        raise RequestRefused(Reason.REPLAY_EVENT_TOO_LARGE, f"the replay event exceeds {EVENT_BYTES_MAX} bytes")
    try:
        event = json.loads(bytes(payload), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        raise _invalid("it is not JSON") from None
    if not isinstance(event, dict):
        raise _invalid("it is not a JSON object")
    if event.get("replay_id") is not None and hex_id(event["replay_id"]) != replay_id:
        raise _invalid("its replay_id is not the envelope's event_id")
    segment_id = event.get("segment_id")
    if type(segment_id) is not int or not 0 <= segment_id <= SEGMENT_ID_MAX:
        raise _invalid(f"segment_id is not an integer from 0 to {SEGMENT_ID_MAX}")
    event |= {
        "type": "replay_event",
        "replay_id": replay_id,
        "event_id": hex_id(event.get("event_id")) or replay_id,
    }
    event["platform"] = event["platform"] if isinstance(event.get("platform"), str) else "other"
    event["timestamp"] = _seconds(event.get("timestamp"), client.received_at)
    for name in ("error_ids", "trace_ids"):
        event[name] = _ids(name, event.get(name))
    urls = event.get("urls")
    event["urls"] = [one for one in urls if isinstance(one, str)][:LIST_MAX] if isinstance(urls, list) else []
    if "tags" in event:
        event["tags"] = _tags(event["tags"])
    _add_address(event, client.address)
    agent = _normalize_request(event, client.user_agent)
    event["contexts"] = _contexts(event.get("contexts"), agent)
    try:
        return json.dumps(event, separators=(",", ":")).encode()
    except RecursionError:
        raise _invalid("it is nested too deeply") from None


def _invalid(text: str) -> RequestRefused:
    return RequestRefused(Reason.REPLAY_EVENT_INVALID, f"the replay event is invalid: {text}")


def _seconds(value: Any, received_at: float) -> float:
    return (
        float(value) if type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e15 else received_at
    )


def _ids(name: str, value: Any) -> list[str]:
    """Returns the valid ids in `value`; none if `value` is not a list. Like Relay, refuses events with more than
    LIST_MAX ids.
    """
    if not isinstance(value, list):
        return []
    if len(value) > LIST_MAX:
        raise _invalid(f"it has more than {LIST_MAX} {name}")
    return [found for one in value if (found := hex_id(one))]


def _tags(value: Any) -> list[list[str]]:
    """Returns the tags as pairs. `value` is an object or a list of pairs; other shapes and overlong strings are
    left out.
    """
    pairs = value.items() if isinstance(value, dict) else value if isinstance(value, list) else ()
    found: list[list[str]] = []
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or len(found) >= TAGS_MAX:
            continue
        name, text = (_tag_text(one) for one in pair)
        if name and text and len(name) <= TAG_CHARACTERS_MAX and len(text) <= TAG_CHARACTERS_MAX:
            found.append([name, text])
    return found


def _tag_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (str, float)) or (type(value) is int and abs(value) < 2**63) else ""


def _add_address(event: dict[str, Any], address: str) -> None:
    """Adds the client's address, if the SDK asks for it."""
    user = event.get("user")
    sdk = event.get("sdk")
    settings = sdk.get("settings") if isinstance(sdk, dict) else None
    infer = settings.get("infer_ip") if isinstance(settings, dict) else None
    found = user if isinstance(user, dict) else {}
    given = found.get("ip_address")
    wanted = infer == "auto" or (infer is None and event["platform"] in _PLATFORMS_WITH_ADDRESS)
    if given == AUTO_ADDRESS or (given is None and wanted):
        found = {**found, "ip_address": address}
    if found:
        event["user"] = found


def _normalize_request(event: dict[str, Any], user_agent: str) -> str:
    """Converts the recorded headers to pairs. Returns the recorded user agent, or else the request's."""
    request = event.get("request")
    if not isinstance(request, dict):
        return user_agent
    headers = request.get("headers")
    pairs = headers.items() if isinstance(headers, dict) else headers if isinstance(headers, list) else ()
    kept = [
        list(pair)
        for pair in pairs
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(one, str) for one in pair)
    ]
    event["request"] = {**request, "headers": kept}
    return next((value for name, value in kept if name.lower() == "user-agent"), user_agent)


def _contexts(value: Any, user_agent: str) -> dict[str, Any]:
    """Returns the SDK's contexts, completed from the user agent."""
    found = dict(value) if isinstance(value, dict) else {}
    for name, product in (("browser", browser_of(user_agent)), ("os", system_of(user_agent))):
        if product is not None and not isinstance(found.get(name), dict):
            found[name] = _context(name, product)
    if not isinstance(found.get("device"), dict):
        found["device"] = {"family": device_of(user_agent), "type": "device"}
    return found


def _context(name: str, product: Product) -> dict[str, str]:
    version = {"version": product.version} if product.version else {}
    return {"name": product.name, **version, name: f"{product.name} {product.version}".strip(), "type": name}
