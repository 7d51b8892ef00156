"""A simulated world with a long outage, in which tasks wait as in production.

The other worlds compress time and have simple retries. Here, the limits are the defaults, and the functions of
`tasks.retries` decide when a flush task runs again and when it gives up. `ModelBreaker` reimplements the Redis
scripts of `tasks.breaker`, because these scripts use the Redis clock instead of the simulated clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ingest.core.limits import Limits
from ingest.testing.simulation.celery import Chord, Fleet, KillPoint
from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.sinks import Item
from ingest.testing.simulation.world import World
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.retries import RetryLater, is_exhausted, retry_wait_seconds
from tasks.settings import Settings
from tasks.wire import done_field

TASK_TIME_SHARE = 0.9  # share of the flush deadline, as in `ingest.reader.dispatch`
OUTAGE_BEGINS_AT = 30.0


@dataclass(slots=True)
class ModelBreaker:
    """The breaker of one sink. All times are seconds on the clock of the simulated world."""

    settings: Settings
    opened_until: float = 0.0
    cool: float = 0.0
    probe_at: float = 0.0
    probe_until: float = 0.0
    window_start: float = -1e9
    failed: int = 0
    worked: int = 0

    def request(self, now: float) -> tuple[str, float]:
        """Returns the permit and, if the breaker is open, the seconds to wait."""
        if not self.opened_until:
            return "closed", 0.0
        if now < self.opened_until:
            return "open", self.opened_until - now
        if now < self.probe_until:
            return "open", min(self.probe_until - now, self.cool)
        self.probe_at, self.probe_until = now, now + self.settings.breaker_cool_seconds_max
        return "probe", 0.0

    def report(self, permit: str, now: float, *, worked: bool) -> float:
        """Records a result. Returns the seconds until the next probe, or 0 if the breaker is closed."""
        settings = self.settings
        if permit == "probe":
            if not self.opened_until:
                return 0.0
            if worked:
                self._reset()
                return 0.0
            self.cool = min(self.cool * 2, settings.breaker_cool_seconds_max)
            self.opened_until, self.probe_until = max(self.probe_at + self.cool, now), 0.0
            return max(self.opened_until - now, 0.01)
        if self.opened_until:
            return max(self.opened_until - now, 0.01)
        if now - self.window_start > settings.breaker_window_seconds:
            self._reset()
            if worked:
                return 0.0
            self.window_start = now
        elif worked and not self.failed:
            return 0.0
        self.worked += worked
        self.failed += not worked
        if self.failed >= settings.breaker_failures_min and self.failed > self.worked:
            self.cool = settings.breaker_cool_seconds
            self.opened_until = now + self.cool
            return self.cool
        return 0.0

    def _reset(self) -> None:
        self.opened_until = self.cool = self.probe_at = self.probe_until = 0.0
        self.window_start, self.failed, self.worked = -1e9, 0, 0


@dataclass(slots=True)
class PatientFleet(Fleet):
    """A fleet whose tasks wait for the breaker and between retries like the real tasks (`tasks.retries`).

    `hang_seconds`: duration of a call that fails; 0 if sinks refuse at once. `calls` and `writes`: the times of
    all calls and of the successful calls, per sink.
    """

    settings: Settings = field(default_factory=Settings)
    deadline_seconds: float = Limits().flush_deadline_seconds
    hang_seconds: float = 0.0
    breakers: dict[str, ModelBreaker] = field(default_factory=dict)
    calls: dict[str, list[float]] = field(default_factory=dict)
    writes: dict[str, list[float]] = field(default_factory=dict)
    _until: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def start(self, chord: Chord, count: int | None = None) -> None:
        self._until[self._key(chord)] = self.timeline.now + TASK_TIME_SHARE * self.deadline_seconds
        Fleet.start(self, chord, count)

    @staticmethod
    def _key(chord: Chord) -> tuple[Any, ...]:
        return chord.batch_id, chord.epoch, chord.stage, chord.attempt

    def _write(
        self, chord: Chord, name: str, tries: int, items: tuple[Item, ...], death: KillPoint | None
    ) -> None:
        sink, now = name.split("/")[1], self.timeline.now
        breaker = self.breakers.setdefault(sink, ModelBreaker(self.settings))
        permit, wait_seconds = breaker.request(now)
        if permit == "open":
            self._put_off(chord, name, tries, RetryLater("open", probe_seconds=wait_seconds, counts=False))
            return
        self.calls.setdefault(sink, []).append(now)
        self.check_write(sink, items, chord.key, name)
        try:
            self.sinks.write(sink, items, f"{chord.key}/{name}", now)
        except PermanentSinkError as refusal:
            breaker.report(permit, now, worked=True)
            self._count_finished_task(chord, name, str(refusal))
        except TransientSinkError:
            self.timeline.after(self.hang_seconds, self._failed, chord, name, tries, permit)
        else:
            breaker.report(permit, now, worked=True)
            self.writes.setdefault(sink, []).append(now)
            self.redis.batches.setdefault(chord.key, {})[done_field(name)] = "1"
            self._count_finished_task(chord, name, "")

    def _failed(self, chord: Chord, name: str, tries: int, permit: str) -> None:
        breaker = self.breakers[name.split("/")[1]]
        probe_seconds = breaker.report(permit, self.timeline.now, worked=False)
        self._put_off(chord, name, tries, RetryLater("503", probe_seconds=probe_seconds))

    def _put_off(self, chord: Chord, name: str, tries: int, retry_later: RetryLater) -> None:
        remaining_seconds = self._until[self._key(chord)] - self.timeline.now
        wait_seconds = retry_wait_seconds(tries, retry_later, self.settings)
        if is_exhausted(tries, retry_later, wait_seconds, remaining_seconds, self.settings):
            self._count_finished_task(chord, name, str(retry_later))
        else:
            self._push(chord, name, tries + retry_later.counts, wait_seconds)


@dataclass(frozen=True, slots=True)
class Outage:
    """What happens to the sinks, from OUTAGE_BEGINS_AT on: `sinks` fail for `seconds`. `misconfigured`: they
    respond, but refuse everything. `hang_seconds`: time after which a call fails.
    """

    sinks: tuple[str, ...]
    seconds: float = 1800.0
    misconfigured: bool = False
    hang_seconds: float = 0.0
    messages: int = 400
    readers: int = 2

    @property
    def ends_at(self) -> float:
        return OUTAGE_BEGINS_AT + self.seconds


def outage_world(seed: int, outage: Outage) -> tuple[World, PatientFleet]:
    """Returns a world that has this outage and no other fault, and its fleet. Messages arrive until the end."""
    shape = replace(
        Shape.draw(seed),
        faults=(),
        limits=Limits(),
        latest=False,
        static=False,
        readers=outage.readers,
        partitions=3,
        messages=outage.messages,
        faults_end_at=outage.ends_at / 0.9,
    )
    world = World(shape)
    fleet = PatientFleet(
        world.timeline,
        world.dice,
        world.redis,
        world.sinks,
        world.trace,
        shape.visibility_seconds,
        world.checkers.check_write,
        hang_seconds=outage.hang_seconds,
    )
    world.fleet = fleet
    until = world.sinks.misconfigured_until if outage.misconfigured else world.sinks.down_until
    world.timeline.after(OUTAGE_BEGINS_AT, until.update, dict.fromkeys(outage.sinks, outage.ends_at))
    return world, fleet


def first_after(times: Sequence[float], moment: float) -> float:
    """Returns the seconds from `moment` to the earliest of `times` that is not earlier than `moment`."""
    return min(time for time in times if time >= moment) - moment
