"""The next owner of a partition can read the cut record that was written with a commit."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.cut_record import NUMBER_MAX, Budget, Record, decode, encode, reason_ignored
from ingest.core.limits import Limits

BYTES_MAX = Limits().cut_record_bytes_max
TOPIC_ID = "vPeOCWypqUOSepEvx0cbog"
ends = st.lists(st.integers(1, 10**6), max_size=200).map(
    lambda steps: [sum(steps[: n + 1]) for n in range(len(steps))]
)
numbers = st.integers(0, NUMBER_MAX)


@given(committed=st.integers(0, 2**62), steps=ends, partitions=numbers, starts=numbers)
def test_an_encoded_record_decodes_to_the_same_values(
    committed: int, steps: list[int], partitions: int, starts: int
) -> None:
    """Any ends above the offset that fit into the record, and all other fields, are read back unchanged."""
    record = Record(TOPIC_ID, partitions, starts, tuple(committed + step for step in steps))

    assert decode(committed, encode(committed, record, BYTES_MAX)) == record


@given(count=st.integers(0, 3_000), step=st.integers(1, 2**40), bytes_max=st.integers(64, 4095))
def test_a_record_keeps_its_budget_and_drops_the_furthest_ends_first(
    count: int, step: int, bytes_max: int
) -> None:
    """A record stays within its budget by dropping the furthest ends, because the broker refuses more than 4096
    bytes.

    The topic id and the count of starts are never dropped.
    """
    record = Record(TOPIC_ID, 64, 3, tuple(step * (n + 1) for n in range(count)))

    text = encode(0, record, bytes_max)
    found = decode(0, text)

    assert len(text.encode()) <= bytes_max
    assert (found.topic_id, found.partitions, found.starts) == (TOPIC_ID, 64, 3)
    assert found.stops == record.stops[: len(found.stops)]


def test_the_longest_fields_fit_into_the_smallest_setting() -> None:
    """The longest fields fit into 64 bytes, the minimum of REPLAYS_CUT_RECORD_BYTES_MAX, so a record that is too
    long loses only cuts.
    """
    assert len(encode(0, Record(TOPIC_ID, NUMBER_MAX, NUMBER_MAX), 64)) <= 64
    assert decode(0, encode(0, Record(TOPIC_ID, NUMBER_MAX, NUMBER_MAX), 64)).starts == NUMBER_MAX


def test_without_room_for_the_topic_there_is_no_record() -> None:
    """If the topic id does not fit into the record, offsets are committed without it."""
    assert encode(0, Record(TOPIC_ID, 4, 1, (5,)), 10) == ""
    assert encode(0, Record(), BYTES_MAX) == ""


@pytest.mark.parametrize(
    "foreign", ["", "hello", "3;c=5", "3,5", "1", "1,-3", "1,0", "1,x!", "1,,", '{"json": 1}', "1;2", "2", "2;c=0"]
)
def test_foreign_metadata_is_read_as_an_empty_record(foreign: str) -> None:
    """Other tools may commit for the group with their own metadata.

    The metadata of such a commit plans no ranges and causes no error.
    """
    assert decode(10, foreign) == Record()


@given(st.one_of(st.text(max_size=50), st.text(max_size=50).map(lambda rest: f"2;{rest}")))
def test_no_text_breaks_the_decoder(foreign: str) -> None:
    """For any text from the broker, the decoded ends ascend from the committed offset, and no exception is
    raised.
    """
    stops = decode(7, foreign).stops

    assert list(stops) == sorted(set(stops))
    assert all(stop > 7 for stop in stops)


def test_an_unknown_field_is_ignored() -> None:
    """An unknown field, which a later release may add without a new version, and an invalid value are ignored."""
    text = f"2;x=1;t={TOPIC_ID};flag;s=2;c=5,a;z=9,9"

    assert decode(0, text) == Record(TOPIC_ID, 0, 2, (5, 15))


def test_invalid_cuts_leave_the_other_fields_valid() -> None:
    """If the cuts in a record are invalid, the topic's identity and the other fields are still read."""
    assert decode(0, f"2;t={TOPIC_ID};s=?;c=5,-1") == Record(TOPIC_ID)
    assert decode(0, f"2;t={'x' * 4000};s=1") == Record(starts=1)


def test_the_record_of_the_previous_release_is_read() -> None:
    """A cut record of the previous release, which contains only the ends of batches, can still be read, so the
    same cuts are made after an upgrade.
    """
    assert decode(100, "1,rs,4f") == Record(stops=(1100, 1259))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", ""),
        ("1,rs", ""),
        ("2;s=1", ""),
        ("3;s=1", "version 3 of the cut record, this release reads 2 and 1"),
        ("checkpoint", "the commit's metadata was written by another tool"),
        ("99999999999", "the commit's metadata was written by another tool"),
    ],
)
def test_the_reason_for_an_unreadable_record_is_reported(text: str, reason: str) -> None:
    """The reason why a record is unreadable (for example, because a newer release wrote it) is returned, so that
    the reader can log it.
    """
    assert reason_ignored(text) == reason


def test_a_record_holds_a_thousand_batches() -> None:
    """A record holds the ends of a thousand batches, far more than a reader may have in flight."""
    stops = tuple(500 * (n + 1) for n in range(1_300))

    assert decode(0, encode(0, Record(TOPIC_ID, 64, 9, stops), BYTES_MAX)).stops == stops


def test_a_refused_length_halves_the_budget_down_to_zero() -> None:
    """Each refusal halves the budget, so a few commits are enough to find a length that a broker accepts."""
    budget, texts = Budget(4000), []
    record = Record(TOPIC_ID, 4, 1, tuple(500 * (n + 1) for n in range(2_000)))
    while text := encode(0, record, budget.bytes_max):
        texts.append(text)
        budget.lower_maximum(text)

    lengths = [len(text) for text in texts]
    assert all(2 * after <= before for before, after in pairwise(lengths))
    assert len(texts) <= 8
    assert decode(0, texts[-1]).topic_id == TOPIC_ID


def test_ends_must_ascend() -> None:
    """Ends that are not in ascending order raise AssertionError, because they indicate a programming error."""
    with pytest.raises(AssertionError):
        encode(5, Record(stops=(5,)), BYTES_MAX)
