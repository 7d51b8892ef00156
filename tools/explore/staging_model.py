"""The model of the workers: one batch in two stages, staged in Redis, flushed by chords and reported by done
marks.

A reader dispatches the batch, and a successor may dispatch it again. Workers run the tasks of the batch in
parallel, one worker per delivery of a task. The callback of a chord reports to the reader. The reader, workers and
callbacks run the real code (`tools.explore.programs`) on one Redis hash (`tools.explore.hashes`), one round trip
at a time. Work between two round trips is invisible to other programs, so it is part of the step of the preceding
round trip.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tools.explore.hashes import BatchHash, Effect, perform
from tools.explore.numbers import Numbers
from tools.explore.programs import TASKS, Chord, Program, Programs, tasks_of

READERS = 2
WRITES_MAX = 2  # more would be equivalent
NAMES = tuple(TASKS)
DATADOG = NAMES.index("rows/datadog/0")


class RunningProgram(NamedTuple):
    """A program and the responses that it has received.

    `marked`: the task of this program had a done mark before the program started.
    """

    program: Program
    answers: tuple[object, ...] = ()
    marked: bool = False


class StartedChord(NamedTuple):
    """A started chord, and its unfinished tasks."""

    chord: Chord
    left: frozenset[str]


class Completion(NamedTuple):
    """An entry in the stream of the reader that started the chord."""

    chord: Chord
    done: bool


class World(NamedTuple):
    """A state of the model. `chord`: the chord that the reader dispatches or waits for; None once both stages are
    durable.

    `reader`: number of the current reader process. `settled`: the batch is settled, and its staged data was
    discarded or lost. `writes`: number of writes, by task. `queue`: tasks that no worker has started, each with
    its number of tries so far. `ends`: chords whose callback is queued. `faulty`: a fault has occurred.
    """

    reader: int = 0
    chord: Chord | None = Chord(0, False, 1)
    waiting: bool = False
    settled: bool = False
    staged: BatchHash = BatchHash()
    writes: tuple[int, ...] = (0,) * len(NAMES)
    out: tuple[StartedChord, ...] = ()
    queue: tuple[Program, ...] = ()
    ends: tuple[Chord, ...] = ()
    running: tuple[RunningProgram, ...] = ()
    stream: tuple[Completion, ...] = ()
    faulty: bool = False


class Event(NamedTuple):
    """A possible event: its description, and the world after it. `broken`: the violated invariant, if any."""

    what: str
    world: World
    broken: str = ""
    fault: bool = False


class StagingModel:
    """A model for `tools.explore.search`."""

    def __init__(self) -> None:
        self._programs = Programs()
        self._worlds: Numbers[World] = Numbers()
        self._what: Numbers[tuple[str, bool]] = Numbers()
        self._broken: list[str] = []
        self.start = self._worlds.of(World())

    @property
    def figures(self) -> str:
        """Returns the number of round trips and results in the search, as text."""
        return f"{len(self._programs)} round trips and results of the real code"

    def steps(self, state: int, faults_left: int) -> Iterator[tuple[int, int]]:
        """Yields all possible next events."""
        world = self._worlds.values[state]
        for event in self._events(world):
            fault = event.fault
            if fault and not faults_left:
                continue
            label = self._what.of((event.what, fault))
            broken = event.broken or judge(world, event.world)
            if broken:
                self._broken.append(broken)
                yield label, -len(self._broken)
            elif event.world != world:
                yield label, self._worlds.of(event.world)

    def is_done(self, state: int) -> bool:
        """Returns True if the batch is durable and settled."""
        return self._worlds.values[state].settled

    def is_fault(self, label: int) -> bool:
        """Returns True if the label belongs to a fault."""
        return self._what.values[label][1]

    def broken(self, state: int) -> str:
        """Returns the violated invariant."""
        return self._broken[-state - 1]

    def describe(self, path: list[tuple[int, int]]) -> list[str]:
        """Returns one line per step."""
        elements = [self._what.values[label] for _, label in path]
        return [f"{'fault: ' if fault else '':7}{what}" for what, fault in elements]

    # Events

    def _events(self, world: World) -> Iterator[Event]:
        yield from self._reader(world)
        for running in world.running:
            left = without(world, running=running)
            yield from self._advance(left, running)
            if running.program.kind == "run":
                yield self._kill(left, running)
        for chord in dict.fromkeys(world.ends):
            yield from self._begin(without(world, ends=chord), Program("report", chord))
        for delivery in dict.fromkeys(world.queue):
            yield from self._deliver(world, delivery)
        for out in world.out:
            for event in self._begin(without(world, out=out), Program("report", out.chord)):
                yield fault(event.world, f"before its tasks returned, {event.what}")
        for completion in dict.fromkeys(world.stream):
            yield from self._receive(world, completion)
        yield fault(without_redis(world), "redis loses all data")
        yield fault(world._replace(staged=BatchHash()), "redis evicts the staged batch")

    def _reader(self, world: World) -> Iterator[Event]:
        chord = world.chord
        if world.reader + 1 < READERS and not world.settled:
            successor = world._replace(
                reader=world.reader + 1, chord=Chord(world.reader + 1, False, 1), waiting=False
            )
            for running in world.running:
                if running.program.kind in ("dispatch", "discard"):
                    successor = without(successor, running=running)
            yield fault(successor, "the reader is killed, and another one cuts the same batch")
        if chord is None:
            if not world.settled and not any(one.program.kind == "discard" for one in world.running):
                yield from self._begin(world, Program("discard", Chord(world.reader, True, 0)))
                yield fault(world._replace(settled=True), "the discard is lost")
        elif not world.waiting:
            yield from self._begin(world._replace(waiting=True), Program("dispatch", chord))
        else:
            again = world._replace(chord=chord._replace(attempt=chord.attempt + 1), waiting=False)
            what = f"the deadline of {as_text(chord)} passes"
            yield Event(what, again) if cannot_complete(world, chord) else fault(again, what)

    def _receive(self, world: World, completion: Completion) -> Iterator[Event]:
        chord, left = world.chord, without(world, stream=completion)
        text = f"{as_text(completion.chord)} is {'durable' if completion.done else 'not durable'}"
        yield fault(left, f"the completion that {text} is lost")
        if chord is None or completion.chord.reader != world.reader or completion.chord.rows != chord.rows:
            yield Event(f"the reader ignores that {text}", left)
            return
        after = left
        if completion.done:
            following = None if chord.rows else Chord(chord.reader, True, chord.attempt + 1)
            after = left._replace(chord=following, waiting=False)
        elif world.waiting and completion.chord == chord:
            after = left._replace(chord=chord._replace(attempt=chord.attempt + 1), waiting=False)
        yield Event(f"the reader is informed that {text}", after)
        again = f"the reader is informed, for the first of two times, that {text}"
        yield fault(after._replace(stream=world.stream), again)

    def _deliver(self, world: World, delivery: Program) -> Iterator[Event]:
        left = without(world, queue=delivery)
        yield from self._begin(left, delivery)
        for event in self._begin(world, delivery):
            yield fault(event.world, f"delivered twice, {event.what}")
        yield fault(left, f"{chord_text(delivery)} is lost")

    def _begin(self, world: World, program: Program) -> Iterator[Event]:
        """Starts a program and runs its first round trip."""
        yield from self._advance(world, RunningProgram(program))

    def _advance(self, left: World, running: RunningProgram) -> Iterator[Event]:
        """Runs the next round trip of a program. `left`: the world after the program was removed from its queue or
        from `running`.
        """
        effect = self._programs.next(running.program, running.answers).effect
        assert effect is not None, running
        if effect.name == "write":
            yield from self._write(left, running)
        else:
            yield from self._perform(left, running, effect)

    def _kill(self, left: World, running: RunningProgram) -> Event:
        program = running.program
        known = any(out.chord == program.chord for out in left.out)
        again = put(left, queue=program) if known else left
        return fault(
            again, f"the worker of {chord_text(program)} is killed after {len(running.answers)} round trips"
        )

    def _perform(self, left: World, running: RunningProgram, effect: Effect) -> Iterator[Event]:
        program, performed = running.program, perform(effect, left.staged)
        marked = running.marked
        if program.kind == "run" and not running.answers:
            marked = left.staged.value(f"done/{program.task}") is not None
        after = left._replace(staged=performed.staged)
        if performed.completion:
            done = json.loads(performed.completion)["kind"] == "done"
            after = put(after, stream=Completion(program.chord, done))
        became = RunningProgram(program, (*running.answers, performed.answer), marked)
        yield from self._resume(after, became, f"{chord_text(program)}: round trip {len(became.answers)}")

    def _resume(self, left: World, running: RunningProgram, what: str) -> Iterator[Event]:
        """Resumes a program after a response. The program then waits for the next response, or ends."""
        following = self._programs.next(running.program, running.answers)
        if following.effect is not None:
            yield Event(what, put(left, running=running))
            return
        for event in self._end(left, running.program, following.result):
            yield event._replace(what=f"{what}, {event.what}")

    def _write(self, left: World, running: RunningProgram) -> Iterator[Event]:
        task = running.program.task
        number = NAMES.index(task)
        broken = f"{task} is written by a run that found its mark" if running.marked else ""
        if task not in tasks_of(False) and not all(left.writes[NAMES.index(one)] for one in tasks_of(False)):
            broken = f"{task} is written before the blobs are durable"
        count = min(WRITES_MAX, left.writes[number] + 1)
        written = left._replace(writes=(*left.writes[:number], count, *left.writes[number + 1 :]))
        for event in self._resume(written, running._replace(answers=(*running.answers, "")), f"{task} is written"):
            yield event._replace(broken=event.broken or broken)
        failed = running._replace(answers=(*running.answers, "503"))
        for event in self._resume(written, failed, f"{task} is written, but the response is lost"):
            yield fault(event.world, event.what)
        for event in self._resume(left, failed, f"{task}: its sink fails"):
            yield fault(event.world, event.what)

    def _end(self, left: World, program: Program, result: object) -> Iterator[Event]:
        what = f"and ends: {result}"
        if program.kind == "discard":
            kept = any(left.staged.value(name) is not None for name in NAMES)
            broken = "payloads of a settled batch remain" if kept and not left.faulty else ""
            yield Event(what, left._replace(settled=True), broken)
        elif program.kind == "dispatch":
            yield from self._started(left, program.chord, result)
        elif program.kind == "report":
            yield Event(what, left)
        elif result == "again":
            yield Event(what, put(left, queue=program._replace(tries=program.tries + 1)))
        else:
            yield from self._returned(left, program, what, failed=result != "done")

    def _started(self, left: World, chord: Chord, missing: object) -> Iterator[Event]:
        assert isinstance(missing, tuple)
        if not missing:
            yield Event(f"{as_text(chord)} is already durable", put(left, stream=Completion(chord, True)))
            return
        after = put(left, out=StartedChord(chord, frozenset(missing)))
        for name in missing:
            after = put(after, queue=Program("run", chord, name))
        yield Event(f"{as_text(chord)} starts {', '.join(missing)}", after)

    def _returned(self, left: World, program: Program, what: str, *, failed: bool) -> Iterator[Event]:
        out = next((one for one in left.out if one.chord == program.chord), None)
        if out is None:
            yield Event(what, left)
            return
        rest = out.left - {program.task}
        after = without(left, out=out)
        if rest and not failed:
            yield Event(what, put(after, out=out._replace(left=rest)))
            return
        yield Event(what, put(after, ends=out.chord))
        yield fault(after, f"{what}; the end of the chord is lost")


# Worlds


def judge(before: World, after: World) -> str:
    """Returns the invariant that a step violates, according to the contents of the sinks, or an empty string."""
    if after.staged.exists and not after.staged.expires:
        return "the staged batch never expires"
    for number, name in enumerate(NAMES):
        if after.staged.value(f"done/{name}") is not None and not after.writes[number]:
            return f"{name} is marked, but was never written"
    for completion in after.stream:
        missing = [name for name in tasks_of(completion.chord.rows) if not after.writes[NAMES.index(name)]]
        if completion.done and missing:
            return f"{as_text(completion.chord)} is reported as durable, but {missing[0]} is not"
    if after.writes[DATADOG] > 1 and not after.faulty:
        return "packets are sent twice without a fault"
    return ""


def fault(world: World, what: str) -> Event:
    """Returns a fault event."""
    return Event(what, world._replace(faulty=True), fault=True)


def put(world: World, **more: object) -> World:
    """Returns a copy of the world, with the given element added to each of the given fields."""
    bags: dict[str, Any] = {name: bag((*getattr(world, name), one)) for name, one in more.items()}
    return world._replace(**bags)


def without(world: World, **removed: object) -> World:
    """Returns a copy of the world, with the given element removed from each of the given fields."""
    bags: dict[str, Any] = {}
    for name, one in removed.items():
        elements = list(getattr(world, name))
        elements.remove(one)
        bags[name] = tuple(elements)
    return world._replace(**bags)


_first_seen: dict[object, int] = {}


def bag(elements: tuple[object, ...]) -> tuple[object, ...]:
    """Sorts elements in the order in which they were first seen, so that equal multisets become equal tuples."""
    return tuple(sorted(elements, key=lambda element: _first_seen.setdefault(element, len(_first_seen))))


def without_redis(world: World) -> World:
    """Returns the world after Redis restarted empty. The hash, queues, counters and streams are lost. Running
    callbacks are removed, and all other running programs continue.
    """
    running = tuple(one for one in world.running if one.program.kind != "report")
    return world._replace(staged=BatchHash(), out=(), queue=(), ends=(), stream=(), running=running)


def cannot_complete(world: World, chord: Chord) -> bool:
    """Returns True if no running program or queued task can still report on this chord."""
    programs = [*world.queue, *(one.program for one in world.running if one.program.kind != "discard")]
    reporting = [*world.ends, *(one.chord for one in world.stream)]
    return chord not in reporting and all(one.chord != chord for one in programs)


def as_text(chord: Chord) -> str:
    """Describes a chord: `rows, attempt 2 of reader A`."""
    return f"{chord.stage}, attempt {chord.attempt} of reader {'AB'[chord.reader]}"


def chord_text(program: Program) -> str:
    """Describes a program: `run of rows/datadog/0 of rows, attempt 2 of reader A`."""
    return f"{program.kind} of {f'{program.task} of ' if program.task else ''}{as_text(program.chord)}"
