"""Detects dead letters of erased replays.

Dead letters of erased replays remain in Kafka until their retention ends, but are neither shown nor replayed.

A message or row identifies its replay, project and user. A message that cannot be parsed counts as erased if it
contains the id of an erased replay anywhere. An object's name contains the ids of its project and replay, but not
the user, and a packed object may contain parts of any replay. For objects, the original message is checked as
well, if it still exists.
"""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec

from ingest.core.model import Drop, Message, TopicPartition
from ingest.core.parse import parse
from ingest.core.parse.envelope import identity_of, project_of
from ingest.core.parse.rules import ParseRules
from ingest.operate.dlq.letters import DeadLettersUnavailable, Letter
from ingest.operate.remake import NO_EPOCH
from ingest.reader.erasures import Erasures, erasures_of, user_digest
from ingest.reader.tenant_gate import TenantGate, TenantRules
from ingest.settings import Settings
from tasks.kafka.decisions import DecisionsUnreadable, load
from tasks.kafka.letters import ABANDONED, Kind
from tasks.kafka.ranges import RangeError
from tasks.refused import OBJECT

ERASED = "its replay was erased"
REPLAY_ID = re.compile(rb"[0-9a-fA-F]{32}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
EARLIEST_TIME = 0.0


class _Row(msgspec.Struct):
    """The replay and the user in a row. The fields have the names of ClickHouse's columns. BigQuery facts have no
    user.
    """

    project_id: int
    replay_id: str
    user: str | None = None
    user_id: str | None = None
    user_name: str | None = None
    user_email: str | None = None

    @property
    def users(self) -> set[str]:
        return {name for name in (self.user, self.user_id, self.user_name, self.user_email) if name}


def current_erasures(settings: Settings) -> Erasures:
    """Returns the current erasures. Raises DeadLettersUnavailable."""
    try:
        entries = load(settings).entries
    except (RangeError, DecisionsUnreadable) as failure:
        raise DeadLettersUnavailable(f"operators' decisions: {failure}") from failure
    in_force = {key: entry.value for key, entry in entries.items() if entry.value is not None}
    return erasures_of(in_force, time.time())


def is_erased(letter: Letter, erasures: Erasures, rules: ParseRules) -> bool:
    """Returns True if the letter's replay, user or project was erased.

    An erasure that was requested after the letter was written applies to the message, because the message arrived
    earlier.
    """
    if not erasures:
        return False
    if letter.label.refusal is None:
        return _message_is_erased(letter, erasures, rules)
    return _item_is_erased(letter, erasures, letter.timestamp_ms / 1000, in_doubt=False)


def shown(letter: Letter, erasures: Erasures, rules: ParseRules) -> dict[str, Any]:
    """`Letter.as_dict` with the field `erased`. For an erased replay, the content of the message or row is
    omitted.
    """
    fields = letter.as_dict()
    if not is_erased(letter, erasures, rules):
        return {**fields, "erased": False}
    return {**fields, "erased": True, "error": ERASED, "headers": {}}


def may_be_erased(letter: Letter, erasures: Erasures) -> bool:
    """Like `is_erased`, for a refused item whose message no longer exists. The item counts as erased unless it
    is certain that it was not."""
    return bool(erasures) and _item_is_erased(letter, erasures, EARLIEST_TIME, in_doubt=True)


def _message_is_erased(letter: Letter, erasures: Erasures, rules: ParseRules) -> bool:
    """Returns True if the message was erased. Parses the message only if user data was erased in the message's
    project, because parsing may take a second."""
    identity, project = identity_of(letter.value), project_of(letter.value)
    if identity is not None and erasures.covers(*identity):
        return True
    if project in erasures.users and _names_an_erased_user(letter, erasures, rules):
        return True
    if letter.label.reason == ABANDONED:
        return False
    texts = (letter.value, letter.key or b"", *(value or b"" for _, value in letter.label.originals))
    named = {found[0].replace(b"-", b"").decode().lower() for text in texts for found in REPLAY_ID.finditer(text)}
    return any(replay in named and project in (None, owner) for owner, replay in erasures.replays)


def _names_an_erased_user(letter: Letter, erasures: Erasures, rules: ParseRules) -> bool:
    gate, origin = TenantGate(), letter.label.origin
    gate.decide(TenantRules(), erasures, 0)
    source = TopicPartition(origin.topic, origin.partition)
    outcome = parse(Message(source, NO_EPOCH, origin.offset, letter.value, tombstone=letter.tombstone), rules)
    return isinstance(gate.screened(outcome), Drop)


def _item_is_erased(letter: Letter, erasures: Erasures, received: float, *, in_doubt: bool) -> bool:
    refusal = letter.label.refusal
    assert refusal is not None, letter.id
    if refusal.kind == Kind.METRIC:
        return False  # a metric belongs to no replay or user
    if refusal.kind == Kind.ROW:
        try:
            row = msgspec.json.decode(letter.value, type=_Row)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return in_doubt
        return _row_is_erased(row, erasures, received)
    if own := OBJECT.fullmatch(refusal.item):
        project = int(own["project"])
        held = erasures.covers(project, refusal.item.split("/")[2], received)
        return held or (in_doubt and bool(erasures.users.get(project)))
    return in_doubt


def _row_is_erased(row: _Row, erasures: Erasures, received: float) -> bool:
    users = erasures.users.get(row.project_id, {})
    return erasures.covers(row.project_id, row.replay_id.replace("-", "").lower(), received) or any(
        received <= users.get(user_digest(row.project_id, name), -1.0) for name in row.users
    )
