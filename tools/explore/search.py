"""Breadth-first search through every state of a model, to the last one.

A state is an exact number: two different states never share one, so no hash collision can hide a
state. States of one distance from the start are expanded before those of the next, so the counterexample
found is a shortest one.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

PROGRESS_STATES = 20_000


class Model(Protocol):
    """Interface of a searched model."""

    @property
    def start(self) -> int:
        """The first state."""

    def steps(self, state: int) -> Iterator[tuple[int, int]]:
        """(label, next state) of every possible next event. A negative next state is a violated invariant."""

    def is_done(self, state: int) -> bool:
        """Whether all work is done."""

    def is_fault(self, label: int) -> bool:
        """Whether that step is a fault, which is optional in a run."""

    def broken(self, state: int) -> str:
        """The violation of a negative state."""

    def tell(self, labels: list[int]) -> list[str]:
        """A path from the start, as readable lines."""


@dataclass(slots=True)
class Result:
    """`complete`: every reachable state was visited. `story` is empty if no invariant was violated."""

    states: int = 0
    steps: int = 0
    depth: int = 0
    done: int = 0
    seconds: float = 0.0
    complete: bool = False
    broken: str = ""
    story: list[str] = field(default_factory=list)


Progress = Callable[[int, int, int], None]


class Search:
    """One search of one model. Memory: about 150 bytes per state, and 8 per step."""

    def __init__(self, model: Model, progress: Progress = lambda states, waiting, depth: None) -> None:
        self._model = model
        self._progress = progress
        self._index: dict[int, int] = {model.start: 0}
        self._states = [model.start]
        self._parents = array("I", [0])
        self._labels = array("I", [0])
        self._depths = array("H", [0])
        # Edges without faults, as (from, to), to check that the end stays reachable.
        self._from, self._to = array("I"), array("I")
        self._done = array("I")

    def run(self) -> Result:
        """Visits every state, or ends at the first violated invariant."""
        result, began = Result(), time.monotonic()
        at = 0
        while at < len(self._states) and not result.broken:
            if at % PROGRESS_STATES == 0:
                self._progress(len(self._states), len(self._states) - at, self._depths[at])
            self._expand(at, result)
            at += 1
        result.states, result.depth, result.done = len(self._states), max(self._depths), len(self._done)
        if not result.broken:
            result.complete = True
            self._expect_ends(result)
        result.seconds = time.monotonic() - began
        return result

    def _expand(self, at: int, result: Result) -> None:
        model, index, states = self._model, self._index, self._states
        state, is_fault = states[at], model.is_fault
        if model.is_done(state):
            self._done.append(at)
        for label, following in model.steps(state):
            result.steps += 1
            if following < 0:
                result.broken = model.broken(following)
                result.story = [*model.tell([*self._path(at), label]), result.broken]
                return
            known = index.get(following)
            if known is None:
                known = index[following] = len(states)
                states.append(following)
                self._parents.append(at)
                self._labels.append(label)
                self._depths.append(self._depths[at] + 1)
            if known != at and not is_fault(label):
                self._from.append(at)
                self._to.append(known)

    def _path(self, at: int) -> list[int]:
        labels: list[int] = []
        while at:
            labels.append(self._labels[at])
            at = self._parents[at]
        return labels[::-1]

    def _expect_ends(self, result: Result) -> None:
        """Checks that the end can be reached from every state without another fault."""
        stuck = self._first_without_end()
        if stuck is not None:
            result.broken = "from here no order of events makes everything durable and committed"
            result.story = [*self._model.tell(self._path(stuck)), result.broken]

    def _first_without_end(self) -> int | None:
        """The state nearest to the start from which no done state is reachable, by a backward search."""
        count = len(self._states)
        starts = array("I", bytes(4 * (count + 1)))
        for to in self._to:
            starts[to + 1] += 1
        for number in range(count):
            starts[number + 1] += starts[number]
        into, filled = array("I", bytes(4 * len(self._to))), array("I", starts)
        for came_from, to in zip(self._from, self._to, strict=True):
            into[filled[to]] = came_from
            filled[to] += 1
        ends = bytearray(count)
        waiting = list(self._done)
        for at in waiting:
            ends[at] = 1
        while waiting:
            to = waiting.pop()
            for came_from in into[starts[to] : starts[to + 1]]:
                if not ends[came_from]:
                    ends[came_from] = 1
                    waiting.append(came_from)
        stuck = ends.find(0)
        return None if stuck < 0 else stuck
