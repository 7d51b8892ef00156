"""Limits that the core enforces, in seconds and bytes. Defaults are those of `ingest.settings`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tasks.units import MiB


class RejectPolicy(StrEnum):
    """How rejects of a shed project are handled."""

    DEAD_LETTER = "dead_letter"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one reader process, across all of its partitions."""

    batch_messages_max: int = 1000
    batch_bytes_max: int = 16 * MiB
    staged_bytes_max: int = 32 * MiB
    batch_age_seconds_max: float = 2.0
    batch_age_idle_seconds: float = 0.5
    early_cuts_per_second_max: float = 8.0
    early_cut_in_flight_max: int = 4
    in_flight_batches_max: int = 16
    in_flight_bytes_max: int = 128 * MiB
    pending_ranges_max: int = 512
    flush_deadline_seconds: float = 120.0
    drain_deadline_seconds: float = 20.0
    retry_backoff_seconds: float = 5.0
    retry_backoff_seconds_max: float = 60.0
    parked_probe_seconds: float = 15.0
    undispatched_seconds_max: float = 15.0
    parked_renew_seconds: float = 5.0
    commit_interval_seconds: float = 0.5
    commit_answer_seconds_max: float = 10.0
    commit_repeat_seconds: float = 60.0
    cut_record_seconds_max: float = 5.0
    cut_record_bytes_max: int = 4000
    plan_seconds_max: float = 30.0
    pause_after_seconds: float = 0.5
    reject_ratio_max: float = 0.1
    reject_projects_min: int = 3
    reject_unattributed_ratio_max: float = 0.1
    reject_policy: RejectPolicy = RejectPolicy.DEAD_LETTER
    reject_window: int = 1000
