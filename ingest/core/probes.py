"""Decides which parked batch is retried before its backoff ends, to find out whether its sinks work again.

While sinks are unavailable, the backoff of parked batches grows, and no success ends it. Therefore one batch per
stage is started again every `parked_probe_seconds`. Its success makes the others due (`Flight.observe_success`).
"""

from __future__ import annotations

from collections.abc import Iterable

from ingest.core.flight import Flight, Phase
from ingest.core.limits import Limits
from ingest.core.model import Stage


class Probes:
    """The probes of one reader. Times are monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._retried_at: dict[Stage, float] = {}

    def observe_start(self, flight: Flight, now: float) -> None:
        """Records the start of a chord. The retry of a parked batch counts as a probe, whatever its reason."""
        if flight.failures:
            self._retried_at[flight.stage] = now

    def release(self, flights: Iterable[Flight], now: float) -> None:
        """Makes one parked batch per stage due if no parked batch of that stage was retried recently.

        The batch that has been parked for the longest time is chosen, but never a batch that failed although other
        batches were written to the same sinks (`own_cause`). Each batch stays parked for at least the initial
        backoff.
        """
        limits = self._limits
        chosen: dict[Stage, Flight] = {}
        for flight in flights:
            if flight.phase is not Phase.PARKED or flight.own_cause:
                continue
            if now - flight.since < limits.retry_backoff_seconds:
                continue
            if (
                now - self._retried_at.get(flight.stage, -limits.parked_probe_seconds)
                < limits.parked_probe_seconds
            ):
                continue
            if flight.stage not in chosen or flight.since < chosen[flight.stage].since:
                chosen[flight.stage] = flight
        for flight in chosen.values():
            flight.until = min(flight.until, now)
