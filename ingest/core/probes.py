"""Decides which parked batch is retried before its backoff ends, to find out whether its sinks work again.

While sinks are unavailable, the backoff of parked batches grows, and no other batch succeeds, so nothing ends the
backoff early. Therefore one parked batch per stage is retried every `parked_probe_seconds`. If the retry succeeds,
the other parked batches become due (`Flight.observe_success`).
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
        """Records the start of a chord. Every retry of a parked batch counts as a probe, even if `release` did not
        cause the retry."""
        if flight.failures:
            self._retried_at[flight.stage] = now

    def release(self, flights: Iterable[Flight], now: float) -> None:
        """For each stage in which no parked batch was retried recently, makes one parked batch due.

        The batch that has been parked for the longest time is chosen, but never a batch that failed while other
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
