"""The reader's /livez, /readyz and /metrics.

The reader is live while its loop makes progress; otherwise only a restart helps. An unreachable broker or Redis
does not affect liveness. The reader is ready if partitions are assigned to it, it is neither halted nor
shutting down, and Redis responds.
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
    """Evaluates the reader's last snapshot, which the loop takes every second.

    `seconds_since_iteration()`: time since the loop's last iteration. `dependencies()`: state of each dependency
    (name -> "" or the problem).
    """

    settings: Settings
    metrics: Metrics
    seconds_since_iteration: Callable[[], float]
    dependencies: Callable[[], dict[str, str]] = dict

    def live(self) -> dict[str, str]:
        """Returns each liveness check with the problem that it found, or "" if it passed."""
        silent_seconds = self.seconds_since_iteration()
        stuck = silent_seconds >= self.settings.loop_silent_seconds_max
        return {"loop": f"has not turned for {silent_seconds:.0f} s" if stuck else ""}

    def ready(self) -> dict[str, str]:
        """Returns each readiness check with the problem that it found, or "" if it passed."""
        snapshot = self.metrics.snapshot
        return {
            **self.live(),
            "assignment": "" if snapshot.partitions else "no partition is assigned",
            "halted": snapshot.halted or "",
            "stopping": "is shutting down" if snapshot.stopping else "",
            **self.dependencies(),
        }

    def registry(self) -> CollectorRegistry:
        """Returns the metrics, including the gauge that is computed at scrape time."""
        self.metrics.meters.set("replays.reader.loop_turned_seconds", self.seconds_since_iteration())
        return self.metrics.registry


def seconds_since_iteration(last_iteration_at: Callable[[], float]) -> Callable[[], float]:
    """Returns a function that returns the seconds since a loop's last iteration. `last_iteration_at`: the time of
    that iteration, in monotonic seconds."""
    return lambda: max(0.0, time.monotonic() - last_iteration_at())


def serve(health: Health) -> Probes:
    """Starts the HTTP server."""
    settings = health.settings
    return Probes(
        settings.http_host, settings.http_port, health.live, health.ready, health.registry, setting=HTTP_SETTING
    )
