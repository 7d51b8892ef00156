"""Reads the replay_event, a JSON document about a segment's session, into columns of the table replays.

Relay has validated the document, so a typed decode usually succeeds. Documents of other shapes, and long
documents, are read field by field, and fields of the wrong type are left out. Both ways of reading give the same
columns.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import msgspec

from ingest.core.parse.budget import Budget, BudgetSpent
from ingest.core.parse.picked import picked_struct
from ingest.core.parse.shapes import SHORT_CHARACTERS_MAX, Number, Short
from ingest.core.parse.surrogates import without_lone_surrogates

UINT32_MAX = 2**32 - 1
LIST_MAX, TAGS_MAX = 100, 128
# The tag with the page's title; SDKs set it to the transaction name.
TITLE_TAG = "transaction"
# Relay sends a few kilobytes. Documents up to this size may be decoded fully.
DOCUMENT_BYTES_TYPICAL = 16 * 1024
VALUES_MAX = 200_000
# Maximum size, in bytes, of a document whose lone surrogates are repaired, and the cost of one repair in budget
# units.
REPAIRED_BYTES_MAX = 1024 * 1024
REPAIR_UNITS = 2000.0
UUID_CHARACTERS_MAX = 64


class Columns(
    msgspec.Struct, gc=False, omit_defaults=True, rename={"tag_keys": "tags.key", "tag_values": "tags.value"}
):
    """Columns of one row that come from the document. Empty columns are not sent, so the table's defaults
    apply."""

    replay_type: str | None = None
    replay_start_timestamp: int | None = None
    title: str | None = None
    urls: list[str] = []
    segment_names: list[str] = []
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
    ota_updates_channel: str | None = None
    ota_updates_runtime_version: str | None = None
    ota_updates_update_id: str | None = None
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


class _NamedVersion(msgspec.Struct, gc=False):
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


class _Updates(msgspec.Struct, gc=False):
    channel: Short = None
    runtime_version: Short = None
    update_id: Short = None


class _Contexts(msgspec.Struct, gc=False):
    browser: _NamedVersion | None = None
    os: _NamedVersion | None = None
    device: _Device | None = None
    replay: _Rates | None = None
    ota_updates: _Updates | None = None


class Document(msgspec.Struct, gc=False):
    """Fields read from the document, as Relay writes them. Times are in Unix seconds."""

    timestamp: Number = None
    replay_type: Short = None
    replay_start_timestamp: Number = None
    platform: Short = None
    release: Short = None
    environment: Short = None
    dist: Short = None
    urls: list[Any] | None = None
    segment_names: list[Any] | None = None
    error_ids: list[Any] | None = None
    trace_ids: list[Any] | None = None
    tags: list[Any] | None = None
    user: _User | None = None
    sdk: _NamedVersion | None = None
    contexts: _Contexts | None = None


_decode = msgspec.json.Decoder(Document).decode
_WRONG_SHAPE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class UnreadableDocument(Exception):
    """Raised if the document cannot be read; `warning` is a key of WARNINGS."""

    def __init__(self, warning: str) -> None:
        super().__init__(warning)
        self.warning = warning


def open_document(text: memoryview) -> Document:
    """Reads the relevant fields. Raises UnreadableDocument."""
    if len(text) <= DOCUMENT_BYTES_TYPICAL:
        try:
            return _decode(text)
        except _WRONG_SHAPE:
            pass
    elif _values_max(bytes(text)) > VALUES_MAX:
        raise UnreadableDocument("replay_event_over_limit")
    try:
        return _read_field_by_field(text)
    except _WRONG_SHAPE:
        raise UnreadableDocument("replay_event_not_json") from None
    except BudgetSpent:
        raise UnreadableDocument("replay_event_over_limit") from None


def _values_max(text: bytes) -> int:
    """Returns an upper bound on the number of keys, strings and arrays, which cost more to decode than their size
    suggests."""
    return text.count(b'"') + text.count(b"[")


def _read_field_by_field(text: memoryview) -> Document:
    try:
        return picked_struct(Document, text)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        if len(text) > REPAIRED_BYTES_MAX:
            raise UnreadableDocument("replay_event_over_limit") from None
        changed = without_lone_surrogates(bytes(text), Budget(REPAIR_UNITS))
        if changed is None:
            raise
    return picked_struct(Document, changed)


def without_lists(document: Document) -> Document:
    """Returns the document without its lists."""
    return msgspec.structs.replace(
        document, urls=None, segment_names=None, error_ids=None, trace_ids=None, tags=None
    )


EMPTY = Document()
_NO_USER, _NO_GEO, _NO_NAMES, _NO_DEVICE, _NO_RATES, _NO_UPDATES, _NO_CONTEXTS = (
    _User(),
    _Geo(),
    _NamedVersion(),
    _Device(),
    _Rates(),
    _Updates(),
    _Contexts(),
)


def columns_of(document: Document) -> Columns:
    """Returns the columns. `user` is the id, username, email or address: the first one present."""
    user, contexts = document.user or _NO_USER, document.contexts or _NO_CONTEXTS
    geo, sdk = user.geo or _NO_GEO, document.sdk or _NO_NAMES
    system, browser = contexts.os or _NO_NAMES, contexts.browser or _NO_NAMES
    device, rates = contexts.device or _NO_DEVICE, contexts.replay or _NO_RATES
    updates = contexts.ota_updates or _NO_UPDATES
    start = document.replay_start_timestamp
    tags = _pairs(document.tags)
    v4, v6 = _address(user.ip_address)
    # Arguments are passed by position, in struct order, which is four times as fast as by name.
    return Columns(
        document.replay_type or None,
        int(start) if start is not None and 0 <= start <= UINT32_MAX else None,
        _title(tags) if tags else None,
        _texts(document.urls),
        _texts(document.segment_names),
        _uuids(document.error_ids),
        _uuids(document.trace_ids),
        document.platform or None,
        document.release or None,
        document.environment or None,
        document.dist or None,
        user.id or user.username or user.email or v4 or v6,
        user.id or None,
        user.username or None,
        user.email or None,
        v4,
        v6,
        geo.city or None,
        geo.country_code or None,
        geo.region or None,
        geo.subdivision or None,
        system.name or None,
        system.version or None,
        browser.name or None,
        browser.version or None,
        device.name or None,
        device.brand or None,
        device.family or None,
        device.model or None,
        sdk.name or None,
        sdk.version or None,
        updates.channel or None,
        updates.runtime_version or None,
        updates.update_id or None,
        rates.error_sample_rate,
        rates.session_sample_rate,
        [key[:SHORT_CHARACTERS_MAX] if type(key) is str else _text(key) for key, _ in tags] if tags else [],
        [value[:SHORT_CHARACTERS_MAX] if type(value) is str else _text(value) for _, value in tags]
        if tags
        else [],
    )


# Values of any shape

_ipv4 = re.compile(
    r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])){3}"
)
_digits = re.compile(r"[0-9a-f]{32}").fullmatch
IPV6_MAX = 45


def _text(value: Any) -> str:
    """Returns a tag's key or value as text of bounded length; numbers are converted, other types dropped."""
    if isinstance(value, str):
        return value[:SHORT_CHARACTERS_MAX]
    return str(value) if type(value) is int or type(value) is float else ""


def _texts(values: list[Any] | None) -> list[str]:
    """Returns the strings among the first LIST_MAX elements, each cut to SHORT_CHARACTERS_MAX characters."""
    if not values:
        return []
    return [value[:SHORT_CHARACTERS_MAX] for value in values[:LIST_MAX] if isinstance(value, str)]


def _pairs(values: list[Any] | None) -> list[list[Any]]:
    """Returns the first TAGS_MAX elements that are lists of two values."""
    if not values:
        return []
    return [value for value in values if isinstance(value, list) and len(value) == 2][:TAGS_MAX]


def _title(tags: list[list[Any]]) -> str | None:
    """Returns the page's title: the value of the first tag named TITLE_TAG; None if there is no such tag, or if
    its value is empty."""
    for key, value in tags:
        if key == TITLE_TAG:
            return _text(value) or None
    return None


def _address(value: str | None) -> tuple[str | None, str | None]:
    """Returns (IPv4, IPv6), of which at most one is set. Neither is set for an IPv6 address with a zone ID
    (`fe80::1%eth0`), because ClickHouse does not support zone IDs."""
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
    """Returns the elements that are UUIDs, formatted with dashes."""
    if not values:
        return []
    found = []
    for value in values[:LIST_MAX]:
        is_short = isinstance(value, str) and len(value) <= UUID_CHARACTERS_MAX
        digits = value.replace("-", "").lower() if is_short else ""
        if _digits(digits):
            found.append(uuid_text(digits))
    return found


def uuid_text(digits: str) -> str:
    """Formats 32 hexadecimal digits as a UUID with dashes."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
