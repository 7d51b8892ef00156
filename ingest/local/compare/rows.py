"""Reads every row in ClickHouse, deduplicated with FINAL."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

from ingest.local.load.expectation import Flags, Named
from ingest.settings import Settings
from tasks.sinks.clickhouse.sink import client


@dataclass(slots=True)
class Rows:
    """The identities of all rows in ClickHouse, deduplicated with FINAL."""

    clicks: dict[Named, Flags] = field(default_factory=dict)
    taps: set[Named] = field(default_factory=set)
    replay_events: set[tuple[int, str, int]] = field(default_factory=set)
    segments: set[tuple[int, str, int]] = field(default_factory=set)
    outcomes: dict[Named, str] = field(default_factory=dict)
    duplicated: dict[str, int] = field(default_factory=dict)
    """Identities that FINAL returns more than once, by table; must be empty."""


def read_rows(settings: Settings) -> Rows:
    """Reads every row of the three ClickHouse tables, with one query per table."""
    rows = Rows()
    server = client(settings)
    try:
        for hash_, dead, rage, is_click, is_tap, project, replay, segment in server.query(
            "SELECT toString(event_hash), click_is_dead, click_is_rage, click_tag != '' OR click_node_id > 0, "
            "tap_view_id != '' OR tap_message != '', project_id, toString(replay_id), segment_id "
            "FROM replays FINAL"
        ).result_rows:
            if is_click:
                _note(rows, "replays", (project, hash_) in rows.clicks)
                rows.clicks[(project, hash_)] = Flags(dead, rage)
            elif is_tap:
                _note(rows, "replays", (project, hash_) in rows.taps)
                rows.taps.add((project, hash_))
            else:
                key = (project, UUID(replay).hex, segment)
                _note(rows, "replays", key in rows.replay_events)
                rows.replay_events.add(key)
        for project, replay, segment in server.query(
            "SELECT project_id, toString(replay_id), segment_id FROM replay_segments FINAL"
        ).result_rows:
            key = (project, UUID(replay).hex, segment)
            _note(rows, "replay_segments", key in rows.segments)
            rows.segments.add(key)
        for project, replay, category, quantity in server.query(
            "SELECT project_id, toString(replay_id), category, quantity FROM replay_outcomes FINAL "
            "WHERE outcome = 'accepted'"
        ).result_rows:
            named = (project, UUID(replay).hex)
            _note(rows, "replay_outcomes", named in rows.outcomes or quantity != 1)
            rows.outcomes[named] = category
    finally:
        server.close()
    return rows


def _note(rows: Rows, table: str, duplicated: bool) -> None:
    if duplicated:
        rows.duplicated[table] = rows.duplicated.get(table, 0) + 1
