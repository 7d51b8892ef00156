"""Collects a history of committed offsets, from the logs of readers and from the broker.

Readers log commits and reads at level `debug`: `commit_sent`, `commit_answered`, `offsets_read`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from ingest.local.compare.offsets import CommittedOffsets
from ingest.local.compare.report import ReconcileError
from ingest.settings import Settings
from tasks.observe.logs import clean
from tools.history.check import Assignment, Commit, History, Read
from tools.history.owners import OwnedPeriod

NOT_STORED = (
    "ILLEGAL_GENERATION",
    "UNKNOWN_MEMBER_ID",
    "FENCED_INSTANCE_ID",
    "FENCED_MEMBER_EPOCH",
    "STALE_MEMBER_EPOCH",
    "REBALANCE_IN_PROGRESS",
    "OFFSET_METADATA_TOO_LARGE",
)
"""Errors that mean that the broker did not store a commit. After any other error, the commit may have been
stored."""


class LoggedOperations:
    """Operations in the log of one reader, across all of its processes."""

    def __init__(self, name: str) -> None:
        self.commits: list[Commit] = []
        self.reads: list[Read] = []
        self.assignments: list[Assignment] = []
        self.owned: list[OwnedPeriod] = []
        self.starts: list[float] = []
        """Unix seconds at which the process started."""
        self._name = name
        self._lives = 0
        self._waiting: dict[tuple[int, int, str], list[float]] = {}
        self._assigned_at: dict[int, float] = {}  # partition -> time of its assignment
        self._last_line_at = 0.0  # time of the last log line

    @classmethod
    def of(cls, name: str, lines: Iterable[Mapping[str, Any]]) -> LoggedOperations:
        """Parses a log. `lines`: the lines of the log, in order."""
        operations = cls(name)
        for line in lines:
            operations._add_line(line)
        operations._add_unfinished_operations()
        return operations

    def add_to(self, history: History) -> None:
        """Adds all operations to a history."""
        history.commits += self.commits
        history.reads += self.reads
        history.assignments += self.assignments

    @property
    def _life(self) -> str:
        return f"{self._name}.{self._lives}"

    def _add_line(self, line: Mapping[str, Any]) -> None:
        at = seconds_of(line.get("timestamp", ""))
        match line.get("event"):
            case "reader_started":
                self._add_unfinished_operations()
                self._lives += 1
                self.starts.append(at)
            case "partitions_assigned":
                self.assignments += [Assignment(self._life, int(number), at) for number in line["partitions"]]
                for number in line["partitions"]:
                    self._assigned_at.setdefault(int(number), at)
            case "partitions_revoked" | "partitions_lost":
                self._release([int(number) for number in line["partitions"]], at)
            case "reader_stopped":
                self._release([*self._assigned_at], at)
            case "offsets_read":
                self._add_reads(line, at)
            case "commit_sent":
                key = line["partition"], line["offset"], line["record"]
                self._waiting.setdefault(key, []).append(at)
            case "commit_answered":
                self._add_commit(line, at)
        self._last_line_at = at or self._last_line_at

    def _release(self, partitions: Iterable[int], at: float) -> None:
        for partition in partitions:
            if partition in self._assigned_at:
                self.owned.append(OwnedPeriod(self._life, partition, self._assigned_at.pop(partition), at))

    def _add_reads(self, line: Mapping[str, Any], at: float) -> None:
        for number, (offset, record) in line["partitions"].items():
            self.reads.append(Read(self._life, int(number), offset, record, at - line["seconds"], at))

    def _add_commit(self, line: Mapping[str, Any], at: float) -> None:
        key = line["partition"], line["offset"], line["record"]
        waiting = self._waiting.get(key)
        if not waiting:
            return
        sent_at, error = waiting.pop(0), line["error"]
        refused = any(code in error for code in NOT_STORED)
        self.commits.append(Commit(self._life, *key, sent_at, None if error and not refused else at, refused))

    def _add_unfinished_operations(self) -> None:
        """Adds what was still open when the process ended: commits without a response, and partitions that the
        process still owned. Their ownership is considered to end at the last log line.
        """
        self._release([*self._assigned_at], self._last_line_at)
        for key, sent in self._waiting.items():
            self.commits += [Commit(self._life, *key, sent_at) for sent_at in sent]
        self._waiting.clear()


def seconds_of(timestamp: str) -> float:
    """Returns the time of a log line in Unix seconds, or 0 if the time cannot be parsed."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0


class PolledOffsets:
    """Reads the group's committed offsets from the broker repeatedly, with one client."""

    def __init__(self, settings: Settings, partitions: int) -> None:
        self.reads: list[Read] = []
        self._committed = CommittedOffsets(settings)
        self._sources = [(settings.kafka_topic, number) for number in range(partitions)]

    def read(self) -> None:
        """Reads once. Failed reads are ignored."""
        sent_at = time.time()
        try:
            found = self._committed.records_of(self._sources)
        except ReconcileError:
            return
        answered_at = time.time()
        for (_, partition), (offset, record) in found.items():
            self.reads.append(Read("broker", partition, offset, clean(record), sent_at, answered_at))

    def close(self) -> None:
        """Closes the client."""
        self._committed.close()
