"""Lists every object in the bucket, sorted by name, one page per request, with the end of its retention period.

In both layouts, an object's name begins with the object's retention period in days. The bucket's lifecycle rules
count from the creation of the object, or from the custom time that `erase` sets on rewritten packed objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from google.api_core.exceptions import Forbidden

from ingest.settings import Settings
from tasks.sinks.gcs import sink as gcs
from tasks.sinks.gcs.bucket import missing_rules as rule_misfits

PAGE_OBJECTS = 1000
THREADS = 10
FIELDS = "items(name,generation,size,timeCreated,timeDeleted,customTime),nextPageToken"
DAY_SECONDS = 86_400
_RETENTION = re.compile(r"([1-9][0-9]{0,4})/")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One generation of an object. `born_at`: start of the object's retention, Unix seconds. `live`: false for a
    noncurrent generation in a versioned bucket.
    """

    name: str
    size_bytes: int
    born_at: float
    live: bool

    @property
    def retention_days(self) -> int | None:
        """Retention period in days. None if the name contains no retention period, in which case no lifecycle rule
        deletes the object.
        """
        found = _RETENTION.match(self.name)
        return int(found[1]) if found else None

    def overdue_days(self, now: float) -> float:
        """Returns the days since the retention period ended; 0 or less if it has not ended or is unknown."""
        days = self.retention_days
        return (now - self.born_at) / DAY_SECONDS - days if days is not None else 0.0


class Bucket:
    """The bucket for recordings. Methods raise the errors of the official client."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seconds = settings.sink_timeout_seconds
        self._server = gcs.client(settings)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="retention")

    def objects(self, prefix: str = "") -> Iterator[StoredObject]:
        """Yields all generations of all objects with this prefix, sorted by name."""
        for blob in self._server.list_blobs(
            self._settings.gcs_bucket,
            prefix=prefix or None,
            versions=True,
            page_size=PAGE_OBJECTS,
            fields=FIELDS,
            timeout=self._seconds,
        ):
            times = [at.timestamp() for at in (blob.time_created, blob.custom_time) if at is not None]
            live = blob._properties.get("timeDeleted") is None
            yield StoredObject(blob.name, int(blob.size or 0), min(times, default=0.0), live)

    def missing(self, names: Sequence[str]) -> list[str]:
        """Returns those of `names` for which the bucket has no object. Sends one request per name."""
        bucket = self._server.bucket(self._settings.gcs_bucket)
        existing = self._pool.map(lambda name: bucket.blob(name).exists(timeout=self._seconds), names)
        return [name for name, exists in zip(names, existing, strict=True) if not exists]

    def mismatches(self) -> Iterator[str]:
        """Yields the differences between the bucket's lifecycle rules and those that `migrate` sets; none for
        emulators."""
        if self._settings.gcs_endpoint:
            return
        try:
            found = self._server.get_bucket(self._settings.gcs_bucket, timeout=self._seconds)
        except Forbidden:
            yield "lifecycle rules were not checked: grant storage.buckets.get"
            return
        yield from rule_misfits(found.lifecycle_rules, self._settings.gcs_layout)

    def close(self) -> None:
        """Closes the connections."""
        self._pool.shutdown()
        self._server.close()
