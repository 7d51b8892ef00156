"""`replays-ingest backfill` on real servers restores rows of stored recordings as ingestion wrote them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ingest.cli.main import main
from ingest.core.model import Message, Segment, TopicPartition
from ingest.core.parse import parse
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.load.produce import PROFILES, values
from ingest.local.stack import Stack
from ingest.operate.backfill import Selection
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.migrate import migrate
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tests.kit.commands import on_terminal
from tests.kit.store import batch_of, write

SEGMENTS, AT_ONCE = 60, 20


@dataclass(frozen=True)
class Stored:
    """Stores with recordings and rows that were written as the fleet writes them."""

    env: dict[str, str]
    settings: Settings
    segments: list[Segment]

    def run(self, *arguments: str) -> Result:
        command = ["backfill", "--rate", "10000", "--by", "oncall", *arguments]
        return CliRunner().invoke(main, command, env=self.env, catch_exceptions=False)

    def found(self, *arguments: str) -> dict[str, Any]:
        reported = self.run("--json", *arguments)
        found: dict[str, Any] = json.loads(reported.stdout)
        assert reported.exit_code == (0 if found["ok"] else 1), reported.output
        return found

    def clickhouse(self, sql: str) -> list[Any]:
        server = clickhouse.client(self.settings)
        found = list(server.query(sql).result_rows) if sql.startswith("SELECT") else [server.command(sql)]
        server.close()
        return found

    def bigquery(self, sql: str) -> list[Any]:
        connected: Any = bigquery.client(self.settings)
        table = f"`{self.settings.bigquery_project}.{self.settings.bigquery_dataset}.replay_events`"
        rows = [tuple(row.values()) for row in connected.query_and_wait(sql.replace("FACTS", table))]
        connected.close()
        return rows

    def tables(self) -> tuple[list[Any], list[Any]]:
        """Returns the contents of both stores, with each identity once."""
        facts = self.bigquery(
            "SELECT DISTINCT project_id, row_id, event_type, timestamp, segment_id, org_id, attributes FROM FACTS "
            "ORDER BY project_id, row_id"
        )
        return self.clickhouse("SELECT * FROM replays FINAL ORDER BY project_id, event_hash, timestamp"), facts


@pytest.fixture(params=["segment", "packed"])
def stored(request: pytest.FixtureRequest, stack: Stack, fresh_name: Callable[[str], str]) -> Stored:
    stack.start(("kafka", "redis", "gcs", "clickhouse", "bigquery"))
    env = {
        **stack.settings(),
        **isolated(fresh_name("b").replace("_", ""), stack.addresses["redis"], 9),
        "REPLAYS_SINKS": "gcs,clickhouse,bigquery,dead_letter",
        "REPLAYS_GCS_LAYOUT": request.param,
    }
    settings = settings_of(env)
    for _ in migrate(settings, topics=True):
        pass
    now = int(time.time())
    segments: dict[str, Segment] = {}
    for offset, value in enumerate(values(PROFILES["small"], SEGMENTS, 11, now - 3600)):
        message = Message(TopicPartition("b", 0), 1, offset, value, timestamp_ms=now * 1000)
        outcome = parse(message, rules_of(settings))
        if isinstance(outcome, Segment):
            # A second copy that the SDK sent has a different Kafka position.
            segments.setdefault(outcome.blobs[0].name, outcome)
    made = list(segments.values())
    for start in range(0, len(made), AT_ONCE):
        write(settings, batch_of(made[start : start + AT_ONCE], start))
    return Stored(env, settings, made)


CLICKS = "(click_tag != '' OR tap_view_id != '' OR tap_message != '')"


def test_lost_and_wrong_rows_are_rebuilt_once_as_ingestion_wrote_them(stored: Stored) -> None:
    """If clicks and facts of half of the replays are lost and others are wrong, a backfill writes them as
    ingestion wrote them.

    A second run finds nothing to write.
    """
    whole = stored.tables()
    clean = stored.found("--since", "1d", "--dry-run")
    stored.clickhouse(
        f"ALTER TABLE replays DELETE WHERE {CLICKS} AND cityHash64(replay_id) % 2 = 1 SETTINGS mutations_sync = 2"
    )
    stored.clickhouse(
        "INSERT INTO replays SELECT * REPLACE ('wrong' AS click_text) FROM replays FINAL "
        "WHERE click_tag != '' AND cityHash64(replay_id) % 2 = 0"
    )
    stored.bigquery("DELETE FROM FACTS WHERE event_type = 'console'")
    stored.bigquery("""UPDATE FACTS SET attributes = '{"count": 0}' WHERE event_type = 'rrweb_event_count'""")
    spoiled = stored.tables()

    reported = stored.found("--since", "1d", "--dry-run")
    untouched = stored.tables()
    first = stored.found("--since", "1d", "--yes")
    second = stored.found("--since", "1d", "--yes")

    assert clean["ok"]
    assert clean["recordings"] == len(stored.segments)
    assert {(sink["missing"], sink["differs"]) for sink in clean["sinks"].values()} == {(0, 0)}
    assert spoiled != whole
    assert untouched == spoiled
    assert all(sink["missing"] and sink["differs"] for sink in reported["sinks"].values()), reported["sinks"]
    assert {difference["what"] for difference in reported["differences"]} >= {
        "no such row",
        "differs in attributes",
    }
    assert first["ok"], (first["failures"], first["sinks"])
    for name, sink in first["sinks"].items():
        wrong = reported["sinks"][name]
        assert (sink["written"], sink["left"]) == (wrong["missing"] + wrong["differs"], 0)
    assert {(sink["missing"], sink["written"]) for sink in second["sinks"].values()} == {(0, 0)}
    assert stored.tables() == whole
    actions = Coordination(connect(stored.settings), stored.settings).audited()
    assert [action["what"] for action in actions[:2]] == ["backfill ends", "backfill begins"]
    assert actions[0]["by"] == "oncall"


@pytest.mark.parametrize("stored", ["segment"], indirect=True)
def test_recordings_that_cannot_be_rebuilt_are_counted_and_named(stored: Stored, tmp_path: Path) -> None:
    """Recordings without a row to copy from, missing recordings and invalid recordings are counted and named."""
    names = sorted({item.blobs[0].name for item in stored.segments if item.project_id == project_of(stored)})
    unlisted, gone, broken = names[:3]
    _, project, replay, segment = unlisted.split("/")
    stored.clickhouse(
        f"ALTER TABLE replay_segments DELETE WHERE replay_id = toUUID('{replay}') AND segment_id = {segment} "
        "SETTINGS mutations_sync = 2"
    )
    bucket = gcs.client(stored.settings).bucket(stored.settings.gcs_bucket)
    bucket.blob(gone).delete()
    bucket.blob(broken).upload_from_string(b"not zlib")
    ids = tmp_path / "ids"
    ids.write_text(f"{names[3].split('/')[2]}\n{'f' * 32}\n")

    found = stored.found("--project", project, "--dry-run")
    by_id = stored.found("--list", str(ids), "--project", project, "--dry-run")

    assert found["names"]["without_rows"] == [unlisted]
    assert found["names"]["gone"] == [gone]
    assert found["names"]["unreadable"][0].startswith(f"{broken}: not a zlib stream")
    assert (found["without_rows"], found["gone"], found["unreadable"]) == (1, 1, 1)
    assert found["recordings"] == len(names) - 3
    assert by_id["names"]["without_rows"] == [f"replay {'f' * 32}"]
    assert by_id["recordings"] > 0


def project_of(stored: Stored) -> int:
    """Returns the project with the most recordings."""
    projects = [item.project_id for item in stored.segments]
    return max(set(projects), key=projects.count)


@pytest.mark.parametrize("stored", ["segment"], indirect=True)
def test_it_asks_for_confirmation_before_it_writes(stored: Stored) -> None:
    """If the operator answers no, a backfill changes nothing.

    A script must pass `--yes`, and an empty selection is a usage error.
    """
    stored.clickhouse(f"ALTER TABLE replays DELETE WHERE {CLICKS} SETTINGS mutations_sync = 2")
    before = stored.tables()

    refused = on_terminal(stored.env, "n", "backfill", "--since", "1d")

    assert f"Rebuild the rows of {len(stored.segments)} recordings?" in refused
    assert "Aborted!" in refused
    assert stored.tables() == before
    assert stored.run("--since", "1d", "--json").exit_code == 2
    assert stored.run("--yes").exit_code == 2
    with pytest.raises(ValueError, match="nothing is selected"):
        Selection()
