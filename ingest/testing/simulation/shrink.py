"""Runs a world, and finds the smallest world that violates the same invariant."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from traceback import format_exc

from ingest.testing.simulation.shape import Shape
from ingest.testing.simulation.trace import Violation
from ingest.testing.simulation.world import World

WORLDS_MAX = 300


@dataclass(frozen=True)
class Outcome:
    """The result of simulating one world. `checker` is empty if every invariant held."""

    shape: Shape
    simulated_seconds: float
    marks: dict[str, int]
    checker: str = ""
    text: str = ""
    trace: tuple[str, ...] = field(default=(), repr=False)


def run_world(shape: Shape, *, recording: bool = False) -> Outcome:
    """Runs one world. An exception in our code also counts as a failure."""
    world = World(shape, recording=recording)
    checker = text = ""
    try:
        world.run()
    except Violation as violation:
        checker, text = violation.checker, violation.text
    except Exception as crash:
        checker, text = f"crash:{type(crash).__name__}", format_exc(limit=-6)
    return Outcome(shape, world.timeline.now, dict(world.trace.marks), checker, text, tuple(world.trace.lines))


def shortest(failed: Outcome) -> Outcome:
    """Finds the same failure with fewer faults, messages, readers, partitions and seconds, and records its
    history."""
    best, worlds = failed, 0
    progress = True
    while progress:
        progress = False
        for shape in _smaller_shapes(best.shape):
            worlds += 1
            if worlds > WORLDS_MAX:
                break
            tried = run_world(shape)
            if tried.checker == failed.checker:
                best, progress = tried, True
                break
    return run_world(best.shape, recording=True)


def _smaller_shapes(shape: Shape) -> Iterator[Shape]:
    """Yields smaller worlds, the largest reductions first."""
    if shape.messages > 1:
        yield replace(shape, messages=shape.messages // 2)
    if shape.readers > 1:
        yield replace(shape, readers=1)
    if shape.partitions > 1:
        yield replace(shape, partitions=1)
    for half in (shape.faults[: len(shape.faults) // 2], shape.faults[len(shape.faults) // 2 :]):
        if len(shape.faults) > 2:
            yield replace(shape, faults=half)
    for fault in shape.faults:
        yield replace(shape, faults=tuple(other for other in shape.faults if other is not fault))
    if shape.faults_end_at > 1.0:
        yield replace(shape, faults_end_at=shape.faults_end_at * 0.75)
    if shape.messages > 1:
        yield replace(shape, messages=shape.messages - 1)
    if shape.gaps:
        yield replace(shape, gaps=False)
