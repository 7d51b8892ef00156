"""The parameters of a simulated world, derived from a seed: partitions, readers, messages, limits and faults."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ingest.core.limits import Limits
from ingest.core.model import DEAD_LETTER_BYTES
from ingest.testing.simulation.faults import Fault

SINKS = ("gcs", "clickhouse", "bigquery", "datadog")


@dataclass(frozen=True)
class Shape:
    """All parameters of a world except its random events. Times are in simulated seconds.

    Time is compressed: a flush deadline is a few seconds instead of minutes. Compressing time is valid because the
    core takes its deadlines from the limits.
    """

    seed: int
    partitions: int
    readers: int
    messages: int
    cooperative: bool
    static: bool
    gaps: bool
    faults_end_at: float
    faults: tuple[Fault, ...]
    limits: Limits
    latest: bool = False
    session_seconds: float = 5.0
    visibility_seconds: float = 4.0

    def settle_seconds_max(self, messages: int) -> float:
        """Returns the maximum time, in seconds, from the last fault until all messages are durable and
        committed."""
        limits = self.limits
        staged_messages = max(1, limits.staged_bytes_max // DEAD_LETTER_BYTES)
        # Rejected messages are several times as large as segments, and one may fill a batch.
        batch_messages = min(
            limits.batch_messages_max, 1 + limits.batch_bytes_max // DEAD_LETTER_BYTES, staged_messages
        )
        concurrent_batches = max(
            1, min(limits.in_flight_batches_max, limits.in_flight_bytes_max // (100 * batch_messages))
        )
        return 60.0 + 2.0 * messages / (batch_messages * concurrent_batches)

    @classmethod
    def draw(cls, seed: int) -> Shape:
        """Returns the shape for this seed; the same seed always gives the same shape."""
        random = Random(f"{seed}/shape")
        limits = Limits(
            batch_messages_max=random.choice((1, 2, 3, 5, 8)),
            batch_bytes_max=random.choice((200, 400, 1_000, 10_000)),
            staged_bytes_max=random.choice((300, 600, 1_200, 100_000)),
            batch_age_seconds_max=random.choice((0.3, 1.0, 2.0)),
            batch_age_idle_seconds=Random(f"{seed}/idle").choice((0.2, 0.5, 2.0)),
            in_flight_batches_max=random.choice((1, 2, 4, 8)),
            in_flight_bytes_max=random.choice((1_200, 4_000, 100_000)),
            pending_ranges_max=random.choice((4, 6, 12)),
            flush_deadline_seconds=random.choice((2.0, 5.0)),
            drain_deadline_seconds=random.choice((0.5, 1.5, 3.0)),
            retry_backoff_seconds=0.5,
            retry_backoff_seconds_max=4.0,
            parked_probe_seconds=Random(f"{seed}/probe").choice((1.0, 3.0, 15.0)),
            undispatched_seconds_max=1.0,
            parked_renew_seconds=1.0,
            commit_interval_seconds=0.5,
            commit_answer_seconds_max=1.5,
            commit_repeat_seconds=4.0,
            cut_record_seconds_max=1.0,
            plan_seconds_max=1.0,
            pause_after_seconds=0.5,
            reject_ratio_max=0.6,
            reject_unattributed_ratio_max=0.6,
            reject_window=random.choice((10, 20)),
        )
        return cls(
            seed=seed,
            partitions=random.choice((1, 1, 2, 3)),
            readers=random.choice((1, 2, 2, 3)),
            messages=random.choice((30, 60, 90)),
            cooperative=random.random() < 0.6,
            static=random.random() < 0.3,
            gaps=random.random() < 0.3,
            faults_end_at=random.choice((6.0, 10.0, 16.0)),
            faults=tuple(fault for fault in Fault if random.random() < 0.4),
            limits=limits,
            latest=Random(f"{seed}/reset").random() < 0.2,
        )
