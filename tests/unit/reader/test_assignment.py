"""Tests how long queries for the group's offsets are retried, depending on the broker's response.

A missing response does not mean that the group has no offset.
"""

from __future__ import annotations

from collections.abc import Collection

import pytest
from confluent_kafka import KafkaError, KafkaException

from ingest.core.starting import StoredCommit
from ingest.reader.assignment import (
    ANSWER_SECONDS_MAX,
    EPOCH_SECONDS_MAX,
    ConsumerFailed,
    NoStartOffset,
    confirmed,
    repeated,
)


class Coordinator:
    """A coordinator that refuses `times` times and then responds.

    The clock of the coordinator advances only during waits.
    """

    def __init__(self, code: int, times: int) -> None:
        self.now, self.asked = 0.0, 0
        self._code, self._times = code, times

    def ask(self) -> dict[int, StoredCommit]:
        self.asked += 1
        if self.asked <= self._times:
            raise KafkaException(KafkaError(self._code))
        return {0: StoredCommit(7)}

    def wait(self, seconds: float) -> None:
        self.now += seconds

    def answer(self) -> dict[int, StoredCommit]:
        return repeated(self.ask, lambda: self.now, self.wait)


@pytest.mark.parametrize(
    "code", [KafkaError.STALE_MEMBER_EPOCH, KafkaError.NOT_COORDINATOR, KafkaError._TIMED_OUT]
)
def test_a_temporary_error_is_retried(code: int) -> None:
    """A query that fails with a temporary error is retried until a heartbeat updates the epoch or a coordinator is
    found.
    """
    assert Coordinator(code, times=3).answer() == {0: StoredCommit(7)}


@pytest.mark.parametrize(
    ("code", "seconds"),
    [
        (KafkaError.STALE_MEMBER_EPOCH, EPOCH_SECONDS_MAX),
        (KafkaError.NOT_COORDINATOR, ANSWER_SECONDS_MAX),
        (KafkaError._TIMED_OUT, ANSWER_SECONDS_MAX),
        (KafkaError.FENCED_MEMBER_EPOCH, 0.0),
        (KafkaError.UNKNOWN_MEMBER_ID, 0.0),
        (KafkaError.ILLEGAL_GENERATION, 0.0),
        (KafkaError.REBALANCE_IN_PROGRESS, 0.0),
    ],
)
def test_a_lasting_error_ends_without_a_result(code: int, seconds: float) -> None:
    """A permanent error ends the query without a result, and the reader rejoins the group."""
    coordinator = Coordinator(code, times=10**6)

    with pytest.raises(NoStartOffset):
        coordinator.answer()

    assert coordinator.now == pytest.approx(seconds)


@pytest.mark.parametrize("code", [KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED])
def test_a_missing_permission_needs_an_operator(code: int) -> None:
    """If a permission is missing, the reader does not rejoin the group but waits for an operator."""
    with pytest.raises(ConsumerFailed, match="may not read"):
        Coordinator(code, times=10**6).answer()


class ScriptedCoordinator:
    """A coordinator that returns the next of `answers` for each query, limited to the requested partitions."""

    def __init__(self, *answers: dict[int, StoredCommit]) -> None:
        self.asked: list[list[int]] = []
        self._answers = list(answers)

    def ask(self, numbers: Collection[int]) -> dict[int, StoredCommit]:
        self.asked.append(list(numbers))
        answer = self._answers.pop(0)
        return {number: answer[number] for number in numbers}

    def answer(self) -> dict[int, StoredCommit]:
        return confirmed(self.ask, [0, 1, 2], lambda: 0.0, lambda seconds: None)


@pytest.mark.parametrize("wrong", [StoredCommit(), StoredCommit(0)])
def test_no_offset_or_zero_counts_only_when_confirmed(wrong: StoredCommit) -> None:
    """If the first response has no offset or offset 0, the query is repeated, and its second response is used."""
    group = {0: StoredCommit(7, "2;s=1"), 1: StoredCommit(9, "2;s=1"), 2: StoredCommit()}
    once = ScriptedCoordinator({**group, 1: wrong}, group)

    assert once.answer() == group
    assert once.asked == [[0, 1, 2], [1, 2]]
    assert ScriptedCoordinator({**group, 1: wrong}, {**group, 1: wrong}).answer()[1] == wrong


def test_an_unambiguous_response_is_not_confirmed() -> None:
    """An unambiguous response is not confirmed by a second query, so a typical assignment needs only one query."""
    sure = ScriptedCoordinator({0: StoredCommit(7), 1: StoredCommit(0, "2;s=1"), 2: StoredCommit(5)})

    assert sure.answer()[1] == StoredCommit(0, "2;s=1")
    assert sure.asked == [[0, 1, 2]]
