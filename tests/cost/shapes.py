"""The committed set of the most expensive messages that a sender can create, which must meet the cost limit.

Each shape is a function of its inflated size, so that it can be used both in a quick test and for the largest
messages. Before the cost limit existed, the first of these shapes stopped a reader. Shapes that the search finds
are added to the set.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from isal import isal_zlib

from ingest.core.parse.rows import Identity, is_in_sample
from ingest.testing.messages import (
    REPLAY_ID,
    breadcrumb,
    canvas_event,
    click_event,
    console_event,
    custom_event,
    envelope,
    fetch_event,
    frame,
    hydration_error_event,
    multi_click_event,
    mutations_event,
    node,
    options_event,
    rage_click_event,
    recording,
    replay_event,
    span_event,
    tap_event,
    video_event,
    viewport_event,
)

MESSAGE_BYTES_MAX = 15_000_000
SAMPLED_SHARE = 1 / 500
CONTROL = "\x01"  # one byte; JSON escapes it to six bytes, or to seven bytes inside an escaped string

Make = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape; `make(raw_bytes)` returns a Kafka value whose recording inflates to about that many bytes."""

    name: str
    make: Make


SHAPES: list[Shape] = []


def shape(name: str) -> Callable[[Make], Make]:
    """Adds the decorated function to the committed set."""

    def add(make: Make) -> Make:
        SHAPES.append(Shape(name, make))
        return make

    return add


# Parts


def packed(raw: bytes, segment_id: int = 0, **fields: Any) -> bytes:
    """Returns a message with the given recording."""
    return envelope(frame(isal_zlib.compress(raw, 1), segment_id), **fields)


def sampled_segment_id() -> int:
    """Returns a segment number for which the parser reads canvas mutations; a sender can choose such a number."""
    for number in range(100_000):
        if is_in_sample(Identity(1, 11, REPLAY_ID, number, 30, 7, 0, 0, 0), "segment", SAMPLED_SHARE):
            return number
    raise AssertionError


def text(value: Any) -> bytes:
    """Returns a string as JavaScript encodes it in JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def filled(head: bytes, part: bytes, tail: bytes, raw_bytes: int) -> bytes:
    """Returns `head`, as many copies of the part as fit (at least one), and `tail`."""
    return head + part * max((raw_bytes - len(head) - len(tail)) // len(part), 1) + tail


def listed(element: bytes, raw_bytes: int, last: bytes = b'{"type":3}') -> bytes:
    """Returns a JSON array that repeats the element."""
    return filled(b"[", element + b",", last + b"]", raw_bytes)


def stuffed(event: Any, part: bytes, raw_bytes: int, head: bytes = b"", tail: bytes = b"") -> bytes:
    """Returns an array of one event in which head, parts and tail replace `"@"`."""
    before, after = text([event]).split(b'"@"', 1)
    return filled(before + head, part, tail + after, raw_bytes)


def many(name: str, *elements: Any, is_sampled: bool = False) -> None:
    """Adds a recording that repeats the given events."""
    part = b",".join(element if isinstance(element, bytes) else text(element) for element in elements)
    segment_id = sampled_segment_id() if is_sampled else 0
    shape(name)(lambda raw_bytes: packed(listed(part, raw_bytes), segment_id))


def single(name: str, event: Any, part: bytes, head: bytes = b"", tail: bytes = b"") -> None:
    """Adds a recording of one event that contains one long value."""
    shape(name)(lambda raw_bytes: packed(stuffed(event, part, raw_bytes, head, tail)))


def chunks(name: str, event: Any, part: bytes, head: bytes, tail: bytes, chunk_bytes: int) -> None:
    """Adds a recording whose events are each about `chunk_bytes` long."""
    element = stuffed(event, part, chunk_bytes, head, tail)[1:-1]
    shape(name)(lambda raw_bytes: packed(listed(element, raw_bytes)))


def crumb(fields: bytes) -> bytes:
    """Returns a breadcrumb event with the given fields."""
    return b'{"type":5,"data":{"tag":"breadcrumb","payload":{%b}}}' % fields


def span(fields: bytes) -> bytes:
    """Returns a performance span event with the given fields."""
    return b'{"type":5,"data":{"tag":"performanceSpan","payload":{%b}}}' % fields


# Shapes that stopped a reader before the cost limit existed

single("escaped backslashes, then a lone surrogate", {"type": 2, "data": "@"}, rb"\\", b'"', rb'\ud800"')
single("a scroll of empty arrays", breadcrumb("ui.scroll", {"a": "@"}), b"[],", b"[", b"0]")
many(
    "spans of wrong types",
    span(b'"op":7,"description":[],"startTimestamp":"","endTimestamp":{},"data":{"method":1}'),
)
single("a class of one-letter names", click_event(attributes={"class": "@"}), b"a ", b'"', b'"')
many("events with only a type", {"type": 0})


@shape("a replay_event that consists of escaped backslashes and a lone surrogate")
def _backslashes_in_document(raw_bytes: int) -> bytes:
    document = filled(b'{"release":"', rb"\\", rb'\ud800"}', min(raw_bytes, 14_000_000))
    return recording([], replay_event=document)


# Surrogates

single("a lone surrogate, then escaped backslashes", {"type": 2, "data": "@"}, rb"\\", rb'"\ud800', b'"')
single("lone surrogates and nothing else", {"type": 2, "data": "@"}, rb"\ud83d", b'"', b'"')
single("surrogates the wrong way round", {"type": 2, "data": "@"}, rb"\ude00\ud83d", b'"', b'"')
single("pairs, then a lone surrogate", {"type": 2, "data": "@"}, rb"\ud83d\ude00", b'"', rb'\ud83d"')
single(
    "escaped backslashes before what looks like a surrogate",
    {"type": 2, "data": "@"},
    rb"\\ud83d",
    b'"',
    rb'\ud83d"',
)
many("a lone surrogate in each message", crumb(rb'"category":"console","message":"cut \ud83d"'))
many("a lone surrogate in each key", rb'{"type":3,"\udc00":0}')
many("a lone surrogate in each unread event", rb'{"type":3,"data":"\ud83d"}')
single(
    "a lone surrogate after long runs of backslashes",
    {"type": 2, "data": "@"},
    b"\\" * 4095 + b"ud83d",
    b'"',
    b'"',
)

# Depth and brackets

single("one event that consists only of nested arrays", {"type": 2, "data": "@"}, b"[", b"", b"")
many("events nested deeper than the decoder allows", b'{"type":2,"data":' + b"[" * 1200 + b"]" * 1200 + b"}")
many("events nested almost too deep", b'{"type":2,"data":' + b"[" * 900 + b"]" * 900 + b"}")
many("objects nested deeper than the decoder allows", b'{"a":' * 1200 + b"1" + b"}" * 1200)
many("a deeply nested event and a thousand short events", b"[" * 1200 + b"]" * 1200, *([{"type": 3}] * 1000))
many("empty arrays", b"[]")
many("empty objects", b"{}")
many("zeros", b"0")
many("nulls and empty strings", None, "")
single("one array of empty strings", {"type": 3, "data": "@"}, b'"",', b"[", b"0]")
shape("spaces")(lambda raw_bytes: packed(filled(b"[", b" ", b"]", raw_bytes)))
shape("brackets that never close")(lambda raw_bytes: packed(b"[" * raw_bytes))
shape("an array that never closes")(lambda raw_bytes: packed(filled(b"[", b'{"type":3},', b"", raw_bytes)))

# Millions of events

many("custom events of nothing but a type", {"type": 5})
many("custom events of empty data", {"type": 5, "data": {}})
many("custom events of a number", {"type": 5, "data": 0})
many("custom events of an unknown tag", custom_event("unknown", {}))
many("breadcrumbs of nothing", crumb(b""))
many("spans of nothing", span(b'"data":{}'))
many("viewports of nothing", {"type": 4, "data": {}})
many("viewports of wrong types", {"type": 4, "data": {"href": 1, "width": "", "height": []}})
many("viewports", viewport_event())
many("events of an unknown type", {"type": 8})
many("an odd event among sixty-four", {"type": 8}, *([{"type": 3, "data": {"source": 1}}] * 64))
many("an odd custom event among sixty-four", custom_event("x", 1), *([{"type": 3, "data": {"source": 1}}] * 64))
many("clicks", click_event())
many("rage clicks", rage_click_event())
many("multi clicks", multi_click_event())
many("clicks on negative nodes", click_event(-1))
many("clicks on no node", breadcrumb("ui.click", {}))
many("taps", tap_event())
many("console messages", console_event())
many("navigations", breadcrumb("navigation", {"from": "/", "to": "/"}))
many("focus events", breadcrumb("ui.focus"))
many("hydration errors", hydration_error_event())
many("scrolls of sixteen fields", breadcrumb("ui.scroll", {f"{n}": n for n in range(16)}))
many(
    "requests", fetch_event({"method": "GET", "statusCode": 200, "request": {"size": 1}, "response": {"size": 2}})
)
many("requests whose sizes are objects", fetch_event({"request": {"size": {}}, "response": {"size": [[]]}}))
many("requests whose sizes are long strings", fetch_event({"request": {"size": "9" * 4000}}))
many("videos", video_event())
many("mutation counts, sampled", mutations_event(), is_sampled=True)
many("options, sampled", options_event(), is_sampled=True)
many("canvas mutations, sampled", canvas_event(), is_sampled=True)
many("canvas mutations of nothing, sampled", {"type": 3, "data": {"source": 9}}, is_sampled=True)
many("incremental snapshots, sampled", {"type": 3, "data": {"source": 0}}, is_sampled=True)
many("incremental snapshots of wrong sources, sampled", {"type": 3, "data": {"source": []}}, is_sampled=True)

# Repeated keys

single("the same timestamp repeated", {"type": 5, "timestamp": "@"}, b'1,"timestamp":', b"", b"1")
single("the same data again and again", span_event("memory", "", "@"), b'{},"data":', b"", b"{}")
chunks(
    "the same data again and again, in many events",
    span_event("memory", "", "@"),
    b'{},"data":',
    b"",
    b"{}",
    60_000,
)
single("the same payload again and again", custom_event("breadcrumb", "@"), b'{},"payload":', b"", b"{}")
single("the same tag again and again", custom_event("@", {}), b'"breadcrumb","tag":', b"", b'"breadcrumb"')
single("a scroll of the same key", breadcrumb("ui.scroll", {"a": "@"}), b'0,"a":', b"", b"0")
single("keys written with escapes", span_event("memory", "", "@"), rb'{},"\u0064ata":', b"", b"{}")


@shape("a scroll of different keys")
def _different_keys(raw_bytes: int) -> bytes:
    keys = b",".join(b'"%x":0' % number for number in range(max(raw_bytes // 10, 1)))
    return packed(stuffed(breadcrumb("ui.scroll", "@"), keys, 0, b"{", b"}"))


# Numbers and texts

many(
    "click counts of four thousand digits",
    text(rage_click_event(clickCount=5)).replace(b":5,", b":" + b"9" * 4290 + b","),
)
many("times of four thousand digits", b'{"type":5,"timestamp":%b,"data":{}}' % (b"9" * 4290))
single("one number as long as the recording", {"type": 3, "data": "@"}, b"9", b"", b"")
single("one time as long as the recording", {"type": 5, "timestamp": "@", "data": {}}, b"9", b"", b"")
many(
    "fractions of a thousand digits",
    b'{"type":5,"timestamp":0.%b,"data":{"tag":"options"}}' % (b"123456789" * 100),
)
single("not a number, again and again", {"type": 3, "data": "@"}, b"NaN,", b"[", b"0]")
many("not a number in each event", b'{"type":3,"data":NaN}')
many("infinity in each span", span(b'"op":"memory","startTimestamp":-Infinity'))
single("NaN strings, then a NaN number", {"type": 3, "data": "@"}, b'"NaN",', b"[", b"NaN]")
single("a text of one emoji and many letters", console_event("@"), b"a", '"\U0001f600'.encode(), b'"')
single(
    "a description of one emoji and many letters",
    span_event("resource.img", "@"),
    b"a",
    '"\U0001f600'.encode(),
    b'"',
)
single("an address of one emoji and many letters", viewport_event("@"), b"a", '"\U0001f600'.encode(), b'"')
single("a tag of one emoji and many letters", custom_event("@", {}), b"a", '"\U0001f600'.encode(), b'"')
single("a category as long as the recording", breadcrumb("@", {}), b"a", b'"', b'"')
single("a clicked text of one emoji and many letters", breadcrumb("ui.click", {"node": node() | {"textContent": "@"}}),  # noqa: E501
    b"a", '"\U0001f600'.encode(), b'"')  # fmt: skip
single("a class of spaces", click_event(attributes={"class": "@"}), b" ", b'"', b'"')
single(
    "a click with many attributes",
    breadcrumb("ui.click", {"node": node(), "more": "@"}),
    b'{"a":[{}]},',
    b"[",
    b"0]",
)
single("a text of escapes", console_event("@"), rb"\u00e9", b'"', b'"')
single("a text of escaped quotes", {"type": 3, "data": "@"}, rb"\"", b'"', b'"')
many("messages that are no UTF-8", crumb(b'"category":"console","message":"\xff"'))
single("a text that is no UTF-8", {"type": 3, "data": "@"}, b"\xff", b'"', b'"')
chunks("long messages in many events", console_event("@"), b"a", b'"', b'"', 60_000)
chunks(
    "long request bodies",
    fetch_event({"request": {"size": 1, "body": "@"}}),
    b'{"a":[1,2,{"b":""}]},',
    b"[",
    b"0]",
    150_000,
)

# Positions at which a recording might be split

chunks(
    "fake event boundaries",
    {"type": 3, "data": "@", "timestamp": 1},
    b'{"timestamp":1},{"type":0},',
    b"[",
    b"0]",
    5_000_000,
)
single(
    "fake event boundaries in one event",
    {"type": 3, "data": "@"},
    b'{"timestamp":1},{"type":0},',
    b"[",
    b"0]",
)
single("times everywhere", {"type": 3, "data": "@"}, b'{"timestamp":1},', b"[", b"0]")
many("events with times", {"type": 3, "data": {"source": 1}, "timestamp": 1790000000000})
shape("events with spaces between all")(
    lambda raw_bytes: packed(
        listed(b'{ "type" : 3 , "data" : { "source" : 1 } , "timestamp" : 1790000000000 }', raw_bytes)
    )
)
shape("a snapshot of a long page, then events")(
    lambda raw_bytes: packed(
        stuffed({"type": 2, "data": {"node": "@"}, "timestamp": 1}, b'{"type":2,"tagName":"p","childNodes":[{"type":3}]},',  # noqa: E501
                raw_bytes * 3 // 4, b"[", b"0]")[:-1] + b"," + listed(text(console_event()), raw_bytes // 4)[1:]
    )
)  # fmt: skip

# Rows larger than their source

many("addresses of control characters", viewport_event(CONTROL * 1024))
many("requests to control characters", span_event("resource.fetch", CONTROL * 1024, {"method": CONTROL * 32}))
many("scrolls of control characters", breadcrumb("ui.scroll", {f"{n}": CONTROL * 2048 for n in range(16)}))
many(
    "clicks on control characters",
    click_event(attributes={"class": " ".join([CONTROL * 1024] * 10), "id": CONTROL * 64}),
)
many("navigations to quotes", breadcrumb("navigation", {"from": '"' * 2048, "to": "\\" * 2048}))

# The message around the recording


def _keys(count: int, key: bytes) -> bytes:
    return b"\xdf" + struct.pack(">I", count) + key * count


shape("an envelope of a million keys")(
    lambda raw_bytes: _keys(min(raw_bytes, MESSAGE_BYTES_MAX) // 8, b"\xa6key_id\x01")
)
shape("an envelope of a million payloads")(
    lambda raw_bytes: _keys(min(raw_bytes, MESSAGE_BYTES_MAX) // 10, b"\xa7payload\xc4\x00")
)
shape("an envelope nested deep")(lambda raw_bytes: b"\x91" * min(raw_bytes, MESSAGE_BYTES_MAX))
shape("a type as long as the message")(
    lambda raw_bytes: recording([], type="\U0001f600" + "a" * min(raw_bytes, 14_000_000))
)
shape("a replay_id as long as the message")(
    lambda raw_bytes: recording([], replay_id="\U0001f600" + "a" * min(raw_bytes, 14_000_000))
)
shape("an unknown field as long as the message")(
    lambda raw_bytes: recording([], unknown=[[]] * min(raw_bytes, 14_000_000))
)
shape("a header line of empty arrays")(
    lambda raw_bytes: envelope(frame(b"[]", headers=b'{"segment_id":1,"a":[' + b"[]," * 21_000 + b"0]}"))
)
shape("a header line that never ends")(lambda raw_bytes: envelope(b" " * min(raw_bytes, 14_000_000)))
shape("a header line of one number")(
    lambda raw_bytes: envelope(frame(b"[]", headers=b'{"segment_id":' + b"9" * 64_000 + b"}"))
)


@shape("a plain body of random text")
def _plain(raw_bytes: int) -> bytes:
    noise = base64.b64encode(random.Random(1).randbytes(min(raw_bytes, 14_000_000) * 3 // 4))
    return envelope(frame(b'["' + noise + b'"]'))


@shape("a video beside a long recording")
def _video(raw_bytes: int) -> bytes:
    video = random.Random(1).randbytes(min(raw_bytes, 12_000_000))
    return packed(listed(b'{"type":3}', raw_bytes), replay_video=video)


@shape("a stream of empty blocks")
def _empty_blocks(raw_bytes: int) -> bytes:
    stream = zlib.compress(b"[]", 0)
    return envelope(frame(stream[:2] + b"\x00\x00\x00\xff\xff" * (min(raw_bytes, 14_000_000) // 5) + stream[2:]))


@shape("a stream that is cut off")
def _cut_off(raw_bytes: int) -> bytes:
    return envelope(frame(isal_zlib.compress(listed(b'{"type":3}', raw_bytes), 1)[:-4]))


@shape("a recording of random text")
def _random(raw_bytes: int) -> bytes:
    noise = base64.b64encode(random.Random(1).randbytes(min(raw_bytes, 18_000_000) * 3 // 4))
    return packed(b'[{"type":3,"data":"' + noise + b'"}]')


# The replay_event


def document(name: str, fields: Callable[[int], bytes]) -> None:
    """Adds a message with the given replay_event and an empty recording."""
    shape(name)(lambda raw_bytes: recording([], replay_event=fields(min(raw_bytes, 14_000_000))))


document(
    "a replay_event of many addresses",
    lambda size: filled(b'{"urls":[', b'"https://shop.example/",', b'""]}', size),
)
document("a replay_event of empty arrays", lambda size: filled(b'{"tags":[', b"[],", b"0]}", size))
document("a replay_event of many tags", lambda size: filled(b'{"tags":[', b'["a","b"],', b"0]}", size))
document(
    "a replay_event of long tags", lambda size: filled(b'{"tags":[', b'["%b","b"],' % (b"a" * 9000), b"0]}", size)
)
document(
    "a replay_event of many errors", lambda size: filled(b'{"error_ids":[', b'"%b",' % (b"a" * 32), b'""]}', size)
)
document("a replay_event of one long error", lambda size: filled(b'{"error_ids":["', b"-", b'"]}', size))
document(
    "a replay_event of one emoji and many letters",
    lambda size: filled('{"release":"\U0001f600'.encode(), b"a", b'"}', size),
)
document(
    "a replay_event of wrong types", lambda size: filled(b'{"user":[],"sdk":"","x":[', b'{"a":1},', b"0]}", size)
)
document("a replay_event of one key", lambda size: filled(b"{", b'"urls":[],', b'"x":0}', size))
document("a replay_event of lone surrogates", lambda size: filled(b'{"release":"', rb"\ud83d", b'"}', size))
document("a replay_event nested deep", lambda size: filled(b'{"tags":', b"[", b"", size))
document("a replay_event of a long user", lambda size: filled(b'{"user":{"id":"', b"a", b'"},"sdk":1}', size))
document("a replay_event of control characters", lambda size: replay_event(
    urls=[CONTROL * 2048] * 100, tags=[[CONTROL * 2048, CONTROL * 2048]] * 128, release=CONTROL * 2048))  # fmt: skip  # noqa: E501
document("a replay_event that is an array", lambda size: filled(b"[", b"{},", b"0]", size))
document("a replay_event that is no JSON", lambda size: b"a" * size)
shape("a message of nothing else than a name")(
    lambda raw_bytes: msgspec.msgpack.encode("a" * min(raw_bytes, 14_000_000))
)
