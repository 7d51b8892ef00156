"""Runs the uploads of one write concurrently, and retries an upload within the call if that is likely to succeed.

If an upload is refused with 403 or 412, possibly because the object already exists, the stored object is compared
with the upload.
"""

from __future__ import annotations

import base64
import heapq
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Mapping
from enum import Enum
from typing import cast
from urllib.parse import quote

import google_crc32c
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import Request
from google.cloud import storage  # type: ignore[attr-defined]

from tasks.settings import Settings
from tasks.sinks.gcs.objects import (
    COMPARED_FIELDS,
    PROOF_FIELDS,
    WantedObject,
    compare_stored,
    failure_of,
    is_name_rate_limited,
    is_packed,
    may_be_stored,
)
from tasks.sinks.http.answers import Answer
from tasks.sinks.http.transfers import Connections, Method, Transfers
from tasks.sinks.outcome import Action, Blame, Failure, seconds_until
from tasks.units import MiB
from tasks.wire import Blob

# Probes use the prefix with the shortest retention, so that a lifecycle rule deletes any probe that the account
# cannot delete.
PROBE_PREFIX = "30/replays-ingest-check/"
CONTENT_TYPE = "application/octet-stream"
CHECKSUM_CHUNK_BYTES = 1 * MiB
TRIES_MAX = 4
BACKOFF_SECONDS = 0.1
# A 429 about "object mutation" applies to one name. Any other 429 means overload, and its
# Retry-After header may specify a wait.
SAME_NAME_SECONDS = 1.0
# If all remaining uploads would wait longer than this, the write ends and its task is postponed, to free the
# process.
IDLE_SECONDS_MAX = 2.0

# Occasional failed uploads are retried within the call. If more than a quarter of the uploads in a write fail, the
# service is failing, and immediate retries would only add load. The task's backoff and the breaker then take over.
RETRY_SHARE_MAX = 0.25
RETRIES_MIN = 2


class Step(Enum):
    """Purpose of a request in flight."""

    UPLOAD = "upload"
    COMPARE = "compare"


Key = tuple[Step, str]


class Uploader:
    """State of one process: the official client, and connections for each thread that writes (usually only one
    thread).
    """

    def __init__(self, settings: Settings) -> None:
        self.client = client(settings)
        self.bucket = settings.gcs_bucket
        self.probe_name = f"{PROBE_PREFIX}{uuid.uuid4().hex}"
        self.connections = Connections(settings.gcs_connections)
        self._fetch_token = Request()
        self._base = self.client._connection.API_BASE_URL
        path = f"storage/v1/b/{quote(self.bucket, safe='')}/o"
        self._objects = f"{self._base}/{path}/"
        self._uploads = f"{self._base}/upload/{path}?uploadType=media&fields={PROOF_FIELDS}&name="

    def headers(self) -> list[str]:
        """Returns the headers for the requests of one write, including authorization; fetches a token when the old
        one is about to expire."""
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": "replays-ingest", "Expect": ""}
        self.client._credentials.before_request(self._fetch_token, "POST", self._base, headers)
        return [f"{name}: {value}" if value else f"{name}:" for name, value in headers.items()]

    def upload_url(self, name: str) -> str:
        """Returns the URL to which an object is uploaded. With this URL, a packed object is created only if it
        does not exist yet."""
        url = self._uploads + quote(name, safe="")
        return f"{url}&ifGenerationMatch=0" if is_packed(name) else url

    def object_url(self, name: str, query: str = "") -> str:
        """Returns the URL of the object itself."""
        return f"{self._objects}{quote(name, safe='')}{query}"

    def close(self) -> None:
        """Closes the connections of this process."""
        self.connections.close()
        self.client.close()


class Uploads:
    """The objects of one write. Failed uploads wait for their retry while other uploads continue."""

    def __init__(self, uploader: Uploader, headers: list[str], items: Mapping[str, Blob], ends_at: float) -> None:
        self._uploader = uploader
        self._transfers: Transfers = uploader.connections.for_this_thread
        self._headers = headers
        self._items = items
        self._ends_at = ends_at
        self._retries_left = max(RETRIES_MIN, int(len(items) * RETRY_SHARE_MAX))
        self._ready: deque[Key] = deque((Step.UPLOAD, name) for name in items)
        self._waiting: list[tuple[float, str]] = []
        self._wanted: dict[str, WantedObject] = {}
        self._refusals: dict[str, tuple[Answer, Failure]] = {}
        self._tries: Counter[str] = Counter()
        self._failures: dict[str, Failure] = {}
        self._idle_until = 0.0

    def run(self) -> dict[str, Failure]:
        """Uploads all objects, and returns shortly after the deadline at the latest. The result contains the
        failures of the objects that are not durable, by object name.
        """
        try:
            while self._ready or self._waiting or self._transfers.running:
                now = time.monotonic()
                if now >= self._ends_at or not self._may_wait(now):
                    break
                while self._waiting and self._waiting[0][0] <= now:
                    self._ready.append((Step.UPLOAD, heapq.heappop(self._waiting)[1]))
                while self._ready and self._transfers.room:
                    self._start(*self._ready.popleft())
                next_at = min(self._ends_at, self._waiting[0][0] if self._waiting else self._ends_at)
                for key, end in self._transfers.wait(max(0.0, next_at - now)):
                    self._ended(*cast(Key, key), end)
            for _, name in (*self._ready, *(cast(Key, key) for key in self._transfers.running)):
                timed_out = Failure(Blame.NETWORK, f"{name}: not stored within the deadline")
                self._failures.setdefault(name, timed_out)
        finally:
            self._transfers.abandon()
        return self._failures

    def _may_wait(self, now: float) -> bool:
        """Returns False if only retries remain and the next retry is so far off that waiting for it would block
        the process.
        """
        if self._ready or self._transfers.running:
            return True
        self._idle_until = self._idle_until or now + IDLE_SECONDS_MAX
        return self._waiting[0][0] <= self._idle_until

    def _start(self, step: Step, name: str) -> None:
        remaining_seconds, key = seconds_until(self._ends_at), (step, name)
        if step is Step.COMPARE:
            url = self._uploader.object_url(name, f"?fields={COMPARED_FIELDS}")
            self._transfers.start(key, url, self._headers, b"", remaining_seconds, method=Method.GET)
            return
        content = self._items[name].content
        if name not in self._wanted:
            self._wanted[name] = WantedObject(self._uploader.bucket, name, len(content), crc32c(content))
        self._tries[name] += 1
        headers = [*self._headers, f"X-Goog-Hash: crc32c={self._wanted[name].crc32c}"]
        self._transfers.start(key, self._uploader.upload_url(name), headers, content, remaining_seconds)

    def _ended(self, step: Step, name: str, end: Answer | Failure) -> None:
        wanted = self._wanted[name]
        if step is Step.COMPARE:
            failure = compare_stored(wanted, *self._refusals.pop(name), end)
        elif isinstance(end, Failure):
            failure = end.about(name)
        else:
            failure = failure_of(wanted, end)
            if failure is not None and may_be_stored(end, failure):
                self._refusals[name] = (end, failure)
                self._ready.appendleft((Step.COMPARE, name))
                return
        self._failures.pop(name, None)
        if failure is not None:
            self._failed(name, failure)

    def _failed(self, name: str, failure: Failure) -> None:
        """Records the failure, and queues the object for a retry if that may help."""
        self._failures[name] = failure
        if failure.blame.action is Action.PARK:  # the other objects would fail too
            self._retries_left = 0
            self._cancel_pending(Failure(Blame.SERVER, "not attempted because the write ended"))
        if failure.blame.action is not Action.RETRY or self._tries[name] == TRIES_MAX:
            return
        again_at = time.monotonic() + pause_seconds(failure, self._tries[name])
        if again_at < self._ends_at and self._retries_left > 0:
            self._retries_left -= 1
            heapq.heappush(self._waiting, (again_at, name))

    def _cancel_pending(self, failure: Failure) -> None:
        """Cancels all uploads that have not started; those in flight may still succeed."""
        for _, name in self._ready:
            self._failures.setdefault(name, failure)
        self._ready.clear()
        self._waiting.clear()


def client(settings: Settings) -> storage.Client:
    """Returns the official client for these settings; opens no connection. Migrations and readers use it too."""
    if settings.gcs_endpoint:
        return storage.Client(
            project=settings.gcs_project,
            credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
            client_options={"api_endpoint": settings.gcs_endpoint.rstrip("/")},
        )
    options = None
    if settings.google_credentials_file:
        options = {"credentials_file": str(settings.google_credentials_file)}
    return storage.Client(project=settings.gcs_project, client_options=options)


def crc32c(content: bytes | memoryview) -> str:
    """Returns the CRC32C as Cloud Storage writes it: base64 of four bytes, most significant first."""
    if isinstance(content, bytes):
        value = google_crc32c.value(content)
    else:  # the C code accepts only bytes; copying in chunks avoids doubling the memory of a large object
        value = 0
        for start in range(0, content.nbytes, CHECKSUM_CHUNK_BYTES):
            value = google_crc32c.extend(value, bytes(content[start : start + CHECKSUM_CHUNK_BYTES]))
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def pause_seconds(failure: Failure, tries: int) -> float:
    """Returns the seconds to wait before the next attempt to upload an object: the wait that the server requires,
    plus random jitter whose upper bound doubles with each attempt.
    """
    ceiling_seconds = BACKOFF_SECONDS * 2.0 ** (tries - 1)
    requested_seconds = failure.retry_after_seconds or 0.0
    if is_name_rate_limited(failure):
        requested_seconds = max(requested_seconds, SAME_NAME_SECONDS)
    return requested_seconds + random.uniform(0, ceiling_seconds)
