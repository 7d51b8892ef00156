"""Reconciles a scope chunk by chunk: computes expected items, finds those missing in a sink, and repairs them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime

from redis.exceptions import RedisError

from ingest.operate.dlq import DeadLettersUnavailable
from ingest.operate.reconcile.account import EXAMPLES_MAX, Account, MissingItem, ReconcileFailed, Tally
from ingest.operate.reconcile.expected import Chunk, ExpectedItems, offset_of
from ingest.operate.reconcile.presence import PRESENCES, Presence
from ingest.operate.reconcile.problem import Problem
from ingest.operate.reconcile.repair import Repair
from ingest.operate.reconcile.topic import RecordingsTopic, Scope
from ingest.settings import Settings
from tasks.connection import connect
from tasks.coordination import Coordination
from tasks.errors import SinkError
from tasks.kafka.decisions import DecisionsUnreadable
from tasks.kafka.producing import NotProduced
from tasks.kafka.ranges import RangeError
from tasks.refused import name_of
from tasks.wire import Item

AUDIT_ENTRIES_READ_MAX = 1000
RULE_END_ACTIONS = ("tenant_revive", "tenant_limit")

Progress = Callable[[int], None]


def run(
    settings: Settings,
    scope: Scope,
    *,
    repair: bool = False,
    per_second_max: float = 200.0,
    by: str = "unknown",
    progress: Progress = lambda messages: None,
) -> Account:
    """Reconciles a scope. `progress` receives the number of messages read so far.

    `repair`: writes missing items, at most `per_second_max` per second, and records the repair in the audit trail
    with the operator's name, `by`. If the audit trail is unavailable, nothing is written. Raises ReconcileFailed.
    """
    began = time.monotonic()
    try:
        with RecordingsTopic(settings, scope) as topic:
            account = Account(settings.kafka_topic, topic.spans(), repair)
            audit = _Audit(settings, account)
            with contextlib.closing(_Sinks(settings, account, per_second_max if repair else None)) as sinks:
                if repair:
                    audit.note(by, scope, "begins")
                for span in account.spans:
                    for messages in topic.chunks(span):
                        sinks.take(sinks.expected.of(messages))
                        progress(account.messages)
                if repair:
                    audit.note(by, scope, "ends")
            if not account.ok:
                audit.note_earlier_rules()
            if not account.messages:
                account.notes.append("no committed message is in this range, so nothing was checked")
    except (
        RangeError,
        DecisionsUnreadable,
        DeadLettersUnavailable,
        NotProduced,
        SinkError,
        RedisError,
    ) as failure:
        raise ReconcileFailed(str(failure)) from failure
    account.seconds = time.monotonic() - began
    return account


class _Audit:
    """Records this run in the audit trail, and reads earlier tenant rules from the trail."""

    def __init__(self, settings: Settings, account: Account) -> None:
        self._coordination = Coordination(connect(settings), settings)
        self._account = account

    def note(self, by: str, scope: Scope, phase: str) -> None:
        """Records this run with the repairs so far."""
        account = self._account
        tallies = {name: f"{tally.repaired} of {tally.absent}" for name, tally in sorted(account.sinks.items())}
        what = {"what": f"reconcile {phase}", "by": by, "topic": account.topic, "scope": asdict(scope)}
        self._coordination.audit({**what, **tallies})

    def note_earlier_rules(self) -> None:
        """Adds a note for each project that was disabled or limited earlier, because messages dropped by the
        earlier rule are reported as missing.
        """
        actions = [
            action
            for action in self._coordination.audited(AUDIT_ENTRIES_READ_MAX)
            if action.get("what") in RULE_END_ACTIONS
        ]
        for project in sorted({action.get("project", "") for action in actions}):
            last = next(action for action in actions if action.get("project") == project)
            at = datetime.fromtimestamp(float(last["at"]), UTC).isoformat(timespec="seconds")
            self._account.notes.append(
                f"project {project} was disabled or limited ({last['what']} by {last.get('by', '')} at "
                f"{at}): messages dropped by that rule are counted as missing"
            )


class _Sinks:
    """Queries every sink that can be queried, repairs if `per_second_max` is given, and counts the results."""

    def __init__(self, settings: Settings, account: Account, per_second_max: float | None) -> None:
        self._settings, self._account = settings, account
        self.expected = ExpectedItems(settings, account)
        self._presences: dict[str, Presence] = {}
        self._repair = None if per_second_max is None else Repair(settings, per_second_max)
        if "datadog" in settings.sinks:
            account.notes.append("Datadog cannot be queried")

    def take(self, chunk: Chunk) -> None:
        """Processes one chunk of one partition. Raises SinkError when a sink cannot be queried."""
        for sink in self._settings.sinks:
            if sink in PRESENCES or sink == "dead_letter":
                self._account_for(sink, chunk)

    def _account_for(self, sink: str, chunk: Chunk) -> None:
        items = list(self.expected.items(chunk, sink))
        tally = self._account.sinks.setdefault(sink, Tally())
        tally.checked += len(items)
        absent = self._absent(sink, chunk, items)
        for problem in absent.values():
            tally.count(problem)
        found = _missing(sink, chunk, items, absent)
        _add(self._account.examples, found, tally.absent)
        if absent and self._repair is not None:
            wanted = [items[position] for position in sorted(absent)]
            failure = self._repair.write(sink, chunk.batch, wanted)
            if failure:
                self._account.failures.append(failure)
            # Dead letters are in an append-only topic, so an acknowledged letter is stored.
            still_missing = {} if sink == "dead_letter" and not failure else self._absent(sink, chunk, wanted)
            tally.repaired += len(wanted) - len(still_missing)
            _add(self._account.unrepaired, _missing(sink, chunk, wanted, still_missing), tally.left)

    def _absent(self, sink: str, chunk: Chunk, items: Sequence[Item]) -> dict[int, Problem]:
        """Returns the problems by position in `items`."""
        partition = chunk.batch.source.partition
        if sink == "dead_letter":
            known = self.expected.given_up.messages
            places = [place for place, item in enumerate(items) if (partition, offset_of(item)) not in known]
            return dict.fromkeys(places, Problem.MISSING)
        if not items:
            return {}
        if sink not in self._presences:
            self._presences[sink] = PRESENCES[sink](self._settings)
        return self._presences[sink].find_problems(items)

    def close(self) -> None:
        for presence in self._presences.values():
            with contextlib.suppress(Exception):
                presence.close()
        if self._repair is not None:
            self._repair.close()


def _missing(sink: str, chunk: Chunk, items: Sequence[Item], absent: dict[int, Problem]) -> Iterable[MissingItem]:
    for position, problem in sorted(absent.items()):
        item = items[position]
        offset = offset_of(item)
        yield MissingItem(
            sink, name_of(item), problem, chunk.batch.source.partition, offset, chunk.segments.get(offset, "")
        )


def _add(examples: list[MissingItem], found: Iterable[MissingItem], counted: int) -> None:
    """Adds at most EXAMPLES_MAX items per sink to `examples`. `counted`: number of missing items of this sink,
    including `found`.
    """
    new = list(found)
    room = EXAMPLES_MAX - (counted - len(new))
    examples += new[: max(0, room)]
