"""Recordings as objects in Cloud Storage: one a segment, or packed ones that hold many.

A packed object (`<retention days>/packed/...`) has a digest of its bytes in its name and is created only where
none is: the answer that there is one (412) is success. One that is refused parks its batch instead of becoming
one dead letter, since the letter could not say which recordings are in it.

Writing an item again overwrites the object of the same name with the same bytes, so repetition leaves one copy
(the bucket must not keep old versions, or it keeps those too). When names repeat within one write, the last
one wins, as if they had been written one after another, and the earlier ones are not sent at all: Cloud
Storage takes about one write a second to one name (https://cloud.google.com/storage/quotas#objects).

Credentials, endpoint and bucket checks are the official client's. The upload itself is one request of
`uploadType=media` on a connection that each uploading thread keeps, a quarter of the official client's CPU:
docs/decisions/004-gcs-upload.md has the figures. The server checks the CRC32C that is sent along, and the one that
it answers with is compared again.
"""

from __future__ import annotations

import base64
import heapq
import http.client
import json
import queue
import random
import ssl
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from urllib.parse import quote, urlsplit

import google_crc32c
from google.auth.credentials import AnonymousCredentials
from google.auth.transport.requests import Request
from google.cloud import storage  # type: ignore[attr-defined]

from tasks.errors import PermanentSinkError
from tasks.settings import KiB, MiB, Settings
from tasks.sinks.google_errors import advice, sort, sort_answer
from tasks.sinks.outcome import Kind, Outcome, Trouble, remaining_seconds
from tasks.sinks.per_process import PerProcess
from tasks.wire import BlobItem

CONTENT_TYPE = "application/octet-stream"
ANSWER_BYTES_MAX = 64 * KiB
CHECKSUM_CHUNK_BYTES = 1 * MiB
CONNECT_SECONDS_MAX = 10.0
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
    """What one process needs: the official client, threads, and a connection for each of them."""

    def __init__(self, settings: Settings) -> None:
        self.client = client(settings)
        self._fetch_token = Request()
        base = urlsplit(self.client._connection.API_BASE_URL)
        self._secure = base.scheme == "https"
        self._host = base.hostname or ""
        self._port = base.port
        self._tls = ssl.create_default_context() if self._secure else None
        self._proxy = _proxy_of(base.scheme, self._host)
        bucket = quote(settings.gcs_bucket, safe="")
        # `fields` keeps the answer at a hundred bytes instead of a thousand.
        self._path = f"{base.path}/upload/storage/v1/b/{bucket}/o?uploadType=media&fields=crc32c&name="
        self._local = threading.local()
        self._connections: list[http.client.HTTPConnection] = []
        self.pool = ThreadPoolExecutor(settings.gcs_threads, thread_name_prefix="gcs")

    def headers(self) -> dict[str, str]:
        """The authorisation for the uploads of one write; fetches a token when the old one is about to end."""
        headers = {"Content-Type": CONTENT_TYPE, "User-Agent": "replays-ingest"}
        url = self.client._connection.API_BASE_URL
        self.client._credentials.before_request(self._fetch_token, "POST", url, headers)
        return headers

    def put(self, item: BlobItem, headers: dict[str, str], ends_at: float) -> Trouble | None:
        """One request. None: the object is durable and its checksum is ours."""
        checksum = crc32c(item.content)
        body, path = memoryview(item.content), self._path + quote(item.name, safe="")
        packed = is_packed(item.name)
        if packed:
            path += "&ifGenerationMatch=0"
        sent = {**headers, "Content-Length": str(body.nbytes), "X-Goog-Hash": f"crc32c={checksum}"}
        connection, kept = self._connection()
        try:
            status, answer, retry_after = _exchange(connection, path, body, sent, ends_at)
        except ConnectionError:
            if not kept:
                raise
            # The server may close a connection that we kept: that says nothing about this upload.
            status, answer, retry_after = _exchange(connection, path, body, sent, ends_at)
        if status == 200:
            stored = _stored_checksum(answer)
            if stored in (None, checksum):
                return None
            return Trouble(Kind.TRANSIENT, f"stored with checksum {stored} instead of {checksum}: {item.name}")
        if packed and status == 412:
            return None
        trouble = sort_answer(status, answer, retry_after)
        if status == 400 and "crc32c" in trouble.message.lower():
            return Trouble(Kind.TRANSIENT, f"damaged on the way: {trouble.message}")
        if packed and trouble.kind is Kind.DATA:
            return Trouble(Kind.CONFIGURATION, f"packed object {item.name}: {trouble.message}")
        return trouble

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        """This thread's connection, and whether it is open since an earlier upload."""
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            host, port = self._proxy or (self._host, self._port)
            connection = (
                http.client.HTTPSConnection(host, port, context=self._tls)
                if self._secure
                else http.client.HTTPConnection(host, port)
            )
            if self._proxy:
                connection.set_tunnel(self._host, self._port)
            self._local.connection = connection
            self._connections.append(connection)
        return connection, connection.sock is not None

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        for connection in self._connections:
            connection.close()
        self.client.close()


class GcsSink:
    """Writes BlobItems. Memory: the items themselves, and 1 MiB a thread for checksums; nothing is copied."""

    name = "gcs"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uploader = PerProcess(lambda: _Uploader(settings))

    def write(self, items: Sequence[BlobItem], token: str, deadline_seconds: float) -> None:
        """Uploads `items` in `gcs_threads` threads; `token` is not needed, names are the identity.

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
    """The uploads of one write. One thread schedules; those of the pool make one request at a time.

    What failed waits here for its next try, not in a thread of the pool, so the others go on meanwhile.
    """

    def __init__(
        self, uploader: _Uploader, headers: dict[str, str], items: dict[str, BlobItem], ends_at: float
    ) -> None:
        self._uploader = uploader
        self._headers = headers
        self._items = items
        self._ends_at = ends_at
        self._retries_left = max(RETRIES_MIN, int(len(items) * RETRY_SHARE_MAX))
        self._stop = threading.Event()
        self._answers: queue.SimpleQueue[tuple[str, Trouble | None]] = queue.SimpleQueue()
        self._futures: dict[str, Future[None]] = {}
        self._tries: Counter[str] = Counter()
        self._waiting: list[tuple[float, str]] = []
        self._troubles: dict[str, Trouble] = {}
        self._idle_until = 0.0

    def run(self) -> dict[str, Trouble]:
        """What befell those that are not durable, by name. Returns soon after the deadline at the latest."""
        for name in self._items:
            self._submit(name)
        while self._futures or self._waiting:
            now = time.monotonic()
            if now >= self._ends_at or (not self._futures and not self._may_idle(now)):
                break
            while self._waiting and self._waiting[0][0] <= now:
                self._submit(heapq.heappop(self._waiting)[1])
            next_at = min(self._ends_at, self._waiting[0][0] if self._waiting else self._ends_at)
            try:
                self._answered(*self._answers.get(timeout=max(0.0, next_at - now)))
            except queue.Empty:
                continue
        self._stop.set()
        for name, future in self._futures.items():
            future.cancel()
            self._troubles[name] = Trouble(Kind.TRANSIENT, "not stored within the deadline")
        return self._troubles

    def _may_idle(self, now: float) -> bool:
        """Whether to wait for the next try with nothing else to do: that keeps a process from other tasks."""
        self._idle_until = self._idle_until or now + IDLE_SECONDS_MAX
        return self._waiting[0][0] <= self._idle_until

    def _submit(self, name: str) -> None:
        self._tries[name] += 1
        self._futures[name] = self._uploader.pool.submit(self._put, name)

    def _put(self, name: str) -> None:
        """One request. Runs in a thread of the pool; never raises."""
        if self._stop.is_set() or remaining_seconds(self._ends_at) <= 0:
            self._answers.put((name, Trouble(Kind.TRANSIENT, "not tried, the write is over")))
            return
        try:
            trouble = self._uploader.put(self._items[name], self._headers, self._ends_at)
        except Exception as error:
            trouble = sort(error)
        self._answers.put((name, trouble))

    def _answered(self, name: str, trouble: Trouble | None) -> None:
        del self._futures[name]
        self._troubles.pop(name, None)
        if trouble is None:
            return
        self._troubles[name] = trouble
        if trouble.kind is Kind.CONFIGURATION:
            self._stop.set()  # the bucket is gone for the others too
            self._waiting.clear()
        if trouble.kind is not Kind.TRANSIENT or self._stop.is_set() or self._tries[name] == TRIES_MAX:
            return
        again_at = time.monotonic() + pause_seconds(trouble, self._tries[name])
        if again_at < self._ends_at and self._retries_left > 0:
            self._retries_left -= 1
            heapq.heappush(self._waiting, (again_at, name))


def pause_seconds(trouble: Trouble, tries: int) -> float:
    """How long an upload waits after so many tries: jitter below a doubling ceiling, above what was asked for."""
    ceiling_seconds = BACKOFF_SECONDS * 2.0 ** (tries - 1)
    asked_seconds = trouble.retry_after_seconds or 0.0
    if "object mutation" in trouble.message:
        asked_seconds = max(asked_seconds, SAME_NAME_SECONDS)
    return asked_seconds + random.uniform(0, ceiling_seconds)


def _exchange(
    connection: http.client.HTTPConnection,
    path: str,
    body: memoryview,
    headers: dict[str, str],
    ends_at: float,
) -> tuple[int, bytes, str | None]:
    """One POST on this connection: status, at most 64 KiB of the answer, Retry-After. Closes it on any doubt."""
    left_seconds = remaining_seconds(ends_at)
    if left_seconds <= 0:
        raise TimeoutError("no time left for the upload")
    try:
        if connection.sock is None:
            connection.timeout = min(left_seconds, CONNECT_SECONDS_MAX)
            connection.connect()
        assert connection.sock is not None
        connection.sock.settimeout(left_seconds)
        connection.request("POST", path, body=body, headers=headers)
        response = connection.getresponse()
        answer = response.read(ANSWER_BYTES_MAX)
        if not response.isclosed() and response.read(1):
            connection.close()  # an endless page of a proxy: not worth keeping the connection for
        return response.status, answer, response.headers.get("Retry-After")
    except BaseException:
        connection.close()
        raise


def _stored_checksum(answer: bytes) -> str | None:
    """The checksum in the answer to an upload, None when there is none (some emulators)."""
    try:
        stored = json.loads(answer).get("crc32c")
    except (ValueError, AttributeError):
        return None
    return str(stored) if stored else None


def _proxy_of(scheme: str, host: str) -> tuple[str, int | None] | None:
    """The proxy that the environment names for https, as all other HTTP clients here obey it."""
    if scheme != "https" or urllib.request.proxy_bypass(host):
        return None
    url = urllib.request.getproxies().get("https", "")
    parts = urlsplit(url if "//" in url else f"//{url}")
    return (parts.hostname, parts.port) if parts.hostname else None
