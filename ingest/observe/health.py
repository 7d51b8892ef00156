"""What the reader answers to /livez, /readyz and /metrics.

Live: the loop turns. Not live means: restart me, nothing else helps. A dead broker or Redis is no reason.
Ready: I do my work: partitions are assigned, Redis answers, nothing made me halt, I am not shutting down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from ingest.observe.metrics import Metrics
from ingest.settings import Settings
from tasks.observe.probe_server import Probes

HTTP_SETTING = "REPLAYS_HTTP"


@dataclass
class Health:
    """Judges the reader by its last snapshot, which the loop takes every second.

    `turned_seconds()` is how long ago the loop went round, `dependencies()` what is wrong with what it needs
    (name -> "" or what is wrong).
    """

    settings: Settings
    metrics: Metrics
    turned_seconds: Callable[[], float]
    dependencies: Callable[[], dict[str, str]] = dict

    def live(self) -> dict[str, str]:
        """Whether the process is worth keeping."""
        silent_seconds = self.turned_seconds()
        stuck = silent_seconds >= self.settings.loop_silent_seconds_max
        return {"loop": f"has not turned for {silent_seconds:.0f} s" if stuck else ""}

    def ready(self) -> dict[str, str]:
        """Whether it does its work."""
        snapshot = self.metrics.snapshot
        return {
            **self.live(),
            "assignment": "" if snapshot.partitions else "no partition is assigned",
            "halted": snapshot.halted or "",
            "stopping": "is shutting down" if snapshot.stopping else "",
            **self.dependencies(),
        }

    def registry(self) -> CollectorRegistry:
        """The metrics, with the one gauge that only the time of the scrape can tell."""
        self.metrics.meters.set("replays.reader.loop_turned_seconds", self.turned_seconds())
        return self.metrics.registry


def turned_seconds(turned_at: Callable[[], float]) -> Callable[[], float]:
    """How long ago a loop went round, given when it last did (monotonic seconds)."""
    return lambda: max(0.0, time.monotonic() - turned_at())


def serve(health: Health) -> Probes:
    """Starts the HTTP server of the settings. `.port` is where it listens, `.close()` ends it."""
    settings = health.settings
    return Probes(
        settings.http_host, settings.http_port, health.live, health.ready, health.registry, setting=HTTP_SETTING
    )
