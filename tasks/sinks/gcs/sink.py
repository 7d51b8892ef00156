"""Stores recordings as objects in Cloud Storage: one per segment, or packed objects that contain many.

A packed object (`<retention days>/packed/...`) has a digest of its bytes in its name and is created only if it
does not exist. A 412 response, which means that the object exists, counts as success if the existing object is
identical to the upload. A refused packed object parks its batch instead of becoming a dead letter, since the
letter could not list the recordings in it.

Writing an item again overwrites the object of the same name with the same bytes, so repetition leaves one copy
(unless the bucket keeps old versions). If a bucket forbids overwriting, the existing object is compared: an
identical object counts as success, and a different object makes the segment a dead letter. When names repeat
within one write, only the last item is sent, with the same result as if all had been written in order: Cloud
Storage accepts about one write per second per name (https://cloud.google.com/storage/quotas#objects).

Credentials, endpoint and bucket properties come from the official client. Each upload is a single
`uploadType=media` request through libcurl. One thread keeps many requests in flight and uses a fraction of the CPU
that the official client needs (docs/decisions/021-gcs-upload.md has the figures).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from google.api_core import exceptions as from_api

from tasks.settings import Settings
from tasks.sinks.base import Report
from tasks.sinks.gcs.bucket import missing_rules, restrictions
from tasks.sinks.gcs.objects import (
    COMPARED_FIELDS,
    WantedObject,
    compare_stored,
    failure_of,
    is_packed,
    may_be_stored,
)
from tasks.sinks.gcs.uploads import PROBE_PREFIX, Uploader, Uploads, client, crc32c
from tasks.sinks.google.errors import advice, classify, classify_answer
from tasks.sinks.http.answers import Answer, describe_answer
from tasks.sinks.http.transfers import Method
from tasks.sinks.outcome import Blame, Failure, Outcome, seconds_until
from tasks.sinks.per_process import PerProcessValue
from tasks.wire import Blob

PROBE = b"replays-ingest check"
COMPARED_FIELDS_QUERY = f"?fields={COMPARED_FIELDS}"

__all__ = ["GcsSink", "client", "crc32c", "is_packed"]


class GcsSink:
    """Writes blobs. Needs memory for the items plus at most 1 MiB per upload in flight."""

    name = "gcs"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uploader = PerProcessValue(lambda: Uploader(settings))

    def write(self, items: Sequence[Blob], token: str, deadline_seconds: float) -> None:
        """Uploads `items` with up to `gcs_connections` concurrent requests. `token` is not needed, because the
        name identifies an object.

        TransientSinkError.failed lists exactly the positions that are not durable.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        positions: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            positions.setdefault(item.name, []).append(position)
        uploader, headers = self._ready()
        uploads = Uploads(
            uploader, headers, {name: items[where[-1]] for name, where in positions.items()}, ends_at
        )
        for name, failure in uploads.run().items():
            outcome.note(failure, positions[name])
        outcome.raise_if_any()

    def _ready(self) -> tuple[Uploader, list[str]]:
        """Returns the uploader of this process, and headers with a token that is valid for this write."""
        try:
            uploader = self._uploader.get()
            return uploader, uploader.headers()
        except Exception as error:
            raise classify(error).error() from error

    def examine(self, items: Sequence[Blob], deadline_seconds: float) -> None:
        """Stores and deletes a small object. If the bucket refuses this object too, the bucket is at fault.

        The object's name is constant for the lifetime of a process, so that a bucket that forbids deletion keeps
        only one such object per process.
        """
        ends_at = time.monotonic() + deadline_seconds
        uploader, headers = self._ready()
        probe = _Probe(uploader, headers, ends_at, uploader.probe_name)
        failure = probe.store()
        if failure is None:
            probe.delete()
            return
        blame = Blame.TABLE if failure.blame.blames_items else failure.blame
        raise Failure(blame, f"bucket {probe.uploader.bucket} refuses a probe too: {failure.message}").error()

    def check(self) -> Report:
        """Checks the bucket's properties, if permitted, and stores, reads back and deletes a small object."""
        settings = self._settings
        ends_at = time.monotonic() + settings.sink_timeout_seconds
        properties, not_tested = self._properties()
        probe = _Probe(*self._ready(), ends_at, f"{PROBE_PREFIX}{uuid.uuid4().hex}")
        for step in (probe.store, probe.read_back):
            failure = step()
            if failure is not None:
                todo = "; grant roles/storage.objectUser" if failure.blame is Blame.CREDENTIALS else ""
                todo = "; run `replays-ingest migrate`" if failure.blame is Blame.TABLE else todo
                raise Failure(failure.blame, f"bucket {settings.gcs_bucket}: {failure.message}{todo}").error()
        warnings = list(restrictions(properties))
        if settings.gcs_endpoint and "lifecycle" not in properties:
            not_tested.append("lifecycle rules: emulators have none")
        elif properties:
            rules = properties.get("lifecycle", {}).get("rule", ())
            warnings += missing_rules(rules, settings.gcs_layout)
        failure = probe.delete()
        if failure is not None:
            warnings.append(f"the probe {probe.name} could not be deleted: {failure.message}")
        return Report(
            f"bucket {settings.gcs_bucket}: a probe was stored, read back and "
            f"{'left there' if failure else 'deleted'}",
            tuple(warnings),
            tuple(not_tested),
        )

    def _properties(self) -> tuple[dict[str, Any], list[str]]:
        """Returns the bucket's JSON resource; without permission, a note on what is not tested."""
        settings = self._settings
        try:
            bucket = self._uploader.get().client.get_bucket(
                settings.gcs_bucket, timeout=settings.sink_timeout_seconds, retry=None
            )
        except from_api.Forbidden as error:
            return {}, [f"retention policy and lifecycle rules: grant storage.buckets.get ({error.message})"]
        except Exception as error:
            failure = classify(error)
            todo = advice(error, "run `replays-ingest migrate`", "grant roles/storage.objectUser")
            raise Failure(
                failure.blame, f"bucket {settings.gcs_bucket}: {failure.message}{todo}"
            ).error() from error
        return dict(bucket._properties), []

    def close(self) -> None:
        uploader = self._uploader.take()
        if uploader is not None:
            uploader.close()


class _Probe:
    """A small probe object that is not a recording. Its name differs per process, so that two checks do not
    interfere."""

    def __init__(self, uploader: Uploader, headers: list[str], ends_at: float, name: str) -> None:
        self.uploader = uploader
        self.name = name
        self._headers = headers
        self._ends_at = ends_at

    def store(self) -> Failure | None:
        """Stores the object. Returns None if the response proves this, by the same rules as for a recording."""
        wanted = WantedObject(self.uploader.bucket, self.name, len(PROBE), crc32c(PROBE))
        hashed = [*self._headers, f"X-Goog-Hash: crc32c={wanted.crc32c}"]
        end = self._send(self.uploader.upload_url(self.name), Method.POST, hashed, PROBE)
        if isinstance(end, Failure):
            return end
        failure = failure_of(wanted, end)
        if failure is None or not may_be_stored(end, failure):
            return failure
        stored = self._send(self.uploader.object_url(self.name, COMPARED_FIELDS_QUERY), Method.GET, self._headers)
        return compare_stored(wanted, end, failure, stored)

    def read_back(self) -> Failure | None:
        """Reads the object back. Returns None if its bytes equal those that were stored."""
        end = self._send(self.uploader.object_url(self.name, "?alt=media"), Method.GET, self._headers)
        if isinstance(end, Failure):
            return end
        if not end.ok:
            return classify_answer(end).about("reading the probe back")
        if end.body != PROBE:
            return Failure(Blame.NETWORK, f"the probe reads back as {describe_answer(end)}")
        return None

    def delete(self) -> Failure | None:
        """Deletes the probe object. Returns None if the deletion succeeded."""
        end = self._send(self.uploader.object_url(self.name), Method.DELETE, self._headers)
        return end if isinstance(end, Failure) else None if end.ok else classify_answer(end)

    def _send(self, url: str, method: Method, headers: list[str], body: bytes = b"") -> Answer | Failure:
        remaining_seconds = seconds_until(self._ends_at)
        return self.uploader.connections.for_this_thread.send(url, headers, body, remaining_seconds, method=method)
