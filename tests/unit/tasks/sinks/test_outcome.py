"""Many partial results are combined into one error, and no result is lost."""

from __future__ import annotations

import pytest

from tasks.errors import PermanentSinkError, TransientSinkError, shortened
from tasks.sinks.outcome import Blame, Failure, Outcome


def transient(text: str = "later", retry_after_seconds: float | None = None) -> Failure:
    return Failure(Blame.SERVER, text, retry_after_seconds)


def data(text: str = "bad") -> Failure:
    return Failure(Blame.ROW, text)


def test_nothing_noted_is_success() -> None:
    Outcome("sink").raise_if_any()


def test_transient_positions_are_listed_in_order_with_the_longest_wait() -> None:
    outcome = Outcome("sink")
    outcome.note(transient(retry_after_seconds=3), [7])
    outcome.note(transient(retry_after_seconds=9), [2])
    outcome.note(transient(), [4])

    with pytest.raises(TransientSinkError) as raised:
        outcome.raise_if_any()

    assert raised.value.failed == (2, 4, 7)
    assert raised.value.retry_after_seconds == 9
    assert str(raised.value).startswith("sink: later")


def test_refused_items_are_reported_after_the_transient_ones() -> None:
    """If some items failed and others were refused, all of them are listed as failed, and the next write reports
    the refused items.
    """
    outcome = Outcome("sink")
    outcome.note(data(), [1])
    outcome.note(Failure(Blame.BATCH, "bad"), [5, 6])
    outcome.note(transient(), [3])

    with pytest.raises(TransientSinkError) as raised:
        outcome.raise_if_any()

    assert raised.value.failed == (1, 3, 5, 6)


def test_refused_items_are_named_with_their_reasons() -> None:
    outcome = Outcome("sink")
    outcome.note(data("second"), [8])
    outcome.note(data("first"), [2])

    with pytest.raises(PermanentSinkError) as raised:
        outcome.raise_if_any()

    assert raised.value.failed == ((2, "first"), (8, "second"))
    assert (raised.value.all_refused, raised.value.configuration) == (False, False)


def test_unnamed_refusals_lead_to_a_bisection() -> None:
    """A refusal that does not name the refused items leads to a bisection, even if other refusals name theirs.

    The bisection finds all refused items.
    """
    outcome = Outcome("sink")
    outcome.note(data(), [2])
    outcome.note(Failure(Blame.BATCH, "bad"), [4, 5])

    with pytest.raises(PermanentSinkError) as raised:
        outcome.raise_if_any()

    assert raised.value.failed is None
    assert raised.value.suspects == (2, 4, 5)


def test_a_configuration_error_takes_precedence() -> None:
    """A configuration error takes precedence, because the whole batch is parked and retried in any case."""
    outcome = Outcome("sink")
    outcome.note(transient(), [1])
    outcome.note(Failure(Blame.TABLE, "no such bucket"), [2])

    with pytest.raises(PermanentSinkError, match="no such bucket") as raised:
        outcome.raise_if_any()

    assert raised.value.configuration


def test_texts_are_one_short_line() -> None:
    """Errors are shortened to one line, because they are passed through Redis and Flower."""
    assert shortened("a\n  b") == "a b"
    assert len(shortened("x" * 10_000)) == 500
