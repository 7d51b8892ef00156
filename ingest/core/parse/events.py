"""The events read from a recording, and the structs that they are decoded into.

Only used fields are declared; the decoder validates everything else without building it. No field may hold a value
of arbitrary shape: unbounded values stay JSON (`msgspec.Raw`) and are decoded within the budget.
"""

from __future__ import annotations

import msgspec

from ingest.core.parse.shapes import NULL, Number, SizeValue, Text

CUSTOM, META, INCREMENTAL = 5, 4, 3
CANVAS_MUTATION = 9


class MalformedEvent(Exception):
    """Raised if an event does not have the shape that its kind requires."""


class FetchSide(msgspec.Struct, gc=False):
    """The request or response of a fetch. Sizes may be numbers or strings."""

    size: SizeValue = None


class Heap(msgspec.Struct, gc=False):
    """Memory use of the page, in bytes."""

    jsHeapSizeLimit: Number = None
    totalJSHeapSize: Number = None
    usedJSHeapSize: Number = None


class SpanData(msgspec.Struct, gc=False):
    """Fields read from span data. Captured request bodies are skipped."""

    method: Text = None
    statusCode: Number = None
    requestBodySize: SizeValue = None
    responseBodySize: SizeValue = None
    request: FetchSide | None = None
    response: FetchSide | None = None
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
"""Placeholder for data that is not an object, because some spans are useful without it."""


class SpanPayload(msgspec.Struct, gc=False):
    """The payload of a span. Times are in Unix seconds."""

    op: Text = None
    description: Text = None
    startTimestamp: Number = None
    endTimestamp: Number = None
    data: SpanData | None = None


class BreadcrumbPayload(msgspec.Struct, gc=False):
    """`timestamp` is in Unix seconds; `data` is JSON, decoded only for categories that need it."""

    category: Text = None
    message: Text = None
    level: Text = None
    timestamp: Number = None
    data: msgspec.Raw = NULL


class Span(msgspec.Struct, gc=False, tag_field="tag", tag="performanceSpan"):
    """An operation with a duration."""

    payload: SpanPayload


class BreadcrumbData(msgspec.Struct, gc=False, tag_field="tag", tag="breadcrumb"):
    """An event at one point in time."""

    payload: BreadcrumbPayload


class Options(msgspec.Struct, gc=False, tag_field="tag", tag="options"):
    """SDK options: a JSON object."""

    payload: msgspec.Raw


class Video(msgspec.Struct, gc=False, tag_field="tag", tag="video"):
    """Properties of the segment's video: a JSON object."""

    payload: msgspec.Raw


class Custom(msgspec.Struct, gc=False, tag_field="type", tag=CUSTOM):
    """A custom SDK event. `timestamp` is in milliseconds, or in seconds for spans."""

    data: Span | BreadcrumbData | Options | Video
    timestamp: Number = None


class Viewport(msgspec.Struct, gc=False):
    """The page and its window size, in pixels."""

    href: Text = None
    width: Number = None
    height: Number = None


class Meta(msgspec.Struct, gc=False, tag_field="type", tag=META):
    """A viewport event. `timestamp` is in milliseconds."""

    data: Viewport
    timestamp: Number = None


class Canvas(msgspec.Struct, gc=False):
    """A canvas mutation. `size_bytes`: size of the whole event as JSON."""

    size_bytes: int
    timestamp: Number = None


Event = Custom | Meta | Canvas
