"""Looks for one replay in every store, and erases it there in an order that a second run can finish."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

from ingest.operate.dlq import DeadLettersUnavailable, mentioning
from ingest.operate.erase.facts import Facts
from ingest.operate.erase.holdings import Holdings, asking, plain_id, remains
from ingest.operate.erase.objects import GENERATIONS_MAX, Objects
from ingest.operate.erase.rows import Rows
from ingest.operate.text import utc_text
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.migrate.kafka import SOURCE_RETENTION_HOURS
from tasks.operators import AUDIT_ENTRIES_MAX
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.gcs.bucket import RETENTION_DAYS
from tasks.sinks.google import errors as google_errors


def redelivery_hours(settings: Settings) -> float:
    """For how long a message can come again after it arrived: Kafka's usual retention, and what is staged."""
    return SOURCE_RETENTION_HOURS + settings.staged_ttl_seconds / 3600


class Eraser:
    """One replay. `replay_id`: 32 hex digits, with or without dashes; ValueError for anything else.

    Methods raise EraseFailed, and RedisError where the audit is concerned.
    """

    def __init__(self, settings: Settings, project_id: int, replay_id: str) -> None:
        self._settings = settings
        self._project_id, self._replay_id = project_id, plain_id(replay_id)
        self._coordination = Coordination(connect(settings), settings)
        self._rows = Rows(settings, project_id, self._replay_id)
        self._facts = Facts(settings, project_id, self._replay_id)
        self._objects = Objects(settings)

    def look(self) -> Holdings:
        """Everything that there is; changes nothing."""
        settings, notes = self._settings, list[str]()
        found: dict[str, Any] = {}
        days = set(RETENTION_DAYS)
        if "clickhouse" in settings.sinks:
            with asking("clickhouse", clickhouse_errors.sort):
                days |= self._rows.look(found)
        else:
            notes.append("clickhouse is switched off: packed objects cannot be found")
        if "gcs" in settings.sinks:
            with asking("cloud storage", google_errors.sort):
                found["objects"] = tuple(self._objects.generations(self._project_id, self._replay_id, days))
            if len(found["objects"]) >= GENERATIONS_MAX:
                notes.append(f"there are more than {GENERATIONS_MAX} generations of its objects: run this again")
        if "bigquery" in settings.sinks:
            with asking("bigquery", google_errors.sort):
                found["facts"] = self._facts.count()
        try:
            # Whole messages that never parsed, or items that a sink refused; rows spell the id with dashes.
            spellings = (self._replay_id, str(UUID(self._replay_id)))
            found["letters"] = tuple(letter.id for letter in mentioning(settings, spellings))
        except DeadLettersUnavailable as error:
            notes.append(f"dead letters were not looked through: {error}")
        parked = len(self._coordination.parked())
        return Holdings(self._project_id, self._replay_id, parked=parked, notes=tuple(notes), **found)

    def erase(self, found: Holdings, *, by: str, again_until: float | None = None) -> list[str]:
        """Erases what was found, and says what is left: one line each, with what to do about it.

        `again_until`: unix seconds until which messages of the replay may be delivered again, if that is not over.
        Audited as begun before anything is touched, and as ended; without an audit nothing is erased.
        """
        deed = {"by": by, "project": self._project_id, "replay_id": self._replay_id}
        self._coordination.audit({"what": "erase begins", **deed, **found.counts()})
        left: list[str] = []
        if "gcs" in self._settings.sinks:
            with asking("cloud storage", google_errors.sort):
                left += self._objects.erase(found)
        if "bigquery" in self._settings.sinks and found.facts:
            with asking("bigquery", google_errors.sort):
                left += self._facts.delete()
        if "clickhouse" in self._settings.sinks:
            with asking("clickhouse", clickhouse_errors.sort):
                self._rows.delete(found)
        left += remains(found)
        if again_until is not None:
            left.append(
                f"kafka or redis may deliver it again until {utc_text(again_until)} UTC: run this again then"
            )
        self._coordination.audit(
            {"what": "erase ends", **deed, "left": "; ".join(left), "again_until": again_until or ""}
        )
        return left

    def done_before(self) -> tuple[bool, float | None]:
        """Whether the audit knows of an erasure that ended, and until when it has to be repeated, if at all."""
        for deed in self._coordination.audited(AUDIT_ENTRIES_MAX):
            mine = deed.get("project") == str(self._project_id) and deed.get("replay_id") == self._replay_id
            if mine and deed.get("what") == "erase ends":
                until = float(deed.get("again_until") or 0)
                return True, until if until > time.time() else None
        return False, None
