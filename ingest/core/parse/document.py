"""What the replay_event, a JSON document of a segment's session, says: columns of the table replays.

Relay has checked it, so a typed decode mostly does. A document of any other shape is read field by field: what
has the wrong type is left out, and the other fields are not lost with it. Both ways give the same columns.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import msgspec

from ingest.core.parse.scan import without_lone_surrogates
from ingest.core.parse.shapes import SHORT_MAX, Number, Short, fitted

UINT32_MAX = 2**32 - 1
LIST_MAX, TAGS_MAX = 100, 128


class Columns(
    msgspec.Struct, gc=False, omit_defaults=True, rename={"tag_keys": "tags.key", "tag_values": "tags.value"}
):
    """The columns of one row that come from the document. What says nothing is left to the table's defaults."""

    replay_type: str | None = None
    replay_start_timestamp: int | None = None
    urls: list[str] = []
    error_ids: list[str] = []
    trace_ids: list[str] = []
    platform: str | None = None
    release: str | None = None
    environment: str | None = None
    dist: str | None = None
    user: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    user_email: str | None = None
    ip_address_v4: str | None = None
    ip_address_v6: str | None = None
    user_geo_city: str | None = None
    user_geo_country_code: str | None = None
    user_geo_region: str | None = None
    user_geo_subdivision: str | None = None
    os_name: str | None = None
    os_version: str | None = None
    browser_name: str | None = None
    browser_version: str | None = None
    device_name: str | None = None
    device_brand: str | None = None
    device_family: str | None = None
    device_model: str | None = None
    sdk_name: str | None = None
    sdk_version: str | None = None
    error_sample_rate: float | None = None
    session_sample_rate: float | None = None
    tag_keys: list[str] = []
    tag_values: list[str] = []


class _Geo(msgspec.Struct, gc=False):
    city: Short = None
    country_code: Short = None
    region: Short = None
    subdivision: Short = None


class _User(msgspec.Struct, gc=False):
    id: Short = None
    username: Short = None
    email: Short = None
    ip_address: Short = None
    geo: _Geo | None = None


class _Named(msgspec.Struct, gc=False):
    name: Short = None
    version: Short = None


class _Device(msgspec.Struct, gc=False):
    name: Short = None
    brand: Short = None
    family: Short = None
    model: Short = None


class _Rates(msgspec.Struct, gc=False):
    error_sample_rate: Number = None
    session_sample_rate: Number = None


class _Contexts(msgspec.Struct, gc=False):
    browser: _Named | None = None
    os: _Named | None = None
    device: _Device | None = None
    replay: _Rates | None = None


class Document(msgspec.Struct, gc=False):
    """What is read of the document, as Relay writes it. Times in unix seconds."""

    timestamp: Number = None
    replay_type: Short = None
    replay_start_timestamp: Number = None
    platform: Short = None
    release: Short = None
    environment: Short = None
    dist: Short = None
    urls: list[Any] | None = None
    error_ids: list[Any] | None = None
    trace_ids: list[Any] | None = None
    tags: list[Any] | None = None
    user: _User | None = None
    sdk: _Named | None = None
    contexts: _Contexts | None = None


_decode = msgspec.json.Decoder(Document).decode
_decode_object = msgspec.json.Decoder(dict[str, Any]).decode
_WRONG_SHAPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def open_document(text: bytes | memoryview) -> Document | None:
    """What is of use in the document; None when it is not a JSON object."""
    try:
        return _decode(text)
    except _WRONG_SHAPE:
        pass
    try:
        return fitted(Document, _decode_object(without_lone_surrogates(bytes(text))))
    except _WRONG_SHAPE:
        return None


EMPTY = Document()
_NO_USER, _NO_GEO, _NO_NAMES, _NO_DEVICE, _NO_RATES, _NO_CONTEXTS = (
    _User(),
    _Geo(),
    _Named(),
    _Device(),
    _Rates(),
    _Contexts(),
)


def columns_of(document: Document) -> Columns:
    """The columns; `user` is the first of id, username, email and address that there is."""
    user, contexts = document.user or _NO_USER, document.contexts or _NO_CONTEXTS
    geo, sdk = user.geo or _NO_GEO, document.sdk or _NO_NAMES
    system, browser = contexts.os or _NO_NAMES, contexts.browser or _NO_NAMES
    device, rates = contexts.device or _NO_DEVICE, contexts.replay or _NO_RATES
    start = document.replay_start_timestamp
    tags = [tag for tag in document.tags or () if isinstance(tag, list) and len(tag) == 2][:TAGS_MAX]
    v4, v6 = _address(user.ip_address)
    return Columns(
        replay_type=document.replay_type or None,
        replay_start_timestamp=int(start) if start is not None and 0 <= start <= UINT32_MAX else None,
        urls=[url[:SHORT_MAX] for url in (document.urls or ())[:LIST_MAX] if isinstance(url, str)],
        error_ids=_uuids(document.error_ids),
        trace_ids=_uuids(document.trace_ids),
        platform=document.platform or None,
        release=document.release or None,
        environment=document.environment or None,
        dist=document.dist or None,
        user=user.id or user.username or user.email or v4 or v6,
        user_id=user.id or None,
        user_name=user.username or None,
        user_email=user.email or None,
        ip_address_v4=v4,
        ip_address_v6=v6,
        user_geo_city=geo.city or None,
        user_geo_country_code=geo.country_code or None,
        user_geo_region=geo.region or None,
        user_geo_subdivision=geo.subdivision or None,
        os_name=system.name or None,
        os_version=system.version or None,
        browser_name=browser.name or None,
        browser_version=browser.version or None,
        device_name=device.name or None,
        device_brand=device.brand or None,
        device_family=device.family or None,
        device_model=device.model or None,
        sdk_name=sdk.name or None,
        sdk_version=sdk.version or None,
        error_sample_rate=rates.error_sample_rate,
        session_sample_rate=rates.session_sample_rate,
        tag_keys=[_text(tag[0]) for tag in tags],
        tag_values=[_text(tag[1]) for tag in tags],
    )


# Values of any shape

_ipv4 = re.compile(
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}"
)
_digits = re.compile(r"[0-9a-f]{32}").fullmatch
IPV6_MAX = 45


def _text(value: Any) -> str:
    """A tag's key or value: text of bounded length, also of a number; nothing of anything else."""
    if isinstance(value, str):
        return value[:SHORT_MAX]
    return str(value) if type(value) is int or type(value) is float else ""


def _address(value: str | None) -> tuple[str | None, str | None]:
    """(IPv4, IPv6), one or none of them. ClickHouse knows no zones (`fe80::1%eth0`)."""
    if value is None:
        return None, None
    if _ipv4.fullmatch(value):
        return value, None
    if ":" in value and "%" not in value and len(value) <= IPV6_MAX:
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            return None, None
        return None, value
    return None, None


def _uuids(values: list[Any] | None) -> list[str]:
    """Those that are UUIDs, with dashes."""
    found = []
    for value in (values or ())[:LIST_MAX]:
        digits = value.replace("-", "").lower() if isinstance(value, str) else ""
        if _digits(digits):
            found.append(uuid_text(digits))
    return found


def uuid_text(digits: str) -> str:
    """32 hexadecimal digits with dashes."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
