"""The events that are read of a recording, and the shapes that they are decoded into.

Only what is read is a field; the decoder checks everything else and builds nothing of it. No field may hold a
value of any shape: what cannot be bounded stays JSON (`msgspec.Raw`), and is built where the budget is at hand.
"""

from __future__ import annotations

import msgspec

from ingest.core.parse.shapes import NULL, Number, SizeValue, Text

CUSTOM, META, INCREMENTAL = 5, 4, 3
CANVAS_MUTATION = 9


class Malformed(Exception):
    """This event has not the shape that its kind has."""


class Side(msgspec.Struct, gc=False):
    """The request or the response of a fetch. Sizes come as numbers and as text."""

    size: SizeValue = None


class Heap(msgspec.Struct, gc=False):
    """Bytes."""

    jsHeapSizeLimit: Number = None
    totalJSHeapSize: Number = None
    usedJSHeapSize: Number = None


class SpanData(msgspec.Struct, gc=False):
    """All that is read of the data of any span. The bodies that a request may carry are skipped."""

    method: Text = None
    statusCode: Number = None
    requestBodySize: SizeValue = None
    responseBodySize: SizeValue = None
    request: Side | None = None
    response: Side | None = None
    size: Number = None
    encodedBodySize: Number = None
    decodedBodySize: Number = None
    rating: Text = None
    value: Number = None
    memory: Heap | None = None
    jsHeapSizeLimit: Number = None
    totalJSHeapSize: Number = None
    usedJSHeapSize: Number = None


WRONG_DATA = SpanData()
"""Stands for data that are no object: some spans say enough without."""


class SpanPayload(msgspec.Struct, gc=False):
    """Times in unix seconds."""

    op: Text = None
    description: Text = None
    startTimestamp: Number = None
    endTimestamp: Number = None
    data: SpanData | None = None


class CrumbPayload(msgspec.Struct, gc=False):
    """`timestamp` in unix seconds; `data` is JSON, and decoded only for categories that need it."""

    category: Text = None
    message: Text = None
    level: Text = None
    timestamp: Number = None
    data: msgspec.Raw = NULL


class Span(msgspec.Struct, gc=False, tag_field="tag", tag="performanceSpan"):
    """Something that took time."""

    payload: SpanPayload


class Crumb(msgspec.Struct, gc=False, tag_field="tag", tag="breadcrumb"):
    """Something that happened."""

    payload: CrumbPayload


class Options(msgspec.Struct, gc=False, tag_field="tag", tag="options"):
    """How the SDK is set up: a JSON object."""

    payload: msgspec.Raw


class Video(msgspec.Struct, gc=False, tag_field="tag", tag="video"):
    """What the segment's video is like: a JSON object."""

    payload: msgspec.Raw


class Custom(msgspec.Struct, gc=False, tag_field="type", tag=CUSTOM):
    """An event of the SDK, by its own clock: milliseconds, on spans seconds."""

    data: Span | Crumb | Options | Video
    timestamp: Number = None


class Viewport(msgspec.Struct, gc=False):
    """The page and the size of its window, in pixels."""

    href: Text = None
    width: Number = None
    height: Number = None


class Meta(msgspec.Struct, gc=False, tag_field="type", tag=META):
    """A viewport, in milliseconds."""

    data: Viewport
    timestamp: Number = None


class Canvas(msgspec.Struct, gc=False):
    """A canvas mutation: how many bytes its whole event takes as JSON."""

    size_bytes: int
    timestamp: Number = None


Event = Custom | Meta | Canvas
