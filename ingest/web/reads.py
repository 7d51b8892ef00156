"""Replays read back from where they were written: rows from ClickHouse, recordings from Cloud Storage.

Exact under duplicates. Which replays match is decided by least and greatest values, which a row that is there
twice cannot change; what is counted is counted with FINAL, over the chosen replays only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from clickhouse_connect.driver.exceptions import Error as ClickHouseError
from google.api_core.exceptions import GoogleAPIError
from google.api_core.exceptions import NotFound as NoSuchObject
from google.auth.exceptions import GoogleAuthError
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError

from ingest.web.blobs import Unpacked, unpack
from ingest.web.model import (
    Filter,
    NotFound,
    ReadError,
    Replay,
    SegmentCopy,
    SegmentFacts,
    Segments,
    SegmentState,
    replay_id_of,
)
from ingest.web.timeline import Timeline, read
from tasks.settings import Settings
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tasks.sinks.per_process import PerProcess

# So that a query's parameters fit into its address, which proxies and the embedded server bound.
KEYS_MAX = 40
LIMIT_MAX = 500
RELEASES_MAX = 200
SEGMENTS_MAX = 5000
QUERY_SECONDS_MAX = 20
DOWNLOADS_AT_ONCE = 8
USUAL_RETENTIONS = (30, 60, 90)
START_SECONDS_MAX = 7200  # a session lasts an hour at most: an earlier start is a clock that is wrong

CLICK = "(click_node_id > 0 OR click_tag != '')"
TAP = "(tap_message != '' OR tap_view_class != '' OR tap_view_id != '')"
SEARCHED = (
    "concat(user, ' ', user_id, ' ', user_name, ' ', user_email, ' ', url, ' ', arrayStringConcat(urls, ' '))"
)


@dataclass(frozen=True, slots=True)
class Page:
    """Some replays, the latest first. `more`: there are others after them."""

    replays: tuple[Replay, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Project:
    """A project with replays: its id, how many, and when its last one ended."""

    project_id: int
    replays: int
    last_at: float


class Reads:
    """The library. Methods block, may be called from several threads, and raise ReadError or NotFound."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clickhouse = PerProcess(lambda: clickhouse.client(settings))
        self._gcs = PerProcess(lambda: gcs.client(settings))

    def close(self) -> None:
        """Closes the connections."""
        for client in (self._clickhouse.take(), self._gcs.take()):
            if client is not None:
                client.close()

    # Replays

    def projects(self) -> tuple[Project, ...]:
        """Every project that has replays, the one with the latest first."""
        rows = self._query(
            "SELECT project_id, uniqExact(replay_id), toUnixTimestamp(max(received)) AS last_at "
            "FROM replay_segments GROUP BY project_id ORDER BY last_at DESC, project_id LIMIT 1000"
        )
        return tuple(Project(*row) for row in rows)

    def releases(self, project_id: int | None) -> tuple[str, ...]:
        """Releases seen in replays, the latest first."""
        where, given = (
            ("project_id = {project:UInt64} AND", {"project": project_id}) if project_id is not None else ("", {})
        )
        rows = self._query(
            f"SELECT release FROM replays WHERE {where} release != '' "
            f"GROUP BY release ORDER BY max(timestamp) DESC, release LIMIT {RELEASES_MAX}",
            given,
        )
        return tuple(row[0] for row in rows)

    def replays(self, chosen: Filter) -> Page:
        """The replays that match, the one that ended last first."""
        limit = max(1, min(chosen.limit, LIMIT_MAX))
        where, having, given = _conditions(chosen)
        found = self._query(
            "SELECT project_id, lower(replaceAll(toString(replay_id), '-', '')) AS id, max(timestamp) AS ended_at "
            f"FROM replays WHERE {where} GROUP BY project_id, replay_id HAVING {having} "
            f"ORDER BY ended_at DESC, id LIMIT {limit + 1} OFFSET {max(0, chosen.offset)}",
            given,
        )
        keys = [(row[0], row[1]) for row in found[:limit]]
        some = (keys[start : start + KEYS_MAX] for start in range(0, len(keys), KEYS_MAX))
        facts = {(one.project_id, one.replay_id): one for part in some for one in self._facts(part)}
        return Page(tuple(facts[key] for key in keys if key in facts), more=len(found) > limit)

    def replay(self, replay_id: str, project_id: int | None = None) -> Replay:
        """One replay. Without a project it is looked for in all of them, which takes longer."""
        replay_id = replay_id_of(replay_id)
        if project_id is None:
            project_id = self._project_of(replay_id)
        found = self._facts([(project_id, replay_id)])
        if not found:
            raise NotFound(f"no replay {replay_id} in project {project_id}")
        return found[0]

    def _project_of(self, replay_id: str) -> int:
        rows = self._query(
            "SELECT DISTINCT project_id FROM replay_segments WHERE replay_id = {id:UUID} LIMIT 10",
            {"id": replay_id},
        )
        if not rows:
            raise NotFound(f"no replay {replay_id} in any project")
        if len(rows) > 1:
            raise NotFound(
                f"replay {replay_id} is in several projects, choose one: {sorted(row[0] for row in rows)}"
            )
        return int(rows[0][0])

    def _facts(self, keys: Sequence[tuple[int, str]]) -> list[Replay]:
        """All there is to know about these replays, two queries whatever their number."""
        if not keys:
            return []
        given = {"projects": sorted({key[0] for key in keys}), "ids": [key[1] for key in keys]}
        stored = {
            (row[0], row[1]): row[2:]
            for row in self._query(
                "SELECT project_id, lower(replaceAll(toString(replay_id), '-', '')), count(), max(segment_id), "
                "sum(size_compressed), sum(size_uncompressed), max(size_video) > 0, max(retention_days), "
                "toUnixTimestamp(min(received)) "
                f"FROM replay_segments FINAL WHERE {_AMONG} GROUP BY project_id, replay_id",
                given,
            )
        }
        rows = self._query(
            f"SELECT {_FACTS} FROM replays FINAL WHERE {_AMONG_DAYS} GROUP BY project_id, replay_id", given
        )
        wanted = set(keys)
        return [_replay(row, stored.get((row[0], row[1]))) for row in rows if (row[0], row[1]) in wanted]

    # Segments

    def segments(self, replay: Replay) -> Segments:
        """Every segment in order, by what ClickHouse and Cloud Storage know of it; holes are named."""
        given = {"project": replay.project_id, "id": replay.replay_id}
        where = "project_id = {project:UInt64} AND replay_id = {id:UUID}"
        rows = self._query(
            "SELECT segment_id, object, toUnixTimestamp(received), partition, offset, size_compressed, "
            "size_uncompressed, size_video, retention_days "
            f"FROM replay_segments FINAL WHERE {where} ORDER BY segment_id LIMIT {SEGMENTS_MAX}",
            given,
        )
        copies: dict[int, dict[SegmentCopy, set[str]]] = {}
        for segment_id, partition, offset, part in self._query(
            f"SELECT segment_id, partition, offset, _part FROM replay_segments WHERE {where} "
            f"LIMIT {4 * SEGMENTS_MAX}",
            given,
        ):
            copies.setdefault(segment_id, {}).setdefault(SegmentCopy(partition, offset), set()).add(part)
        objects, notes = self._objects(replay, {row[8] for row in rows})
        return _merge(rows, copies, objects, self._part_times(), notes)

    def _part_times(self) -> dict[str, float]:
        """When each part of the table was written, unix seconds; empty where one may not ask."""
        try:
            rows = self._query(
                "SELECT name, toUnixTimestamp(modification_time) FROM system.parts "
                "WHERE database = currentDatabase() AND table = 'replay_segments' AND active"
            )
        except ReadError:
            return {}
        return dict(rows)

    def _objects(self, replay: Replay, retentions: set[int]) -> tuple[dict[int, _Object], list[str]]:
        """The objects of a replay by segment, and what is odd about them."""
        found: dict[int, _Object] = {}
        notes: list[str] = []
        for days in sorted({*USUAL_RETENTIONS, *retentions}, key=lambda days: (days not in retentions, days)):
            prefix = f"{days}/{replay.project_id}/{replay.replay_id}/"
            for blob in self._list(prefix):
                number = blob.name.removeprefix(prefix)
                if not number.isdecimal():
                    notes.append(f"{blob.name} is no segment")
                elif int(number) in found:
                    notes.append(f"segment {number} is stored twice: {found[int(number)].name} and {blob.name}")
                else:
                    written = blob.updated or blob.time_created
                    found[int(number)] = _Object(
                        blob.name, int(blob.size or 0), written.timestamp() if written else None
                    )
        for number, name, length in self._query(
            "SELECT segment_id, name, length_bytes FROM replay_objects FINAL "
            "WHERE project_id = {project:UInt64} AND replay_id = {id:UUID} ORDER BY segment_id "
            f"LIMIT {SEGMENTS_MAX}",
            {"project": replay.project_id, "id": replay.replay_id},
        ):
            # When its packed object was written is not asked: that would be one request a segment.
            found.setdefault(number, _Object(name, length, None))
        return found, notes

    def _list(self, prefix: str) -> list[Any]:
        settings = self._settings
        try:
            return list(
                self._gcs.get().list_blobs(
                    settings.gcs_bucket,
                    prefix=prefix,
                    max_results=SEGMENTS_MAX,
                    timeout=settings.sink_timeout_seconds,
                    retry=None,
                )
            )
        except _GCS_ERRORS as error:
            raise ReadError(f"cloud storage: {error}") from error

    # Recordings

    def stored(self, object_name: str) -> bytes:
        """The bytes of one segment as they are stored, in an object of its own or within a packed one."""
        try:
            return self._download(object_name)
        except NotFound:
            place = self._packed_place(object_name)
            if place is None:
                raise
        name, start, length = place
        return self._download(name, start=start, end=start + length - 1)

    def _packed_place(self, name: str) -> tuple[str, int, int] | None:
        """(object, first byte, length) of the segment that would be called `name`, if it lies in a packed one."""
        parts = name.split("/")
        if len(parts) != 4 or not (parts[1].isdecimal() and parts[3].isdecimal()):
            return None
        rows = self._query(
            "SELECT object, start_bytes, length_bytes FROM replay_objects FINAL WHERE length_bytes > 0 AND "
            "project_id = {project:UInt64} AND replay_id = toUUIDOrZero({id:String}) "
            "AND segment_id = {segment:UInt64} AND name = {name:String}",
            {"project": int(parts[1]), "id": parts[2], "segment": int(parts[3]), "name": name},
        )
        return (rows[0][0], rows[0][1], rows[0][2]) if rows else None

    def _download(self, object_name: str, **span: int) -> bytes:
        settings = self._settings
        try:
            blob = self._gcs.get().bucket(settings.gcs_bucket).blob(object_name)
            content: bytes = blob.download_as_bytes(
                raw_download=True, timeout=settings.sink_timeout_seconds, **span
            )
        except NoSuchObject as error:
            raise NotFound(f"no object {object_name} in {settings.gcs_bucket}") from error
        except _GCS_ERRORS as error:
            raise ReadError(f"cloud storage: {error}") from error
        return content

    def segment(self, object_name: str) -> Unpacked:
        """The recording, and the video, of one segment. Raises BlobError when the object is not one of ours."""
        return unpack(self.stored(object_name))

    def recordings(self, segments: Segments) -> Iterator[tuple[SegmentFacts, bytes]]:
        """The stored bytes of every segment that can be read, in order, fetched some at a time."""
        readable = segments.readable
        with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="segments") as pool:
            for start in range(0, len(readable), 4 * DOWNLOADS_AT_ONCE):
                group = readable[start : start + 4 * DOWNLOADS_AT_ONCE]
                for one, content in zip(group, pool.map(self._stored_or_nothing, group), strict=True):
                    if content is not None:
                        yield one, content

    def _stored_or_nothing(self, one: SegmentFacts) -> bytes | None:
        try:
            return self.stored(one.object)
        except NotFound:  # deleted or expired since it was listed
            return None

    def timeline(self, segments: Segments) -> Timeline:
        """What happened in the replay, from its own segments. One that cannot be read is named, not fatal."""
        unreadable: dict[int, str] = {}

        def recordings() -> Iterator[tuple[int, bytes]]:
            for one, content in self.recordings(segments):
                try:
                    yield one.segment_id, unpack(content).recording
                except ValueError as error:
                    unreadable[one.segment_id] = str(error)

        timeline = read(recordings())
        timeline.unreadable.update(unreadable)
        return timeline

    def _query(self, sql: str, given: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        try:
            answer = self._clickhouse.get().query(
                sql, parameters=given or {}, settings={"max_execution_time": QUERY_SECONDS_MAX, "readonly": 2}
            )
        except (ClickHouseError, HTTPError, OSError) as error:
            raise ReadError(f"clickhouse: {' '.join(str(error).split())[:400]}") from error
        return [tuple(row) for row in answer.result_rows]


_GCS_ERRORS = (GoogleAPIError, GoogleAuthError, RequestException, HTTPError, OSError)


@dataclass(frozen=True, slots=True)
class _Object:
    name: str
    size_bytes: int
    written_at: float | None


_AMONG = "project_id IN {projects:Array(UInt64)} AND replay_id IN {ids:Array(UUID)}"
# The hash is part of the sorting key: with it the server skips what it need not read.
_AMONG_DAYS = f"{_AMONG} AND cityHash64(replay_id) IN (SELECT cityHash64(arrayJoin({{ids:Array(UUID)}})))"


def _latest(column: str) -> str:
    """The value of the latest row that has one."""
    return f"argMaxIf({column}, timestamp, {column} != '')"


_FACTS = ", ".join(
    (
        "project_id",
        "lower(replaceAll(toString(replay_id), '-', ''))",
        "toUnixTimestamp(min(timestamp))",
        "toUnixTimestamp(max(timestamp))",
        "ifNull(toUnixTimestamp(min(replay_start_timestamp)), 0)",
        "uniqExact(segment_id)",
        "max(segment_id)",
        "arrayFlatten(arrayMap(visit -> visit.2, "
        "arraySort(groupArrayIf((ifNull(segment_id, 65535), urls), notEmpty(urls)))))",
        f"countIf({CLICK})",
        "sum(click_is_dead)",
        "sum(click_is_rage)",
        f"countIf({TAP})",
        "uniqExactArray(error_ids)",
        _latest("user"),
        _latest("user_email"),
        _latest("user_name"),
        _latest("release"),
        _latest("environment"),
        _latest("platform"),
        f"trim(concat({_latest('browser_name')}, ' ', {_latest('browser_version')}))",
        f"trim(concat({_latest('os_name')}, ' ', {_latest('os_version')}))",
        _latest("user_geo_country_code"),
        _latest("replay_type"),
        "max(retention_days)",
    )
)


def _replay(row: tuple[Any, ...], stored: tuple[Any, ...] | None) -> Replay:
    """A row of _FACTS, and what replay_segments says."""
    project_id, replay_id, first_at, last_at, start_at, segments, highest, pages = row[:8]
    clicks, dead, rage, taps, errors = row[8:13]
    user, email, name, release, environment, platform, browser, system, country, kind, retention = row[13:24]
    count, segment_id_max, compressed, inflated, has_video, _, received_at = stored or (
        (segments, highest or 0, 0, 0, False, 0, first_at)
    )
    starts = [at for at in (start_at, received_at) if 0 <= first_at - at <= START_SECONDS_MAX]
    return Replay(
        project_id=project_id,
        replay_id=replay_id,
        started_at=float(min([first_at, *starts])),
        ended_at=float(last_at),
        segments=int(count),
        segment_id_max=int(segment_id_max),
        pages=tuple(pages),
        clicks=int(clicks),
        dead_clicks=int(dead),
        rage_clicks=int(rage),
        taps=int(taps),
        errors=int(errors),
        user=email or name or user,
        release=release,
        environment=environment,
        platform=platform,
        browser=browser,
        system=system,
        country=country,
        replay_type=kind,
        is_video=bool(has_video),
        bytes_stored=int(compressed),
        bytes_inflated=int(inflated),
        retention_days=int(retention),
    )


def _conditions(chosen: Filter) -> tuple[str, str, dict[str, Any]]:
    """WHERE, HAVING and the parameters of a filter."""
    where, having = ["1"], ["1"]
    given: dict[str, Any] = {}
    if chosen.project_id is not None:
        where.append("project_id = {project:UInt64}")
        given["project"] = chosen.project_id
    if chosen.since is not None:
        where.append("timestamp >= toDateTime({since:UInt32})")
        given["since"] = _uint32(chosen.since)
    if chosen.until is not None:
        having.append("ended_at <= toDateTime({until:UInt32})")
        given["until"] = _uint32(chosen.until)
    if chosen.rage:
        having.append("max(click_is_rage) = 1")
    if chosen.dead:
        having.append("max(click_is_dead) = 1")
    if chosen.errors:
        having.append("max(notEmpty(error_ids)) = 1")
    if chosen.release:
        having.append("max(release = {release:String}) = 1")
        given["release"] = chosen.release
    if chosen.text:
        having.append(
            f"(max(positionCaseInsensitiveUTF8({SEARCHED}, {{text:String}})) > 0 "
            "OR startsWith(id, {prefix:String}))"
        )
        given |= {"text": chosen.text, "prefix": chosen.text.replace("-", "").lower()}
    return " AND ".join(where), " AND ".join(having), given


def _uint32(seconds: float) -> int:
    return max(0, min(int(seconds), 2**32 - 1))


def _merge(
    rows: Sequence[tuple[Any, ...]],
    copies: dict[int, dict[SegmentCopy, set[str]]],
    objects: dict[int, _Object],
    part_times: dict[str, float],
    notes: Sequence[str],
) -> Segments:
    """Rows, deliveries and objects as one list, with what lies between them as holes."""
    by_id = {row[0]: row for row in rows}
    highest = max([*by_id, *objects], default=-1)
    if highest >= 2 * SEGMENTS_MAX:  # an absurd number is no reason for as many holes
        wanted: Sequence[int] = sorted({*by_id, *objects})
        notes = [*notes, f"the highest segment is {highest}: holes are not listed"]
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
    return Segments(tuple(found), tuple(notes))
