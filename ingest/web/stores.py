"""Reads from ClickHouse and Cloud Storage. The errors of both clients are raised as ReadError or NotFound."""

from __future__ import annotations

from typing import Any

from clickhouse_connect.driver.exceptions import Error as ClickHouseError
from google.api_core.exceptions import GoogleAPIError
from google.auth.exceptions import GoogleAuthError
from requests.exceptions import RequestException
from urllib3.exceptions import HTTPError, NewConnectionError

from ingest.web.model import NotFound, ReadError
from tasks.settings import Settings
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tasks.sinks.per_process import PerProcessValue
from tasks.stored import StoredLocation, read_stored

QUERY_SECONDS_MAX = 20
OBJECTS_MAX = 5000
ERROR_CHARACTERS_MAX = 400
_GCS_ERRORS = (GoogleAPIError, GoogleAuthError, RequestException, HTTPError, OSError)


class Stores:
    """The connections. Methods block and may be called from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clickhouse = PerProcessValue(lambda: clickhouse.client(settings))
        self._gcs = PerProcessValue(lambda: gcs.client(settings))

    def query(self, sql: str, parameters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Returns the rows of a read-only query. Raises ReadError."""
        try:
            answer = self._clickhouse.get().query(
                sql, parameters=parameters or {}, settings={"max_execution_time": QUERY_SECONDS_MAX, "readonly": 2}
            )
        except (ClickHouseError, HTTPError, OSError) as error:
            where = unreachable(error, self._settings.clickhouse_url, "REPLAYS_CLICKHOUSE_URL")
            text = where or " ".join(str(error).split())[:ERROR_CHARACTERS_MAX]
            raise ReadError(f"clickhouse: {text}") from error
        return [tuple(row) for row in answer.result_rows]

    def objects(self, prefix: str) -> list[Any]:
        """Returns the first OBJECTS_MAX objects with this prefix. Raises ReadError."""
        settings = self._settings
        try:
            return list(
                self._gcs.get().list_blobs(
                    settings.gcs_bucket,
                    prefix=prefix,
                    max_results=OBJECTS_MAX,
                    timeout=settings.sink_timeout_seconds,
                    retry=None,
                )
            )
        except _GCS_ERRORS as error:
            raise self._storage_error(error) from error

    def content(self, place: StoredLocation) -> bytes:
        """Returns the stored bytes of one segment. Raises NotFound or ReadError."""
        settings = self._settings
        try:
            bucket = self._gcs.get().bucket(settings.gcs_bucket)
            content = read_stored(bucket, place, settings.sink_timeout_seconds)
        except _GCS_ERRORS as error:
            raise self._storage_error(error) from error
        if content is None:
            raise NotFound(f"no object {place.object} in {settings.gcs_bucket}")
        return content

    def _storage_error(self, error: BaseException) -> ReadError:
        where = unreachable(error, self._settings.gcs_endpoint or "Google Cloud", "REPLAYS_GCS_ENDPOINT")
        return ReadError(f"cloud storage: {where or error}")

    def close(self) -> None:
        """Closes the connections."""
        for client in (self._clickhouse.take(), self._gcs.take()):
            if client is not None:
                client.close()


def unreachable(error: BaseException, address: str, variable: str) -> str:
    """Returns one line for a failed connection, without the client library's own text; empty for other errors.

    urllib3 hides the operating system's error in a chain of causes.
    """
    seen: list[BaseException] = []
    waiting = [error]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.append(each)
        linked = (each.__cause__, each.__context__, getattr(each, "reason", None), *each.args)
        waiting += [found for found in linked if isinstance(found, BaseException)]
    if not any(isinstance(each, NewConnectionError) for each in seen):
        return ""
    why = next((each.strerror for each in seen if isinstance(each, OSError) and each.strerror), "no connection")
    return f"{address} is unreachable ({why}): start it, or correct {variable}"
