"""The bucket of the recordings and its lifecycle rules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from google.api_core.exceptions import Conflict

from tasks.settings import Settings
from tasks.sinks.gcs import sink as gcs_sink

RETENTION_DAYS = (30, 60, 90)


def migrate_bucket(settings: Settings, *, dry_run: bool) -> Iterator[str]:
    """The bucket, if it does not exist, with a rule for each retention. One that exists is somebody's: we look."""
    with contextlib.closing(gcs_sink.client(settings)) as server:
        name, timeout_seconds = settings.gcs_bucket, settings.sink_timeout_seconds
        found = server.lookup_bucket(name, timeout=timeout_seconds)
        if found is None:
            yield f"create bucket gs://{name}"
            if dry_run:
                return
            made = server.bucket(name)
            # Recordings are personal data: nobody gets in by accident, and a deletion deletes.
            made.iam_configuration.uniform_bucket_level_access_enabled = True
            made.iam_configuration.public_access_prevention = "enforced"
            made.soft_delete_policy.retention_duration_seconds = 0
            for days in RETENTION_DAYS:
                made.add_lifecycle_delete_rule(age=days, matches_prefix=[f"{days}/"])
                # A packed object that `erase` rewrote is as old as its custom time says.
                made.add_lifecycle_delete_rule(days_since_custom_time=days, matches_prefix=[f"{days}/"])
            with contextlib.suppress(Conflict):  # somebody made it at the same moment
                server.create_bucket(made, location=settings.gcs_location or None, timeout=timeout_seconds)
            return
        missing = [days for days in RETENTION_DAYS if not _expires(found, days)]
        yield f"= bucket gs://{name} is there" + (
            f", but nothing deletes {', '.join(f'{days}/' for days in missing)} after as many days: "
            "add lifecycle rules"
            if missing
            else ""
        )
        if settings.gcs_layout == "packed" and not any(
            "daysSinceCustomTime" in rule.get("condition", {}) for rule in found.lifecycle_rules
        ):
            yield f"= gs://{name} has no rule on daysSinceCustomTime: what `erase` rewrites is kept for longer"


def _expires(found: Any, days: int) -> bool:
    """Whether a lifecycle rule deletes objects of this retention in time."""
    for rule in found.lifecycle_rules:
        condition = rule.get("condition", {})
        prefixes = condition.get("matchesPrefix")
        covers = prefixes is None or f"{days}/" in prefixes
        if rule.get("action", {}).get("type") == "Delete" and covers and condition.get("age", days + 1) <= days:
            return True
    return False
