"""Tests `replays-ingest reconcile --expired` on real servers, in both layouts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from ingest.cli.main import main
from ingest.core.model import Message, Segment, TopicPartition
from ingest.core.parse import parse
from ingest.local.fleet import isolated
from ingest.local.launch import settings_of
from ingest.local.load.produce import PROFILES, values
from ingest.local.stack import Stack
from ingest.operate.retention import AuditFailed, audit
from ingest.operate.retention.audit import Kind
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from tasks.migrate.clickhouse import migrate_schema
from tasks.migrate.gcs import migrate_bucket
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tests.kit.store import batch_of, write

SEGMENTS, AT_ONCE = 60, 12
DAY_SECONDS = 86_400


@dataclass(frozen=True)
class StoredSegments:
    """A bucket and tables with `segments`, written as the fleet writes them."""

    env: dict[str, str]
    settings: Settings
    segments: list[Segment]

    @property
    def names(self) -> set[str]:
        server = gcs.client(self.settings)
        return {blob.name for blob in server.list_blobs(self.settings.gcs_bucket)}


@pytest.fixture(params=["segment", "packed"])
def stored_segments(
    request: pytest.FixtureRequest, stack: Stack, fresh_name: Callable[[str], str]
) -> StoredSegments:
    stack.start(["gcs", "clickhouse"])
    env = {
        **stack.settings(),
        **isolated(fresh_name("k").replace("_", ""), "redis://127.0.0.1:1", 0),
        "REPLAYS_SINKS": "gcs,clickhouse,dead_letter",
        "REPLAYS_GCS_LAYOUT": request.param,
    }
    settings = settings_of(env)
    for migrate in (migrate_bucket, migrate_schema):
        assert list(migrate(settings, dry_run=False))
    now = int(time.time())
    messages = [
        Message(TopicPartition("kept", 0), 1, offset, value, timestamp_ms=now * 1000)
        for offset, value in enumerate(values(PROFILES["small"], SEGMENTS, 3, now - 3600))
    ]
    parsed = [parse(message, rules_of(settings)) for message in messages]
    segments = [outcome for outcome in parsed if isinstance(outcome, Segment)]
    for start in range(0, len(segments), AT_ONCE):
        write(settings, batch_of(segments[start : start + AT_ONCE], start))
    return StoredSegments(env, settings, segments)


def test_expired_objects_and_rows_of_missing_objects_are_named(stored_segments: StoredSegments) -> None:
    """After 40 days, the audit names every object with a retention of 30 days that still exists, and the missing
    object with a retention of 90 days whose rows still exist.
    """
    before = audit(stored_segments.settings, grace_days=0)
    names = stored_segments.names
    later = time.time() + 40 * DAY_SECONDS
    lost = next(name for name in sorted(stored_segments.names) if name.startswith("90/"))
    gcs.client(stored_segments.settings).bucket(stored_segments.settings.gcs_bucket).blob(lost).delete()
    old = {name for name in stored_segments.names if name.startswith("30/")}
    server = clickhouse.client(stored_segments.settings)
    segments = server.query(
        "SELECT count() FROM replay_objects FINAL WHERE object = {name:String}", parameters={"name": lost}
    ).result_rows[0][0]
    server.close()

    found = audit(stored_segments.settings, grace_days=2, now=later)
    patient = audit(stored_segments.settings, grace_days=11, now=later)

    assert before.ok, before.examples[:3]
    assert (before.objects, before.examples) == (len(names), [])
    assert before.rows == len({segment.blobs[0].name for segment in stored_segments.segments})
    assert {example.object for example in found.examples if example.kind is Kind.EXPIRED} == old
    assert found.expired == len(old) > 0
    assert [example.object for example in found.examples if example.kind is Kind.ROW_WITHOUT_OBJECT] == [lost]
    assert found.rows_without_object == (segments if stored_segments.settings.gcs_layout == "packed" else 1)
    assert patient.expired == 0


@pytest.mark.parametrize("stored_segments", ["segment"], indirect=True)
def test_the_command_exits_with_1_and_reports_its_findings(stored_segments: StoredSegments) -> None:
    """The age of an object that `erase` has overwritten is counted from its custom time.

    An object whose name contains no retention period is reported as a note.
    """
    bucket = gcs.client(stored_segments.settings).bucket(stored_segments.settings.gcs_bucket)
    for name, days in (("60/7/" + "a" * 32 + "/0", 100), ("left/by\x1b[31m/somebody", 0)):
        blob = bucket.blob(name)
        blob.custom_time = datetime.now(UTC) - timedelta(days=days)
        blob.upload_from_string(b"x")

    clean = CliRunner().invoke(
        main, ["reconcile", "--expired", "--grace-days", "100", "--json"], env=stored_segments.env
    )
    reported = CliRunner().invoke(main, ["reconcile", "--expired", "--json"], env=stored_segments.env)
    shown = CliRunner().invoke(main, ["reconcile", "--expired"], env=stored_segments.env)
    mixed = CliRunner().invoke(main, ["reconcile", "--expired", "--repair"], env=stored_segments.env)

    assert (clean.exit_code, reported.exit_code, shown.exit_code, mixed.exit_code) == (0, 1, 1, 2), reported.output
    found = json.loads(reported.stdout)
    assert (found["expired"], found["rows_without_object"], found["unknown"]) == (1, 0, 1)
    assert found["examples"][0]["object"].startswith("60/7/")
    assert "NOT OK" in shown.stdout
    assert "no retention in their name" in shown.stdout


def test_an_unavailable_server_is_reported_in_one_sentence() -> None:
    nowhere = Settings(clickhouse_url="http://127.0.0.1:1", gcs_endpoint="http://127.0.0.1:1")

    with pytest.raises(AuditFailed, match="clickhouse: "):
        audit(nowhere, grace_days=0)
