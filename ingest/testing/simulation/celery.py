"""Simulates the flush fleet: queues, workers that die, chords that lose their body, and late completions.

A task has the steps of `tasks/flush.py`: if its mark is set, the task returns. Otherwise, the task writes, sets
the mark, and is counted by the chord. The body reports success only if every mark of the stage is set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from ingest.core import events as on
from ingest.core.model import Stage
from ingest.testing.simulation.clock import Timeline
from ingest.testing.simulation.faults import Dice, Fault
from ingest.testing.simulation.redis import Redis
from ingest.testing.simulation.sinks import Item, Sinks
from ingest.testing.simulation.trace import Trace
from tasks.errors import PermanentSinkError, TransientSinkError
from tasks.wire import done_field, known_sinks

RETRIES_MAX = 2


class KillPoint(Enum):
    """The points at which a worker can be killed."""

    BEFORE_WRITE = auto()
    AFTER_WRITE = auto()
    AFTER_MARK = auto()


KILL_POINTS = tuple(KillPoint)

Deliver = Callable[[on.Event], None]
Written = Callable[[str, tuple[Item, ...], str, str], None]


@dataclass(slots=True)
class Chord:
    """A chord: one dispatch of one stage.

    The counter of a chord is lost if Redis restarts empty, which begins the next `generation`.
    """

    batch_id: str
    epoch: int
    stage: Stage
    attempt: int
    key: str
    names: tuple[str, ...]
    generation: int
    deliver: Deliver
    returned: set[str] = field(default_factory=set)
    error: str = ""


@dataclass(slots=True)
class Fleet:
    """The flush fleet, with unlimited capacity. Tasks can be lost, repeated and delayed."""

    timeline: Timeline
    dice: Dice
    redis: Redis
    sinks: Sinks
    trace: Trace
    visibility_seconds: float
    check_write: Written

    def start(self, chord: Chord, count: int | None = None) -> None:
        """Puts the chord's tasks on their queues, or only the first `count` if the connection breaks."""
        for name in chord.names[:count]:
            self._push(chord, name, 0, self.dice.uniform(0.01, 0.2))

    def _push(self, chord: Chord, name: str, tries: int, seconds: float) -> None:
        self.timeline.after(seconds, self._run, chord, name, tries)

    def _run(self, chord: Chord, name: str, tries: int) -> None:
        if self.redis.unavailable:
            self._push(chord, name, tries, 0.3)
            return
        if chord.generation != self.redis.generation or self.dice.occurs(Fault.TASK_LOST):
            return
        seconds = self.dice.uniform(0.02, 0.3)
        death: KillPoint | None = None
        if self.dice.occurs(Fault.WORKER_KILLED):
            death = KILL_POINTS[self.dice.pick(Fault.WORKER_KILLED, len(KILL_POINTS))]
            self._push(chord, name, tries, self.visibility_seconds)
        if self.dice.occurs(Fault.TASK_DUPLICATED):
            self._push(chord, name, tries, 0.1)
        if self.dice.occurs(Fault.WORKER_ZOMBIE):
            seconds = self.dice.uniform(4.0, 15.0)
            self._push(chord, name, tries, self.visibility_seconds)
        staged = self.redis.batches.get(chord.key, {})
        if done_field(name) in staged:
            self.trace.mark("mark_spared_a_write")
            self._count_finished_task(chord, name, "")
        elif name not in staged:
            self._count_finished_task(chord, name, "payload missing")
        else:
            self.timeline.after(seconds, self._write, chord, name, tries, staged[name], death)

    def _write(
        self, chord: Chord, name: str, tries: int, items: tuple[Item, ...], death: KillPoint | None
    ) -> None:
        if death is KillPoint.BEFORE_WRITE:
            return
        sink = name.split("/")[1]
        self.check_write(sink, items, chord.key, name)
        try:
            self.sinks.write(sink, items, f"{chord.key}/{name}", self.timeline.now)
        except PermanentSinkError as refusal:
            self._count_finished_task(chord, name, str(refusal))
            return
        except TransientSinkError as failure:
            self._retry(chord, name, tries, str(failure))
            return
        if death is KillPoint.AFTER_WRITE:
            return
        if self.redis.unavailable:
            self._retry(chord, name, tries, "redis unavailable")
            return
        self.redis.batches.setdefault(chord.key, {})[done_field(name)] = "1"
        if death is None:
            self._count_finished_task(chord, name, "")

    def _retry(self, chord: Chord, name: str, tries: int, error: str) -> None:
        if tries < RETRIES_MAX:
            self._push(chord, name, tries + 1, 0.3 * 2**tries)
        else:
            self._count_finished_task(chord, name, error)

    def _count_finished_task(self, chord: Chord, name: str, error: str) -> None:
        """Counts one task of a chord. The last counted task starts the chord's body or errback."""
        if self.redis.unavailable or chord.generation != self.redis.generation or name in chord.returned:
            return
        chord.returned.add(name)
        chord.error = chord.error or error
        last = len(chord.returned) == len(chord.names)
        if not last and not self.dice.occurs(Fault.BODY_EARLY):
            return
        if not self.dice.occurs(Fault.BODY_LOST):
            self.timeline.after(self.dice.uniform(0.01, 0.1), self._complete, chord)

    def _complete(self, chord: Chord) -> None:
        if self.redis.unavailable:
            self.timeline.after(0.3, self._complete, chord)
            return
        if chord.generation != self.redis.generation:
            return
        staged = self.redis.batches.get(chord.key, {})
        missing = [name for name in chord.names if done_field(name) not in staged]
        if chord.error or missing:
            error = chord.error or f"marks missing: {missing}"
            sinks = known_sinks(name.split("/")[1] for name in missing)
            self._add_completion(
                chord, on.FlushFailed(chord.batch_id, chord.epoch, chord.stage, chord.attempt, error, sinks)
            )
        else:
            self._add_completion(chord, on.FlushSucceeded(chord.batch_id, chord.epoch, chord.stage))

    def _add_completion(self, chord: Chord, event: on.Event) -> None:
        """Adds an entry to the reader's stream in Redis."""
        if self.dice.occurs(Fault.COMPLETION_LOST):
            return
        seconds = self.dice.uniform(0.01, 0.1)
        if self.dice.occurs(Fault.COMPLETION_LATE):
            seconds += self.dice.uniform(1.0, 10.0)
        self.timeline.after(seconds, self._deliver, chord, event)
        if self.dice.occurs(Fault.COMPLETION_DUPLICATED):
            self.timeline.after(seconds + self.dice.uniform(0.0, 3.0), self._deliver, chord, event)

    def _deliver(self, chord: Chord, event: on.Event) -> None:
        if self.redis.unavailable:
            self.timeline.after(0.3, self._deliver, chord, event)
        elif chord.generation == self.redis.generation:
            chord.deliver(event)
