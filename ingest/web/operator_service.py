"""Operator functions of the web UI: system state, parked batches, dead letters.

The commands `status`, `batches` and `dlq` provide the same functions.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.exceptions import RedisError

from ingest.operate import dlq, status
from ingest.reader.configuration import rules_of
from ingest.settings import Settings
from ingest.web.flow import alerts, bottleneck
from ingest.web.journey import flower_url
from tasks.bulk import Outcomes, abandon_all, retry_all
from tasks.connection import CHECK_SECONDS_MAX, connect, fault_of
from tasks.coordination import Coordination
from tasks.dependencies import Dependencies
from tasks.errors import SinkError
from tasks.faults import Server
from tasks.kafka.decisions import DecisionsUnreadable
from tasks.kafka.producing import NotProduced
from tasks.kafka.ranges import RangeError
from tasks.operate import NotParked, ReaderGone, abandon, retry
from tasks.printed import printable, without_secrets
from tasks.sinks import build

DEAD_LETTERS_SHOWN_MAX = 200
PREVIEW_BYTES = 200
DEAD_LETTERS_COUNTED_MAX = 100_000
REPLAYED_LETTERS_PER_SECOND_MAX = 100.0
ACTIONS_MAX = 50
FAULTS_SECONDS_MAX = 3.0


class RequestRefused(RuntimeError):
    """Raised if a request is refused. The text states why; `status` is the HTTP status."""

    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(text)
        self.status = status_code


@dataclass(frozen=True, slots=True)
class DeadLetterFilter:
    """Selects dead letters; all given fields must match. `text`: part of the error, batch, id or content."""

    reason: str = ""
    sink: str = ""
    project: str = ""
    text: str = ""
    include_replayed: bool = False

    @property
    def selection(self) -> dlq.Selection:
        """The filters that are applied while the topic is read."""
        return dlq.Selection(self.reason or None, self.sink or None, include_replayed=self.include_replayed)

    def matches(self, shown: Mapping[str, Any]) -> bool:
        """Returns True if the letter, as shown, also matches the project and text filters."""
        searched = " ".join(str(shown[name]) for name in ("id", "error", "batch_id", "content", "item", "origin"))
        return self.project in ("", shown["project"]) and self.text.lower() in searched.lower()


class OperatorService:
    """The operator's functions. Methods block, may be called from several threads, and raise RequestRefused."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = connect(settings)
        self._check_client = connect(settings, retries=0, seconds_max=CHECK_SECONDS_MAX)
        self._dependencies = Dependencies(settings)
        self._coordination = Coordination(self._client, settings)

    def close(self) -> None:
        self._dependencies.stop()
        self._client.close()
        self._check_client.close()

    def overview(self) -> dict[str, Any]:
        """Returns the readers with partitions, lag and batches in flight; sinks and breakers; parked batches;
        recent actions."""
        try:
            state = status.collect(self._settings, self._check_client)
            faults = self._dependencies.faults(FAULTS_SECONDS_MAX)
            # Without Kafka, the actions are read from Redis only, because a read from Kafka would time out.
            away = any(fault.server is Server.KAFKA for fault in faults)
            actions = self._coordination.audited(ACTIONS_MAX, copy_only=away)
        except (RangeError, DecisionsUnreadable) as error:
            raise RequestRefused(503, f"operators' decisions: {error}") from error
        except RedisError as error:
            raise RequestRefused(503, fault_of(error).line) from error
        state = msgspec.structs.replace(state, faults=faults)
        found = msgspec.to_builtins(state)
        for batch in found["parked"]:
            batch["flower"] = flower_url(self._settings, batch["batch_id"])
        for reader in found["readers"]:
            for flight in reader["snapshot"]["flights"]:
                flight["flower"] = flower_url(self._settings, flight["batch_id"])
        flower = flower_url(self._settings, "").partition("?")[0]
        return {
            **found,
            "deeds": actions,
            "alerts": msgspec.to_builtins(alerts(state)),
            "bottleneck": msgspec.to_builtins(bottleneck(state)),
            "flower": flower,
            "topic": self._settings.kafka_topic,
            "dead_letter_topic": self._settings.dlq_topic,
        }

    def trend(self) -> dict[str, Any]:
        """Returns the throughput, lag and delay for the last hour."""
        try:
            coordination = Coordination(self._check_client, self._settings)
            found: dict[str, Any] = msgspec.to_builtins(coordination.trend())
        except RedisError as error:
            raise RequestRefused(503, fault_of(error).line) from error
        return found

    def retry_batch(self, batch_id: str, by: str) -> str:
        """Requests an immediate retry from the batch's reader; returns the result as text."""
        try:
            return retry(self._coordination, batch_id, by)
        except NotParked as error:
            raise RequestRefused(404, str(error)) from error
        except ReaderGone as error:
            raise RequestRefused(409, str(error)) from error
        except RedisError as error:
            raise RequestRefused(503, fault_of(error).line) from error
        except NotProduced as error:
            raise RequestRefused(503, str(error)) from error

    def retry_batches(self, batch_ids: Sequence[str], reason: str, by: str) -> dict[str, Any]:
        """Requests an immediate retry of these batches. Writes one audit entry."""
        try:
            return _outcomes(retry_all(self._coordination, batch_ids, by, reason.strip()))
        except ValueError as error:
            raise RequestRefused(400, str(error)) from error
        except RedisError as error:
            raise RequestRefused(503, fault_of(error).line) from error
        except NotProduced as error:
            raise RequestRefused(503, str(error)) from error

    def abandon_batches(self, batch_ids: Sequence[str], reason: str, by: str) -> dict[str, Any]:
        """Abandons these batches one after another, each once its messages are durable as dead letters."""
        sink = build("dead_letter", self._settings)
        try:
            return _outcomes(abandon_all(self._settings, self._coordination, sink, batch_ids, reason.strip(), by))
        except ValueError as error:
            raise RequestRefused(400, str(error)) from error
        finally:
            sink.close()

    def abandon_batch(self, batch_id: str, reason: str, by: str) -> str:
        """Abandons the batch once its messages are durable as dead letters. Returns the result as text."""
        if not reason.strip():
            raise RequestRefused(400, "a reason is required, to explain the dead letters later")
        sink = build("dead_letter", self._settings)
        try:
            return abandon(self._settings, self._coordination, sink, batch_id, reason.strip(), by)
        except NotParked as error:
            raise RequestRefused(404, str(error)) from error
        except (ReaderGone, ValueError) as error:
            raise RequestRefused(409, str(error)) from error
        except (RedisError, SinkError, RangeError, NotProduced) as error:
            raise RequestRefused(503, str(error)) from error
        finally:
            sink.close()

    def dead_letters(self, chosen: DeadLetterFilter) -> dict[str, Any]:
        """Returns the first matching letters, and the number of letters by reason and sink."""
        counts: Counter[tuple[str, str]] = Counter()
        shown: list[dict[str, Any]] = []
        matching = 0
        rules = rules_of(self._settings)
        try:
            erasures = dlq.current_erasures(self._settings)
            for letter in itertools.islice(
                dlq.letters(self._settings, chosen.selection), DEAD_LETTERS_COUNTED_MAX
            ):
                counts[letter.reason, letter.sink] += 1
                if len(shown) >= DEAD_LETTERS_SHOWN_MAX and not (chosen.project or chosen.text):
                    matching += 1
                    continue
                one = _letter(letter, dlq.shown(letter, erasures, rules))
                if chosen.matches(one):
                    matching += 1
                    if len(shown) < DEAD_LETTERS_SHOWN_MAX:
                        shown.append(one)
        except dlq.DeadLettersUnavailable as error:
            raise RequestRefused(503, str(error)) from error
        return {
            "letters": shown,
            "total": counts.total(),
            "matching": matching,
            "counts": [{"reason": r, "sink": s, "count": n} for (r, s), n in counts.most_common()],
        }

    def replay_letters(self, ids: Sequence[str], by: str) -> dict[str, Any]:
        """Replays these letters; returns the outcome of each."""
        if not ids or len(ids) > DEAD_LETTERS_SHOWN_MAX:
            raise RequestRefused(400, f"select 1 to {DEAD_LETTERS_SHOWN_MAX} letters")
        outcomes: list[dict[str, str]] = []

        def add_outcome(letter: dlq.Letter, outcome: str) -> None:
            outcomes.append({"id": letter.id, "outcome": outcome})

        selection = dlq.Selection(ids=frozenset(ids))
        try:
            done = dlq.replay(
                self._settings, selection, per_second_max=REPLAYED_LETTERS_PER_SECOND_MAX, done=add_outcome
            )
            self._coordination.audit(
                {
                    "what": "dlq_replay",
                    "by": by,
                    "ids": ",".join(sorted(ids)),
                    "produced": done.produced,
                    "written": done.written,
                    "failed": len(done.failed),
                }
            )
        except dlq.DeadLettersUnavailable as error:
            raise RequestRefused(503, str(error)) from error
        except (RedisError, NotProduced) as error:
            raise RequestRefused(503, f"replayed, but not recorded in the audit trail: {error}") from error
        return {**msgspec.to_builtins(done), "outcomes": outcomes}


def _outcomes(outcomes: Outcomes) -> dict[str, Any]:
    return {"done": outcomes.done, "refused": outcomes.refused}


def _letter(letter: dlq.Letter, details: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a letter that the page shows. Content is omitted if its replay was erased."""
    project = letter.project_id
    start = "" if details["erased"] else letter.value[:PREVIEW_BYTES].decode("utf-8", "replace")
    content = printable(without_secrets(start), ".")
    # The id is sent as text, because JavaScript's numbers cannot represent every project id exactly.
    return {**details, "project": "" if project is None else str(project), "content": content}
