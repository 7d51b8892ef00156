"""The names of the settings that only the reader has, so that workers know them too.

Made by `python -m tools.documents`. Change ingest/settings.py, not this file.
"""

from __future__ import annotations

READER_SETTINGS = frozenset(
    (
        "batch_age_idle_seconds",
        "batch_age_seconds_max",
        "batch_bytes_max",
        "batch_messages_max",
        "clicks_per_segment_max",
        "commit_answer_seconds_max",
        "commit_interval_seconds",
        "cut_record_bytes_max",
        "cut_record_seconds_max",
        "drain_deadline_seconds",
        "early_cuts_per_second_max",
        "facts_per_segment_max",
        "flush_deadline_seconds",
        "http_host",
        "http_port",
        "in_flight_batches_max",
        "in_flight_bytes_max",
        "inflated_bytes_max",
        "kafka_group",
        "kafka_group_protocol",
        "kafka_instance_id",
        "kafka_max_poll_interval_seconds",
        "kafka_metadata_refresh_seconds",
        "kafka_offset_reset",
        "kafka_queued_bytes_max",
        "kafka_session_timeout_seconds",
        "kafka_unowned_seconds_max",
        "loop_silent_seconds_max",
        "message_bytes_max",
        "parse_processes",
        "parse_usual_bytes_max",
        "pause_after_seconds",
        "pending_ranges_max",
        "plan_seconds_max",
        "reject_policy",
        "reject_projects_min",
        "reject_ratio_max",
        "reject_unattributed_ratio_max",
        "reject_window",
        "retry_backoff_seconds",
        "retry_backoff_seconds_max",
        "rows_bytes_max",
        "sample_event_rate",
        "sample_segment_rate",
        "staged_bytes_max",
        "taps_per_segment_max",
        "undispatched_seconds_max",
    )
)
