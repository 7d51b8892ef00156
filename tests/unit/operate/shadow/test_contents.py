"""Tests when a stored row counts as correct, as replaced by another message, or as wrong."""

from __future__ import annotations

import io
from typing import Any

import pytest

from ingest.core.model import Row
from ingest.operate.shadow.comparison import Comparison, Difference, Kind, Tally, render
from ingest.operate.shadow.contents import ROWS_MAX, bounded_chunks, classify_difference, string_literal
from ingest.operate.terminal import Terminal

CLICK = {"segment_id": 4, "timestamp": 100, "click_text": "Buy", "click_is_dead": 0, "click_is_rage": 0}
CLICK |= {"partition": 1, "offset": 7}
SEGMENT = {"segment_id": 4, "received": 100, "size_compressed": 9, "partition": 1, "offset": 7}
OUTCOME = {"key_id": 3, "category": "replay", "timestamp": 100}


@pytest.mark.parametrize(
    ("table", "wanted", "changed", "expected"),
    [
        ("replays", CLICK, {}, None),
        ("replays", CLICK, {"partition": 0, "offset": 1}, None),
        ("replays", CLICK, {"click_text": "Sell"}, Kind.DIFFERS),
        ("replays", CLICK, {"click_is_dead": 1}, Kind.DIFFERS),
        ("replays", CLICK, {"timestamp": 101}, Kind.DIFFERS),
        ("replays", CLICK, {"click_is_dead": 1, "offset": 9}, "superseded"),
        ("replays", CLICK, {"segment_id": 5, "offset": 9}, "superseded"),
        ("replays", CLICK, {"click_text": "Sell", "offset": 9}, Kind.DIFFERS),
        ("replays", CLICK, {"timestamp": 101, "offset": 9}, "superseded"),
        ("replay_segments", SEGMENT, {"received": 160, "offset": 9}, "superseded"),
        ("replay_segments", SEGMENT, {"size_compressed": 8, "offset": 9}, Kind.DIFFERS),
        ("replay_outcomes", OUTCOME, {"timestamp": 160}, None),
        ("replay_outcomes", OUTCOME, {"category": "replay_video"}, Kind.DIFFERS),
    ],
)
def test_only_a_row_of_another_message_may_replace_this_one(
    table: str, wanted: dict[str, Any], changed: dict[str, Any], expected: Kind | str | None
) -> None:
    found = classify_difference(table, [wanted], [wanted | changed])

    if expected == "superseded":
        assert found == (None, "")
    elif expected is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] is expected
        assert all(name in found[1] for name in changed if name not in ("partition", "offset"))


def test_one_of_several_copies_is_sufficient_and_zero_is_missing() -> None:
    """A row that the message contains twice, or that is stored on two days, is correct if at least one copy is
    stored.
    """
    assert classify_difference("replays", [CLICK], []) == (Kind.MISSING, "no such row")
    assert classify_difference("replays", [CLICK | {"click_text": "x"}, CLICK], [CLICK]) is None
    assert classify_difference("replays", [CLICK], [CLICK | {"click_text": "x"}, CLICK]) is None


def test_rows_in_a_statement_are_quoted_and_bounded() -> None:
    rows = {number: Row("replays", "x", b"{}", number) for number in range(ROWS_MAX + 1)}

    assert string_literal("a'b\\c") == "'a\\'b\\\\c'"
    assert [len(some) for some in bounded_chunks(rows)] == [ROWS_MAX, 1]
    assert len(list(bounded_chunks({n: Row("replays", "x", b" " * 700_000, n) for n in range(3)}))) == 3


def test_counts_are_complete_and_the_page_names_the_message() -> None:
    tally = Tally()
    for kind in Kind:
        tally.count(kind)
    difference = Difference(
        Kind.DIFFERS, "clickhouse", "replays/x", "differs in title", "topic", 3, 42, 11, "a" * 32, 5
    )
    found = Comparison("topic", "1.0", [], sinks={"clickhouse": tally}, differences=[difference])

    stream = io.StringIO()
    Terminal(file=stream, width=300).print(render(found))
    shown = stream.getvalue()

    assert (tally.differences, found.ok, found.as_dict()["ok"]) == (3, False, False)
    assert "DIFFERENT" in shown
    assert f"(project 11, replay {'a' * 32}, segment 5; topic partition 3 offset 42)" in shown
