"""Creates the bucket for recordings and its lifecycle rules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from google.api_core.exceptions import Conflict

from tasks.settings import Settings
from tasks.sinks.gcs import sink as gcs_sink
from tasks.sinks.gcs.bucket import RETENTION_DAYS, missing_rules


def migrate_bucket(settings: Settings, *, dry_run: bool) -> Iterator[str]:
    """Creates the bucket with lifecycle rules for each retention period. An existing bucket is only checked."""
    with contextlib.closing(gcs_sink.client(settings)) as server:
        name, timeout_seconds = settings.gcs_bucket, settings.sink_timeout_seconds
        found = server.lookup_bucket(name, timeout=timeout_seconds)
        if found is None:
            yield f"create bucket gs://{name}"
            if dry_run:
                return
            bucket = server.bucket(name)
            # Recordings are personal data, so public access must be impossible, and deletion must be final.
            bucket.iam_configuration.uniform_bucket_level_access_enabled = True
            bucket.iam_configuration.public_access_prevention = "enforced"
            bucket.soft_delete_policy.retention_duration_seconds = 0
            for days in RETENTION_DAYS:
                bucket.add_lifecycle_delete_rule(age=days, matches_prefix=[f"{days}/"])
                # Packed objects rewritten by `erase` expire by their custom time.
                bucket.add_lifecycle_delete_rule(days_since_custom_time=days, matches_prefix=[f"{days}/"])
            with contextlib.suppress(Conflict):  # another process created it concurrently
                server.create_bucket(bucket, location=settings.gcs_location or None, timeout=timeout_seconds)
            return
        problems = list(missing_rules(found.lifecycle_rules, settings.gcs_layout))
        yield "; but ".join([f"= bucket gs://{name} is there", *problems])
