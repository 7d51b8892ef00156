"""Finds one replay in every store and erases it, in an order that lets a second run complete an interrupted
one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from ingest.operate.dlq import DeadLettersUnavailable, letters_containing
from ingest.operate.erase.facts import Facts
from ingest.operate.erase.holdings import Holdings, converting_errors, describe_uncovered_data, plain_id
from ingest.operate.erase.objects import GENERATIONS_MAX, Objects
from ingest.operate.erase.rows import Rows
from ingest.operate.erase.tombstones import Tombstones
from ingest.reader.erasures import replay_key
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.gcs.bucket import RETENTION_DAYS
from tasks.sinks.google import errors as google_errors


class Eraser:
    """Erases one replay. `replay_id`: 32 hex digits, with or without dashes; anything else raises ValueError.

    Methods raise EraseFailed, and the errors of `Operators`.
    """

    def __init__(self, settings: Settings, project_id: int, replay_id: str) -> None:
        self._settings = settings
        self._project_id, self._replay_id = project_id, plain_id(replay_id)
        self._coordination = Coordination(connect(settings), settings)
        self._rows = Rows(settings, project_id, self._replay_id)
        self._facts = Facts(settings, project_id, self._replay_id)
        self._objects = Objects(settings)
        self._tombstones = Tombstones(settings)

    def search(self) -> Holdings:
        """Finds all stored data of the replay; changes nothing."""
        settings, notes = self._settings, list[str]()
        found: dict[str, Any] = {}
        days = set(RETENTION_DAYS)
        if "clickhouse" in settings.sinks:
            with converting_errors("clickhouse", clickhouse_errors.classify):
                days |= self._rows.search(found)
        else:
            notes.append("clickhouse is disabled: packed objects cannot be found")
        if "gcs" in settings.sinks:
            with converting_errors("cloud storage", google_errors.classify):
                found["objects"] = tuple(self._objects.generations(self._project_id, self._replay_id, days))
            if len(found["objects"]) >= GENERATIONS_MAX:
                notes.append(f"its objects have more than {GENERATIONS_MAX} generations: run this again")
        if "bigquery" in settings.sinks:
            with converting_errors("bigquery", google_errors.classify):
                found["facts"] = self._facts.count()
        try:
            # A dead letter contains a message that could not be parsed, or an item that a sink refused. A refused
            # row contains the replay id with dashes.
            spellings = (self._replay_id, str(UUID(self._replay_id)))
            projects = (None, self._project_id)  # None if the letter's project is unknown
            letters = letters_containing(settings, spellings)
            found["letters"] = tuple(letter.id for letter in letters if letter.project_id in projects)
        except DeadLettersUnavailable as error:
            notes.append(f"dead letters were not searched: {error}")
        parked = len(self._coordination.parked())
        return Holdings(self._project_id, self._replay_id, parked=parked, notes=tuple(notes), **found)

    def write_tombstone(self, by: str) -> int:
        """Writes the tombstone, so that the replay is not written again. Returns the offset that readers must
        reach.

        The start is recorded in the audit trail before any change. If the operators' topic is unavailable, nothing
        is erased. Raises NotProduced.
        """
        action = {"what": "erase begins", **self._action_text(by)}
        key = replay_key(self._project_id, self._replay_id)
        return self._tombstones.decide([key], by, action)

    def settle(self, offset: int, seconds_max: float) -> list[str]:
        """Waits until no reader has unsettled messages of the replay. Returns one line per reader that still has
        such messages.
        """
        return self._tombstones.settle(offset, seconds_max)

    def erase(self, found: Holdings, *, by: str, unsettled: Sequence[str] = ()) -> list[str]:
        """Erases the stored data, and records the erasure in the audit trail. Returns one line for each kind of
        data that remains; the line also states what to do.
        """
        left: list[str] = []
        if "gcs" in self._settings.sinks:
            with converting_errors("cloud storage", google_errors.classify):
                left += self._objects.erase(found)
        if "bigquery" in self._settings.sinks and found.facts:
            with converting_errors("bigquery", google_errors.classify):
                left += self._facts.delete()
        if "clickhouse" in self._settings.sinks:
            with converting_errors("clickhouse", clickhouse_errors.classify):
                self._rows.delete(found)
        left += [*unsettled, *describe_uncovered_data(found)]
        action = {"what": "erase ends", **self._action_text(by), **found.counts(), "left": "; ".join(left)}
        self._coordination.audit(action)
        return left

    def is_already_erased(self) -> bool:
        """Returns whether the replay's tombstone exists. Raises RedisError, RangeError or DecisionsUnreadable."""
        key = replay_key(self._project_id, self._replay_id)
        return self._coordination.operators.get([key])[0] is not None

    def _action_text(self, by: str) -> dict[str, Any]:
        return {"by": by, "project": self._project_id, "replay_id": self._replay_id}
