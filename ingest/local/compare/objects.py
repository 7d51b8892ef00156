"""Downloads and hashes every object of the bucket, or, in the `packed` layout, every recording in the packed
objects."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import threading
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit

from ingest.local.compare.report import ReconcileError
from ingest.local.load.expectation import Object
from ingest.settings import Settings
from tasks.sinks.clickhouse.sink import client as clickhouse_client
from tasks.sinks.gcs.sink import client as storage_client
from tasks.sinks.gcs.sink import is_packed

DOWNLOADS_AT_ONCE = 8
CALL_SECONDS_MAX = 30.0
LIST_PAGE_SIZE = 1000


def read_objects(settings: Settings, expected: Mapping[str, Object]) -> dict[str, Object]:
    """Reads every object in the bucket. Objects in `expected` are downloaded and hashed, inflated first unless
    they must match exactly."""
    storage = _Storage(settings)
    names = list(storage.names())
    packed = [name for name in names if is_packed(name)]
    within = _read_packed(storage, settings, packed) if packed else {}
    names = [name for name in names if not is_packed(name)] + list(within)

    def hashed(name: str) -> tuple[str, Object]:
        wanted = expected.get(name)
        if wanted is None:
            return name, Object("", True)
        content = within[name] if name in within else storage.content(name)
        if not wanted.exact:
            try:
                content = zlib.decompress(content)
            except zlib.error as error:
                return name, Object(f"not a zlib stream: {error}", False)
        return name, Object(hashlib.sha256(content).hexdigest(), wanted.exact)

    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="reconcile") as pool:
        return dict(pool.map(hashed, names, chunksize=16))


def _read_packed(storage: _Storage, settings: Settings, packed: list[str]) -> dict[str, bytes]:
    """Returns the recordings that the index lists in these objects, by their name in the `segment` layout.

    An object without an index row is ignored, because it was created by redelivery under another release.
    """
    with contextlib.closing(clickhouse_client(settings)) as server:
        rows = server.query("SELECT name, object, start_bytes, length_bytes FROM replay_objects FINAL").result_rows
    with ThreadPoolExecutor(DOWNLOADS_AT_ONCE, thread_name_prefix="reconcile") as pool:
        contents = dict(zip(packed, pool.map(storage.content, packed), strict=True))
    return {
        name: contents[place][start : start + length] for name, place, start, length in rows if place in contents
    }


class _Storage:
    """Reads a bucket with the JSON API over one persistent connection per thread."""

    def __init__(self, settings: Settings) -> None:
        self._base = urlsplit(settings.gcs_endpoint or "https://storage.googleapis.com")
        self._bucket = quote(settings.gcs_bucket, safe="")
        self._local = threading.local()
        self._headers = {} if settings.gcs_endpoint else _google_headers(settings)

    def names(self) -> Iterator[str]:
        """Returns the names of all objects in the bucket."""
        token = ""
        while True:
            fields = "&fields=items(name),nextPageToken"
            page = json.loads(
                self._get(
                    f"/storage/v1/b/{self._bucket}/o?maxResults={LIST_PAGE_SIZE}&pageToken={quote(token)}{fields}"
                )
            )
            for item in page.get("items") or ():
                yield item["name"]
            token = page.get("nextPageToken") or ""
            if not token:
                return

    def content(self, name: str) -> bytes:
        """Returns the stored bytes of an object."""
        return self._get(f"/storage/v1/b/{self._bucket}/o/{quote(name, safe='')}?alt=media")

    def _get(self, path: str) -> bytes:
        for attempt in (1, 2, 3):
            connection = self._connection()
            try:
                connection.request("GET", path, headers=self._headers)
                response = connection.getresponse()
                body = response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if attempt == 3:
                    raise ReconcileError(f"Cloud Storage at {self._base.geturl()}: {error}") from error
                continue
            if response.status == 200:
                return body
            raise ReconcileError(f"Cloud Storage: {response.status} for {path}: {body[:200]!r}")
        raise AssertionError("unreachable")

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            kind = http.client.HTTPSConnection if self._base.scheme == "https" else http.client.HTTPConnection
            connection = kind(self._base.hostname or "", self._base.port, timeout=CALL_SECONDS_MAX)
            self._local.connection = connection
        return connection


def _google_headers(settings: Settings) -> dict[str, str]:
    from google.auth.transport.requests import Request

    headers: dict[str, str] = {}
    storage_client(settings)._credentials.before_request(
        Request(), "GET", "https://storage.googleapis.com", headers
    )
    return headers
