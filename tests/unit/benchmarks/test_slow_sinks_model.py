"""Tests which limit determines the predicted throughput with slow sinks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.slow_sinks_model import RECORD_SECONDS, TASK_SECONDS, Case
from ingest.local.launch import settings_of
from tasks.units import MiB

CASE = Case(
    latency_seconds=0.5,
    processes=1,
    connections=64,
    blobs_per_task=512,
    batch_messages_max=1000,
    batch_bytes_max=16 * MiB,
    in_flight_batches_max=16,
    in_flight_bytes_max=128 * MiB,
    partitions=4,
    segment_bytes=10_000,
    capacity=1500.0,
)


def test_a_task_uploads_in_waves() -> None:
    """A task with more uploads than connections uploads in waves and takes one latency per wave, even if the last
    wave is small.
    """
    first, second = CASE.task_seconds

    assert first == pytest.approx(8 * 0.5 + TASK_SECONDS)
    assert second == pytest.approx(8 * 0.5 + TASK_SECONDS)
    assert replace(CASE, connections=256).task_seconds == pytest.approx([1.0 + TASK_SECONDS] * 2)
    assert replace(CASE, batch_messages_max=65).task_seconds == pytest.approx([1.0 + TASK_SECONDS])


def test_uploads_limit_the_default_settings() -> None:
    """With a latency of half a second, 64 connections allow 128 uploads per second in each worker process."""
    assert CASE.predicted[0] == "uploads"
    assert CASE.predicted[1] == pytest.approx(128, rel=0.05)
    assert replace(CASE, processes=4).predicted[1] == pytest.approx(4 * CASE.limited_by_uploads)


def test_the_machine_limits_raised_settings_with_a_fast_store() -> None:
    raised = replace(CASE, latency_seconds=0.02, processes=4, connections=128)

    assert raised.predicted == ("capacity", 1500.0)


def test_bytes_in_flight_limit_many_processes() -> None:
    """The rate is (three quarters of the limit on bytes in flight - the bytes of the open batches) / the time that
    a batch takes.

    If the limit is doubled, the throughput more than doubles, because the bytes of the open batches remain the
    same.
    """
    few = replace(
        CASE, processes=32, in_flight_bytes_max=8 * MiB, batch_messages_max=60, in_flight_batches_max=1000
    )

    assert few.predicted[0] == "bytes in flight"
    in_flight = 0.75 * 8 * MiB / 10_000 - 4 * 30
    assert few.predicted[1] == pytest.approx(in_flight / (RECORD_SECONDS + 0.5 + TASK_SECONDS))
    assert replace(few, in_flight_bytes_max=16 * MiB).limited_by_bytes > 2 * few.limited_by_bytes


def test_batches_in_flight_limit_small_batches() -> None:
    """With small batches, the limit on batches in flight is reached before the limit on bytes."""
    small = replace(CASE, processes=32, batch_messages_max=20)

    assert small.predicted[0] == "batches in flight"


def test_rows_are_written_after_the_uploads() -> None:
    """With row sinks, a batch is in flight longer, because its rows are written after its uploads, in consecutive
    requests.
    """
    rows = replace(CASE, row_requests=3)

    assert rows.batch_seconds == pytest.approx(CASE.batch_seconds + 1.5 + TASK_SECONDS)
    assert rows.limited_by_uploads < CASE.limited_by_uploads


def test_the_limits_are_those_of_the_settings() -> None:
    settings = settings_of({"REPLAYS_WORKER_PROCESSES": "3", "REPLAYS_GCS_CONNECTIONS": "128"})

    case = Case.of(settings, latency_seconds=0.1, partitions=4, segment_bytes=10_000.0, capacity=1000.0)

    assert (case.processes, case.connections) == (3, 128)
    assert case.in_flight_bytes_max == settings.in_flight_bytes_max
