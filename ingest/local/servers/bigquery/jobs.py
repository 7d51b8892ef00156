"""The latest queries and their results, kept for pages that a client requests later."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingest.local.servers.bigquery.errors import ApiError
from ingest.local.servers.bigquery.store import Result

JOBS_KEPT_MAX = 100
JOB_ROWS_KEPT_MAX = 1_000_000


@dataclass(frozen=True, slots=True)
class Job:
    """A completed query, with its result or its error."""

    id: str
    project: str
    configuration: Mapping[str, Any]
    started_milliseconds: int
    ended_milliseconds: int
    result: Result | None
    error: ApiError | None


class Jobs:
    """The latest queries. The oldest results are dropped when the bound is exceeded."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[tuple[str, str], Job] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        """Keeps a job so that clients can request further pages of its result."""
        with self._lock:
            self._jobs[job.project, job.id] = job
            while len(self._jobs) > 1 and (len(self._jobs) > JOBS_KEPT_MAX or self._rows() > JOB_ROWS_KEPT_MAX):
                self._jobs.popitem(last=False)

    def get(self, project: str, job_id: str) -> Job | None:
        """Returns the job, or None if it never existed or was dropped."""
        with self._lock:
            return self._jobs.get((project, job_id))

    def _rows(self) -> int:
        return sum(len(job.result.rows) for job in self._jobs.values() if job.result is not None)
