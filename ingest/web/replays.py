"""Queries replays in ClickHouse.

Results are exact despite duplicates: filters use minimum and maximum values, which duplicates do not change, and
counts use FINAL over the selected replays only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ingest.web.model import PAGES_MAX, Filter, NotFound, Replay, replay_id_of
from ingest.web.stores import Stores

# Query parameters must fit into a URL, and proxies and the embedded server limit the length of URLs.
KEYS_MAX = 40
LIMIT_MAX = 500
RELEASES_MAX = 200
START_SECONDS_MAX = 7200  # a session lasts at most an hour, so an earlier start is a clock error

CLICK_CONDITION = "(click_node_id > 0 OR click_tag != '')"
TAP_CONDITION = "(tap_message != '' OR tap_view_class != '' OR tap_view_id != '')"
USER_FIELDS = "arrayStringConcat([user, user_id, user_name, user_email], '\n')"
SEARCHED_TEXT = (
    "concat(user, ' ', user_id, ' ', user_name, ' ', user_email, ' ', url, ' ', arrayStringConcat(urls, ' '))"
)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of replays, latest first. `more`: whether there are further replays."""

    replays: tuple[Replay, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Project:
    """A project with its number of replays and the end of its latest replay."""

    project_id: int
    replays: int
    last_at: float


class Replays:
    """Methods raise ReadError or NotFound."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores

    def projects(self) -> tuple[Project, ...]:
        """Returns every project with replays, those with the latest replays first."""
        rows = self._stores.query(
            "SELECT project_id, uniqExact(replay_id), toUnixTimestamp(max(received)) AS last_at "
            "FROM replay_segments GROUP BY project_id ORDER BY last_at DESC, project_id LIMIT 1000"
        )
        return tuple(Project(*row) for row in rows)

    def releases(self, project_id: int | None) -> tuple[str, ...]:
        """Returns the releases seen in replays, those with the latest replays first."""
        where, parameters = (
            ("project_id = {project:UInt64} AND", {"project": project_id}) if project_id is not None else ("", {})
        )
        rows = self._stores.query(
            f"SELECT release FROM replays WHERE {where} release != '' "
            f"GROUP BY release ORDER BY max(timestamp) DESC, release LIMIT {RELEASES_MAX}",
            parameters,
        )
        return tuple(row[0] for row in rows)

    def find(self, chosen: Filter) -> Page:
        """Returns the matching replays, sorted by end time, latest first."""
        limit = max(1, min(chosen.limit, LIMIT_MAX))
        where, having, parameters = _conditions(chosen)
        found = self._stores.query(
            "SELECT project_id, lower(replaceAll(toString(replay_id), '-', '')) AS id, max(timestamp) AS ended_at "
            f"FROM replays WHERE {where} GROUP BY project_id, replay_id HAVING {having} "
            f"ORDER BY ended_at DESC, id, project_id LIMIT {limit + 1} OFFSET {max(0, chosen.offset)}",
            parameters,
        )
        keys = [(row[0], row[1]) for row in found[:limit]]
        key_chunks = (keys[start : start + KEYS_MAX] for start in range(0, len(keys), KEYS_MAX))
        facts = {
            (replay.project_id, replay.replay_id): replay for chunk in key_chunks for replay in self._facts(chunk)
        }
        return Page(tuple(facts[key] for key in keys if key in facts), more=len(found) > limit)

    def count(self, chosen: Filter) -> int:
        """Returns the number of matching replays, ignoring the limit and the offset."""
        where, having, parameters = _conditions(chosen)
        rows = self._stores.query(
            "SELECT count() FROM (SELECT lower(replaceAll(toString(replay_id), '-', '')) AS id, "
            f"max(timestamp) AS ended_at FROM replays WHERE {where} GROUP BY project_id, replay_id "
            f"HAVING {having})",
            parameters,
        )
        return int(rows[0][0])

    def replay(self, replay_id: str, project_id: int | None = None) -> Replay:
        """Returns one replay. Without a project all projects are searched, which takes longer."""
        replay_id = replay_id_of(replay_id)
        if project_id is None:
            project_id = self._project_of(replay_id)
        found = self._facts([(project_id, replay_id)])
        if not found:
            raise NotFound(f"no replay {replay_id} in project {project_id}")
        return found[0]

    def _project_of(self, replay_id: str) -> int:
        rows = self._stores.query(
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
        """Returns the details of these replays, in two queries."""
        if not keys:
            return []
        parameters = {"projects": sorted({key[0] for key in keys}), "ids": [key[1] for key in keys]}
        stored = {
            (row[0], row[1]): row[2:]
            for row in self._stores.query(
                "SELECT project_id, lower(replaceAll(toString(replay_id), '-', '')), count(), max(segment_id), "
                "sum(size_compressed), sum(size_uncompressed), max(size_video) > 0, max(retention_days), "
                "toUnixTimestamp(min(received)) "
                f"FROM replay_segments FINAL WHERE {_SELECTED_REPLAYS} GROUP BY project_id, replay_id",
                parameters,
            )
        }
        rows = self._stores.query(
            f"SELECT {_FACTS} FROM replays FINAL WHERE {_SELECTED_ROWS} GROUP BY project_id, replay_id", parameters
        )
        wanted = set(keys)
        return [_replay(row, stored.get((row[0], row[1]))) for row in rows if (row[0], row[1]) in wanted]


_SELECTED_REPLAYS = "project_id IN {projects:Array(UInt64)} AND replay_id IN {ids:Array(UUID)}"
# The hash is part of the sorting key, so the server can skip irrelevant data.
_SELECTED_ROWS = (
    f"{_SELECTED_REPLAYS} AND cityHash64(replay_id) IN (SELECT cityHash64(arrayJoin({{ids:Array(UUID)}})))"
)


def _latest(column: str) -> str:
    """Returns an expression for the value of the latest row that has a value."""
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
        "arraySlice(arrayFlatten(arrayMap(visit -> visit.2, "
        "arraySort(groupArrayIf((ifNull(segment_id, 65535), urls), notEmpty(urls))))), "
        f"1, {PAGES_MAX})",
        f"countIf({CLICK_CONDITION})",
        "sum(click_is_dead)",
        "sum(click_is_rage)",
        f"countIf({TAP_CONDITION})",
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
    """Returns a row of _FACTS, combined with replay_segments."""
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
    """Returns the WHERE and HAVING conditions of a filter, and their parameters."""
    where, having = ["1"], ["1"]
    parameters: dict[str, Any] = {}
    if chosen.project_id is not None:
        where.append("project_id = {project:UInt64}")
        parameters["project"] = chosen.project_id
    if chosen.since is not None:
        where.append("timestamp >= toDateTime({since:UInt32})")
        parameters["since"] = _uint32(chosen.since)
    if chosen.until is not None:
        having.append("ended_at <= toDateTime({until:UInt32})")
        parameters["until"] = _uint32(chosen.until)
    having += _clicked(chosen, parameters)
    if chosen.errors:
        having.append("max(notEmpty(error_ids)) = 1")
    if chosen.release:
        having.append("max(release = {release:String}) = 1")
        parameters["release"] = chosen.release
    if chosen.text:
        having.append(
            f"(max(positionCaseInsensitiveUTF8({SEARCHED_TEXT}, {{text:String}})) > 0 "
            "OR startsWith(id, {prefix:String}))"
        )
        parameters |= {"text": chosen.text, "prefix": chosen.text.replace("-", "").lower()}
    if chosen.url:
        pages = "arrayStringConcat(arrayPushBack(urls, url), '\n')"
        having.append(f"max(positionCaseInsensitiveUTF8({pages}, {{url:String}})) > 0")
        parameters["url"] = chosen.url
    if chosen.user:
        having.append(f"max(positionCaseInsensitiveUTF8({USER_FIELDS}, {{user:String}})) > 0")
        parameters["user"] = chosen.user
    if chosen.error_id:
        having.append("max(has(error_ids, {error:UUID})) = 1")
        parameters["error"] = chosen.error_id
    return " AND ".join(where), " AND ".join(having), parameters


def _clicked(chosen: Filter, parameters: dict[str, Any]) -> list[str]:
    """Returns HAVING conditions on clicks. With a selector, a single click must match all of its conditions."""
    kinds = [
        column for column, wanted in (("click_is_rage", chosen.rage), ("click_is_dead", chosen.dead)) if wanted
    ]
    if chosen.selector is None:
        return [f"max({column}) = 1" for column in kinds]
    conditions = [CLICK_CONDITION]
    for number, (column, value) in enumerate(chosen.selector.columns):
        conditions.append(f"{column} = {{click{number}:String}}")
        parameters[f"click{number}"] = value
    if chosen.selector.classes:
        conditions.append("hasAll(click_class, {classes:Array(String)})")
        parameters["classes"] = list(chosen.selector.classes)
    clicked = " AND ".join(conditions)
    return [f"max({clicked} AND {column} = 1) = 1" for column in kinds] or [f"max({clicked}) = 1"]


def _uint32(seconds: float) -> int:
    return max(0, min(int(seconds), 2**32 - 1))
