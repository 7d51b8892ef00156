"""Throughput with slow sinks: what is in flight, divided by how long it is in flight.

Derived from the code, for the `segment` layout:

- A flush task for Cloud Storage has up to `blobs_per_task` uploads, of which `connections` run at the same time
  (tasks/sinks/gcs/uploads.py). With a latency L, a task of n uploads takes ceil(n / connections) * L, and a worker
  process runs one task at a time. Limit by uploads, in segments per second: processes * segments per batch / total
  duration of the batch's tasks.
- A batch is in flight from its cut until its last stage is confirmed. First its boundary is recorded (a commit),
  then its objects are uploaded, and then its rows are written (decision 008). The tasks of a stage run in parallel
  if there are enough worker processes. Limit by batches, in segments per second: batches in flight * segments per
  batch / time in flight.
- At REPLAYS_IN_FLIGHT_BYTES_MAX or REPLAYS_IN_FLIGHT_BATCHES_MAX, the reader stops until both counts have fallen
  to half (ingest/core/backpressure.py), so on average three quarters of the limit are in flight. Open batches,
  half full on average, one per partition, count as bytes in flight but are not being flushed.

The prediction is the lowest of these rates and the rate that the machine sustains with fast sinks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ingest.settings import Settings

IN_FLIGHT_SHARE = 0.75
RECORD_SECONDS = 0.03
# The time from the end of a task to the start of the next task in the same process. During this time, the next
# task's message is fetched from Redis. The time was 0.1 s in most cases, and sometimes 1 s, which is how long
# Celery's transport waits in one BRPOP.
TASK_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Case:
    """The inputs of the prediction. Sizes are in bytes, times in seconds.

    `segment_bytes`: staged bytes of a segment. `capacity`: segments per second if the sinks add no latency.
    `row_requests`: number of consecutive requests in the slowest row task; 0 if there are no row sinks.
    """

    latency_seconds: float
    processes: int
    connections: int
    blobs_per_task: int
    batch_messages_max: int
    batch_bytes_max: int
    in_flight_batches_max: int
    in_flight_bytes_max: int
    partitions: int
    segment_bytes: float
    capacity: float
    row_requests: int = 0

    @classmethod
    def of(cls, settings: Settings, **given: Any) -> Case:
        """Takes the limits from these settings."""
        return cls(
            processes=settings.worker_processes,
            connections=settings.gcs_connections,
            blobs_per_task=settings.blobs_per_task,
            batch_messages_max=settings.batch_messages_max,
            batch_bytes_max=settings.batch_bytes_max,
            in_flight_batches_max=settings.in_flight_batches_max,
            in_flight_bytes_max=settings.in_flight_bytes_max,
            **given,
        )

    @property
    def batch_segments(self) -> int:
        """Segments per batch at full load."""
        return max(1, min(self.batch_messages_max, int(self.batch_bytes_max / self.segment_bytes)))

    @property
    def task_seconds(self) -> list[float]:
        """Duration of each upload task of a batch."""
        left, found = self.batch_segments, []
        while left > 0:
            uploads = min(left, self.blobs_per_task)
            found.append(math.ceil(uploads / self.connections) * self.latency_seconds + TASK_SECONDS)
            left -= uploads
        return found

    @property
    def batch_seconds(self) -> float:
        """Time that a batch is in flight, if no task waits for a worker process."""
        rows = self.row_requests * self.latency_seconds + TASK_SECONDS if self.row_requests else 0.0
        return RECORD_SECONDS + max(self.task_seconds) + rows

    @property
    def limited_by_uploads(self) -> float:
        """Segments per second, if worker processes and connections are the limit."""
        rows = self.row_requests * self.latency_seconds
        return self.processes * self.batch_segments / (sum(self.task_seconds) + rows)

    @property
    def limited_by_batches(self) -> float:
        """Segments per second, if the number of batches in flight is the limit."""
        return IN_FLIGHT_SHARE * self.in_flight_batches_max * self.batch_segments / self.batch_seconds

    @property
    def limited_by_bytes(self) -> float:
        """Segments per second, if the bytes in flight are the limit."""
        in_flight = IN_FLIGHT_SHARE * self.in_flight_bytes_max / self.segment_bytes
        still_open = self.partitions * self.batch_segments / 2
        return max(in_flight - still_open, self.batch_segments) / self.batch_seconds

    @property
    def limits(self) -> dict[str, float]:
        """Each limit, in segments per second."""
        return {
            "capacity": self.capacity,
            "uploads": self.limited_by_uploads,
            "batches in flight": self.limited_by_batches,
            "bytes in flight": self.limited_by_bytes,
        }

    @property
    def predicted(self) -> tuple[str, float]:
        """The lowest limit: its name, and segments per second."""
        return min(self.limits.items(), key=lambda one: one[1])
