"""Reads the totals of metrics from the DogStatsD listener."""

from __future__ import annotations

from ingest.local.load.expectation import Total
from ingest.local.servers.statsd import query_metrics


def read_metrics(statsd_url: str) -> dict[str, Total]:
    """Returns the totals that the DogStatsD listener received, summed over all tags."""
    totals: dict[str, Total] = {}
    for series in query_metrics(statsd_url, ""):
        old = totals.get(series["name"], Total(0, 0.0))
        totals[series["name"]] = Total(old.count + series["count"], (old.sum or 0.0) + series["sum"])
    return totals
