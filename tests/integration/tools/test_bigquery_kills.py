"""Kills a process once at each point of `make bigquery-kills`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from ingest.local.stack import Stack
from tools.bigquery_kills import Point, judge, variables


@pytest.fixture
def environment(stack: Stack, fresh_name: Callable[[str], str]) -> Iterator[dict[str, str]]:
    """The session's servers, with unique names."""
    before = dict(os.environ)
    stack.start(["redis", "bigquery"])
    names = {"REPLAYS_KEY_PREFIX": fresh_name("kills"), "REPLAYS_BIGQUERY_DATASET": fresh_name("kills")}
    yield {**variables(stack.settings()), **names}
    os.environ.clear()
    os.environ.update(before)


def test_a_process_killed_at_any_point_leaves_each_row_once(
    environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """If a process is killed at any of the tested points and another process finishes its task, the table has each
    row once.

    If Redis has also lost the batch, rows are repeated in the table, but the view has each row once.
    """
    assert judge(environment, times=1, seed=7) == 0, capfd.readouterr().out
    printed = capfd.readouterr().out
    assert all(str(point) in printed for point in Point)
