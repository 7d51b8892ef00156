"""The rows, facts and metrics of a segment, encoded once. docs/rows.md has the tables.

A redelivered segment has the same row identities, because rows contain neither random values nor the time
of processing. Fields shared by all rows of a segment are encoded once.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

import msgspec

from ingest.core.model import Metric, MetricKind, Row
from ingest.core.parse.document import UINT32_MAX, Document, columns_of, uuid_text
from ingest.core.parse.rrweb import Click, Fact, Size, Tap
from tasks.proto_rows import FACT_TABLE, MICROSECONDS, FactEncoder, time_text

try:  # CPython's own implementation is twice as fast as OpenSSL's for strings as short as ours
    from _md5 import md5  # type: ignore[import-not-found]

    md5(b"", usedforsecurity=False)
except (ImportError, ValueError):  # not built into this Python, or refused by its FIPS mode
    from hashlib import md5

UINT16_MAX = 2**16 - 1
CLOCK_SKEW_SECONDS_MAX = 30 * 86400
# The time at which a table deletes a row, its timestamp plus its retention, is computed in 32-bit Unix seconds. An
# overflow would wrap into the past and delete the row immediately. A retention of 40 years does not overflow until
# 2066.
RETENTION_DAYS_MAX = 14_600
TIMESTAMP_SECONDS_MAX = UINT32_MAX - RETENTION_DAYS_MAX * 86400 - CLOCK_SKEW_SECONDS_MAX
# Approximate overhead of a row and of a metric, in bytes.
ROW_BYTES, METRIC_BYTES = 32, 64
# Bytes for the table name and the column list in a batch's protobuf rows, added to the size of each segment.
COLUMNS_BYTES = 320
OVERSIZED_BYTES = 20_000_000

CACHED_TIMES_MAX = 4096
# Looking up a member of an enum is slow.
_COUNTER, _DISTRIBUTION = MetricKind.COUNTER, MetricKind.DISTRIBUTION

_encode = msgspec.json.Encoder().encode


class Identity(msgspec.Struct, frozen=True, gc=False):
    """The segment, its replay and its position in Kafka. `at`: the segment's validated time, in Unix seconds."""

    org_id: int
    project_id: int
    replay_id: str
    segment_id: int
    retention_days: int
    key_id: int | None
    at: int
    partition: int
    offset: int


def plausible_time(received: int, timestamp_ms: int) -> int:
    """Returns the time of a segment in Unix seconds: `received`, unless it is far from Kafka's timestamp.

    BigQuery would refuse an implausible year, and a DateTime would overflow.
    """
    kafka = timestamp_ms // 1000
    if kafka > 0:
        return (
            received
            if abs(received - kafka) <= CLOCK_SKEW_SECONDS_MAX and received <= TIMESTAMP_SECONDS_MAX
            else min(kafka, TIMESTAMP_SECONDS_MAX)
        )
    return received if received <= TIMESTAMP_SECONDS_MAX else 0


def clamped_days(retention_days: int) -> int:
    """The retention, clamped to what the tables can express: 1 day to RETENTION_DAYS_MAX."""
    if 1 <= retention_days <= RETENTION_DAYS_MAX:
        return retention_days
    return min(max(retention_days, 1), RETENTION_DAYS_MAX)


def size_bytes(row: Row) -> int:
    """Estimates the size in bytes of a row, both in Redis and in the reader's memory."""
    return len(row.json) + len(row.id) + ROW_BYTES


def proto_bytes(framed: bytes) -> int:
    """Estimates the size in bytes of a protobuf-encoded fact, both in Redis and in the reader's memory."""
    return len(framed) + ROW_BYTES


def plausible_seconds(seconds: float, at: int) -> float:
    """Returns the event's time if it is plausible compared with the segment's time, otherwise the segment's
    time."""
    return (
        seconds
        if -CLOCK_SKEW_SECONDS_MAX <= seconds - at <= CLOCK_SKEW_SECONDS_MAX and 0 <= seconds <= UINT32_MAX
        else at
    )


def moment(seconds: float) -> str:
    """The time in UTC, to the microsecond, as RFC 3339. `seconds`: Unix time from 0 to UINT32_MAX.

    All tested implementations of BigQuery's API read this form in the same way, but some read a bare number as
    seconds, some read it as microseconds, and some refuse it: docs/bigquery-contract.md.
    """
    second, fraction = divmod(round(seconds * MICROSECONDS), MICROSECONDS)
    return f"{_second_text(second)}.{str(fraction).zfill(6)}Z" if fraction else f"{_second_text(second)}Z"


@lru_cache(maxsize=CACHED_TIMES_MAX)
def _second_text(second: int) -> str:
    """Formats a time in whole seconds as RFC 3339, but without the final `Z`. The result is cached, because many
    facts have the same second."""
    return time_text(second * MICROSECONDS).removesuffix("Z")


def hashed(text: str) -> str:
    """Returns a UUID that depends only on the text."""
    return uuid_text(md5(text.encode(), usedforsecurity=False).hexdigest())


def is_in_sample(identity: Identity, salt: str, share: float) -> bool:
    """Returns True for about this share of segments. Every delivery of a segment gets the same decision."""
    return (
        crc32(f"{identity.project_id}/{identity.replay_id}/{identity.segment_id}/{salt}".encode()) < share * 2**32
    )


class _ClickColumns(msgspec.Struct, gc=False, omit_defaults=True):
    url: str
    click_node_id: int
    click_tag: str
    click_id: str
    click_class: list[str]
    click_text: str
    click_role: str
    click_alt: str
    click_testid: str
    click_aria_label: str
    click_title: str
    click_component_name: str
    click_is_dead: int
    click_is_rage: int
    environment: str | None = None


class _TapColumns(msgspec.Struct, gc=False, omit_defaults=True):
    tap_message: str
    tap_view_class: str
    tap_view_id: str
    environment: str | None = None


class Writer:
    """Encodes the rows of one segment.

    `environment`: the value from the segment's replay_event, which is repeated in the rows of clicks and taps.
    """

    def __init__(self, identity: Identity, environment: str | None = None) -> None:
        self.identity = identity
        self._environment = environment or None
        org, project, segment = identity.org_id, identity.project_id, identity.segment_id
        self._uuid = uuid_text(identity.replay_id)
        self._fact_id = f"{identity.replay_id}-{segment}-"
        self._project = f"{project}-"
        self._facts_tail = (
            f'"org_id":{org},"project_id":{project},"replay_id":"{identity.replay_id}","segment_id":{segment},'
            f'"retention_days":{identity.retention_days},"attributes":'
        )
        self._facts: FactEncoder | None = None
        self._replays_tail = (
            f'"replay_id":"{self._uuid}","segment_id":{segment if segment <= UINT16_MAX else "null"},'
            f'"org_id":{org},"project_id":{project},"retention_days":{identity.retention_days},'
            f'"partition":{identity.partition},"offset":{identity.offset}'
        ).encode()

    # ClickHouse

    def segment(self, object_name: str, stored_bytes: int, raw_bytes: int, video_bytes: int) -> Row:
        """Returns the row of the table `replay_segments`: the segment, its sizes, and the location of its
        bytes."""
        identity = self.identity
        row = (
            f'{{"org_id":{identity.org_id},"project_id":{identity.project_id},"replay_id":"{self._uuid}",'
            f'"segment_id":{identity.segment_id},"received":{identity.at},"retention_days":{identity.retention_days},'
            f'"object":"{object_name}","size_compressed":{stored_bytes},"size_uncompressed":{raw_bytes},'
            f'"size_video":{video_bytes},"partition":{identity.partition},"offset":{identity.offset}}}'
        )
        return Row("replay_segments", f"{identity.replay_id}/{identity.segment_id}", row.encode(), identity.offset)

    def outcome(self, has_video: bool) -> Row:
        """Returns the row of the table `replay_outcomes`, for billing: one per replay."""
        identity = self.identity
        key_id = identity.key_id if identity.key_id is not None and identity.key_id >= 0 else "null"
        row = (
            f'{{"org_id":{identity.org_id},"project_id":{identity.project_id},"replay_id":"{self._uuid}","key_id":{key_id},'
            f'"category":"{"replay_video" if has_video else "replay"}","outcome":"accepted","quantity":1,'
            f'"timestamp":{identity.at}}}'
        )
        return Row("replay_outcomes", identity.replay_id, row.encode(), identity.offset)

    def _replays(self, event_hash: str, seconds: float, columns: msgspec.Struct) -> Row:
        own = _encode(columns)
        at = int(plausible_seconds(seconds, self.identity.at))
        head = f'{{"event_hash":"{event_hash}","timestamp":{at},'.encode()
        row = b"".join((head, self._replays_tail, b"," if len(own) > 2 else b"", own[1:]))
        return Row("replays", event_hash, row, self.identity.offset)

    def replay(self, document: Document) -> Row:
        """Returns the row of the table `replays` for the session, from the replay_event. An empty document gives a
        row without session columns."""
        identity = self.identity
        seconds = document.timestamp
        event_hash = hashed(f"{identity.replay_id}/segment/{identity.segment_id}")
        return self._replays(event_hash, identity.at if seconds is None else seconds, columns_of(document))

    def click(self, click: Click) -> Row:
        """Returns the row of the table `replays` for a click. The row of a later slow-click event for the same
        click has the same hash and more columns.
        """
        element = click.element
        columns = _ClickColumns(
            element.url,
            element.node_id,
            element.tag,
            element.id,
            element.classes,
            element.text,
            element.role,
            click.alt,
            element.testid,
            element.aria_label,
            element.title,
            element.component_name,
            element.is_dead,
            element.is_rage,
            self._environment,
        )
        event_hash = hashed(f"{self.identity.replay_id}{click.timestamp}{element.node_id}")
        return self._replays(event_hash, click.timestamp, columns)

    def tap(self, tap: Tap) -> Row:
        """Returns the row of the table `replays` for a tap on a phone."""
        event_hash = hashed(f"{self.identity.replay_id}{tap.timestamp}{tap.view_id}")
        columns = _TapColumns(tap.message, tap.view_class, tap.view_id, self._environment)
        return self._replays(event_hash, tap.timestamp, columns)

    # BigQuery

    def fact(self, fact: Fact, index: int) -> Row:
        """Returns the row of the table `replay_events` for one fact. `index` is the event's position in the
        segment, -1 for the segment itself.

        The column `attributes` is JSON as text, so it is encoded twice. The other columns are names and numbers
        that we generate, which need no escaping. The insert id begins with the project, because two projects may
        use the same replay id (docs/decisions/020-project-in-identity.md).
        """
        kind, identity = fact.kind, self.identity
        row_id = f"{self._fact_id}{index}-{kind}"
        time = moment(plausible_seconds(fact.timestamp, identity.at))
        attributes = _encode(_encode(fact.attributes).decode()).decode()
        row = f'{{"row_id":"{row_id}","event_type":"{kind}","timestamp":"{time}",{self._facts_tail}{attributes}}}'
        return Row(FACT_TABLE, self._project + row_id, row.encode(), identity.offset)

    def proto_fact(self, fact: Fact, index: int) -> bytes:
        """Returns the row of `fact` as a framed protobuf message (`tasks.proto_rows`)."""
        identity = self.identity
        if self._facts is None:
            self._facts = FactEncoder(
                identity.org_id,
                identity.project_id,
                identity.replay_id,
                identity.segment_id,
                identity.retention_days,
            )
        kind = fact.kind
        return self._facts.framed_fact(
            f"{self._fact_id}{index}-{kind}".encode(),
            kind,
            round(plausible_seconds(fact.timestamp, identity.at) * MICROSECONDS),
            _encode(fact.attributes),
        )


# Datadog


def metrics(
    stored: int, raw: int, video: int, sizes: Iterable[Size], rage: int, hydration: int, missing_event: bool
) -> tuple[Metric, ...]:
    """Returns the product metrics of one segment; sizes in bytes."""
    metrics = [
        Metric(_DISTRIBUTION, "replays.usecases.ingest.size_compressed", stored),
        Metric(_DISTRIBUTION, "replays.usecases.ingest.size_uncompressed", raw),
    ]
    for size in sizes:
        if size.request is not None:
            metrics.append(Metric(_DISTRIBUTION, "replays.usecases.ingest.request_body_size", size.request))
        if size.response is not None:
            metrics.append(Metric(_DISTRIBUTION, "replays.usecases.ingest.response_body_size", size.response))
    if video:
        metrics.append(Metric(_COUNTER, "replays.recording_consumer.replay_video_count", 1))
        metrics.append(Metric(_DISTRIBUTION, "replays.recording_consumer.replay_video_size", video))
        metrics.append(Metric(_DISTRIBUTION, "replays.recording_consumer.replay_video_event_size", raw))
    if rage:
        metrics.append(Metric(_COUNTER, "replay.rage_click_detected", rage))
    if hydration:
        metrics.append(Metric(_COUNTER, "replay.hydration_error_breadcrumb", hydration))
    if missing_event:
        metrics.append(Metric(_COUNTER, "sentry.replays.consumer.recording.missing-replay-event", 1))
    if raw > OVERSIZED_BYTES:
        metrics.append(Metric(_COUNTER, "replays.consumer.recording.oversized_segment", 1))
    return tuple(metrics)
