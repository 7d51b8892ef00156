"""The systems that can be measured, and the parameters of one run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

REFERENCE = "p1-typed"
PEER_NAMES = {
    "p1-json": "P1, Sentry until mid-2026, full JSON",
    "p1-typed": "P1, Sentry until mid-2026",
    "p2": "P2, Arroyo with Reduce, three sinks",
    "p3": "P3, loop and threads",
    "p4": "P4, sentry-streams",
    "p5": "P5, one Celery task per message",
}
PEERS = tuple(PEER_NAMES)
USES_REDIS = ("ours", "p5")

SMALL_PROFILE = Path(__file__).parents[1] / "deploy" / "small.env"


def variables_of(path: Path) -> dict[str, str]:
    """Returns the variables of a file that consists of NAME=VALUE lines and comments."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


# The REPLAYS_* variables of each profile.
PROFILE_SETTINGS = {"default": dict[str, str](), "small": variables_of(SMALL_PROFILE)}
PROCESSES = "REPLAYS_WORKER_PROCESSES"


@dataclass(frozen=True, slots=True)
class Shape:
    """Parameters of one run.

    `system`: ours or one of PEERS. `layout`: object layout of our system. `profile`: one of PROFILE_SETTINGS.
    `count`: number of segments to take from the workload, which is repeated if necessary. `warm`: number of
    segments that are committed before the measurement starts. `tail`: number of segments that are not yet
    committed when the measurement ends; because of the tail, the reader still has segments in flight at that time,
    as it had at the start. `shards`: number of groups of readers and workers, each with its own Redis; all groups
    share the consumer group.

    `python`: interpreter of our readers and workers, if it is not that of the benchmark.

    `rate`: segments produced per second while the system runs; 0 to produce all of them before it starts.
    `idle_seconds`: instead of the system under load, measure the idle system for this long, after everything is
    committed. `by_uploads`: progress is measured in uploads that the latency server receives, not in committed
    segments. The run then stops at the end of the measurement instead of after `count` segments, because rejected
    messages are never uploaded.
    """

    system: str = "ours"
    layout: str = "segment"
    sinks: str = "gcs,dead_letter"
    profile: str = "default"
    partitions: int = 4
    readers: int = 1
    workers: int = 1
    shards: int = 1
    processes: int = 4
    threads: int = 32
    name: str = ""
    count: int = 4000
    warm: int = 1000
    tail: int = 0
    rate: float = 0.0
    idle_seconds: float = 0.0
    by_uploads: bool = False
    cores: tuple[int, ...] = (0,)
    extra: tuple[tuple[str, str], ...] = ()
    python: str = ""

    @property
    def label(self) -> str:
        """Label in tables: `name`, or a description of the system."""
        if self.name:
            return self.name
        if self.system == "p5":
            return f"{PEER_NAMES[self.system]}, {self.processes} processes"
        if self.system != "ours":
            return f"{PEER_NAMES[self.system]}, {self.threads} threads"
        profile = "" if self.profile == "default" else f", {self.profile} profile"
        return f"ours {self.layout}, {self.sinks.replace(',dead_letter', '')}{profile}"

    @property
    def uses_redis(self) -> bool:
        """True if Redis is part of the measured system."""
        return self.system in USES_REDIS

    def settings(self) -> dict[str, str]:
        """Returns the REPLAYS_* variables for these parameters."""
        found = PROFILE_SETTINGS[self.profile] | {"REPLAYS_SINKS": self.sinks, PROCESSES: str(self.processes)}
        if self.layout != "segment":
            found["REPLAYS_GCS_LAYOUT"] = self.layout
        return found | dict(self.extra)


def with_profile(shape: Shape, profile: str) -> Shape:
    """Returns the shape with a profile's settings and number of worker processes."""
    processes = int(PROFILE_SETTINGS[profile].get(PROCESSES, shape.processes))
    return replace(shape, profile=profile, processes=processes)
