"""Erases one replay for good, in both layouts: objects and ranges first, the rows that lead to them last.

    replays-ingest erase --project 1 0123456789abcdef0123456789abcdef

    1. Cloud Storage  objects of its own are deleted in every generation; its ranges within packed objects are
                      overwritten with zeros, if the generation is still the one that was read
    2. BigQuery       its facts, by DML; what is in the streaming buffer cannot be deleted yet and is said
    3. ClickHouse     its rows, `replay_places` last: with it goes the knowledge where its bytes were

So a run that was cut off anywhere is finished by the next one. `replay_outcomes` stays: it is what was billed
(that there was a replay, whose, and when), and has no content. Kafka, Redis and the dead-letter topic cannot
delete single messages: what they could deliver again is waited for, and dead letters are named.
Why so: docs/decisions/028-erase-in-place.md.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.api_core.exceptions import BadRequest, Forbidden, NotFound, PreconditionFailed
from google.cloud import bigquery as official_bigquery
from google.cloud.bigquery.retry import DEFAULT_RETRY
from urllib3 import Timeout

from ingest.operate.dlq import DeadLettersUnavailable, mentioning
from ingest.operate.text import utc_text
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import AUDIT_ENTRIES_MAX, Coordination
from tasks.errors import shortened
from tasks.migrate.kafka import SOURCE_RETENTION_HOURS
from tasks.sinks.bigquery import sink as bigquery
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tasks.sinks.gcs.bucket import RETENTION_DAYS
from tasks.sinks.google import errors as google_errors

# In the order of their deletion; the last is what a second run needs to find the rest.
TABLES = ("replays", "replay_summaries", "replay_segments", "replay_objects", "replay_places")
DELETE_SECONDS_MAX = 300.0
RACES_MAX = 5
GENERATIONS_MAX = 50_000
STREAMING_BUFFER = "streaming buffer"


class EraseFailed(Exception):
    """A server did not answer, or refused. What was erased until then stays so; the next run goes on."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One generation of an object."""

    name: str
    number: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """What there is of one replay, and where.

    `ranges`: (first byte, length) by packed object, also those that are overwritten already. `rows`: by ClickHouse
    table. `facts`: rows in BigQuery. `newest_at`: when its newest segment arrived at Relay, unix seconds.
    `letters`: dead letters with something of it. `elsewhere`: other projects with a replay of this id. `parked`:
    batches that wait. `notes`: what could not be looked at.
    """

    project_id: int
    replay_id: str
    objects: tuple[Generation, ...] = ()
    ranges: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    facts: int = 0
    newest_at: float | None = None
    letters: tuple[str, ...] = ()
    billed: bool = False
    elsewhere: tuple[int, ...] = ()
    parked: int = 0
    notes: tuple[str, ...] = ()

    @property
    def erasable(self) -> bool:
        """Whether there is anything that an erasure would delete."""
        return bool(self.objects or self.ranges or self.facts or any(self.rows.values()))

    def counts(self) -> dict[str, int]:
        """For people and machines."""
        return {
            "objects": len(self.objects),
            "packed_objects": len(self.ranges),
            "packed_bytes": sum(length for spans in self.ranges.values() for _, length in spans),
            "clickhouse_rows": sum(self.rows.values()),
            "bigquery_rows": self.facts,
        }


def plain_id(text: str) -> str:
    """32 hex digits, small letters, without dashes. Raises ValueError for what is no replay's id."""
    plain = text.strip().replace("-", "").lower()
    if not re.fullmatch(r"[0-9a-f]{32}", plain):
        raise ValueError(f"{text!r} is no replay id: 32 hex digits, with or without dashes")
    return plain


def redelivery_hours(settings: Settings) -> float:
    """For how long a message can come again after it arrived: Kafka's usual retention, and what is staged."""
    return SOURCE_RETENTION_HOURS + settings.staged_ttl_seconds / 3600


@contextlib.contextmanager
def _asking(what: str, sort: Callable[[BaseException], Any]) -> Iterator[None]:
    """Any error of a client as EraseFailed, in one line that names the server."""
    try:
        yield
    except EraseFailed:
        raise
    except Exception as error:
        text = shortened(sort(error).message)
        todo = "; run `replays-ingest migrate`" if "replay_places" in text and "UNKNOWN_TABLE" in text else ""
        raise EraseFailed(f"{what}: {text}{todo}") from error


class Eraser:
    """Looks for one replay and erases it. `replay_id`: 32 hex digits, small letters, without dashes.

    Methods raise EraseFailed, and RedisError where the audit is concerned.
    """

    def __init__(self, settings: Settings, project_id: int, replay_id: str) -> None:
        assert replay_id == plain_id(replay_id)
        self._settings = settings
        self._project_id, self._replay_id = project_id, replay_id
        self._coordination = Coordination(connect(settings), settings)
        # Both are numbers by now, so they may stand in a statement; mutations take no parameters on old servers.
        self._which = f"project_id = {project_id:d} AND replay_id = toUUID('{replay_id}')"

    # Looking

    def look(self) -> Holdings:
        """Everything that there is; changes nothing."""
        settings, notes = self._settings, list[str]()
        found: dict[str, Any] = {}
        days = set(RETENTION_DAYS)
        if "clickhouse" in settings.sinks:
            with _asking("clickhouse", clickhouse_errors.sort):
                days |= self._look_at_rows(found)
        else:
            notes.append("clickhouse is switched off: packed objects cannot be found")
        if "gcs" in settings.sinks:
            with _asking("cloud storage", google_errors.sort):
                found["objects"] = tuple(self._generations(days))
            if len(found["objects"]) >= GENERATIONS_MAX:
                notes.append(f"there are more than {GENERATIONS_MAX} generations of its objects: run this again")
        if "bigquery" in settings.sinks:
            with _asking("bigquery", google_errors.sort):
                found["facts"] = self._facts("SELECT COUNT(*)")
        try:
            # Whole messages that never parsed, or items that a sink refused.
            found["letters"] = tuple(letter.id for letter in mentioning(settings, self._replay_id.encode()))
        except DeadLettersUnavailable as error:
            notes.append(f"dead letters were not looked through: {error}")
        parked = len(self._coordination.parked())
        return Holdings(self._project_id, self._replay_id, parked=parked, notes=tuple(notes), **found)

    def _look_at_rows(self, found: dict[str, Any]) -> set[int]:
        """Fills in what ClickHouse knows; returns the retentions, in days, that the replay's segments have."""
        with contextlib.closing(clickhouse.client(self._settings)) as server:
            found["rows"] = {table: self._count(server, table) for table in TABLES}
            places = server.query(
                "SELECT DISTINCT object, start_bytes, length_bytes FROM (SELECT object, start_bytes, length_bytes "
                f"FROM replay_places WHERE {self._which} UNION ALL SELECT object, start_bytes, length_bytes "
                f"FROM replay_objects WHERE {self._which}) ORDER BY object, start_bytes"
            ).result_rows
            ranges: dict[str, list[tuple[int, int]]] = {}
            for name, start, length in places:
                ranges.setdefault(name, []).append((start, length))
            found["ranges"] = {name: tuple(spans) for name, spans in ranges.items()}
            days, newest = set[int](), 0
            for table in ("replay_segments", "replay_places"):
                (seen, at) = server.query(
                    "SELECT groupUniqArray(retention_days), toUnixTimestamp(max(received)) "
                    f"FROM {table} WHERE {self._which}"
                ).result_rows[0]
                days |= set(seen)
                newest = max(newest, at)
            found["newest_at"] = float(newest) if days else None
            found["billed"] = bool(self._count(server, "replay_outcomes"))
            others = server.query(
                "SELECT DISTINCT project_id FROM replay_segments WHERE replay_id = toUUID({replay:String}) "
                "AND project_id != {project:UInt64} ORDER BY project_id LIMIT 10",
                parameters={"replay": self._replay_id, "project": self._project_id},
            ).result_rows
            found["elsewhere"] = tuple(row[0] for row in others)
        return days

    def _count(self, server: Any, table: str) -> int:
        return int(server.query(f"SELECT count() FROM {table} WHERE {self._which}").result_rows[0][0])

    def _generations(self, days: set[int]) -> Iterator[Generation]:
        """Of the objects that are the replay's own, noncurrent ones too, whether rows know them or not."""
        settings = self._settings
        with contextlib.closing(gcs.client(settings)) as server:
            for number in sorted(days):
                for blob in server.list_blobs(
                    settings.gcs_bucket,
                    prefix=f"{number}/{self._project_id}/{self._replay_id}/",
                    versions=True,
                    max_results=GENERATIONS_MAX,
                    timeout=settings.sink_timeout_seconds,
                ):
                    yield Generation(blob.name, int(blob.generation))

    # Erasing

    def erase(self, found: Holdings, *, by: str, again_until: float | None = None) -> list[str]:
        """Erases what was found, and says what is left: one line each, with what to do about it.

        `again_until`: unix seconds until which messages of the replay may be delivered again, if that is not over.
        Audited as begun before anything is touched, and as ended; without an audit nothing is erased.
        """
        deed = {"by": by, "project": self._project_id, "replay_id": self._replay_id}
        self._coordination.audit({"what": "erase begins", **deed, **found.counts()})
        left: list[str] = []
        if "gcs" in self._settings.sinks:
            with _asking("cloud storage", google_errors.sort):
                left += Objects(self._settings).erase(found)
        if "bigquery" in self._settings.sinks and found.facts:
            with _asking("bigquery", google_errors.sort):
                left += self._delete_facts()
        if "clickhouse" in self._settings.sinks:
            with _asking("clickhouse", clickhouse_errors.sort):
                self._delete_rows(found)
        left += remains(found)
        if again_until is not None:
            left.append(
                f"kafka or redis may deliver it again until {utc_text(again_until)} UTC: run this again then"
            )
        self._coordination.audit(
            {"what": "erase ends", **deed, "left": "; ".join(left), "again_until": again_until or ""}
        )
        return left

    def _facts(self, what: str) -> int:
        """Runs one statement on this replay's facts: how many it counted, or deleted."""
        settings, total = self._settings, 0
        given = [
            official_bigquery.ScalarQueryParameter("project", "INT64", self._project_id),
            official_bigquery.ScalarQueryParameter("replay", "STRING", self._replay_id),
        ]
        again = DEFAULT_RETRY.with_timeout(settings.sink_timeout_seconds)  # the client's own is ten minutes
        with contextlib.closing(bigquery.client(settings)) as connected:
            server: Any = connected
            for table in bigquery.TABLES:
                job = server.query(
                    f"{what} FROM `{settings.bigquery_project}.{settings.bigquery_dataset}.{table}` "
                    "WHERE project_id = @project AND replay_id = @replay",
                    job_config=official_bigquery.QueryJobConfig(query_parameters=given),
                    timeout=settings.sink_timeout_seconds,
                    retry=again,
                    job_retry=None,
                )
                rows = list(job.result(timeout=DELETE_SECONDS_MAX, retry=again, job_retry=None))
                total += int(rows[0][0]) if rows else int(job.num_dml_affected_rows or 0)
        return total

    def _delete_facts(self) -> list[str]:
        try:
            self._facts("DELETE")
        except BadRequest as error:
            if STREAMING_BUFFER not in str(error).lower():
                raise
            return [
                "bigquery: rows are in the streaming buffer, where nothing can be deleted for up to 90 minutes: "
                "run this again then"
            ]
        return []

    def _delete_rows(self, found: Holdings) -> None:
        """A mutation a table, waited for on every replica; unlike masked rows, the bytes leave the disk."""
        with contextlib.closing(clickhouse.client(self._settings)) as server:
            server.timeout = Timeout(connect=clickhouse.CONNECT_SECONDS_MAX, read=DELETE_SECONDS_MAX)
            for table in TABLES:
                if not found.rows.get(table) and not self._count(server, table):
                    continue
                where = self._which
                if table == "replays":  # its primary key has the hash: parts without it are not rewritten
                    where += f" AND cityHash64(replay_id) = cityHash64(toUUID('{self._replay_id}'))"
                server.command(f"ALTER TABLE {table} DELETE WHERE {where} SETTINGS mutations_sync = 2")
                rows = self._count(server, table)
                if rows:
                    raise EraseFailed(f"{table} has {rows} rows of it again: it is still written; run this later")

    # Before and after

    def done_before(self) -> tuple[bool, float | None]:
        """Whether the audit knows of an erasure that ended, and until when it has to be repeated, if at all."""
        for deed in self._coordination.audited(AUDIT_ENTRIES_MAX):
            mine = deed.get("project") == str(self._project_id) and deed.get("replay_id") == self._replay_id
            if mine and deed.get("what") == "erase ends":
                until = float(deed.get("again_until") or 0)
                return True, until if until > time.time() else None
        return False, None


def remains(found: Holdings) -> list[str]:
    """What no erasure reaches: one line each."""
    left = list(found.notes)
    if found.letters:
        shown = ", ".join(found.letters[:5]) + (", ..." if len(found.letters) > 5 else "")
        left.append(f"dead letters hold something of it until the topic's retention: do not replay them ({shown})")
    if found.parked:
        left.append(f"parked batches ({found.parked}) may write more of it: run this again once they settled")
    return left


class Objects:
    """Deletes objects, and overwrites ranges of packed ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_seconds = settings.sink_timeout_seconds

    def erase(self, found: Holdings) -> list[str]:
        """All of the replay's bytes; one that is gone is as good as deleted. Says what the bucket keeps."""
        with contextlib.closing(gcs.client(self._settings)) as server:
            bucket = server.bucket(self._settings.gcs_bucket)
            for one in found.objects:
                self._delete(bucket, one)
            for name, spans in found.ranges.items():
                live = self._blank(bucket, name, spans)
                for blob in list(bucket.list_blobs(prefix=name, versions=True, timeout=self._timeout_seconds)):
                    if blob.name == name and (live is None or int(blob.generation) < live):
                        self._delete(bucket, Generation(name, int(blob.generation)))
            return self._kept_by(server) if found.objects or found.ranges else []

    def _delete(self, bucket: Any, one: Generation) -> None:
        with contextlib.suppress(NotFound):
            bucket.delete_blob(one.name, generation=one.number, timeout=self._timeout_seconds)

    def _blank(self, bucket: Any, name: str, spans: Sequence[tuple[int, int]]) -> int | None:
        """Overwrites the spans with zeros. Returns the generation that has them, None when there is no object.

        Length and name stay, so the other segments' index rows stay true. The condition on the generation keeps
        two erasures from undoing each other; the one that comes second reads again.
        """
        for _ in range(RACES_MAX):
            old = bucket.get_blob(name, timeout=self._timeout_seconds)
            if old is None:
                return None
            generation = int(old.generation)
            try:
                content = bytearray(
                    old.download_as_bytes(
                        raw_download=True, if_generation_match=generation, timeout=self._timeout_seconds
                    )
                )
                if not blank(content, spans, name):
                    return generation
                new = rewritten(bucket, old)
                new.upload_from_string(
                    bytes(content),
                    content_type=old.content_type,
                    if_generation_match=generation,
                    checksum="crc32c",
                    timeout=self._timeout_seconds,
                )
                return int(new.generation)
            except (PreconditionFailed, NotFound):
                continue
        raise EraseFailed(f"{name} was written by somebody else {RACES_MAX} times meanwhile; run this again")

    def _kept_by(self, server: Any) -> list[str]:
        """What the bucket keeps of deleted objects. It may be forbidden to ask: then that is said."""
        name = self._settings.gcs_bucket
        try:
            bucket = server.get_bucket(name, timeout=self._timeout_seconds)
        except Forbidden:
            return [f"not allowed to see whether gs://{name} has soft delete: look with storage.buckets.get"]
        seconds = int(bucket.soft_delete_policy.retention_duration_seconds or 0)
        if not seconds:
            return []
        return [f"soft delete of gs://{name} keeps the bytes until {utc_text(time.time() + seconds)} UTC"]


def blank(content: bytearray, spans: Sequence[tuple[int, int]], name: str) -> bool:
    """Zeros in every span (first byte, length), in place. Whether there was anything else. Raises EraseFailed."""
    changed = False
    for start, length in spans:
        if start + length > len(content):
            raise EraseFailed(
                f"{name} has {len(content)} bytes, its index says {start + length}: look at it first"
            )
        zeros = bytes(length)
        if content[start : start + length] != zeros:
            content[start : start + length] = zeros
            changed = True
    return changed


def rewritten(bucket: Any, old: Any) -> Any:
    """A new generation of an object, with all that its writer said of the old one.

    The custom time is the first generation's birth: the bucket's rules count from it, so that the neighbours are
    not kept for longer than their retention because somebody else was erased.
    """
    new = bucket.blob(old.name)
    for attribute in (
        *("cache_control", "content_disposition", "content_encoding", "content_language", "content_type"),
        *("metadata", "storage_class"),
    ):
        value = getattr(old, attribute)
        if value:
            setattr(new, attribute, value)
    born = old.custom_time or old.time_created
    if born is not None:
        new.custom_time = born
    return new
