"""Finds recordings that are missing from Cloud Storage or are stored there with different bytes, in either layout.

The index in ClickHouse takes precedence, as in playback (`tasks.stored`): a recording that the index lists is read
from its range in a packed object. All other recordings have their own objects, which are compared by CRC32C.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from google.api_core.exceptions import RequestRangeNotSatisfiable

from ingest.operate.reconcile.problem import Problem, numbers, uuids
from ingest.settings import Settings
from tasks.sinks.clickhouse import errors as clickhouse_errors
from tasks.sinks.clickhouse import sink as clickhouse
from tasks.sinks.gcs import sink as gcs
from tasks.sinks.google import errors as google_errors
from tasks.stored import StoredLocation, read_stored
from tasks.wire import Blob, SinkName, chunks

NAMES_MAX = 1000
THREADS = 32


class Recordings:
    """Queries Cloud Storage with one request per recording, `THREADS` in parallel. A recording's own object is
    downloaded only if its checksum differs. At most `THREADS` recordings are in memory.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._seconds = settings.sink_timeout_seconds
        self._inflated_bytes_max = settings.inflated_bytes_max
        try:
            self._client = gcs.client(settings)
        except Exception as error:  # the constructor looks up credentials
            raise google_errors.classify(error).error() from error
        self._bucket = self._client.bucket(settings.gcs_bucket)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="presence")

    def find_problems(self, items: Sequence[Blob]) -> dict[int, Problem]:
        """Returns the problem of each item that is not stored, by position in `items`. Items with the same name
        count as stored if any of them is stored; otherwise only the last item is reported. Recordings that arrived
        as plain JSON are compressed by the reader, so another release may have stored different bytes that inflate
        to the same JSON. Recordings with the same JSON count as equal. Raises SinkError.
        """
        positions: dict[str, list[int]] = {}
        for position, item in enumerate(items):
            positions.setdefault(item.name, []).append(position)
        places = self._indexed(list(positions))

        def problem_of(name: str) -> Problem | None:
            wanted = [items[position] for position in positions[name]]
            return self._packed(places[name], wanted) if name in places else self._check_own_object(name, wanted)

        try:
            states = dict(zip(positions, self._pool.map(problem_of, positions), strict=True))
        except Exception as error:
            raise google_errors.classify(error).error() from error
        return {positions[name][-1]: state for name, state in states.items() if state}

    def contents(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """Returns the stored bytes of these recordings, or None if the object does not exist. Raises SinkError.

        All recordings are held in memory at the same time, so the caller must bound their number.
        """
        places = self._indexed(names)

        def read(name: str) -> bytes | None:
            try:
                return read_stored(self._bucket, places.get(name) or StoredLocation(0, "", 0, name), self._seconds)
            except RequestRangeNotSatisfiable:
                return None

        try:
            return dict(zip(names, self._pool.map(read, names), strict=True))
        except Exception as error:
            raise google_errors.classify(error).error() from error

    def _indexed(self, names: Sequence[str]) -> dict[str, StoredLocation]:
        """Returns the positions of recordings in packed objects, keyed by the name that each recording would have
        as a separate object.
        """
        if SinkName.CLICKHOUSE not in self._settings.sinks:
            return {}
        found: dict[str, StoredLocation] = {}
        try:
            with contextlib.closing(clickhouse.client(self._settings)) as server:
                for chunk in chunks(names, NAMES_MAX):
                    for name, *place in server.query(_index_query(chunk)).result_rows:
                        found[name] = StoredLocation(*place)
        except Exception as error:
            raise clickhouse_errors.classify(error).error() from error
        return found

    def _packed(self, place: StoredLocation, wanted: list[Blob]) -> Problem | None:
        try:
            stored = read_stored(self._bucket, place, self._seconds)
        except RequestRangeNotSatisfiable:
            return Problem.DIFFERS
        if stored is None:
            return Problem.MISSING
        return None if self._matches_any(wanted, stored) else Problem.DIFFERS

    def _check_own_object(self, name: str, wanted: list[Blob]) -> Problem | None:
        blob = self._bucket.get_blob(name, timeout=self._seconds)
        if blob is None:
            return Problem.MISSING
        if blob.crc32c in {gcs.crc32c(item.content) for item in wanted}:
            return None
        stored = blob.download_as_bytes(timeout=self._seconds, raw_download=True)
        return None if self._matches_any(wanted, stored) else Problem.DIFFERS

    def _matches_any(self, wanted: Iterable[Blob], stored: bytes) -> bool:
        wanted = list(wanted)
        if any(stored == item.content for item in wanted):
            return True
        raw = self._inflated(stored)
        return raw is not None and any(raw == self._inflated(item.content) for item in wanted)

    def _inflated(self, content: bytes | memoryview) -> bytes | None:
        try:
            return zlib.decompressobj().decompress(content, self._inflated_bytes_max)
        except zlib.error:
            return None

    def close(self) -> None:
        self._pool.shutdown()
        self._client.close()


def _index_query(names: Sequence[str]) -> str:
    """Returns the query, which is built only from numbers and UUIDs, so that no other text can get into the
    query."""
    keys = [name.split("/") for name in names]
    return (
        "SELECT name, project_id, toString(replay_id), segment_id, object, start_bytes, length_bytes "
        "FROM replay_objects FINAL "
        f"WHERE project_id IN ({numbers(int(project) for _, project, _, _ in keys)}) "
        f"AND replay_id IN ({uuids(replay for _, _, replay, _ in keys)}) "
        f"AND segment_id IN ({numbers(int(segment) for _, _, _, segment in keys)})"
    )
