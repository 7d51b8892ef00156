"""Erased data is dropped before it is written, whatever path its messages take."""

from __future__ import annotations

import pytest

from ingest.core.events import MessageParsed
from ingest.core.model import Drop, DropReason, Message, Segment, TopicPartition
from ingest.core.parse import ParseRules
from ingest.reader.erasures import Erasures, erasures_of, project_key, replay_key, user_digest, user_key
from ingest.reader.parsing.inline import InlineParser
from ingest.reader.tenant_gate import TenantGate, TenantRules
from ingest.testing.messages import recording, replay_event

SOURCE = TopicPartition("recordings", 0)
REPLAY, OTHER = "a" * 32, "b" * 32
RECEIVED = 1_790_000_000
NOW = RECEIVED + 100.0


def outcome(erasures: Erasures, replay_id: str = REPLAY, received: int = RECEIVED, **fields: object) -> object:
    """Returns the outcome of a message under the given erasures."""
    gate = TenantGate()
    gate.decide(TenantRules(), erasures, 1)
    value = recording(replay_id=replay_id, project_id=11, received=received, **fields)
    message = Message(SOURCE, 1, 0, value, timestamp_ms=received * 1000)
    (event,) = InlineParser(ParseRules(), gate, lambda: 0.0).parse([message])
    assert isinstance(event, MessageParsed)
    return gate.screened(event.outcome)


def is_dropped(found: object) -> bool:
    return isinstance(found, Drop) and found.reason is DropReason.ERASED and found.project_id == 11


def erasures_with(key: str, at: float = NOW, until: float = 0.0) -> Erasures:
    return erasures_of({key: {"at": at, "by": "ann", "until": until}}, NOW)


def test_a_replay_is_dropped_whenever_it_arrives_and_its_neighbours_are_not() -> None:
    """Every segment of an erased replay is dropped, whenever it arrives and even if its replay id is uppercase."""
    erasures = erasures_with(replay_key(11, REPLAY))

    assert is_dropped(outcome(erasures))
    assert is_dropped(outcome(erasures, REPLAY.upper(), received=RECEIVED + 10_000))
    assert isinstance(outcome(erasures, OTHER), Segment)
    assert isinstance(outcome(erasures_with(replay_key(12, REPLAY))), Segment)


def test_a_project_is_dropped_up_to_the_time_of_its_erasure() -> None:
    """Messages of a project are dropped if they were received no later than the project's erasure; later messages
    belong to new replays and are kept.
    """
    erasures = erasures_with(project_key(11))

    assert is_dropped(outcome(erasures))
    assert isinstance(outcome(erasures, received=int(NOW) + 1), Segment)


@pytest.mark.parametrize("name", ["id", "username", "email"])
def test_a_user_is_matched_by_any_name_and_stored_as_a_digest(name: str) -> None:
    """The erasure of a user stores only a digest of the given name, which differs per project. It drops messages
    in which the user's id, username or email is that name.
    """
    theirs = {"replay_event": replay_event(user={"id": "someone", name: "ann@shop.example"})}
    key = user_key(11, "ann@shop.example")

    assert "ann" not in key
    assert user_digest(11, "x") != user_digest(12, "x")
    assert isinstance(outcome(Erasures(), **theirs), Segment)
    assert is_dropped(outcome(erasures_with(key), **theirs))
    assert isinstance(outcome(erasures_with(key), received=int(NOW) + 1, **theirs), Segment)
    assert isinstance(outcome(erasures_with(user_key(11, "bob@shop.example")), **theirs), Segment)


def test_an_erasure_ends_when_its_messages_have_left_every_topic() -> None:
    """An erasure ends when its messages have left every topic. An erasure without an end applies forever."""
    over = erasures_with(replay_key(11, REPLAY), at=1.0, until=NOW - 1)

    assert not over
    assert erasures_with(replay_key(11, REPLAY), at=1.0)
