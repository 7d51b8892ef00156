"""The part of a run that is measured: from the commit of `warm` segments until `tail` segments are left to commit.

A reader works ahead of its commits. If the measurement ended with the last commit, it would count segments whose
work was done before it started, and its time would include the wait for the last batch to be cut. If the tail is
larger than the in-flight limit, about as much is in flight when the measurement starts as when it ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Mark:
    """One observation: seconds of a monotonic clock, committed segments, CPU seconds by role."""

    at: float
    done: int
    cpu: Mapping[str, float]


@dataclass(slots=True)
class Window:
    """Keeps the first and the last observation of the measured part of a run, and a series between them.

    `requests`: number of requests so far, by sink, at the start and at the end of the measurement.
    """

    warm: int
    stop: int
    began: Mark | None = None
    ended: Mark | None = None
    series: list[dict[str, float]] = field(default_factory=list)
    requests: list[dict[str, int]] = field(default_factory=list)
    _last: Mark | None = None

    def is_edge(self, done: int) -> bool:
        """Returns True if an observation with this number of committed segments starts or ends the measurement."""
        if self.began is None:
            return done >= self.warm
        return self.ended is None and done >= self.stop

    def add(self, mark: Mark) -> None:
        """Records an observation. The first one starts the measurement, and the first one with at least `stop`
        committed segments ends the measurement.
        """
        if self.began is None:
            self.began = mark
        elif mark.done >= self.stop and self.ended is None:
            self.ended = mark
        self._last = mark

    def close(self) -> None:
        """Ends the measurement with the last observation, if all segments were committed at once."""
        self.ended = self.ended or self._last

    def extend(self, figures: Mapping[str, float]) -> None:
        """Adds a sample to the series: the difference between the last observation and the first one, and
        `figures`.
        """
        assert self.began is not None
        assert self._last is not None
        seconds, segments = self._last.at - self.began.at, self._last.done - self.began.done
        cpu = sum(self._last.cpu.values()) - sum(self.began.cpu.values())
        self.series.append({"seconds": seconds, "segments": segments, "cpu": cpu, **figures})

    @property
    def is_open(self) -> bool:
        """True while the measurement runs."""
        return self.began is not None and self.ended is None

    @property
    def requests_measured(self) -> dict[str, int]:
        """Number of requests during the measurement, by sink; empty if they were not counted."""
        if len(self.requests) < 2:
            return {}
        first, last = self.requests[0], self.requests[-1]
        return {sink: count - first.get(sink, 0) for sink, count in last.items()}

    @property
    def segments(self) -> int:
        """Segments committed during the measurement, at least 1."""
        assert self.began is not None
        assert self.ended is not None
        return max(1, self.ended.done - self.began.done)

    @property
    def seconds(self) -> float:
        """Duration of the measurement, at least a millisecond."""
        assert self.began is not None
        assert self.ended is not None
        return max(1e-3, self.ended.at - self.began.at)

    @property
    def cpu_seconds(self) -> dict[str, float]:
        """CPU time during the measurement, by role."""
        assert self.began is not None
        assert self.ended is not None
        return {role: self.ended.cpu[role] - seconds for role, seconds in self.began.cpu.items()}
