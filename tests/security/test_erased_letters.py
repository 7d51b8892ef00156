"""A dead letter of an erased replay stays in Kafka until its retention ends, but is neither shown nor written."""

from __future__ import annotations

import importlib
import itertools
import json
import time
from uuid import UUID

import pytest

from ingest.operate.dlq import ERASED
from ingest.reader.erasures import project_key, replay_key, user_key
from ingest.testing.messages import recording, replay_event
from ingest.web.operator_service import DeadLetterFilter, OperatorService
from tasks.kafka.decisions import DecisionWriter
from tasks.kafka.letters import ABANDONED, Label, Origin
from tasks.kafka.records import Headers
from tasks.wire import DeadLetter
from tests.kit.commands import command
from tests.kit.dead_letters import MINE, MY_PROJECT, THEIR_PROJECT, THEIRS, Topics, forged

SECRET = "what-nobody-may-see"
ANN = "ann@shop.example"
MISSING_OFFSET = 50
"""An offset that the topic does not have: only the letter is left."""
OFFSETS = itertools.count()


def erase(topics: Topics, *keys: str) -> None:
    """Records only the decision to erase, as if the stores were empty.

    The decision is dated one minute ahead, so that all letters precede it.
    """
    value = {"at": time.time() + 60, "by": "bob", "until": 0}
    DecisionWriter(topics.settings).write(dict.fromkeys(keys, value))


def message(topics: Topics, value: bytes, reason: str = ABANDONED, headers: Headers = ()) -> DeadLetter:
    """Returns a letter about a message, with a new offset on each call."""
    label = Label(reason, SECRET, Origin(topics.settings.kafka_topic, 0, next(OFFSETS)), "b", 5, headers)
    return DeadLetter(None, value, label.encode(), 0)


def row(topics: Topics, offset: int = 0, **fields: object) -> DeadLetter:
    """Returns a letter with a row of MINE in which the given fields are added or replaced."""
    whole = {"project_id": MY_PROJECT, "replay_id": str(UUID(MINE)), "text": SECRET, **fields}
    return forged(topics, "clickhouse", "row", "replays/x", json.dumps(whole).encode(), offset)


def blob(topics: Topics, offset: int = 0) -> DeadLetter:
    """Returns a letter with the recording of MINE."""
    return forged(topics, "gcs", "blob", topics.mine.blobs[0].name, SECRET.encode(), offset)


def of_user(replay_id: str, email: str) -> bytes:
    """Returns a message whose session names a user."""
    event = replay_event(replay_id=replay_id, user={"email": email})
    return recording(replay_id=replay_id, project_id=MY_PROJECT, replay_event=event)


def expect_erased(topics: Topics, *written: DeadLetter) -> None:
    """Asserts that `dlq replay`, `dlq ls`, `dlq show` and the operator's page report the first letters as
    erased.
    """
    settings = topics.settings
    names = ("kafka_brokers", "kafka_topic", "kafka_group", "clickhouse_url", "gcs_endpoint")
    env = {f"REPLAYS_{name.upper()}": str(getattr(settings, name)) for name in names}
    env["REPLAYS_REDIS_URL"] = settings.redis_url.get_secret_value()
    service = OperatorService(settings)

    done = topics.replay(unverified=True)
    shown = service.dead_letters(DeadLetterFilter(include_replayed=True))["letters"][: len(written)]
    listed = command(env, "dlq", "ls", "--json").json["letters"][: len(written)]
    service.close()

    assert [error for _, error in done.failed] == [ERASED] * len(written)
    assert topics.object(topics.mine.blobs[0].name) is None
    assert topics.rows("replays") == 0
    for entry in (*shown, *listed):
        assert (entry["erased"], entry["error"], entry["headers"]) == (True, ERASED, {})
    for number in range(len(written)):
        for option in ((), ("--raw",), ("--json",)):
            result = command(env, "dlq", "show", f"0-{number}", *option)
            assert (result.code, result.out) == (1, "")
            assert ERASED in result.err


def test_a_letter_of_an_erased_replay_is_reported_as_erased(topics: Topics):
    """Any letter of an erased replay is reported as erased, whether its message still exists or not.

    A letter of another replay is still replayed.
    """
    written = [
        message(topics, recording(replay_id=MINE, project_id=MY_PROJECT), headers=(("trace", SECRET.encode()),)),
        message(topics, b"\xc1" + MINE.encode(), "not_msgpack"),
        message(topics, b"\xc1" + str(UUID(MINE)).upper().encode(), "not_msgpack"),
        message(topics, b"\xc1", "not_msgpack", (("trace", MINE.encode()),)),
        *(make(topics, offset) for make in (blob, row) for offset in (0, MISSING_OFFSET)),
    ]
    neighbor = message(topics, recording(replay_id=THEIRS, project_id=THEIR_PROJECT))
    topics.write(*written, neighbor)
    erase(topics, replay_key(MY_PROJECT, MINE))

    expect_erased(topics, *written)
    assert [letter.replayed for letter in topics.letters()] == [False] * len(written) + [True]


def test_a_letter_of_an_erased_project_is_reported_as_erased(topics: Topics):
    """A letter of an erased project is reported as erased if it was written, and its message arrived, before
    the erasure.
    """
    written = [
        message(topics, recording(replay_id=MINE, project_id=MY_PROJECT, received=int(time.time()))),
        *(make(topics, offset) for make in (blob, row) for offset in (0, MISSING_OFFSET)),
    ]
    topics.write(*written)
    erase(topics, project_key(MY_PROJECT))

    expect_erased(topics, *written)


def test_a_letter_of_an_erased_user_is_reported_as_erased(topics: Topics):
    """An erased user's dead letter is reported as erased even if ClickHouse refused the row that names the user.

    Without that row, an erasure could not find the user's replay.
    """
    written = [
        message(topics, of_user(MINE, ANN)),
        row(topics, user_email=ANN),
        row(topics, MISSING_OFFSET, user=ANN),
    ]
    topics.write(*written)
    erase(topics, user_key(MY_PROJECT, ANN))

    expect_erased(topics, *written)


def test_an_item_without_its_message_is_not_written_if_it_may_be_erased(topics: Topics):
    """After the erasure of a user, an item whose message is missing is not written, because a recording or an
    unreadable row does not show which user it belongs to.
    """
    topics.write(
        blob(topics, MISSING_OFFSET),
        row(topics, MISSING_OFFSET, project_id="x"),
        row(topics, MISSING_OFFSET, replay_id=None),
    )
    topics.write(message(topics, of_user(THEIRS, "bob@shop.example")))
    erase(topics, user_key(MY_PROJECT, ANN))

    done = topics.replay(unverified=True)

    assert done.failed == [(f"0-{number}", ERASED) for number in range(3)]
    assert (done.written, done.produced) == (0, 1)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_an_erasure_during_a_replay_is_noticed(topics: Topics, monkeypatch: pytest.MonkeyPatch, seconds: float):
    """A long-running `dlq replay` notices an erasure, because it reloads the erasures periodically."""
    monkeypatch.setattr(importlib.import_module("ingest.operate.dlq.replay"), "ERASURES_RELOAD_SECONDS", seconds)
    topics.write(message(topics, b"first"), message(topics, recording(replay_id=MINE, project_id=MY_PROJECT)))

    done = topics.replay(done=lambda letter, _: erase(topics, replay_key(MY_PROJECT, MINE)))

    assert done.failed == ([("0-1", ERASED)] if seconds == 0 else [])
