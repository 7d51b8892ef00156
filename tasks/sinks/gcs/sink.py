"""Recordings as objects in Cloud Storage: one a segment, or packed ones that hold many.

A packed object (`<retention days>/packed/...`) has a digest of its bytes in its name and is created only where
none is: the answer that there is one (412) is success. One that is refused parks its batch instead of becoming
one dead letter, since the letter could not say which recordings are in it.

Writing an item again overwrites the object of the same name with the same bytes, so repetition leaves one copy
(the bucket must not keep old versions, or it keeps those too). When names repeat within one write, the last
one wins, as if they had been written one after another, and the earlier ones are not sent at all: Cloud
Storage takes about one write a second to one name (https://cloud.google.com/storage/quotas#objects).

Credentials, endpoint and bucket checks are the official client's. The upload itself is one request of
`uploadType=media` through libcurl, of which one thread has many on their way at once: a small part of the
official client's CPU. docs/decisions/021-gcs-upload.md has the figures. The server checks the CRC32C that is sent
along, and the one that it answers with is compared again.
"""

from __future__ import annotations

import base64
import heapq
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from urllib.parse import quote

import google_crc32c
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import Request
from google.cloud import storage  # type: ignore[attr-defined]

from tasks.errors import PermanentSinkError
from tasks.settings import Settings
from tasks.sinks.google.errors import advice, sort, sort_answer
from tasks.sinks.http.transfers import Answer, Transfers
from tasks.sinks.outcome import Kind, Outcome, Trouble, remaining_seconds
from tasks.sinks.per_process import PerProcess
from tasks.units import MiB
from tasks.wire import Blob

CONTENT_TYPE = "application/octet-stream"
CHECKSUM_CHUNK_BYTES = 1 * MiB
TRIES_MAX = 4
BACKOFF_SECONDS = 0.1
# A 429 about "object mutation" is about one name; any other is about load, and says when if it wants to.
SAME_NAME_SECONDS = 1.0
# With nothing but waiting uploads left, a write ends rather than hold its process: the task is put off instead.
IDLE_SECONDS_MAX = 2.0

# A few unlucky uploads are worth another try within the call. When more than a quarter of a write fails, the
# service is sick, and trying at once only multiplies the load: then the task's backoff and the breaker act.
RETRY_SHARE_MAX = 0.25
RETRIES_MIN = 2


class _Uploader:
    """What one process needs: the official client, and connections for each thread that writes (mostly one)."""

    def __init__(self, settings: Settings) -> None:
        self.client = client(settings)
        self._fetch_token = Request()
        self._connections = settings.gcs_connections
        bucket = quote(settings.gcs_bucket, safe="")
        # `fields` keeps the answer at a hundred bytes instead of a thousand.
        self._url = (
            f"{self.client._connection.API_BASE_URL}/upload/storage/v1/b/{bucket}/o"
            "?uploadType=media&fields=crc32c&name="
        )
        self._local = threading.local()
        self._made: list[Transfers] = []

    @property
    def transfers(self) -> Transfers:
        """This thread's."""
        found: Transfers | None = getattr(self._local, "transfers", None)
        if found is None:
            found = self._local.transfers = Transfers(self._connections)
            self._made.append(found)
        return found

    def headers(self) -> list[str]:
        """For the uploads of one write, with the authorisation; fetches a token when the old one is ending."""
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": "replays-ingest", "Expect": ""}
        url = self.client._connection.API_BASE_URL
        self.client._credentials.before_request(self._fetch_token, "POST", url, headers)
        return [f"{name}: {value}" if value else f"{name}:" for name, value in headers.items()]

    def start(self, item: Blob, checksum: str, headers: list[str], seconds_max: float) -> None:
        """Sends one object on its way."""
        url = self._url + quote(item.name, safe="")
        if is_packed(item.name):
            url += "&ifGenerationMatch=0"
        sent = [*headers, f"X-Goog-Hash: crc32c={checksum}"]
        self.transfers.start(item.name, url, sent, item.content, seconds_max)

    def close(self) -> None:
        for transfers in self._made:
            transfers.close()
        self.client.close()


def trouble_of(name: str, checksum: str, answer: Answer) -> Trouble | None:
    """What is wrong with this answer to an upload. None: the object is durable and its checksum is ours."""
    packed = is_packed(name)
    if answer.status == 200:
        stored = _stored_checksum(answer.body)
        if stored in (None, checksum):
            return None
        return Trouble(Kind.TRANSIENT, f"stored with checksum {stored} instead of {checksum}: {name}")
    if packed and answer.status == 412:
        return None
    trouble = sort_answer(answer.status, answer.body, answer.retry_after_seconds)
    if answer.status == 400 and "crc32c" in trouble.message.lower():
        return Trouble(Kind.TRANSIENT, f"damaged on the way: {trouble.message}")
    if packed and trouble.kind is Kind.DATA:
        return Trouble(Kind.CONFIGURATION, f"packed object {name}: {trouble.message}")
    return trouble


class GcsSink:
    """Writes BlobItems. Memory: the items, and of each that is on its way at most 1 MiB again."""

    name = "gcs"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uploader = PerProcess(lambda: _Uploader(settings))

    def write(self, items: Sequence[Blob], token: str, deadline_seconds: float) -> None:
        """Uploads `items`, `gcs_connections` at once; `token` is not needed, names are the identity.

        TransientSinkError.failed lists exactly the positions that are not durable.
        """
        ends_at = time.monotonic() + deadline_seconds
        outcome = Outcome(self.name)
        positions: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            positions.setdefault(item.name, []).append(position)
        try:
            uploader = self._uploader.get()
            headers = uploader.headers()
        except Exception as error:
            raise sort(error).error() from error
        uploads = _Uploads(
            uploader, headers, {name: items[where[-1]] for name, where in positions.items()}, ends_at
        )
        for name, trouble in uploads.run().items():
            outcome.note(trouble, positions[name])
        outcome.raise_if_any()

    def check(self) -> str:
        """Sees the bucket, and asks for the right to create and to overwrite (which needs delete)."""
        settings = self._settings
        try:
            bucket = self._uploader.get().client.get_bucket(
                settings.gcs_bucket, timeout=settings.sink_timeout_seconds, retry=None
            )
            needed = ["storage.objects.create", "storage.objects.delete"]
            granted = needed
            if not settings.gcs_endpoint:  # emulators know no permissions
                granted = bucket.test_iam_permissions(needed, timeout=settings.sink_timeout_seconds)
        except Exception as error:
            trouble = sort(error)
            todo = advice(error, "make it with `replays-ingest migrate`", "grant storage.buckets.get")
            raise Trouble(
                trouble.kind, f"bucket {settings.gcs_bucket}: {trouble.message}{todo}"
            ).error() from error
        missing = sorted(set(needed) - set(granted))
        if missing:
            raise PermanentSinkError(
                f"bucket {settings.gcs_bucket}: the account lacks {', '.join(missing)}; "
                "grant roles/storage.objectUser",
                configuration=True,
            )
        versions = ", keeps old versions of overwritten objects" if bucket.versioning_enabled else ""
        return f"bucket gs://{settings.gcs_bucket} in {bucket.location or 'an emulator'}{versions}"

    def close(self) -> None:
        uploader = self._uploader.take()
        if uploader is not None:
            uploader.close()


def client(settings: Settings) -> storage.Client:
    """The official client for these settings; opens no connection. Also for migrations and readers."""
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


def is_packed(name: str) -> bool:
    """Whether an object holds many recordings. Elsewhere the second part of a name is a project's number."""
    return name.split("/", 2)[1:2] == ["packed"]


def crc32c(content: bytes | memoryview) -> str:
    """CRC32C as Cloud Storage writes it: base64 of four bytes, most significant first."""
    if isinstance(content, bytes):
        value = google_crc32c.value(content)
    else:  # the C code takes bytes only: copied piece by piece, so that 15 MB do not become 30
        value = 0
        for start in range(0, content.nbytes, CHECKSUM_CHUNK_BYTES):
            value = google_crc32c.extend(value, bytes(content[start : start + CHECKSUM_CHUNK_BYTES]))
    return base64.b64encode(value.to_bytes(4, "big")).decode()


class _Uploads:
    """The uploads of one write. What failed waits here for its next try, so the others go on meanwhile."""

    def __init__(self, uploader: _Uploader, headers: list[str], items: dict[str, Blob], ends_at: float) -> None:
        self._uploader = uploader
        self._transfers = uploader.transfers
        self._headers = headers
        self._items = items
        self._ends_at = ends_at
        self._retries_left = max(RETRIES_MIN, int(len(items) * RETRY_SHARE_MAX))
        self._ready = deque(items)
        self._waiting: list[tuple[float, str]] = []
        self._checksums: dict[str, str] = {}
        self._tries: Counter[str] = Counter()
        self._troubles: dict[str, Trouble] = {}
        self._idle_until = 0.0

    def run(self) -> dict[str, Trouble]:
        """What befell those that are not durable, by name. Returns soon after the deadline at the latest."""
        try:
            while self._ready or self._waiting or self._transfers.running:
                now = time.monotonic()
                if now >= self._ends_at or not self._worth_going_on(now):
                    break
                while self._waiting and self._waiting[0][0] <= now:
                    self._ready.append(heapq.heappop(self._waiting)[1])
                while self._ready and self._transfers.room:
                    self._start(self._ready.popleft())
                next_at = min(self._ends_at, self._waiting[0][0] if self._waiting else self._ends_at)
                for name, end in self._transfers.wait(max(0.0, next_at - now)):
                    self._ended(str(name), end)
            for name in (*self._ready, *map(str, self._transfers.running)):
                self._troubles.setdefault(name, Trouble(Kind.TRANSIENT, "not stored within the deadline"))
        finally:
            self._transfers.abandon()
        return self._troubles

    def _worth_going_on(self, now: float) -> bool:
        """Not to wait for the next try with nothing else to do for long: that keeps a process from other tasks."""
        if self._ready or self._transfers.running:
            return True
        self._idle_until = self._idle_until or now + IDLE_SECONDS_MAX
        return self._waiting[0][0] <= self._idle_until

    def _start(self, name: str) -> None:
        item = self._items[name]
        if name not in self._checksums:
            self._checksums[name] = crc32c(item.content)
        self._tries[name] += 1
        self._uploader.start(item, self._checksums[name], self._headers, remaining_seconds(self._ends_at))

    def _ended(self, name: str, end: Answer | Trouble) -> None:
        trouble = end if isinstance(end, Trouble) else trouble_of(name, self._checksums[name], end)
        self._troubles.pop(name, None)
        if trouble is None:
            return
        self._troubles[name] = trouble
        if trouble.kind is Kind.CONFIGURATION:  # the bucket is gone for the others too
            self._retries_left = 0
            self._drop(Trouble(Kind.TRANSIENT, "not tried, the write is over"))
        if trouble.kind is not Kind.TRANSIENT or self._tries[name] == TRIES_MAX:
            return
        again_at = time.monotonic() + pause_seconds(trouble, self._tries[name])
        if again_at < self._ends_at and self._retries_left > 0:
            self._retries_left -= 1
            heapq.heappush(self._waiting, (again_at, name))

    def _drop(self, trouble: Trouble) -> None:
        """Starts nothing more; what is on its way may still end well."""
        for name in self._ready:
            self._troubles.setdefault(name, trouble)
        self._ready.clear()
        self._waiting.clear()


def pause_seconds(trouble: Trouble, tries: int) -> float:
    """How long an upload waits after so many tries: jitter below a doubling ceiling, above what was asked for."""
    ceiling_seconds = BACKOFF_SECONDS * 2.0 ** (tries - 1)
    asked_seconds = trouble.retry_after_seconds or 0.0
    if "object mutation" in trouble.message:
        asked_seconds = max(asked_seconds, SAME_NAME_SECONDS)
    return asked_seconds + random.uniform(0, ceiling_seconds)


def _stored_checksum(answer: bytes) -> str | None:
    """The checksum in the answer to an upload, None when there is none (some emulators)."""
    try:
        stored = json.loads(answer).get("crc32c")
    except (ValueError, AttributeError):
        return None
    return str(stored) if stored else None
