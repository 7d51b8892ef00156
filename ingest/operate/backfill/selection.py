"""Selects the stored segments of a backfill, page by page, and the recordings in the bucket that have no row.

Pages follow the primary key of `replay_segments`, so the server reads little more than the rows it returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ingest.core.parse.document import UINT32_MAX
from ingest.core.parse.rows import CLOCK_SKEW_SECONDS_MAX, hashed
from ingest.operate.backfill.rebuild import StoredSegment
from ingest.operate.reconcile.presence import CONDITIONS
from ingest.operate.reconcile.problem import numbers, uuids
from ingest.operate.retention.bucket import DAY_SECONDS, Bucket
from ingest.settings import Settings
from tasks.refused import OBJECT
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs.bucket import RETENTION_DAYS
from tasks.units import MiB
from tasks.wire import chunks

PAGE_SEGMENTS = 200
PAGE_BYTES = 64 * MiB
IDS_PER_QUERY = 500
NAMES_PER_CHUNK = 1000
FIRST_PAGE_KEY = (0, "00000000-0000-0000-0000-000000000000", -1)


@dataclass(frozen=True, slots=True)
class Selection:
    """Selects segments by project, by arrival time (a window in Unix seconds) and by replay. All given conditions
    apply.

    `replay_ids` have 32 hex digits each; None selects every replay. Raises ValueError if no condition is given.
    """

    project_id: int | None = None
    since: float | None = None
    until: float | None = None
    replay_ids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.project_id, self.since, self.until, self.replay_ids) == (None, None, None, None):
            raise ValueError("nothing is selected: give --project, --since, --until or --list")

    def holds(self, seconds: float) -> bool:
        """Returns whether the time is within the window."""
        return (self.since or 0.0) <= seconds < (math.inf if self.until is None else self.until)

    def conditions(self, now: float) -> Iterator[str]:
        """Yields conditions on `replay_segments`, one per group of replay ids. The conditions exclude rows that
        are past their retention period."""
        parts = [f"toUnixTimestamp(received) + retention_days * {DAY_SECONDS} > {int(now)}"]
        if self.project_id is not None:
            parts.append(f"project_id = {int(self.project_id)}")
        if self.since is not None:
            parts.append(f"received >= toDateTime({max(0, math.ceil(self.since))})")
        if self.until is not None:
            parts.append(f"received < toDateTime({max(0, math.ceil(self.until))})")
        for ids in [None] if self.replay_ids is None else chunks(sorted(set(self.replay_ids)), IDS_PER_QUERY):
            yield " AND ".join([*parts, f"replay_id IN ({uuids(ids)})"] if ids else parts)

    def prefixes(self) -> Iterator[str]:
        """Yields the prefixes of the selected recordings in the bucket, in the `segment` layout."""
        if self.project_id is None:
            yield from ([] if self.replay_ids is not None else [""])
            return
        for days in RETENTION_DAYS:
            for replay_id in ("",) if self.replay_ids is None else sorted(set(self.replay_ids)):
                yield f"{days}/{self.project_id}/{replay_id}{'/' if replay_id else ''}"


class StoredSegments:
    """Queries ClickHouse. Methods raise the errors of clickhouse-connect."""

    def __init__(self, settings: Settings, selection: Selection, now: float) -> None:
        self._selection, self._now = selection, now
        self._server: Any = clickhouse.client(settings)

    def count(self) -> int:
        """Returns the number of selected segments."""
        queries = [
            f"SELECT uniqExact(project_id, replay_id, segment_id) FROM replay_segments WHERE {where}"
            for where in self._selection.conditions(self._now)
        ]
        return sum(int(self._server.query(query).result_rows[0][0]) for query in queries)

    def pages(self, segments_max: int) -> Iterator[list[StoredSegment]]:
        """Yields pages of at most `segments_max` segments and at most PAGE_BYTES of recordings. A segment with a
        larger recording is a page of its own."""
        for where in self._selection.conditions(self._now):
            after: tuple[int, str, int] = FIRST_PAGE_KEY
            while page := self._page(where, after, min(PAGE_SEGMENTS, segments_max)):
                after = page[-1].key
                yield page

    def _page(self, where: str, after: tuple[int, str, int], segments_max: int) -> list[StoredSegment]:
        project, replay, segment = after
        uuid = f"toUUID({uuids([replay])})"
        rows = self._server.query(
            "SELECT org_id, project_id, replace(toString(replay_id), '-', ''), segment_id, "
            "toUnixTimestamp(received), retention_days, partition, offset, object, size_compressed "
            f"FROM replay_segments FINAL WHERE {where} AND (project_id > {int(project)} "
            f"OR (project_id = {int(project)} AND "
            f"(replay_id > {uuid} OR (replay_id = {uuid} AND segment_id > {int(segment)})))) "
            f"ORDER BY project_id, replay_id, segment_id LIMIT {int(segments_max)}"
        ).result_rows
        found: list[StoredSegment] = []
        size_bytes = 0
        for row in rows:
            size_bytes += row[-1]
            if found and size_bytes > PAGE_BYTES:
                break
            found.append(StoredSegment(*row))
        return self._with_environments(found)

    def _with_environments(self, page: Sequence[StoredSegment]) -> list[StoredSegment]:
        """Adds the environment, which only the session's row contains, because it comes from the replay_event."""
        if not page:
            return []
        # Two projects may use the same replay id, and their events then have the same hashes.
        hashes = {hashed(f"{segment.replay_id}/segment/{segment.segment_id}"): segment.key[1:] for segment in page}
        replays = uuids(segment.replay_id for segment in page)
        times = [segment.received for segment in page]
        rows = self._server.query(
            "SELECT project_id, toString(event_hash), environment FROM replays FINAL "
            f"WHERE project_id IN ({numbers(segment.project_id for segment in page)}) "
            f"AND replay_id IN ({replays}) "
            f"AND cityHash64(replay_id) IN (SELECT cityHash64(toUUID(arrayJoin([{replays}])))) "
            f"AND timestamp BETWEEN toDateTime({max(0, min(times) - CLOCK_SKEW_SECONDS_MAX)}) "
            f"AND toDateTime({min(UINT32_MAX, max(times) + CLOCK_SKEW_SECONDS_MAX)}) "
            f"AND event_hash IN ({uuids(hashes)})"
        ).result_rows
        known = {(project, *hashes[event]): environment for project, event, environment in rows}
        return [replace(segment, environment=known.get(segment.key, "")) for segment in page]

    def unlisted(self, names: Sequence[str]) -> list[str]:
        """Returns the given names whose segment has no row."""
        parts = {name: name.split("/") for name in names}
        keys = {
            name: {"project_id": int(project), "replay_id": replay, "segment_id": int(segment)}
            for name, (_, project, replay, segment) in parts.items()
        }
        if not keys:
            return []
        rows = self._server.query(
            "SELECT DISTINCT project_id, replace(toString(replay_id), '-', ''), segment_id FROM replay_segments "
            f"WHERE {CONDITIONS['replay_segments'](list(keys.values()), 0)}"
        ).result_rows
        known = {tuple(row) for row in rows}
        return [name for name, key in keys.items() if tuple(key.values()) not in known]

    def unknown_replays(self) -> Iterator[str]:
        """Yields the selected replay ids that have no row."""
        for ids in chunks(sorted(set(self._selection.replay_ids or ())), IDS_PER_QUERY):
            project = self._selection.project_id
            where = f"replay_id IN ({uuids(ids)})" + (
                "" if project is None else f" AND project_id = {int(project)}"
            )
            rows = self._server.query(
                f"SELECT DISTINCT replace(toString(replay_id), '-', '') FROM replay_segments WHERE {where}"
            ).result_rows
            yield from sorted(set(ids) - {row[0] for row in rows})

    def close(self) -> None:
        """Closes the connections."""
        self._server.close()


def recording_names(bucket: Bucket, selection: Selection) -> Iterator[list[str]]:
    """Yields the names of the selected recordings that have their own object in the bucket, in chunks of
    NAMES_PER_CHUNK."""
    names: list[str] = []
    for prefix in selection.prefixes():
        for stored in bucket.objects(prefix):
            if stored.live and OBJECT.fullmatch(stored.name) and selection.holds(stored.born_at):
                names.append(stored.name)
            if len(names) >= NAMES_PER_CHUNK:
                yield names
                names = []
    if names:
        yield names
