"""Tests which stored segments a backfill selects."""

from __future__ import annotations

import pytest

from ingest.operate.backfill.selection import IDS_PER_QUERY, Selection

REPLAY = "a" * 32


def test_every_given_condition_selects() -> None:
    """Every condition that is given is part of the query.

    Rows past their retention are never selected, and ids must be UUIDs, so that no other text reaches the query.
    """
    (where,) = Selection(11, since=5.5, until=9.0, replay_ids=(REPLAY,)).conditions(now=100.0)

    for part in ("project_id = 11", "received >= toDateTime(6)", "received < toDateTime(9)", "> 100"):
        assert part in where
    assert "replay_id IN ('aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa')" in where
    with pytest.raises(ValueError, match="badly formed"):
        list(Selection(replay_ids=("') OR 1",)).conditions(now=100.0))


def test_many_ids_need_several_queries_and_no_ids_need_none() -> None:
    ids = tuple(f"{number:032x}" for number in range(IDS_PER_QUERY + 1))

    assert len(list(Selection(replay_ids=ids).conditions(now=0.0))) == 2
    assert list(Selection(replay_ids=()).conditions(now=0.0)) == []
    with pytest.raises(ValueError, match="nothing is selected"):
        Selection()


def test_only_the_selected_part_of_the_bucket_is_listed() -> None:
    """A window alone selects the whole bucket; ids without a project select nothing, because their objects cannot
    be found by name.
    """
    assert list(Selection(7).prefixes()) == ["30/7/", "60/7/", "90/7/"]
    assert next(Selection(7, replay_ids=(REPLAY,)).prefixes()) == f"30/7/{REPLAY}/"
    assert list(Selection(since=1.0).prefixes()) == [""]
    assert list(Selection(replay_ids=(REPLAY,)).prefixes()) == []
    assert [Selection(since=2.0, until=4.0).holds(at) for at in (1.0, 2.0, 4.0)] == [False, True, False]
