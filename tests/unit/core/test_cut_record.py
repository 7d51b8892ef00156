"""The cut record: what is written with a commit can be read by the next owner."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core.cut_record import NUMBER_MAX, Budget, Record, decode, encode, refusal
from ingest.core.limits import Limits

BYTES_MAX = Limits().cut_record_bytes_max
TOPIC_ID = "vPeOCWypqUOSepEvx0cbog"
ends = st.lists(st.integers(1, 10**6), max_size=200).map(
    lambda steps: [sum(steps[: n + 1]) for n in range(len(steps))]
)
numbers = st.integers(0, NUMBER_MAX)


@given(committed=st.integers(0, 2**62), steps=ends, partitions=numbers, starts=numbers)
def test_what_is_encoded_is_decoded(committed: int, steps: list[int], partitions: int, starts: int) -> None:
    """Any ends above any offset, as far as they fit, and every other field."""
    record = Record(TOPIC_ID, partitions, starts, tuple(committed + step for step in steps))

    assert decode(committed, encode(committed, record, BYTES_MAX)) == record


@given(count=st.integers(0, 3_000), step=st.integers(1, 2**40), bytes_max=st.integers(64, 4095))
def test_a_record_keeps_its_budget_and_drops_the_furthest_ends_first(
    count: int, step: int, bytes_max: int
) -> None:
    """The broker refuses a commit with more than 4096 bytes of metadata. Topic id and starts are never dropped."""
    record = Record(TOPIC_ID, 64, 3, tuple(step * (n + 1) for n in range(count)))

    text = encode(0, record, bytes_max)
    found = decode(0, text)

    assert len(text.encode()) <= bytes_max
    assert (found.topic_id, found.partitions, found.starts) == (TOPIC_ID, 64, 3)
    assert found.stops == record.stops[: len(found.stops)]


def test_the_longest_fields_fit_into_the_smallest_setting() -> None:
    """REPLAYS_CUT_RECORD_BYTES_MAX is at least 64: whatever it is, cuts alone are at stake."""
    assert len(encode(0, Record(TOPIC_ID, NUMBER_MAX, NUMBER_MAX), 64)) <= 64
    assert decode(0, encode(0, Record(TOPIC_ID, NUMBER_MAX, NUMBER_MAX), 64)).starts == NUMBER_MAX


def test_where_not_even_the_topic_fits_there_is_no_record() -> None:
    """A broker that stores no metadata still stores offsets."""
    assert encode(0, Record(TOPIC_ID, 4, 1, (5,)), 10) == ""
    assert encode(0, Record(), BYTES_MAX) == ""


@pytest.mark.parametrize(
    "foreign", ["", "hello", "3;c=5", "3,5", "1", "1,-3", "1,0", "1,x!", "1,,", '{"json": 1}', "1;2", "2", "2;c=0"]
)
def test_a_record_of_somebody_else_is_empty(foreign: str) -> None:
    """Other tools may commit for the group, with their own metadata: nothing is planned, nothing breaks."""
    assert decode(10, foreign) == Record()


@given(st.one_of(st.text(max_size=50), st.text(max_size=50).map(lambda rest: f"2;{rest}")))
def test_no_text_breaks_the_decoder(foreign: str) -> None:
    """Whatever the broker hands us, ends rise from the committed offset."""
    stops = decode(7, foreign).stops

    assert list(stops) == sorted(set(stops))
    assert all(stop > 7 for stop in stops)


def test_a_field_that_this_release_does_not_know_is_passed_over() -> None:
    """A later release may add some without a new version; one without its sense is passed over, too."""
    text = f"2;x=1;t={TOPIC_ID};flag;s=2;c=5,a;z=9,9"

    assert decode(0, text) == Record(TOPIC_ID, 0, 2, (5, 15))


def test_cuts_that_make_no_sense_leave_the_other_fields() -> None:
    """The topic's identity does not depend on them."""
    assert decode(0, f"2;t={TOPIC_ID};s=?;c=5,-1") == Record(TOPIC_ID)
    assert decode(0, f"2;t={'x' * 4000};s=1") == Record(starts=1)


def test_the_record_of_the_release_before_is_read() -> None:
    """It held ends alone: an upgrade must cut the same."""
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
def test_why_a_text_is_not_read(text: str, reason: str) -> None:
    """For the log: after a rollback one wants to know."""
    assert refusal(text) == reason


def test_a_record_holds_a_thousand_batches() -> None:
    """Far more than a reader may have in flight: with 500 messages each, an end takes three bytes."""
    stops = tuple(500 * (n + 1) for n in range(1_300))

    assert decode(0, encode(0, Record(TOPIC_ID, 64, 9, stops), BYTES_MAX)).stops == stops


def test_a_refused_length_halves_the_budget_until_nothing_is_left() -> None:
    """So that a dozen commits find what a broker stores."""
    budget, texts = Budget(4000), []
    record = Record(TOPIC_ID, 4, 1, tuple(500 * (n + 1) for n in range(2_000)))
    while text := encode(0, record, budget.bytes_max):
        texts.append(text)
        budget.refused(text)

    lengths = [len(text) for text in texts]
    assert all(2 * after <= before for before, after in pairwise(lengths))
    assert len(texts) <= 8
    assert decode(0, texts[-1]).topic_id == TOPIC_ID


def test_ends_must_rise() -> None:
    """A range that ends before it begins is ours to get right."""
    with pytest.raises(AssertionError):
        encode(5, Record(stops=(5,)), BYTES_MAX)
