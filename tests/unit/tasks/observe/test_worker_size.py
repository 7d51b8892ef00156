"""Tests what a worker logs about its size at start-up."""

from __future__ import annotations

from structlog.testing import capture_logs

from tasks.observe.watch import report_size
from tasks.units import GiB, MiB


def test_a_worker_logs_its_processes_and_their_memory():
    """A worker logs its processes and their memory in one line, both in a large container and without a memory
    limit.
    """
    with capture_logs() as lines:
        report_size(8, GiB)
        report_size(8, None)

    assert [line["event"] for line in lines] == ["worker_ready", "worker_ready"]
    assert (lines[0]["processes"], lines[0]["memory_needed_mib"], lines[0]["memory_limit_mib"]) == (8, 324, 1024)


def test_a_worker_warns_when_its_container_is_too_small():
    """If its container is too small, a worker logs a warning that names the setting to change."""
    with capture_logs() as lines:
        report_size(64, 1024 * MiB)

    warning = lines[1]
    assert (warning["log_level"], warning["event"]) == ("warning", "worker_memory_short")
    assert "REPLAYS_WORKER_PROCESSES" in warning["advice"]
