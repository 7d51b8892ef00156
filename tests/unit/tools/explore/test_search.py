"""The search visits every state, returns the shortest path to a violation, and finds dead ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tools.explore.search import Search


class Graph:
    """A hand-written model: state -> (label, next state); a negative state violates the invariant.

    Labels of 90 and above are faults.
    """

    start = 0

    def __init__(self, edges: Mapping[int, Sequence[tuple[int, int]]], done: Sequence[int]) -> None:
        self._edges = edges
        self._done = done

    def steps(self, state: int, faults_left: int) -> Iterator[tuple[int, int]]:
        yield from (step for step in self._edges.get(state, ()) if faults_left or not self.is_fault(step[0]))

    def is_done(self, state: int) -> bool:
        return state in self._done

    def is_fault(self, label: int) -> bool:
        return label >= 90

    def broken(self, state: int) -> str:
        return f"broken {-state}"

    def describe(self, path: list[tuple[int, int]]) -> list[str]:
        return [str(label) for _, label in path]


def test_every_state_is_visited_once() -> None:
    """If two paths lead to the same state, the steps of both are counted, but the state is counted once."""
    result = Search(Graph({0: [(1, 1), (2, 2)], 1: [(3, 3)], 2: [(4, 3)]}, [3])).run()

    assert (result.states, result.steps, result.depth, result.done) == (4, 4, 2, 1)
    assert result.complete
    assert result.trace == []


def test_the_shortest_path_to_a_violation_is_returned() -> None:
    """The shortest path to a violation is returned, even if the model lists a longer path first."""
    edges = {0: [(1, 1), (5, 5)], 1: [(2, 2)], 2: [(3, -7)], 5: [(6, -8)]}

    result = Search(Graph(edges, [])).run()

    assert result.trace == ["5", "6", "broken 8"]
    assert not result.complete


def test_a_state_from_which_the_end_cannot_be_reached_is_found() -> None:
    """State 2 of the graph, which loops forever, is reported because the end cannot be reached from it."""
    result = Search(Graph({0: [(1, 1), (2, 2)], 2: [(3, 4)], 4: [(4, 2)]}, [1])).run()

    assert result.trace[:-1] == ["2"]
    assert "no further order of events" in result.broken


def test_a_fault_is_not_a_path_to_the_end() -> None:
    """A state that only a fault can leave is a dead end."""
    assert Search(Graph({0: [(90, 1)]}, [1]), 1).run().broken
    assert not Search(Graph({0: [(89, 1)]}, [1])).run().broken


def test_the_violation_with_the_fewest_faults_is_reported() -> None:
    """The violation with the fewest faults is reported, even if a path with more faults is shorter."""
    edges = {0: [(90, -1), (1, 1)], 1: [(1, 2)], 2: [(1, -2)], 3: [(91, -3)]}
    assert Search(Graph(edges, []), 1).run().trace == ["1", "1", "1", "broken 2"]

    edges = {0: [(90, 3), (1, 1)], 1: [(1, 2)], 2: [(1, 4)], 3: [(91, -3)], 4: []}
    assert Search(Graph(edges, [1, 2, 3, 4]), 1).run().complete
    assert Search(Graph(edges, [4]), 2).run().trace == ["90", "91", "broken 3"]


def test_a_state_is_expanded_with_the_fewest_faults_that_lead_to_it() -> None:
    """Each state is expanded from the path that reaches it with the fewest faults.

    State 2 can be reached from the start in one step with a fault, or in two steps without one; the longer path
    leaves the fault for a later step.
    """
    edges = {0: [(90, 2), (1, 1)], 1: [(1, 2)], 2: [(91, -4)]}

    result = Search(Graph(edges, [2]), 1).run()

    assert result.trace == ["1", "1", "91", "broken 4"]
