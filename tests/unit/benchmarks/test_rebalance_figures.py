"""Tests how `benchmarks.rebalance` computes its figures from its observations."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from benchmarks.rebalance import Outcome, assigned, longest_standstill_seconds, metric_values, moved
from ingest.local.servers.processes import Child, Children

CALM = Outcome(
    case="joins",
    messages=1000,
    consumed=1000,
    packets=900,
    packets_expected=900,
    moved=4,
    still_seconds_max=1.0,
    fell=False,
    amid=True,
    missing="",
)


def test_repeated_reads_and_sends_are_a_share_of_the_load() -> None:
    """The share of repeated messages and the share of repeated packets are computed separately."""
    assert (CALM.read_again, CALM.sent_again, CALM.ok) == (0, 0, True)

    outcome = replace(CALM, consumed=1100, packets=945)

    assert outcome.read_again == pytest.approx(0.1)
    assert outcome.sent_again == pytest.approx(0.05)
    assert outcome.ok


@pytest.mark.parametrize("fault", [{"missing": "GCS objects"}, {"fell": True}, {"amid": False}])
def test_a_run_that_lost_something_or_shows_nothing_is_not_ok(fault: dict[str, object]) -> None:
    """A run fails if it has no load, or if rebalances happen only after the load has ended."""
    assert not replace(CALM, **fault).ok  # type: ignore[arg-type]


def test_the_longest_time_without_a_commit_ends_with_the_load() -> None:
    """The longest time without a commit is measured between two commits, or from the last commit to the end of
    the load.

    Later commits do not count.
    """
    samples = [(0.0, 5), (1.0, 5), (2.0, 9), (3.0, 10), (9.0, 20)]

    assert longest_standstill_seconds(samples, until=4.0) == 2.0
    assert longest_standstill_seconds(samples, until=8.5) == 5.5
    assert longest_standstill_seconds(samples, until=9.5) == 6.0
    assert longest_standstill_seconds([], until=4.0) == 0.0


def test_figures_are_summed_over_their_labels() -> None:
    """A figure is the sum over all series with its name in Prometheus' text format; comment lines are skipped."""
    page = '# HELP read what\n# TYPE read counter\nread{partition="0"} 3.0\nread{partition="1"} 4.0\nowned 2.0\n'

    assert metric_values(page) == {"read": 7.0, "owned": 2.0}


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """A reader that is never started: its log says that it was assigned three partitions, one of which was
    revoked.
    """
    found = Children(tmp_path).add("reader", [sys.executable])
    lines = [
        ("partitions_assigned", {"0": None, "1": None}, "10"),
        ("partitions_revoked", [1], "11"),
        ("partitions_assigned", {"2": 40}, "12"),
    ]
    written = [
        {"event": event, "partitions": partitions, "timestamp": f"2026-01-01T00:00:{second}.000000Z"}
        for event, partitions, second in lines
    ]
    found.log_path.write_text("".join(json.dumps(line) + "\n" for line in written))
    return found


def test_a_reader_s_log_shows_its_partitions_and_start_offsets(child: Child) -> None:
    """The start offset of each partition that a reader owns is read from the reader's log, and is 0 if nothing was
    committed before.
    """
    assert assigned(child) == {0: 0, 2: 40}


def test_a_leaving_reader_owns_its_partitions_while_it_drains(child: Child) -> None:
    """When a reader shuts down, its partitions still count as owned until its drain has ended."""
    with child.log_path.open("a") as log:
        line = {"event": "partitions_revoked", "partitions": [0, 2], "timestamp": "2026-01-01T00:00:13.000000Z"}
        log.write(json.dumps(line) + "\n")

    assert assigned(child) == {0: 0, 2: 40}


def test_only_moves_after_the_load_began_count(child: Child) -> None:
    """Assignments before the load starts are not counted as moves."""
    assert moved([child], datetime.fromisoformat("2026-01-01T00:00:11Z")) == 1
