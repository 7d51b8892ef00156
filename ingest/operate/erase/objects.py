"""Erases a replay's bytes in Cloud Storage: deletes its own objects and overwrites its ranges in packed
objects.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from google.api_core.exceptions import Forbidden, NotFound, PreconditionFailed

from ingest.operate.erase.holdings import EraseFailed, Generation, Holdings
from ingest.operate.text import utc_text
from ingest.settings import Settings
from tasks.sinks.gcs import sink as gcs

GENERATIONS_MAX = 50_000
OVERWRITE_TRIES_MAX = 5


class Objects:
    """Finds and deletes objects, and overwrites ranges of packed objects."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._timeout_seconds = settings.sink_timeout_seconds

    def generations(self, project_id: int, replay_id: str, days: set[int]) -> Iterator[Generation]:
        """Yields the generations of the replay's own objects, including noncurrent ones and objects without a
        row."""
        settings = self._settings
        with contextlib.closing(gcs.client(settings)) as server:
            for number in sorted(days):
                for blob in server.list_blobs(
                    settings.gcs_bucket,
                    prefix=f"{number}/{project_id}/{replay_id}/",
                    versions=True,
                    max_results=GENERATIONS_MAX,
                    timeout=settings.sink_timeout_seconds,
                ):
                    yield Generation(blob.name, int(blob.generation))

    def erase(self, found: Holdings) -> list[str]:
        """Erases all of the replay's bytes; a missing object counts as deleted. Returns one line per reason why
        the bucket keeps deleted bytes.
        """
        with contextlib.closing(gcs.client(self._settings)) as server:
            bucket = server.bucket(self._settings.gcs_bucket)
            for generation in found.objects:
                self._delete(bucket, generation)
            for name, spans in found.ranges.items():
                live = self._overwrite_spans(bucket, name, spans)
                for blob in list(bucket.list_blobs(prefix=name, versions=True, timeout=self._timeout_seconds)):
                    if blob.name == name and (live is None or int(blob.generation) < live):
                        self._delete(bucket, Generation(name, int(blob.generation)))
            return self._describe_retained_bytes(server) if found.objects or found.ranges else []

    def _delete(self, bucket: Any, generation: Generation) -> None:
        with contextlib.suppress(NotFound):
            bucket.delete_blob(generation.name, generation=generation.number, timeout=self._timeout_seconds)

    def _overwrite_spans(self, bucket: Any, name: str, spans: Sequence[tuple[int, int]]) -> int | None:
        """Overwrites the spans with zeros. Returns the generation that contains the zeros, or None if the object
        does not exist.

        Length and name do not change, so index rows of other segments remain valid. The write requires an
        unchanged generation, so that concurrent erasures cannot undo each other; the slower erasure reads the
        object again.
        """
        for _ in range(OVERWRITE_TRIES_MAX):
            old = bucket.get_blob(name, timeout=self._timeout_seconds)
            if old is None:
                return None
            generation = int(old.generation)
            try:
                content = bytearray(
                    old.download_as_bytes(
                        raw_download=True, if_generation_match=generation, timeout=self._timeout_seconds
                    )
                )
                if not zero_spans(content, spans, name):
                    return generation
                new = rewrite(bucket, old)
                new.upload_from_string(
                    bytes(content),
                    content_type=old.content_type,
                    if_generation_match=generation,
                    checksum="crc32c",
                    timeout=self._timeout_seconds,
                )
                return int(new.generation)
            except (PreconditionFailed, NotFound):
                continue
        raise EraseFailed(f"{name} was overwritten {OVERWRITE_TRIES_MAX} times during the erasure; run this again")

    def _describe_retained_bytes(self, server: Any) -> list[str]:
        """Returns one line per reason why the bucket keeps deleted bytes, or one line if the permission to read
        its settings is missing.
        """
        name = self._settings.gcs_bucket
        try:
            bucket = server.get_bucket(name, timeout=self._timeout_seconds)
        except Forbidden:
            return [f"no permission to read whether gs://{name} has soft delete: grant storage.buckets.get"]
        seconds = int(bucket.soft_delete_policy.retention_duration_seconds or 0)
        if not seconds:
            return []
        return [f"soft delete of gs://{name} keeps the bytes until {utc_text(time.time() + seconds)} UTC"]


def zero_spans(content: bytearray, spans: Sequence[tuple[int, int]], name: str) -> bool:
    """Writes zeros to every span (first byte, length), in place. Returns True if any byte changed. Raises
    EraseFailed."""
    changed = False
    for start, length in spans:
        if start + length > len(content):
            raise EraseFailed(
                f"{name} has {len(content)} bytes, but its index refers to byte {start + length}: examine it first"
            )
        zeros = bytes(length)
        if content[start : start + length] != zeros:
            content[start : start + length] = zeros
            changed = True
    return changed


def rewrite(bucket: Any, old: Any) -> Any:
    """Writes a new generation of an object, with the metadata of the old one.

    The custom time is the creation time of the first generation. The bucket's lifecycle rules count from the
    custom time, so that an erasure does not extend the retention of other recordings in the object.
    """
    new = bucket.blob(old.name)
    for attribute in (
        *("cache_control", "content_disposition", "content_encoding", "content_language", "content_type"),
        *("metadata", "storage_class"),
    ):
        value = getattr(old, attribute)
        if value:
            setattr(new, attribute, value)
    born = old.custom_time or old.time_created
    if born is not None:
        new.custom_time = born
    return new
