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
from ingest.core.parse.shapes import Number, fitted

UINT32_MAX = 2**32 - 1
TEXT_MAX, LIST_MAX, TAGS_MAX = 2048, 100, 128


class Columns(
    msgspec.Struct, gc=False, omit_defaults=True, rename={"tag_keys": "tags.key", "tag_values": "tags.value"}
):
    """The columns of one row that come from the document; those that say nothing are left to their defaults.

    `seconds` (unix, None when unknown) is the document's own time, not a column.
    """

    replay_type: str = ""
    replay_start_timestamp: int | None = None
    urls: list[str] = []
    error_ids: list[str] = []
    trace_ids: list[str] = []
    platform: str = ""
    release: str = ""
    environment: str = ""
    dist: str = ""
    user: str = ""
    user_id: str = ""
    user_name: str = ""
    user_email: str = ""
    ip_address_v4: str | None = None
    ip_address_v6: str | None = None
    user_geo_city: str = ""
    user_geo_country_code: str = ""
    user_geo_region: str = ""
    user_geo_subdivision: str = ""
    os_name: str = ""
    os_version: str = ""
    browser_name: str = ""
    browser_version: str = ""
    device_name: str = ""
    device_brand: str = ""
    device_family: str = ""
    device_model: str = ""
    sdk_name: str = ""
    sdk_version: str = ""
    error_sample_rate: float | None = None
    session_sample_rate: float | None = None
    tag_keys: list[str] = []
    tag_values: list[str] = []


# Relay lets numbers through where texts are usual: a user's id, for one.
Word = str | int | float | None


class _Geo(msgspec.Struct, gc=False):
    city: Word = None
    country_code: Word = None
    region: Word = None
    subdivision: Word = None


class _User(msgspec.Struct, gc=False):
    id: Word = None
    username: Word = None
    email: Word = None
    ip_address: str | None = None
    geo: _Geo | None = None


class _Named(msgspec.Struct, gc=False):
    name: Word = None
    version: Word = None


class _Device(msgspec.Struct, gc=False):
    name: Word = None
    brand: Word = None
    family: Word = None
    model: Word = None


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
    replay_type: Word = None
    replay_start_timestamp: Number = None
    platform: Word = None
    release: Word = None
    environment: Word = None
    dist: Word = None
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
    user_id, user_name, user_email = text(user.id), text(user.username), text(user.email)
    v4, v6 = _address(user.ip_address)
    return Columns(
        replay_type=text(document.replay_type),
        replay_start_timestamp=int(start) if start is not None and 0 <= start <= UINT32_MAX else None,
        urls=[url[:TEXT_MAX] for url in (document.urls or ())[:LIST_MAX] if isinstance(url, str)],
        error_ids=_uuids(document.error_ids),
        trace_ids=_uuids(document.trace_ids),
        platform=text(document.platform),
        release=text(document.release),
        environment=text(document.environment),
        dist=text(document.dist),
        user=user_id or user_name or user_email or v4 or v6 or "",
        user_id=user_id,
        user_name=user_name,
        user_email=user_email,
        ip_address_v4=v4,
        ip_address_v6=v6,
        user_geo_city=text(geo.city),
        user_geo_country_code=text(geo.country_code),
        user_geo_region=text(geo.region),
        user_geo_subdivision=text(geo.subdivision),
        os_name=text(system.name),
        os_version=text(system.version),
        browser_name=text(browser.name),
        browser_version=text(browser.version),
        device_name=text(device.name),
        device_brand=text(device.brand),
        device_family=text(device.family),
        device_model=text(device.model),
        sdk_name=text(sdk.name),
        sdk_version=text(sdk.version),
        error_sample_rate=rates.error_sample_rate,
        session_sample_rate=rates.session_sample_rate,
        tag_keys=[text(tag[0]) for tag in tags],
        tag_values=[text(tag[1]) for tag in tags],
    )


# Values of any shape

_ipv4 = re.compile(
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}"
)
_digits = re.compile(r"[0-9a-f]{32}").fullmatch
IPV6_MAX = 45


def text(value: Any) -> str:
    """Text of at most TEXT_MAX characters, also of a number; nothing of anything else."""
    if type(value) is str:
        return value if len(value) <= TEXT_MAX else value[:TEXT_MAX]
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
