"""Replays that were written through the sinks, without readers or workers, and queries for everything stored about
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner, Result

from ingest.cli.main import main
from ingest.core.model import Batch, CutReason, OffsetRange, Segment, TopicPartition
from ingest.operate.erase import TABLES
from ingest.reader.encoding import Encoder
from ingest.settings import Settings
from tasks.sinks import build
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tasks.stored import read_replay
from tasks.wire import SinkName, decode_items

Key = tuple[int, str]
"""(project, replay)"""


@dataclass(frozen=True)
class Store:
    """Servers with a few replays, of which the `victim` is erased and its `neighbor` must be kept."""

    env: dict[str, str]
    settings: Settings
    victim: Key
    neighbor: Key

    def run(self, *arguments: str, key: Key | None = None) -> Result:
        """Runs the command with --yes."""
        project, replay_id = key or self.victim
        command = ["erase", "--project", str(project), replay_id, "--by", "oncall", *arguments]
        return CliRunner().invoke(main, command, env=self.env, catch_exceptions=False)

    def erase(self, *arguments: str, key: Key | None = None) -> Result:
        return self.run("--yes", *arguments, key=key)

    def recordings(self, key: Key) -> list[bytes | None]:
        return [segment.content for segment in read_replay(self.settings, key[1], key[0])]

    def rows(self, key: Key, table: str) -> int:
        server = clickhouse.client(self.settings)
        where = f"WHERE project_id = {key[0]} AND replay_id = toUUID('{key[1]}')"
        count = server.query(f"SELECT count() FROM {table} {where}").result_rows[0][0]
        server.close()
        return int(count)

    def facts(self, key: Key) -> int:
        connected: Any = bigquery.client(self.settings)
        table = f"`{self.settings.bigquery_project}.{self.settings.bigquery_dataset}.replay_events`"
        where = f"WHERE project_id = {key[0]} AND replay_id = '{key[1]}'"
        rows = list(connected.query_and_wait(f"SELECT COUNT(*) AS n FROM {table} {where}"))
        connected.close()
        return int(rows[0]["n"])

    def everything(self, key: Key) -> dict[str, Any]:
        """Returns everything stored about a replay."""
        tables = {table: self.rows(key, table) for table in (*TABLES, "replay_outcomes")}
        return {**tables, "facts": self.facts(key), "recordings": self.recordings(key)}

    def bucket_bytes(self) -> bytes:
        """Returns the bytes of all objects, concatenated."""
        with_bucket: Any = gcs.client(self.settings)
        blobs = with_bucket.list_blobs(self.settings.gcs_bucket)
        content = b"\0\0".join(blob.download_as_bytes(raw_download=True) for blob in blobs)
        with_bucket.close()
        return content


def batch_of(segments: list[Segment], start: int) -> Batch:
    return Batch(
        TopicPartition("erase", 0),
        1,
        OffsetRange(start, start + len(segments)),
        tuple(segments),
        (),
        1,
        CutReason.COUNT,
    )


def write(settings: Settings, batch: Batch) -> None:
    """Writes objects and then rows, as the fleet does."""
    encoder = Encoder(settings.sinks, 1000, "reader", packed=settings.gcs_layout == "packed")
    for name, data in encoder.encode(batch).payloads.items():
        kind = name.split("/")[1]
        sink = build(kind, settings)
        sink.write(decode_items(SinkName(kind), data), f"{batch.id}", 60)
        sink.close()
