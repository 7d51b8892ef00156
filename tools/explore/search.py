"""Breadth-first search of all states of a model.

Different states never share a number, so no hash collision can hide a state. States that require fewer faults are
expanded first, then those nearer to the start. A counterexample therefore has as few faults as possible, and is
among the shortest with that number of faults. Each state is visited once, on a path that reaches it with the
fewest faults. Reaching the state again with more faults would leave fewer faults for later steps, and could not
make further states reachable.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

STATES_PER_PROGRESS_REPORT = 20_000


class Model(Protocol):
    """Interface that a model implements so that it can be searched."""

    @property
    def start(self) -> int:
        """The first state."""

    def steps(self, state: int, faults_left: int) -> Iterator[tuple[int, int]]:
        """Yields (label, next state) for every possible next event. A negative next state means that the event
        violates an invariant.

        `faults_left`: number of faults that may still occur in this run. If it is 0, only events that are not
        faults are returned.
        """

    def is_done(self, state: int) -> bool:
        """Returns True if all work is done."""

    def is_fault(self, label: int) -> bool:
        """Returns True if the step is a fault. Faults are optional in a run."""

    def broken(self, state: int) -> str:
        """Returns the violated invariant. `state`: the negative state that `steps` yielded for the violation."""

    def describe(self, path: list[tuple[int, int]]) -> list[str]:
        """Describes a path from the start, one line per step. `path`: each state, and the label of the step from
        it.
        """


@dataclass(slots=True)
class Result:
    """`complete`: every reachable state was visited. `trace` is empty if no invariant was violated."""

    states: int = 0
    steps: int = 0
    depth: int = 0
    done: int = 0
    seconds: float = 0.0
    complete: bool = False
    broken: str = ""
    trace: list[str] = field(default_factory=list)


Progress = Callable[[int, int, int], None]


class Search:
    """One search of one model, with a maximum number of faults per run.

    A search needs about 150 bytes of memory per state, and 8 bytes per step.
    """

    def __init__(
        self, model: Model, faults: int = 0, progress: Progress = lambda states, waiting, depth: None
    ) -> None:
        self._model = model
        self._faults = faults
        self._progress = progress
        # Maps each state reached by one more fault to the first step that reaches it, as (from, label).
        self._failed: dict[int, tuple[int, int]] = {}
        self._index: dict[int, int] = {model.start: 0}
        self._states = [model.start]
        self._parents = array("I", [0])
        self._labels = array("I", [0])
        self._depths = array("H", [0])
        # Edges without faults, as (from, to), to check that the end stays reachable.
        self._from, self._to = array("I"), array("I")
        self._done = array("I")

    def run(self) -> Result:
        """Visits every state, or stops at the first violated invariant."""
        result, began = Result(), time.monotonic()
        at = 0
        for used in range(self._faults + 1):
            if result.broken:
                break
            failed, self._failed = self._failed, {}
            for to, (came_from, label) in failed.items():
                if to < 0:
                    self._report(came_from, label, to, result)
                    break
                self._state_number(came_from, label, to)
            while at < len(self._states) and not result.broken:
                if at % STATES_PER_PROGRESS_REPORT == 0:
                    self._progress(len(self._states), len(self._states) - at, self._depths[at])
                self._expand(at, result, self._faults - used)
                at += 1
        result.states, result.depth, result.done = len(self._states), max(self._depths), len(self._done)
        if not result.broken:
            result.complete = True
            self._expect_ends(result)
        result.seconds = time.monotonic() - began
        return result

    def _expand(self, at: int, result: Result, faults_left: int) -> None:
        model, is_fault = self._model, self._model.is_fault
        state = self._states[at]
        if model.is_done(state):
            self._done.append(at)
        for label, following in model.steps(state, faults_left):
            result.steps += 1
            if following < 0 and not is_fault(label):
                self._report(at, label, following, result)
                return
            if is_fault(label):
                if following not in self._index:
                    self._failed.setdefault(following, (at, label))
                continue
            known = self._state_number(at, label, following)
            if known != at:
                self._from.append(at)
                self._to.append(known)

    def _report(self, at: int, label: int, broken: int, result: Result) -> None:
        """Stores a counterexample: the path to a state, and the step from it that violates an invariant."""
        result.broken = self._model.broken(broken)
        path = [*self._path(at), (self._states[at], label)]
        result.trace = [*self._model.describe(path), result.broken]

    def _state_number(self, came_from: int, label: int, state: int) -> int:
        """Returns the index of a state. A new state gets the next index."""
        known = self._index.get(state)
        if known is None:
            known = self._index[state] = len(self._states)
            self._states.append(state)
            self._parents.append(came_from)
            self._labels.append(label)
            self._depths.append(self._depths[came_from] + 1)
        return known

    def _path(self, at: int) -> list[tuple[int, int]]:
        path: list[tuple[int, int]] = []
        while at:
            label, at = self._labels[at], self._parents[at]
            path.append((self._states[at], label))
        return path[::-1]

    def _expect_ends(self, result: Result) -> None:
        """Checks that the end can be reached from every state without another fault."""
        stuck = self._first_without_end()
        if stuck is not None:
            result.broken = "no further order of events makes all messages durable and committed"
            result.trace = [*self._model.describe(self._path(stuck)), result.broken]

    def _first_without_end(self) -> int | None:
        """Finds the state nearest to the start from which no done state is reachable, by a backward search."""
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
