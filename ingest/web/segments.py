"""Lists the segments of a replay and the gaps between them, from ClickHouse rows and Cloud Storage objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingest.web.model import ReadError, Replay, ReportedError, SegmentCopy, SegmentFacts, Segments, SegmentState
from ingest.web.replays import CLICK_CONDITION, TAP_CONDITION
from ingest.web.stores import OBJECTS_MAX, Stores
from tasks.stored import StoredLocation

SEGMENTS_MAX = 5000
ERRORS_MAX = 100  # per segment: Relay admits no more
USUAL_RETENTIONS = (30, 60, 90)


@dataclass(frozen=True, slots=True)
class _Object:
    """A segment's stored bytes. `name`: the name of the segment's object, or the name that the object would have
    in the layout `segment`.
    """

    name: str
    place: StoredLocation
    size_bytes: int
    written_at: float | None


def segments(stores: Stores, replay: Replay) -> Segments:
    """Returns all segments in order, with gaps, from ClickHouse and Cloud Storage."""
    parameters = {"project": replay.project_id, "id": replay.replay_id}
    where = "project_id = {project:UInt64} AND replay_id = {id:UUID}"
    rows = stores.query(
        "SELECT segment_id, object, toUnixTimestamp(received), partition, offset, size_compressed, "
        "size_uncompressed, size_video, retention_days "
        f"FROM replay_segments FINAL WHERE {where} ORDER BY segment_id LIMIT {SEGMENTS_MAX}",
        parameters,
    )
    copies: dict[int, dict[SegmentCopy, set[str]]] = {}
    for segment_id, partition, offset, part in stores.query(
        f"SELECT segment_id, partition, offset, _part FROM replay_segments WHERE {where} LIMIT {4 * SEGMENTS_MAX}",
        parameters,
    ):
        copies.setdefault(segment_id, {}).setdefault(SegmentCopy(partition, offset), set()).add(part)
    objects, notes = _objects(stores, replay, {row[8] for row in rows})
    if len(rows) == SEGMENTS_MAX or len(objects) >= OBJECTS_MAX:
        notes.append(f"there are more than {SEGMENTS_MAX} segments: the rest is not listed")
    return _merge(rows, copies, objects, _part_times(stores), notes, _errors(stores, replay))


def _errors(stores: Stores, replay: Replay) -> tuple[ReportedError, ...]:
    """Returns the errors in segment order. Duplicate rows have no effect."""
    rows = stores.query(
        f"SELECT segment_id, toUnixTimestamp(max(timestamp)), groupUniqArrayArray({ERRORS_MAX})(error_ids) "
        "FROM replays WHERE project_id = {project:UInt64} AND replay_id = {id:UUID} "
        "AND cityHash64(replay_id) = cityHash64({id:UUID}) AND segment_id IS NOT NULL "
        f"AND NOT {CLICK_CONDITION} AND NOT {TAP_CONDITION} "
        f"GROUP BY segment_id ORDER BY segment_id LIMIT {SEGMENTS_MAX}",
        {"project": replay.project_id, "id": replay.replay_id},
    )
    found: list[ReportedError] = []
    since = replay.started_at
    for segment_id, ended_at, ids in rows:
        until = max(since, ended_at + 1.0)  # ClickHouse keeps whole seconds
        for error_id in sorted(str(one).replace("-", "") for one in ids):
            found.append(ReportedError(error_id, int(segment_id), since, until))
        since = max(since, float(ended_at))
    return tuple(found)


def _part_times(stores: Stores) -> dict[str, float]:
    """Returns the time at which each table part was written, in Unix seconds; empty if the query fails."""
    try:
        rows = stores.query(
            "SELECT name, toUnixTimestamp(modification_time) FROM system.parts "
            "WHERE database = currentDatabase() AND table = 'replay_segments' AND active"
        )
    except ReadError:
        return {}
    return dict(rows)


def _objects(stores: Stores, replay: Replay, retentions: set[int]) -> tuple[dict[int, _Object], list[str]]:
    """Returns the objects of a replay by segment number, and one line per anomaly among the objects."""
    found: dict[int, _Object] = {}
    notes: list[str] = []
    for days in sorted({*USUAL_RETENTIONS, *retentions}, key=lambda days: (days not in retentions, days)):
        prefix = f"{days}/{replay.project_id}/{replay.replay_id}/"
        for blob in stores.objects(prefix):
            number = blob.name.removeprefix(prefix)
            if not number.isdecimal():
                notes.append(f"{blob.name} is not a segment")
            elif int(number) in found:
                notes.append(f"segment {number} is stored twice: {found[int(number)].name} and {blob.name}")
            else:
                written = blob.updated or blob.time_created
                found[int(number)] = _Object(
                    blob.name,
                    StoredLocation(replay.project_id, replay.replay_id, int(number), blob.name),
                    int(blob.size or 0),
                    written.timestamp() if written else None,
                )
    for number, name, object_name, start, length in stores.query(
        "SELECT segment_id, name, object, start_bytes, length_bytes FROM replay_objects FINAL "
        "WHERE project_id = {project:UInt64} AND replay_id = {id:UUID} ORDER BY segment_id "
        f"LIMIT {SEGMENTS_MAX}",
        {"project": replay.project_id, "id": replay.replay_id},
    ):
        place = StoredLocation(replay.project_id, replay.replay_id, number, object_name, start, length)
        # The write time of packed objects is not read, because that would take one request per segment.
        found.setdefault(number, _Object(name, place, length, None))
    return found, notes


def _merge(
    rows: Sequence[tuple[Any, ...]],
    copies: dict[int, dict[SegmentCopy, set[str]]],
    objects: dict[int, _Object],
    part_times: dict[str, float],
    notes: Sequence[str],
    errors: tuple[ReportedError, ...],
) -> Segments:
    """Merges rows, deliveries and objects into one list, with gaps."""
    by_id = {row[0]: row for row in rows}
    highest = max([*by_id, *objects], default=-1)
    if highest >= 2 * SEGMENTS_MAX:  # an impossible segment number must not create that many gaps
        wanted: Sequence[int] = sorted({*by_id, *objects})
        notes = [*notes, f"the highest segment is {highest}: gaps are not listed"]
    else:
        wanted = range(highest + 1)
    found = []
    for segment_id in wanted:
        row, stored, delivered = by_id.get(segment_id), objects.get(segment_id), copies.get(segment_id, {})
        if row is None and stored is None:
            found.append(SegmentFacts(segment_id, SegmentState.MISSING))
            continue
        state = (
            SegmentState.NO_ROW
            if row is None
            else SegmentState.NO_OBJECT
            if stored is None
            else SegmentState.STORED
        )
        there_by = [part_times[part] for parts in delivered.values() for part in parts if part in part_times]
        found.append(
            SegmentFacts(
                segment_id=segment_id,
                state=state,
                object=stored.name if stored else row[1] if row else "",
                received_at=float(row[2]) if row else None,
                partition=row[3] if row else None,
                offset=row[4] if row else None,
                bytes_stored=stored.size_bytes if stored else row[5] if row else 0,
                bytes_inflated=row[6] if row else 0,
                bytes_video=row[7] if row else 0,
                durable_gcs_at=stored.written_at if stored else None,
                durable_clickhouse_at=min(there_by, default=None),
                copies=tuple(sorted(delivered, key=lambda copy: (copy.partition, copy.offset))),
            )
        )
    places = {number: one.place for number, one in objects.items()}
    return Segments(tuple(found), tuple(notes), places, errors)
