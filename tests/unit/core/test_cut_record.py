"""The cut record: what is written with a commit can be read by the next owner."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.core import cut_record
from ingest.core.limits import Limits

BYTES_MAX = Limits().cut_record_bytes_max
ends = st.lists(st.integers(1, 10**6), max_size=200).map(
    lambda steps: [sum(steps[: n + 1]) for n in range(len(steps))]
)


@given(committed=st.integers(0, 2**62), steps=ends)
def test_what_is_encoded_is_decoded(committed: int, steps: list[int]) -> None:
    """Any ends above any offset, as far as they fit."""
    stops = [committed + step for step in steps]

    text = cut_record.encode(committed, stops, BYTES_MAX)

    assert cut_record.decode(committed, text) == tuple(stops)


@given(count=st.integers(0, 3_000), step=st.integers(1, 2**40))
def test_a_record_never_outgrows_what_kafka_stores(count: int, step: int) -> None:
    """The broker refuses a commit with more than 4096 bytes of metadata: the last ends are left out instead."""
    stops = [step * (n + 1) for n in range(count)]

    text = cut_record.encode(0, stops, BYTES_MAX)

    assert len(text.encode()) <= 4096
    assert list(cut_record.decode(0, text)) == stops[: len(cut_record.decode(0, text))]


@pytest.mark.parametrize("foreign", ["", "hello", "2,5", "1,-3", "1,0", "1,x!", "1,,", '{"json": 1}', "1;2"])
def test_a_record_of_somebody_else_is_empty(foreign: str) -> None:
    """Other tools may commit for the group, with their own metadata: nothing is planned, nothing breaks."""
    assert cut_record.decode(10, foreign) == ()


@given(st.text(max_size=50))
def test_no_text_breaks_the_decoder(foreign: str) -> None:
    """Whatever the broker hands us, ends rise from the committed offset."""
    stops = cut_record.decode(7, foreign)

    assert list(stops) == sorted(set(stops))
    assert all(stop > 7 for stop in stops)


def test_a_record_holds_a_thousand_batches() -> None:
    """Far more than a reader may have in flight: with 500 messages each, an end takes three bytes."""
    stops = [500 * (n + 1) for n in range(1_300)]

    assert cut_record.decode(0, cut_record.encode(0, stops, BYTES_MAX)) == tuple(stops)


def test_a_record_that_grew_too_long_leaves_the_last_ends_out() -> None:
    """Two thousand do not fit: the first ones do."""
    stops = [500 * (n + 1) for n in range(2_000)]

    text = cut_record.encode(0, stops, BYTES_MAX)

    assert len(text) <= 4096
    assert cut_record.decode(0, text) == tuple(stops[: len(cut_record.decode(0, text))])


def test_ends_must_rise() -> None:
    """A range that ends before it begins is ours to get right."""
    with pytest.raises(AssertionError):
        cut_record.encode(5, [5], BYTES_MAX)
